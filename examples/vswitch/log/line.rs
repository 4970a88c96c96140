//! Formats an event as a line: text, or one JSON object.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};

use super::filter::Verbosity;

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// Message and fields of an event.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Said {
    pub(crate) message: String,
    pub(crate) fields: Vec<(&'static str, Value)>,
}

impl Said {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.fields.push((name, value)),
        }
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

/// An event with its metadata, ready to be formatted.
pub(crate) struct Line<'a> {
    /// RFC 3339, UTC, microseconds.
    pub(crate) time: String,
    pub(crate) level: Verbosity,
    pub(crate) node: &'a str,
    pub(crate) target: &'a str,
    pub(crate) said: Said,
}

impl Line<'_> {
    /// The line, including its line feed.
    pub(crate) fn format(self, format: Format) -> Vec<u8> {
        let mut text = match format {
            Format::Text => self.text(),
            Format::Json => self.json(),
        };
        text.push('\n');
        text.into_bytes()
    }

    fn text(self) -> String {
        let level = self.level.name().to_uppercase();
        let Said { message, fields } = self.said;
        let (time, node, target) = (self.time, self.node, self.target);
        let message = on_one_line(&message);
        let mut text = format!("{time} {level:5} {node} {target}: {message}");
        let mut fields = fields.as_slice();
        while let [(name, value), rest @ ..] = fields {
            fields = rest;
            let Some((kind, _)) = change(name) else {
                // Writing to a string does not fail.
                let _ = write!(text, " {name}={}", Shown(value));
                continue;
            };
            let _ = write!(text, " {kind}=");
            // The changes of one kind are combined: pods=+2~1-1.
            let of_kind = |(name, _): &&(&str, Value)| change(name).is_some_and(|it| it.0 == kind);
            let rest: Vec<_> = fields.iter().take_while(of_kind).collect();
            fields = &fields[rest.len()..];
            for (name, value) in std::iter::once(&(*name, value.clone())).chain(rest) {
                let sign = change(name).map_or("", |it| it.1);
                let _ = write!(text, "{sign}{value}");
            }
        }
        text
    }

    fn json(self) -> String {
        let fields: Map<String, Value> =
            self.said.fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let entries = [
            ("time", self.time.into()),
            ("level", self.level.name().into()),
            ("target", self.target.into()),
            ("message", self.said.message.into()),
            ("node", self.node.into()),
            ("fields", fields.into()),
        ];
        // `serde_json` sorts the keys of a `Value`; here the time comes first.
        let entries = entries.map(|(name, value): (_, Value)| format!("\"{name}\":{value}"));
        format!("{{{}}}", entries.join(","))
    }
}

/// The kind and the sign of a field such as `pods_added`.
fn change(name: &str) -> Option<(&str, &'static str)> {
    [("_added", "+"), ("_changed", "~"), ("_removed", "-")]
        .into_iter()
        .find_map(|(end, sign)| Some((name.strip_suffix(end)?, sign)))
}

/// A field's value in text. It is quoted if it could be confused with what follows.
struct Shown<'a>(&'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Value::String(text) = self.0 else { return write!(f, "{}", self.0) };
        let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '=');
        match !text.is_empty() && text.chars().all(is_plain) {
            true => f.write_str(text),
            false => write!(f, "{text:?}"),
        }
    }
}

/// Escapes control characters: one event is one line, and an object's name cannot send terminal
/// commands.
fn on_one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut line = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(message: &str, fields: Vec<(&'static str, Value)>) -> Line<'static> {
        Line {
            time: "2026-11-30T12:00:00.000001Z".into(),
            level: Verbosity::Info,
            node: "n1",
            target: "state",
            said: Said { message: message.into(), fields },
        }
    }

    #[test]
    fn text_is_one_line_and_quotes_values_with_spaces() {
        let fields = vec![
            ("kind", "Pod".into()),
            ("reason", "a \"b\"\nc".into()),
            ("epoch", 7.into()),
            ("name", "".into()),
        ];
        let text = line("two\nlines\u{1b}[2J", fields).format(Format::Text);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "2026-11-30T12:00:00.000001Z INFO  n1 state: two\\nlines\\u{1b}[2J kind=Pod \
             reason=\"a \\\"b\\\"\\nc\" epoch=7 name=\"\"\n"
        );
    }

    #[test]
    fn changes_of_a_kind_are_combined_in_text() {
        let fields = vec![
            ("epoch", 12.into()),
            ("pods_added", 2.into()),
            ("pods_removed", 1.into()),
            ("services_changed", 3.into()),
            ("duration_ms", 0.8.into()),
        ];
        let text = String::from_utf8(line("applied", fields).format(Format::Text)).unwrap();
        let end = " state: applied epoch=12 pods=+2-1 services=~3 duration_ms=0.8\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn json_is_one_object_with_typed_fields() {
        let fields =
            vec![("reason", "a \"b\"\nc".into()), ("pods_added", 2.into()), ("stale", true.into())];
        let text = line("two\nlines", fields).format(Format::Json);
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert!(text.starts_with(b"{\"time\":\"2026-"), "the time comes first");
        let value: Value = serde_json::from_slice(&text).unwrap();
        let expected = json!({
            "time": "2026-11-30T12:00:00.000001Z", "level": "info", "target": "state", "node": "n1",
            "message": "two\nlines",
            "fields": {"reason": "a \"b\"\nc", "pods_added": 2, "stale": true},
        });
        assert_eq!(value, expected);
    }
}
