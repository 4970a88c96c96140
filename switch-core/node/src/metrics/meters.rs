//! Measurements of the control plane: written by those who measure, on their own threads, and read by a scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::histogram::Histogram;
use super::resolver::ResolverCounters;
use super::text::Text;

/// Bounds in seconds of what takes milliseconds: publishes.
const SHORT: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Bounds in seconds of CNI verbs; a runtime gives up after minutes.
const VERB: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Bounds in seconds of network programming, whose objective in large clusters is 30 s (kube-proxy's metric of that name).
const PROGRAMMING: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0];
/// The verbs that have series of their own.
const VERBS: [&str; 5] = ["ADD", "DEL", "CHECK", "GC", "STATUS"];

/// What is measured outside of workers. Clones share it: give one to [`NodeOptions::meters`](crate::NodeOptions::meters),
/// and clones to the source and whatever else measures.
#[derive(Clone)]
pub struct Meters(Arc<Mutex<Data>>);

struct Data {
    publish: Histogram,
    programming: Histogram,
    stale: Duration,
    /// Objects not in force as written, by what was done with them.
    objects: Vec<(&'static str, usize)>,
    watch_restarts: BTreeMap<&'static str, u64>,
    cni: BTreeMap<(&'static str, u32), Histogram>,
    ipam_free: BTreeMap<&'static str, u128>,
    suppressed: u64,
    resolver: Arc<ResolverCounters>,
    coredns_names: bool,
}

impl Default for Meters {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Data {
            publish: Histogram::new(SHORT),
            programming: Histogram::new(PROGRAMMING),
            stale: Duration::ZERO,
            objects: Vec::new(),
            watch_restarts: BTreeMap::new(),
            cni: BTreeMap::new(),
            ipam_free: BTreeMap::new(),
            suppressed: 0,
            resolver: Arc::default(),
            coredns_names: false,
        })))
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Meters {
    fn data(&self) -> MutexGuard<'_, Data> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A state was compiled and acknowledged by every worker in this time.
    pub(crate) fn published(&self, time: Duration) {
        self.data().publish.observe(time.as_secs_f64());
    }

    /// A change of endpoints is in force so long after what triggered it.
    pub fn programmed(&self, time: Duration) {
        self.data().programming.observe(time.as_secs_f64());
    }

    /// For how long the state in force has been out of date, as far as is known; zero if it is not.
    pub fn set_stale(&self, time: Duration) {
        self.data().stale = time;
    }

    /// How many objects are not in force as they are written, by what was done with them (`left_out`, `closed`,
    /// `kept_last_good`).
    pub fn set_objects(&self, objects: &[(&'static str, usize)]) {
        self.data().objects = objects.to_vec();
    }

    /// A list or watch of objects of this kind was begun again after it had failed.
    pub fn watch_restarted(&self, kind: &'static str) {
        *self.data().watch_restarts.entry(kind).or_default() += 1;
    }

    /// A CNI verb was answered with this code (0: success) after this time. Unknown verbs share one series.
    pub(crate) fn cni(&self, verb: &str, code: u32, time: Duration) {
        let verb = VERBS.into_iter().find(|known| *known == verb).unwrap_or("other");
        let mut data = self.data();
        let histogram = data.cni.entry((verb, code)).or_insert_with(|| Histogram::new(VERB));
        histogram.observe(time.as_secs_f64());
    }

    /// Addresses that pods of this family could be given now.
    pub(crate) fn set_ipam_free(&self, family: &'static str, free: u128) {
        self.data().ipam_free.insert(family, free);
    }

    /// So many dropped frames have no record of their own, but only a count.
    pub(crate) fn suppressed(&self, frames: u64) {
        self.data().suppressed += frames;
    }

    /// What the node's own resolver counts: for [`ResolverOptions::counters`](crate::resolver::ResolverOptions::counters).
    pub fn resolver(&self) -> Arc<ResolverCounters> {
        self.data().resolver.clone()
    }

    /// Whether series of DNS are there under CoreDNS's names, too.
    pub fn set_coredns_names(&self, are_there: bool) {
        self.data().coredns_names = are_there;
    }

    pub(super) fn has_coredns_names(&self) -> bool {
        self.data().coredns_names
    }

    pub(super) fn write(&self, text: &mut Text) {
        let data = self.data();
        let help = "Objects not in force as they are written, by what was done with them.";
        text.family("podswitch_objects_left_out", "gauge", help);
        for (action, count) in &data.objects {
            text.sample(&[("action", action)], count);
        }
        let help = "Time to compile a state and put it in force at every worker.";
        text.family("podswitch_publish_seconds", "histogram", help).histogram(&[], &data.publish);
        let help = "Time from what triggered a change of endpoints to the change in force here.";
        text.family("podswitch_network_programming_seconds", "histogram", help)
            .histogram(&[], &data.programming);
        let help = "Time for which the state in force is out of date; 0: it is not.";
        text.one("podswitch_state_stale_seconds", "gauge", help, data.stale.as_secs_f64());
        let help = "Lists and watches begun again after a failure, by kind of object.";
        text.family("podswitch_watch_restarts_total", "counter", help);
        for (kind, count) in &data.watch_restarts {
            text.sample(&[("kind", kind)], count);
        }
        let help = "Time to answer a CNI verb, by its result code; 0: success.";
        text.family("podswitch_cni_seconds", "histogram", help);
        for ((verb, code), histogram) in &data.cni {
            text.histogram(&[("verb", verb), ("code", &code.to_string())], histogram);
        }
        let help = "Addresses that pods could be given now, by family.";
        text.family("podswitch_ipam_free", "gauge", help);
        for (family, free) in &data.ipam_free {
            text.sample(&[("family", family)], free);
        }
        let help = "Dropped frames without a record of their own: only counted, by reason.";
        text.one("podswitch_flowlog_suppressed_total", "counter", help, data.suppressed);
    }
}
