//! Measures how long a change of endpoints takes until it is in force, from the time at which the
//! Service or pod changed. The EndpointSlice controller writes that time as an annotation on each
//! slice. As in kube-proxy, slices that existed before the source started do not count, nor do
//! deletions, which have no trigger time.

use std::time::SystemTime;

use hashbrown::HashMap;
use podswitch_core::id::Cookie;
use podswitch_kubernetes::Object;
use podswitch_node::Meters;

/// RFC 3339, in UTC.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Most changes that wait to be in force. Further ones are not measured.
const MAX_WAITING: usize = 100_000;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Triggers {
    began: SystemTime,
    /// The last trigger time of each slice. Writers other than the controller keep the annotation.
    last: HashMap<Cookie, SystemTime>,
    waiting: Vec<SystemTime>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with a time of day that another machine wrote"
)]
fn wall() -> SystemTime {
    SystemTime::now()
}

impl Triggers {
    pub(crate) fn new() -> Self {
        Self { began: wall(), last: HashMap::new(), waiting: Vec::new() }
    }

    /// Records an upserted EndpointSlice.
    pub(crate) fn upsert(&mut self, slice: &Object) {
        let time = slice.annotation(TRIGGER_TIME);
        let Some(time) = time.and_then(|text| humantime::parse_rfc3339(text).ok()) else { return };
        if time <= self.began || self.last.get(slice.name()) == Some(&time) {
            return;
        }
        self.last.insert(slice.name().clone(), time);
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push(time);
        }
    }

    /// Records a deleted object.
    pub(crate) fn delete(&mut self, name: &Cookie) {
        self.last.remove(name);
    }

    /// Every change so far is in force.
    pub(crate) fn in_force(&mut self, meters: &Meters) {
        let now = wall();
        for time in self.waiting.drain(..) {
            // If the other clock is ahead of ours, nothing can be measured.
            if let Ok(time) = now.duration_since(time) {
                meters.programmed(time);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use podswitch_kubernetes::Kind;

    use super::*;

    fn slice(name: &str, time: SystemTime) -> Object {
        let time = humantime::format_rfc3339_nanos(time);
        let json = format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"a","annotations":{{"{TRIGGER_TIME}":"{time}"}}}},
                "addressType":"IPv4","endpoints":[]}}"#
        );
        Object::decode(Kind::EndpointSlice, &json).expect("a slice")
    }

    #[test]
    fn each_trigger_counts_once_and_earlier_ones_do_not() {
        let mut triggers = Triggers::new();
        let began = triggers.began;
        triggers.upsert(&slice("old", began - Duration::from_secs(60)));
        assert!(triggers.waiting.is_empty());
        let later = began + Duration::from_nanos(1_500);
        triggers.upsert(&slice("new", later));
        triggers.upsert(&slice("new", later));
        triggers.upsert(&slice("other", later));
        assert_eq!(triggers.waiting, [later, later]);
        triggers.in_force(&Meters::default());
        triggers.upsert(&slice("new", later));
        assert!(triggers.waiting.is_empty());
        triggers.delete(slice("new", later).name());
        assert_eq!(triggers.last.len(), 1);
    }
}
