//! Responses by the object whose route they had.

use std::fmt::Write as _;
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_core::id::Cookie;

use super::metrics::Number;

/// Responses by the status's first digit, from 1.
#[derive(Debug, Default)]
pub(super) struct Responses([Number; 5]);

impl Responses {
    pub(super) fn add(&self, status: u16) {
        self.0[usize::from(status / 100).clamp(1, 5) - 1].add(1);
    }
}

/// The counters of all objects that have routes.
#[derive(Debug, Default)]
pub(super) struct Objects(HashMap<Cookie, Arc<Responses>>);

impl Objects {
    /// Those of objects that stay go on.
    pub(super) fn new<'o>(objects: impl Iterator<Item = &'o Cookie>, before: &Self) -> Self {
        let mut all = HashMap::new();
        for object in objects {
            if !all.contains_key(object) {
                let count = before.0.get(object).cloned().unwrap_or_default();
                all.insert(object.clone(), count);
            }
        }
        Self(all)
    }

    pub(super) fn get(&self, object: &Cookie) -> Option<&Arc<Responses>> {
        self.0.get(object)
    }

    /// In the Prometheus text format; objects without requests are left out.
    pub(super) fn text(&self, text: &mut String) {
        let name = "podswitch_ingress_object_responses_total";
        let help = "Responses by Ingress or HTTPRoute and class of status.";
        _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
        let mut lines = Vec::new();
        for (object, responses) in &self.0 {
            for (class, number) in (1..=5).zip(&responses.0).filter(|(_, number)| number.get() > 0)
            {
                // Names of objects need no escapes in labels but for what no API server accepts.
                let object = object.as_str().replace(['"', '\\', '\n'], "?");
                let count = number.get();
                lines.push(format!("{name}{{object=\"{object}\",status=\"{class}xx\"}} {count}"));
            }
        }
        lines.sort();
        lines.iter().for_each(|line| _ = writeln!(text, "{line}"));
    }
}
