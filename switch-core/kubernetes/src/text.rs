//! Parses text to values: YAML or JSON documents, with limits on depth, size and alias expansion,
//! and without duplicate keys. Independent of Kubernetes, except that lists have items.

use std::fmt;
use std::sync::Arc;

use hashbrown::HashSet;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

/// Maximum nesting of lists and maps. Custom resource definitions, which are parsed but ignored,
/// have about sixty levels.
const MAX_DEPTH: usize = 128;

/// A part of a text that is parsed separately: a document, or an item of a JSON list. The same
/// bytes always give the same value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part<'t> {
    /// Index of the document that it is, or is part of, from 0. Empty documents count.
    pub(crate) document: usize,
    /// The line at which that document begins, from 1.
    pub(crate) line: usize,
    /// The bytes, a slice of the text.
    pub(crate) text: &'t str,
    /// `apiVersion` and `kind` of the list that contains it.
    pub(crate) list: Option<Arc<(String, String)>>,
    json: bool,
}

/// The text is neither YAML nor JSON, or exceeds a limit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// Line, from 1, if known.
    pub(crate) line: Option<usize>,
    /// Column, from 1, if known.
    pub(crate) column: Option<usize>,
    /// What is wrong.
    pub(crate) message: String,
}

/// Splits a text. `json`: the file name says that it is JSON, so it is not parsed as YAML.
pub(crate) fn split(text: &str, json: bool) -> Result<Vec<Part<'_>>, SyntaxError> {
    let text = without_mark(text);
    if json {
        return split_json(text);
    }
    if text.trim_start().starts_with('{') {
        // The JSON parser reads JSON several times faster. A YAML flow mapping begins in the same
        // way; in that case the YAML parser decides and reports errors.
        if let Ok(parts) = split_json(text) {
            return Ok(parts);
        }
    }
    let parts = split_documents(text).into_iter().enumerate();
    let part = |(document, (line, text))| Part { document, line, text, list: None, json: false };
    Ok(parts.map(part).collect())
}

/// The text without a byte order mark.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Whether a text ends where a document should begin, so that it may be truncated.
pub(crate) fn ends_open(text: &str) -> bool {
    let last = text.trim_end().rsplit('\n').next().unwrap_or_default();
    is_marker(last, "---") && last.trim_end() == "---"
}

impl Part<'_> {
    /// Parses the part of `whole`, the text that was split. An empty part is null.
    pub(crate) fn parse(&self, whole: &str) -> Result<Value, SyntaxError> {
        let value = if self.json { parse_json(self.text) } else { parse_yaml_document(self.text) };
        value.map_err(|mut error| {
            // The offset of the part, which is a slice of `whole`.
            let at = (self.text.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize);
            let before = newlines(whole.get(..at).unwrap_or_default());
            error.line = error.line.map(|line| line + before);
            error
        })
    }
}

fn split_json(text: &str) -> Result<Vec<Part<'_>>, SyntaxError> {
    let (mut rest, mut line, mut parts) = (text, 1, Vec::new());
    for document in 0.. {
        let skipped = rest.len() - rest.trim_start().len();
        line += newlines(&rest[..skipped]);
        rest = &rest[skipped..];
        if rest.is_empty() {
            break;
        }
        let mut parser = serde_json::Deserializer::from_str(rest);
        let outline = parser.deserialize_any(Outline).map_err(|error| SyntaxError {
            line: Some(line + error.line().saturating_sub(1)),
            column: (error.column() > 0).then_some(error.column()),
            message: without_position(&error),
        })?;
        let used = parser.into_iter::<de::IgnoredAny>().byte_offset();
        let part = |text, list| Part { document, line, text, list, json: true };
        match outline {
            Some((list, items)) => {
                let list = Some(Arc::new(list));
                parts.extend(items.into_iter().map(|item| part(item.get(), list.clone())));
            }
            None => parts.push(part(&rest[..used], None)),
        }
        line += newlines(&rest[..used]);
        rest = &rest[used..];
    }
    Ok(parts)
}

/// `apiVersion` and `kind` of a list, and its items.
type List<'t> = ((String, String), Vec<&'t RawValue>);

/// Reads a JSON document as far as needed to split a list of objects. Returns `None` for anything
/// else.
struct Outline;

impl<'de> Visitor<'de> for Outline {
    type Value = Option<List<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<de::IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let (mut seen, mut version, mut kind) = (HashSet::new(), String::new(), String::new());
        let mut items = None;
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value::<&RawValue>()?;
            match key.as_str() {
                "items" => items = serde_json::from_str::<Vec<&RawValue>>(value.get()).ok(),
                "apiVersion" => version = serde_json::from_str(value.get()).unwrap_or_default(),
                "kind" => kind = serde_json::from_str(value.get()).unwrap_or_default(),
                _ => {}
            }
            unique(&mut seen, key)?;
        }
        Ok(items.filter(|_| kind.ends_with("List")).map(|items| ((version, kind), items)))
    }
}

/// Rejects a duplicate key.
fn unique<E: de::Error>(seen: &mut HashSet<String>, key: String) -> Result<(), E> {
    if seen.contains(&key) {
        let name = crate::report::quote(&key);
        return Err(E::custom(format_args!("the key {name} occurs twice")));
    }
    seen.insert(key);
    Ok(())
}

/// Parses one JSON value.
pub(crate) fn parse_json(text: &str) -> Result<Value, SyntaxError> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let value = Unique.deserialize(&mut parser).and_then(|value| parser.end().map(|()| value));
    value.map_err(|error| SyntaxError {
        line: Some(error.line()),
        column: (error.column() > 0).then_some(error.column()),
        message: without_position(&error),
    })
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|&byte| byte == b'\n').count()
}

/// `serde_json` appends the position to its messages; it is reported separately.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let tail = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&tail).unwrap_or(&text).to_owned()
}

/// Splits a stream at the lines that begin or end a document. Such a line cannot occur inside a
/// scalar (YAML 1.2.2 section 9.1.2, `c-forbidden`). Returns each document with its first line
/// number.
fn split_documents(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    // Comments and directives (`%YAML 1.2`) before a marker belong to the document that it begins.
    let mut begun = false;
    for (at, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line, "---") {
            if begun {
                parts.push((start_line, &text[start..offset]));
                (start, start_line) = (offset, at + 1);
            }
            begun = true;
        } else if is_marker(line, "...") {
            let end = offset + line.len();
            if begun {
                parts.push((start_line, &text[start..offset]));
            }
            (start, start_line, begun) = (end, at + 2, false);
        } else if !begun {
            begun = !is_prologue(line);
        }
        offset += line.len();
    }
    if begun {
        parts.push((start_line, &text[start..]));
    }
    parts
}

/// `---` or `...` at the start of a line, alone or followed by white space.
fn is_marker(line: &str, marker: &str) -> bool {
    let rest = line.strip_prefix(marker);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Blank, a comment or a directive.
fn is_prologue(line: &str) -> bool {
    line.starts_with('%') || matches!(line.trim_start().chars().next(), None | Some('#'))
}

fn parse_yaml_document(text: &str) -> Result<Value, SyntaxError> {
    if text.lines().all(|line| is_prologue(line) || line.trim_end() == "---") {
        return Ok(Value::Null);
    }
    // JSON in a YAML stream, as written by programs.
    let inner = text.strip_prefix("---").unwrap_or(text).trim_start();
    if inner.starts_with('{')
        && let Ok(value) = parse_json(inner)
    {
        return Ok(value);
    }
    serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(text.len()), |de| {
        Unique.deserialize(de)
    })
    .map_err(|error| {
        let location = error.location();
        let number = |n: u64| usize::try_from(n).ok().filter(|&n| n > 0);
        SyntaxError {
            line: location.and_then(|l| number(l.line())),
            column: location.and_then(|l| number(l.column())),
            message: plain_message(&error),
        }
    })
}

/// The message without positions, which are relative to the start of the document.
fn plain_message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let mut message = text.lines().next().unwrap_or("not YAML");
    for position in [" (defined at ", " at line "] {
        message = message.split_once(position).map_or(message, |(message, _)| message);
    }
    message.replacen("budget breached", "the document exceeds a limit", 1)
}

/// Expansion is limited by the length of the text plus a fixed amount. Aliased values count as if
/// written out.
fn yaml_options(len: usize) -> serde_saphyr::Options {
    let linear = len.saturating_mul(2);
    let events = linear.saturating_add(2_000_000);
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_events: events,
            max_nodes: events,
            max_total_scalar_bytes: linear.saturating_add(16 << 20),
            max_anchors: 50_000,
            max_aliases: 50_000,
            max_merge_keys: 10_000,
            // Generators write one anchor and refer to it from a thousand pods.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 1_000_000,
            max_replay_stack_depth: 16,
        },
        // YAML 1.2: a namespace may be named `y`, a label `on`.
        strict_booleans: true,
        with_snippet: false,
    }
}

/// Reads any value. Rejects a duplicate key in a map, because readers differ in which of the two
/// they use.
struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        // JSON numbers beyond 64 bits are floating-point numbers.
        self.visit_f64(value as f64)
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Unique)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Unique)?;
            if map.contains_key(&key) {
                let name = crate::report::quote(&key);
                return Err(de::Error::custom(format_args!("the key {name} occurs twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests;
