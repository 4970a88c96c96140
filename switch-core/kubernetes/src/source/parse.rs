//! Converts one file to objects: the parts of its text, and the definitions in each.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::folder::LoadError;
use crate::object::{Found, find_item, listed};
use crate::report::Source;
use crate::text::{self, Part, SyntaxError};

/// Splits a file's text.
pub(super) fn split<'t>(path: &Path, text: &'t str) -> Result<Vec<Part<'t>>, LoadError> {
    let json = path.extension().is_some_and(|extension| extension == "json");
    text::split(text, json).map_err(|error| syntax(path, error))
}

/// The position of a part.
pub(super) fn source(file: &Arc<Path>, part: &Part<'_>) -> Source {
    Source { file: file.clone(), document: part.document, line: part.line }
}

/// The value of a part of `whole`; null if it is empty.
pub(super) fn value(path: &Path, whole: &str, part: &Part<'_>) -> Result<Value, LoadError> {
    part.parse(whole).map_err(|error| syntax(path, error))
}

/// The definitions in a part of `whole`.
pub(super) fn parse(
    file: &Arc<Path>,
    whole: &str,
    part: &Part<'_>,
    each: &mut dyn FnMut(Found),
) -> Result<(), LoadError> {
    let value = value(file, whole, part)?;
    if value.is_null() {
        return Ok(());
    }
    let list = part.list.as_deref().and_then(|(version, kind)| listed(version, kind));
    find_item(value, Some(&source(file, part)), list, each);
    Ok(())
}

fn syntax(path: &Path, error: SyntaxError) -> LoadError {
    LoadError::Syntax {
        path: path.to_owned(),
        line: error.line,
        column: error.column,
        message: error.message,
    }
}
