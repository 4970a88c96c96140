//! Manifests as the source of objects.

use std::path::Path;

use podswitch_ingress::{Compiled, Objects, Options, compile};
use podswitch_kubernetes::{LoadError, Values};

/// The manifests at a path.
pub(crate) struct Source {
    values: Values,
    options: Options,
}

impl Source {
    pub(crate) fn new(path: &Path, options: Options) -> Self {
        Self { values: Values::new(path), options }
    }

    /// Reads what changed; returns the routes if anything did.
    pub(crate) fn load(&mut self) -> Result<Option<Compiled>, LoadError> {
        if !self.values.load()? {
            return Ok(None);
        }
        let objects = Objects::from_values(self.values.objects());
        let mut compiled = compile(&objects, &self.options);
        compiled.records.extend(self.values.records().cloned());
        Ok(Some(compiled))
    }

    /// What is wrong with files, whose last content is used.
    pub(crate) fn errors(&self) -> &[String] {
        self.values.errors()
    }
}
