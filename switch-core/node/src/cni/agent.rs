//! The agent: its state, its start, and its periodic work.
//!
//! Threads: one accepts connections, one per connection answers it ([`server`](super::server)), one
//! handles the queue, the heartbeat and changed pods (here). Whatever enters a namespace or changes
//! the switch runs on the node's thread.

use std::fmt;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hashbrown::HashSet;
use podswitch_linux::{NetNs, Netlink};

use super::cluster_view::{ClusterView, PodFacts};
use super::error::CniError;
use super::heartbeat::{self, Heartbeat};
use super::install::{Install, Installer};
use super::key::Key;
use super::leased;
use super::leases::Lease;
use super::queue::Queue;
use super::server;
use super::shared::{Busy, CniEvent, Shared, State, lock};
use super::verbs::problem;
use crate::attachment::ExistingInterface;
use crate::boot::{boot_id, since_boot};
use crate::handle::NodeCaller;
use crate::pod_name::PodName;

/// How long a released address is not allocated again. Addresses that were released longest ago are
/// allocated first, so this matters only if pods come and go so fast that the node's range is
/// exhausted: a /24 allows 50 per second.
pub const COOL_DOWN: Duration = Duration::from_secs(5);
/// How often the queue is checked.
const TICK: Duration = Duration::from_millis(500);
/// How often to retry attachments that could not be restored, and to check the installed files.
const RETRY: Duration = Duration::from_secs(5);

/// Options of the agent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AgentOptions {
    /// The socket that the plugin connects to. The queue and the heartbeat are beside it.
    pub socket: PathBuf,
    /// The folder of leases, on tmpfs.
    pub leases: PathBuf,
    /// How long a released address is not allocated again.
    pub cool_down: Duration,
    /// Where to install the plugin and its configuration, and to restore them.
    pub install: Option<Install>,
    /// The socket, if another process made it and handed it over; it is at the same path.
    pub listener: Option<Arc<UnixListener>>,
}

impl AgentOptions {
    /// Options for a socket at `socket`, with leases in the folder `leases` beside it.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let socket = socket.into();
        let leases = socket.with_file_name("leases");
        Self { socket, leases, cool_down: COOL_DOWN, install: None, listener: None }
    }
}

/// A running agent. It ends when it is dropped; pods stay attached.
pub struct Agent {
    shared: Arc<Shared>,
    listener: Arc<UnixListener>,
    server: Option<server::Server>,
    upkeep: Option<JoinHandle<()>>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

impl Agent {
    /// Starts the agent: adopts the leases of an earlier run, performs queued DELs, attaches pods
    /// again, and then serves requests.
    ///
    /// # Errors
    /// Folders or the socket cannot be created; another running agent uses the socket; the node
    /// ended.
    pub fn start(
        options: AgentOptions,
        node: NodeCaller,
        view: Arc<dyn ClusterView>,
        sink: impl Fn(CniEvent) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = match options.listener {
            Some(listener) => listener,
            None => Arc::new(server::listen(&options.socket)?),
        };
        let (state, notes) = State::open(&options.leases, &boot_id(), options.cool_down)?;
        let meters = node.with(|node| node.meters().clone()).map_err(io::Error::other)?;
        let shared = Arc::new(Shared {
            meters,
            node,
            view,
            state: Mutex::new(state),
            queue: Queue::beside(&options.socket)?,
            busy: Busy::default(),
            sink: Box::new(sink),
            stop: AtomicBool::new(false),
        });
        notes.into_iter().for_each(|note| shared.report(CniEvent::Note(note)));
        let (sender, changed) = channel();
        // The listener may be called from several threads at once.
        let sender = Mutex::new(sender);
        shared.view.on_change(Box::new(move |pod| drop(lock(&sender).send(pod.clone()))));
        shared.find_node_addresses();
        shared.process_queue();
        shared.reattach();
        let heartbeat = Heartbeat::beside(&options.socket);
        shared.beat(&heartbeat);
        let server = server::Server::start(listener.clone(), shared.clone())?;
        let installer = options.install.map(Installer::new);
        let upkeep = std::thread::Builder::new().name("cni-upkeep".into()).spawn({
            let shared = shared.clone();
            move || {
                podswitch_linux::confine::worker_thread();
                Upkeep { shared, heartbeat, installer, changed }.run();
            }
        })?;
        Ok(Self { shared, listener, server: Some(server), upkeep: Some(upkeep) })
    }

    /// The attached pods.
    pub fn pods(&self) -> Vec<PodName> {
        self.shared.state().attached.keys().cloned().collect()
    }

    /// The socket. While somebody has it, calls wait there for the next agent that is started with it.
    pub fn listener(&self) -> Arc<UnixListener> {
        self.listener.clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        if let Some(server) = self.server.take() {
            server.stop();
        }
        if let Some(upkeep) = self.upkeep.take() {
            // A panic was printed by the thread itself.
            let _ = upkeep.join();
        }
    }
}

/// Periodic work.
struct Upkeep {
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    installer: Option<Installer>,
    changed: Receiver<PodName>,
}

impl Upkeep {
    fn run(mut self) {
        let mut beat_at = Instant::now();
        let mut retry_at = Instant::now();
        while !self.shared.stop.load(Relaxed) {
            match self.changed.recv_timeout(TICK) {
                Ok(pod) => {
                    let mut changed: HashSet<PodName> = [pod].into_iter().collect();
                    changed.extend(self.changed.try_iter());
                    changed.iter().for_each(|pod| self.shared.relabel(pod));
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The view is gone; the other work continues.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(TICK),
            }
            self.shared.process_queue();
            let now = Instant::now();
            if now >= beat_at {
                beat_at = now + heartbeat::INTERVAL;
                self.shared.beat(&self.heartbeat);
            }
            if now >= retry_at {
                retry_at = now + RETRY;
                self.shared.find_node_addresses();
                self.shared.reattach();
                if let Some(installer) = &mut self.installer {
                    installer
                        .repair()
                        .into_iter()
                        .for_each(|n| self.shared.report(CniEvent::Note(n)));
                }
            }
        }
    }
}

impl Shared {
    /// Performs queued DELs.
    fn process_queue(&self) {
        let queued = match self.queue.list() {
            Ok(queued) => queued,
            Err(error) => {
                return self.report(CniEvent::Note(format!("the queue of DELs: {error}")));
            }
        };
        for queued in queued {
            match queued.key {
                Ok(key) => {
                    let _guard = self.busy.lock(&key);
                    // The DEL may have been performed meanwhile, and the attachment may be that of
                    // another ADD.
                    if self.queue.has(&key) && self.detach(&key).is_ok() {
                        self.queue.done(&key);
                    }
                }
                Err(reason) => {
                    let path = queued.path.display().to_string();
                    self.report(CniEvent::Note(format!("queued DEL {path}: {reason}")));
                    let _ = std::fs::remove_file(&queued.path);
                }
            }
        }
    }

    /// Attaches the pods of leases that are not attached: after a start, or after their namespace
    /// could not be opened.
    fn reattach(&self) {
        let missing: Vec<Key> = {
            let state = self.state();
            let is_missing = |lease: &&Lease| {
                let pod = lease.pod.parse::<PodName>().ok();
                lease.attached && pod.is_some_and(|pod| !state.attached.contains_key(&pod))
            };
            state.leases.values().filter(is_missing).map(Lease::key).collect()
        };
        for key in missing {
            let _guard = self.busy.lock(&key);
            if let Err(error) = self.attach_leased(&key) {
                self.report(CniEvent::Failed {
                    verb: "attaching again".into(),
                    key: key.to_string(),
                    error,
                });
            }
        }
    }

    fn attach_leased(&self, key: &Key) -> Result<(), CniError> {
        let Some(mut lease) = self.state().leases.get(key).cloned() else { return Ok(()) };
        let (path, expected) = (lease.netns.clone(), lease.namespace);
        let found = self.with_node(move |_| NetNs::open(&path).and_then(|found| found.id()))?;
        if !lease.attached || found.ok() != Some(expected) {
            // The namespace is gone or was replaced. A DEL will follow.
            return Ok(());
        }
        let pod = leased::pod(&lease)?;
        if lease.is_pod
            && let Ok(facts) = self.view.pod(&pod, lease.uid.as_deref(), Instant::now())
        {
            leased::describe(&mut lease, &facts);
        }
        let attachment = leased::attachment(&lease)?.existing(ExistingInterface::UseOwn);
        self.with_node(move |node| node.add_pod(attachment))?.map_err(leased::node_error)?;
        let mut state = self.state();
        state.attached.insert(pod.clone(), key.clone());
        let addresses = lease.addresses.clone();
        state.leases.insert(key.clone(), lease);
        drop(state);
        self.report(CniEvent::Attached { pod, addresses });
        Ok(())
    }

    /// Updates the labels of an attached pod.
    fn relabel(&self, pod: &PodName) {
        let Some(key) = self.state().attached.get(pod).cloned() else { return };
        let _guard = self.busy.lock(&key);
        let Some(lease) = self.state().leases.get(&key).cloned() else { return };
        if !lease.is_pod || !lease.attached {
            return;
        }
        // If the pod is gone, a DEL will follow. Until then its labels stay.
        let Ok(facts) = self.view.pod(pod, lease.uid.as_deref(), Instant::now()) else { return };
        if let Err(error) = self.redescribe(lease, &facts) {
            self.report(CniEvent::Failed { verb: "labels".into(), key: key.to_string(), error });
        }
    }

    fn redescribe(&self, mut lease: Lease, facts: &PodFacts) -> Result<(), CniError> {
        if !leased::describe(&mut lease, facts) {
            return Ok(());
        }
        let attachment = leased::attachment(&lease)?;
        self.with_node(move |node| node.add_pod(attachment))?.map_err(leased::node_error)?;
        let mut state = self.state();
        state.store.write(&lease).map_err(leased::io_error("write the lease"))?;
        state.leases.insert(lease.key(), lease);
        Ok(())
    }

    /// Records the addresses of the node's own interfaces. No pod gets one of them.
    fn find_node_addresses(&self) {
        let found = self.with_node(|node| {
            let addresses = Netlink::open(node.namespace())?.addresses()?;
            Ok::<_, podswitch_linux::HostError>(
                addresses.iter().map(|found| found.address.address()).collect::<HashSet<_>>(),
            )
        });
        match found {
            Ok(Ok(addresses)) => self.state().node_addresses = addresses,
            Ok(Err(error)) => self.report(CniEvent::Note(error.to_string())),
            // The node ended; its owner reports it.
            Err(_) => {}
        }
    }

    fn beat(self: &Arc<Self>, heartbeat: &Heartbeat) {
        let shared = self.clone();
        let problem = match self.with_node(move |node| problem(&shared, node)) {
            Ok(problem) => problem,
            Err(error) => Some((CniError::LIMITED, error.message)),
        };
        let problem = problem.as_ref().map(|(code, text)| (*code, text.as_str()));
        if let Err(error) = heartbeat.beat(since_boot(), problem) {
            self.report(CniEvent::Note(format!("the STATUS file cannot be written: {error}")));
        }
    }
}
