//! Chooses which Events to write: for objects that are not in force as written. One node of the
//! cluster writes each Event, at a limited rate.

use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use podswitch_core::id::Cookie;
use podswitch_core::time::{Clock, Instant};
use podswitch_kubernetes::{Action, Kind, Object, Record};

use crate::names::PUBLIC_ADDRESS;

/// How long until the same Event is written again for an object.
const REPEAT_INTERVAL: Duration = Duration::from_secs(3600);
/// Burst size of Events; one more is allowed every [`REFILL`].
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_secs(2);
/// Number of Events that are remembered, to avoid duplicates.
const REMEMBERED: usize = 10_000;

/// An Event to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) kind: Kind,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Reports {
    node: String,
    /// Nodes that run this switch, recognized by their annotation.
    agents: HashSet<Cookie>,
    sent: HashMap<(Cookie, String), Instant>,
    tokens: u32,
    refilled: Instant,
    clock: Clock,
}

impl Reports {
    pub(crate) fn new(node: &str) -> Self {
        let clock = Clock::start();
        Self {
            node: node.to_owned(),
            agents: HashSet::new(),
            sent: HashMap::new(),
            tokens: BURST,
            refilled: clock.now(),
            clock,
        }
    }

    /// Records an upserted Node object.
    pub(crate) fn node(&mut self, node: &Object) {
        if node.annotation(PUBLIC_ADDRESS).is_some() {
            self.agents.insert(node.name().clone());
        } else {
            self.agents.remove(node.name());
        }
    }

    /// Records a deleted object.
    pub(crate) fn delete(&mut self, object: &Cookie) {
        self.agents.remove(object);
    }

    /// The Events to write now for these records, and whether more are due later. `is_local`:
    /// whether a pod is on this node.
    pub(crate) fn news(
        &mut self,
        records: &[Record],
        is_local: &dyn Fn(&Cookie) -> bool,
    ) -> (Vec<Draft>, bool) {
        self.select(records, self.clock.now(), is_local)
    }

    fn select(
        &mut self,
        records: &[Record],
        now: Instant,
        is_local: &dyn Fn(&Cookie) -> bool,
    ) -> (Vec<Draft>, bool) {
        let new = u32::try_from(now.since(self.refilled).as_millis() / REFILL.as_millis());
        let new = new.unwrap_or(BURST);
        if new > 0 {
            self.tokens = self.tokens.saturating_add(new).min(BURST);
            self.refilled = now;
        }
        self.sent.retain(|_, at| now.since(*at) < REPEAT_INTERVAL);
        let (mut drafts, mut more) = (Vec::new(), false);
        for record in records {
            let is_wrong =
                record.refused || !matches!(record.action, Action::None | Action::FieldLeftOut);
            let Some((kind, namespace, name)) = parts(&record.object).filter(|_| is_wrong) else {
                continue;
            };
            // A pod without an address is still starting.
            if kind == Kind::Pod && !record.refused || !self.is_ours(kind, &record.object, is_local)
            {
                continue;
            }
            let key = (record.object.clone(), record.message());
            if self.sent.contains_key(&key) {
                continue;
            }
            if self.tokens == 0 || self.sent.len() >= REMEMBERED {
                more = true;
                break;
            }
            self.tokens -= 1;
            drafts.push(Draft {
                kind,
                namespace: namespace.map(str::to_owned),
                name: name.to_owned(),
                reason: record.action.event_reason(),
                message: truncated(&key.1),
            });
            self.sent.insert(key, now);
        }
        (drafts, more)
    }

    /// Whether this node reports on the object. A node reports on itself and on its pods. For every
    /// other object, the node whose name hashes highest together with the object's name reports
    /// (rendezvous hashing).
    fn is_ours(&self, kind: Kind, object: &Cookie, is_local: &dyn Fn(&Cookie) -> bool) -> bool {
        let own = Cookie::new(format!("Node/{}", self.node));
        match kind {
            Kind::Pod => is_local(object),
            Kind::Node => *object == own,
            _ => {
                let lot = |node: &Cookie| {
                    (draw(object.as_str(), node.as_str()), node.as_str().to_owned())
                };
                let ours = lot(&own);
                self.agents.iter().all(|node| lot(node) <= ours)
            }
        }
    }
}

/// Splits an object's name into kind, namespace and name.
fn parts(object: &Cookie) -> Option<(Kind, Option<&str>, &str)> {
    let mut parts = object.as_str().split('/');
    let name = parts.next()?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name)?;
    let namespace = if kind.is_namespaced() { Some(parts.next()?) } else { None };
    Some((kind, namespace, parts.next()?))
}

/// Truncates a message to 1024 bytes, the limit of the API.
fn truncated(text: &str) -> String {
    let mut end = text.len().min(1024);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// FNV-1a, equal on all nodes.
fn draw(object: &str, node: &str) -> u64 {
    let bytes = object.bytes().chain([0]).chain(node.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The last bytes affect only the low bits.
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use podswitch_kubernetes::{Options, Store};

    use super::*;

    fn records(policies: usize) -> Vec<Record> {
        let mut store = Store::new(None, Options::default());
        for number in 0..policies {
            let json = format!(
                r#"{{"metadata":{{"name":"p{number}","namespace":"a"}},"spec":{{"podSelector":7}}}}"#
            );
            store.upsert(&Object::decode(Kind::NetworkPolicy, &json).unwrap());
        }
        store.records()
    }

    #[test]
    fn each_fault_is_reported_once_at_a_limited_rate() {
        let records = records(30);
        let mut reports = Reports::new("n");
        let mut now = reports.clock.now();
        let (drafts, more) = reports.select(&records, now, &|_| true);
        assert_eq!((drafts.len(), more), (BURST as usize, true));
        assert_eq!(drafts[0].reason, "PolicyClosed");
        assert_eq!(drafts[0].namespace.as_deref(), Some("a"));
        assert!(drafts[0].message.contains("spec.podSelector"), "{}", drafts[0].message);
        assert_eq!(reports.select(&records, now, &|_| true).0, []);
        now = now + REFILL * 15;
        let (drafts, more) = reports.select(&records, now, &|_| true);
        assert_eq!((drafts.len(), more), (10, false));
        now = now + REPEAT_INTERVAL + REFILL * BURST;
        assert_eq!(
            reports.select(&records, now, &|_| true).0.len(),
            BURST as usize,
            "an hour later"
        );
    }

    #[test]
    fn one_node_reports_on_an_object() {
        let names = ["n1", "n2", "n3", "n4"];
        let nodes = names.map(|name| {
            let json = format!(
                r#"{{"metadata":{{"name":"{name}","annotations":{{"{PUBLIC_ADDRESS}":"192.0.2.1"}}}}}}"#
            );
            Object::decode(Kind::Node, &json).unwrap()
        });
        let mut all: Vec<Reports> = names.iter().map(|name| Reports::new(name)).collect();
        for reports in &mut all {
            nodes.iter().for_each(|node| reports.node(node));
        }
        let mut shares = [0; 4];
        for number in 0..400 {
            let object = Cookie::new(format!("NetworkPolicy/a/p{number}"));
            let speaks: Vec<usize> = (0..4)
                .filter(|at| all[*at].is_ours(Kind::NetworkPolicy, &object, &|_| false))
                .collect();
            assert_eq!(speaks.len(), 1);
            shares[speaks[0]] += 1;
        }
        assert!(shares.iter().all(|share| (50..=150).contains(share)), "{shares:?}");
    }
}
