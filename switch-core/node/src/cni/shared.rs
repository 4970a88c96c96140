//! State shared by the agent's threads: leases, addresses, and access to the node.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};

use super::cluster_view::ClusterView;
use super::error::CniError;
use super::ipam::Pool;
use super::key::Key;
use super::leases::{Lease, Leases};
use super::queue::Queue;
use crate::handle::NodeCaller;
use crate::metrics::Meters;
use crate::node::Node;
use crate::pod_name::PodName;

/// Events that the agent reports.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CniEvent {
    /// A pod was attached by ADD, or again after a restart.
    Attached {
        /// The pod.
        pod: PodName,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// An attachment was released.
    Released {
        /// The attachment.
        key: Key,
    },
    /// A call of the plugin was answered.
    Answered(Box<AnsweredCall>),
    /// A failure of something that no call waits for.
    Failed {
        /// What failed.
        verb: String,
        /// The attachment.
        key: String,
        /// Why.
        error: CniError,
    },
    /// Other information for a person.
    Note(String),
}

/// A call of the plugin, and its result.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AnsweredCall {
    /// `CNI_COMMAND`, such as `ADD`; empty if the call could not be read.
    pub verb: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// The pod that `CNI_ARGS` names, `namespace/name`; for a DEL that of its lease. Empty if
    /// neither is known.
    pub pod: String,
    /// Time from the call's arrival to its answer.
    pub duration: Duration,
    /// The error, if it failed.
    pub error: Option<CniError>,
}

impl fmt::Display for AnsweredCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, container, interface, duration, error, .. } = self;
        write!(f, "{verb} of {interface} of container {container}: ")?;
        match error {
            Some(error) => error.fmt(f),
            None => write!(f, "done in {duration:.1?}"),
        }
    }
}

impl fmt::Display for CniEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attached { pod, addresses } => {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                write!(f, "cni: {pod} is attached with {}", addresses.join(", "))
            }
            Self::Released { key } => write!(f, "cni: {key} is released"),
            Self::Answered(call) => write!(f, "cni: {call}"),
            Self::Failed { verb, key, error } => write!(f, "cni: {verb} of {key}: {error}"),
            Self::Note(text) => write!(f, "cni: {text}"),
        }
    }
}

/// Receives events.
pub(super) type CniSink = Box<dyn Fn(CniEvent) + Send + Sync>;

/// State shared by all threads of the agent.
pub(super) struct Shared {
    pub(super) node: NodeCaller,
    pub(super) view: Arc<dyn ClusterView>,
    pub(super) state: Mutex<State>,
    pub(super) queue: Queue,
    pub(super) busy: Busy,
    pub(super) sink: CniSink,
    pub(super) stop: AtomicBool,
    pub(super) meters: Meters,
}

/// Leases and holders of addresses.
pub(super) struct State {
    pub(super) pool: Pool,
    pub(super) leases: HashMap<Key, Lease>,
    pub(super) store: Leases,
    /// The attachment of each attached pod. If a pod has two sandboxes: the last one.
    pub(super) attached: HashMap<PodName, Key>,
    /// Addresses of the node's own interfaces.
    pub(super) node_addresses: HashSet<IpAddr>,
}

impl State {
    /// Loads what an earlier run left in the folder `leases`. Also returns messages to report.
    pub(super) fn open(
        leases: &Path,
        boot: &str,
        cool_down: Duration,
    ) -> io::Result<(Self, Vec<String>)> {
        let (store, found) = Leases::open(leases, boot)?;
        let mut notes = found.damaged;
        let mut state = Self {
            pool: Pool::new(cool_down),
            leases: HashMap::new(),
            store,
            attached: HashMap::new(),
            node_addresses: HashSet::new(),
        };
        for lease in found.leases {
            let key = lease.key();
            for address in &lease.addresses {
                if let Err(error) = state.pool.hold(&key, *address) {
                    notes.push(format!("lease of {key}: {error}"));
                }
            }
            state.leases.insert(key, lease);
        }
        for (at, addresses) in found.released {
            addresses.into_iter().for_each(|address| state.pool.note_released(address, at));
        }
        Ok((state, notes))
    }
}

/// Locks attachments: only one thread at a time works on each.
#[derive(Default)]
pub(super) struct Busy(Mutex<HashSet<Key>>, Condvar);

/// While it lives, no other thread works on the attachment.
pub(super) struct BusyGuard<'a>(&'a Busy, Key);

impl Busy {
    pub(super) fn lock(&self, key: &Key) -> BusyGuard<'_> {
        let mut keys = lock(&self.0);
        while keys.contains(key) {
            keys = self.1.wait(keys).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        keys.insert(key.clone());
        BusyGuard(self, key.clone())
    }
}

impl Drop for BusyGuard<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).remove(&self.1);
        self.0.1.notify_all();
    }
}

impl Shared {
    pub(super) fn report(&self, event: CniEvent) {
        (self.sink)(event);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Runs `f` on the node's thread.
    pub(super) fn with_node<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, CniError> {
        self.node.with(f).map_err(|error| CniError::new(CniError::SYSTEM, error.to_string()))
    }
}

/// The data behind these locks is consistent after each step, so a panic of another thread does no
/// harm.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
