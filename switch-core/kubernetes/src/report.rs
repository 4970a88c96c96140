//! Records about objects: field paths in the API server's syntax, and the collector of findings.
//! Checks continue after the first error, so that all errors are reported at once.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_core::config::ConfigError;
use podswitch_core::control::{Cause, Effect, LeftOut};
use podswitch_core::id::Cookie;

/// Where an object was read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// The file.
    pub file: Arc<Path>,
    /// Index of the document in the file, from 0.
    pub document: usize,
    /// Line of the file at which the document begins, from 1.
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// The action for an object or a field that cannot be used as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Action {
    /// None: the object is used as written.
    None,
    /// The object is left out of the state.
    LeftOut,
    /// The object is in the state without this field or list item.
    FieldLeftOut,
    /// For a policy that cannot be used: the pods that it selects are isolated in the directions
    /// that it names. If its selector cannot be read, every pod of its namespace is isolated; if
    /// its directions cannot be read, both apply.
    Closed,
    /// For a policy that cannot be used: its last good version stays in force.
    KeptLastGood,
}

impl Action {
    /// Name for programs: empty, `left_out`, `closed` or `kept_last_good`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::LeftOut | Self::FieldLeftOut => "left_out",
            Self::Closed => "closed",
            Self::KeptLastGood => "kept_last_good",
        }
    }

    /// Name as the reason of a Kubernetes Event.
    pub const fn event_reason(self) -> &'static str {
        match self {
            Self::None => "Noted",
            Self::LeftOut => "LeftOut",
            Self::FieldLeftOut => "FieldLeftOut",
            Self::Closed => "PolicyClosed",
            Self::KeptLastGood => "PolicyKeptLastGood",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "nothing is left out",
            Self::LeftOut => "the object is left out",
            Self::FieldLeftOut => "the field is left out",
            Self::Closed => "the pods that it selects are isolated",
            Self::KeptLastGood => "its last good version stays in force",
        })
    }
}

/// A record about one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Where the object was read, if it came from a file.
    pub origin: Option<Source>,
    /// The object: `Kind/namespace/name`, or `Kind/name` for kinds without namespaces. Empty if the
    /// record is about the manifests in general.
    pub object: Cookie,
    /// Path of the field, such as `spec.ingress[0].ports[0].endPort`. Empty if the record is about
    /// the object in general.
    pub field: String,
    /// The error or note.
    pub reason: String,
    /// The action.
    pub action: Action,
    /// Whether it makes a check of the manifests fail: the object cannot be used as written, or
    /// disables security or attachment, probably by mistake. A valid object that another one
    /// replaces does not make a check fail.
    pub refused: bool,
    /// The switch left the object out when it applied the state, for a reason that only it detects,
    /// such as a conflict with the node's own addresses.
    pub by_switch: bool,
}

impl Record {
    /// A note about the manifests in general.
    pub(crate) fn general(reason: impl Into<String>) -> Self {
        Self {
            origin: None,
            object: Cookie::new(""),
            field: String::new(),
            reason: reason.into(),
            action: Action::None,
            refused: false,
            by_switch: false,
        }
    }

    /// The record of an object that the switch left out.
    fn by_switch(left_out: &LeftOut) -> Self {
        let ConfigError { object, field, reason } = &left_out.error;
        let action = match left_out.effect {
            Effect::LastVersion => Action::KeptLastGood,
            Effect::Isolated => Action::Closed,
            Effect::OneFrontend => Action::FieldLeftOut,
            _ => Action::LeftOut,
        };
        Self {
            origin: None,
            object: shown(object),
            field: field.clone(),
            reason: reason.clone(),
            action,
            // What it depends on may arrive later.
            refused: left_out.cause != Cause::Missing,
            by_switch: true,
        }
    }

    /// Replaces the records of objects that only the switch left out. Objects that are left out or
    /// closed according to `records` already, and therefore in the switch as well, are not repeated.
    pub fn set_left_out(records: &mut Vec<Self>, left_out: &[LeftOut]) {
        records.retain(|record| !record.by_switch);
        if left_out.is_empty() {
            return;
        }
        let as_written = |action| matches!(action, Action::None | Action::FieldLeftOut);
        let known: HashSet<Cookie> = records
            .iter()
            .filter(|record| !as_written(record.action))
            .map(|record| record.object.clone())
            .collect();
        let new = left_out.iter().map(Self::by_switch);
        records.extend(new.filter(|record| !known.contains(&record.object)));
    }

    /// The record that this node has no Node object.
    pub(crate) fn missing_node(node: &str) -> Self {
        Self {
            object: Cookie::new(format!("Node/{node}")),
            refused: true,
            ..Self::general(format!("there is no Node object for this node, {node}"))
        }
    }

    /// Whether this is the record that this node has no usable Node object. A state without this
    /// node must not be applied.
    pub fn is_missing_node(&self) -> bool {
        self.action == Action::None
            && self.field.is_empty()
            && self.refused
            && self.object.as_str().starts_with("Node/")
    }

    /// Field, reason and action on one line, as the message of a Kubernetes Event.
    pub fn message(&self) -> String {
        let mut text = String::new();
        if !self.field.is_empty() {
            text.push_str(&self.field);
            text.push_str(": ");
        }
        text.push_str(&self.reason);
        if self.action != Action::None {
            text.push_str(&format!(" ({})", self.action));
        }
        text
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if !self.object.as_str().is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        f.write_str(&self.message())
    }
}

/// Numbers of records of each kind: gauges of the state in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Objects that are left out.
    pub left_out: usize,
    /// Fields and list items that are left out.
    pub fields_left_out: usize,
    /// Unusable policies that isolate the pods that they select.
    pub closed: usize,
    /// Policies whose last good version is in force.
    pub kept_last_good: usize,
    /// Records that make a check fail.
    pub refused: usize,
    /// Records that do not.
    pub notes: usize,
}

impl Counts {
    /// Counts records; objects with several records count once.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let (mut counts, mut seen) = (Self::default(), HashSet::new());
        for record in records {
            *(if record.refused { &mut counts.refused } else { &mut counts.notes }) += 1;
            let count = match record.action {
                Action::None => continue,
                Action::FieldLeftOut => {
                    counts.fields_left_out += 1;
                    continue;
                }
                Action::LeftOut => &mut counts.left_out,
                Action::Closed => &mut counts.closed,
                Action::KeptLastGood => &mut counts.kept_last_good,
            };
            *count += usize::from(seen.insert(&record.object));
        }
        counts
    }
}

/// One step from a field to the one inside it.
#[derive(Clone, Copy)]
enum Step<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

/// Path of a field within its object, built on the stack and formatted only for an error.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    step: Step<'a>,
}

impl<'a> Field<'a> {
    /// A field of the object itself.
    pub(crate) const fn root(name: &'a str) -> Self {
        Self { parent: None, step: Step::Name(name) }
    }

    /// A field of this field.
    pub(crate) const fn child(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Name(name) }
    }

    /// An item of this list.
    pub(crate) const fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), step: Step::Index(index) }
    }

    /// An entry of this map.
    pub(crate) const fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), step: Step::Key(key) }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Name(name) if self.parent.is_none() => f.write_str(name),
            Step::Name(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{}]", key.escape_debug()),
        }
    }
}

/// A field that cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// Its path, empty if it is the value itself.
    pub(crate) field: String,
    pub(crate) reason: String,
}

/// Effect of a finding on its object and on a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grade {
    /// The object cannot be used: it is left out, or, if it is a policy, isolates what it selects.
    Refused,
    /// The field or list item cannot be used and is left out; a check fails.
    FieldRefused,
    /// Nothing is left out, but a check fails: security or attachment differs from what it appears
    /// to be.
    Alarm,
    /// The object is valid but left out: it has no effect, or another one replaces it.
    LeftOut,
    /// The field or list item is valid but left out.
    FieldLeftOut,
    /// A note.
    Note,
}

/// A finding about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) field: String,
    pub(crate) reason: String,
    pub(crate) grade: Grade,
}

impl Finding {
    /// Converts it to a record. `refused`: the action if the object cannot be used.
    pub(crate) fn record(
        &self,
        origin: Option<&Source>,
        object: &Cookie,
        refused: Action,
    ) -> Record {
        let (action, fails) = match self.grade {
            Grade::Refused => (refused, true),
            Grade::FieldRefused => (Action::FieldLeftOut, true),
            Grade::Alarm => (Action::None, true),
            Grade::LeftOut => (Action::LeftOut, false),
            Grade::FieldLeftOut => (Action::FieldLeftOut, false),
            Grade::Note => (Action::None, false),
        };
        Record {
            origin: origin.cloned(),
            object: shown(object),
            field: self.field.clone(),
            reason: self.reason.clone(),
            action,
            refused: fails,
            by_switch: false,
        }
    }
}

/// The name of an object as in its manifest. In a store, the second definition of an object has a
/// number appended.
fn shown(object: &Cookie) -> Cookie {
    match object.as_str().rsplit_once('#') {
        Some((name, number)) if number.bytes().all(|b| b.is_ascii_digit()) => Cookie::new(name),
        _ => object.clone(),
    }
}

/// The findings about one object.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    list: Vec<Finding>,
    refused: bool,
}

impl Findings {
    /// Maximum number of findings that are kept for one object.
    const MOST: usize = 100;

    fn push(&mut self, field: String, reason: String, grade: Grade) {
        self.refused |= grade == Grade::Refused;
        if self.list.len() < Self::MOST {
            self.list.push(Finding { field, reason, grade });
        }
    }

    /// Adds an error that makes the object unusable.
    pub(crate) fn add(&mut self, field: &Field<'_>, reason: impl Into<String>) {
        self.push(field.to_string(), reason.into(), Grade::Refused);
    }

    /// Adds the same at a formatted path.
    pub(crate) fn add_at(&mut self, field: String, reason: String) {
        self.push(field, reason, Grade::Refused);
    }

    /// Adds a finding of another grade.
    pub(crate) fn say(&mut self, grade: Grade, field: &Field<'_>, reason: impl Into<String>) {
        self.push(field.to_string(), reason.into(), grade);
    }

    /// Adds a finding about the object in general.
    pub(crate) fn say_of_all(&mut self, grade: Grade, reason: impl Into<String>) {
        self.push(String::new(), reason.into(), grade);
    }

    /// Adds the error of `result` as an error of the object; returns the value.
    pub(crate) fn take<T, E: Into<String>>(
        &mut self,
        field: &Field<'_>,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|reason| self.add(field, reason)).ok()
    }

    /// Adds the error of `result` as an error of the field alone; returns the value.
    pub(crate) fn take_field<T, E: Into<String>>(
        &mut self,
        field: &Field<'_>,
        result: Result<T, E>,
    ) -> Option<T> {
        result.map_err(|reason| self.say(Grade::FieldRefused, field, reason)).ok()
    }

    /// Adds findings about another part of the same object. Returns whether there were no errors.
    pub(crate) fn append(&mut self, other: Self) -> bool {
        for finding in other.list {
            self.push(finding.field, finding.reason, finding.grade);
        }
        self.refused |= other.refused;
        !other.refused
    }

    /// Whether the object cannot be used.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused
    }

    /// The findings.
    pub(crate) fn into_list(self) -> Vec<Finding> {
        self.list
    }
}

/// Formats a value for a reason: quoted, control characters escaped, truncated.
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_the_api_server_writes_them() {
        let spec = Field::root("spec");
        let ingress = spec.child("ingress");
        let rule = ingress.index(0);
        let ports = rule.child("ports");
        let port = ports.index(12);
        assert_eq!(port.child("endPort").to_string(), "spec.ingress[0].ports[12].endPort");
        let metadata = Field::root("metadata");
        let annotations = metadata.child("annotations");
        assert_eq!(
            annotations.key("podswitch.io/mac").to_string(),
            "metadata.annotations[podswitch.io/mac]"
        );
    }

    #[test]
    fn quoted_values_are_short_and_printable() {
        assert_eq!(quote("a\n\"b"), r#""a\n\"b""#);
        assert!(quote(&"é".repeat(10_000)).chars().count() < 100);
    }
}
