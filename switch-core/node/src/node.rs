//! The switch of one node: control plane and workers, the node's own port, its pods, and the
//! settings of the node's kernel.
//!
//! Used by one thread. Everything that is made here is removed again by [`Node::stop`], or when the
//! process dies; pods' interfaces outlive a kill, and the next run attaches to them as they are.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use podswitch_core::config::Config;
use podswitch_core::control::{Change, ControlPlane, Options};
use podswitch_core::id::{Epoch, PortId};
use podswitch_core::snapshot::{Location, Snapshot};
use podswitch_core::time::{Clock, Instant};
use podswitch_linux::{HostError, NetNs};
use podswitch_wire::cidr::Cidr;

use crate::cluster::Masquerading;
use crate::error::NodeError;
use crate::events::{DropQueue, Event, EventSink, Failure, Reporter};
use crate::explain::{self, Connection, Verdict};
use crate::flows::{self, Flow, FlowReporter};
use crate::handle::NodeHandle;
use crate::host_side::HostSide;
use crate::options::{NodeOptions, UnderlayOptions};
use crate::pods::{PodAttachment, PodName, Pods, Wanted};
use crate::state::{Desired, State};
use crate::stats::Stats;
use crate::underlay::Underlay;

/// The longest that workers take to acknowledge a new state.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// How often devices and pods' namespaces are compared with the wanted state.
pub const RECONCILE_INTERVAL: Duration = Duration::from_secs(2);
/// How often changes of the node's interfaces and neighbours, and dropped frames, are collected.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// What [`Node::stop`] does with the interfaces of pods that the state attached. Those of pods that were
/// added one by one always stay: [`Node::remove_pod`] removes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodInterfaces {
    /// Removes them.
    Remove,
    /// Leaves them, for the next run.
    Keep,
}

/// Options that hold for as long as the node runs.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) namespace: NetNs,
    pub(crate) switch_namespace: Option<NetNs>,
    pub(crate) workers: usize,
    pub(crate) masquerade: Masquerading,
    pub(crate) cluster_cidrs: Vec<Cidr>,
    pub(crate) underlay: UnderlayOptions,
}

/// See the module's description.
pub struct Node {
    settings: Settings,
    /// First of what holds devices, so that it is dropped first: workers let go of devices before
    /// those are removed.
    control: ControlPlane,
    pods: Pods,
    host: HostSide,
    underlay: Underlay,
    desired: Desired,
    /// Pods that were added one by one.
    added: HashMap<PodName, PodAttachment>,
    reporter: Reporter,
    sink: Option<Box<dyn EventSink>>,
    drops: Option<DropQueue>,
    flows: Option<(Duration, FlowReporter)>,
    clock: Clock,
    reconcile_at: Instant,
    flows_at: Instant,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("settings", &self.settings)
            .field("ports", self.pods.ports())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Starts the switch with its first state, which is in force on return. Pods that cannot be attached
    /// are reported as [`Event::Failure`] and tried again.
    ///
    /// # Errors
    /// A bad option; the state is refused; missing privilege (CAP_NET_ADMIN and CAP_SYS_ADMIN); the node's own
    /// port or an underlay that the options ask for cannot be had. What was made is removed again.
    pub fn start(options: NodeOptions, state: impl Into<State>) -> Result<Self, NodeError> {
        options.check()?;
        let namespace = options.open_namespace()?;
        let NodeOptions { name, switch_namespace, workers, masquerade, cluster_cidrs, .. } =
            options;
        let settings = Settings {
            name,
            namespace,
            switch_namespace,
            workers,
            masquerade,
            cluster_cidrs,
            underlay: options.underlay,
        };
        let switch_options =
            Options { limits: options.limits, pinning: options.pinning, ..Options::default() };
        let state = state.into();
        let reporter = Reporter::default();
        let mut control = ControlPlane::new(switch_options);
        control.set_workers(settings.workers)?;
        let drops = options.report_drops.then(|| DropQueue::observe(&control));
        let underlay = Underlay::new(&settings, &reporter)?;
        let mut pods = Pods::new(&settings, &reporter);
        let own_namespace = || pods.own_namespace();
        let host =
            HostSide::open(&settings, &state.config, &mut control, &reporter, own_namespace)?;
        let clock = Clock::start();
        let mut node = Self {
            settings,
            control,
            pods,
            host,
            underlay,
            desired: Desired::default(),
            added: HashMap::new(),
            reporter,
            sink: options.sink,
            drops,
            flows: options.report_flows.map(|every| (every, FlowReporter::default())),
            reconcile_at: clock.now() + RECONCILE_INTERVAL,
            flows_at: clock.now(),
            clock,
        };
        let started =
            node.put_in_force(state).and_then(|_| match node.underlay.required_but_missing() {
                Some(error) => Err(error.clone().into()),
                None => Ok(()),
            });
        node.deliver_events();
        match started {
            Ok(()) => Ok(node),
            Err(error) => {
                // The first error is returned.
                let _ = node.stop(PodInterfaces::Remove);
                Err(error)
            }
        }
    }

    /// Gives the node a thread of its own, which looks after it.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn spawn(self) -> Result<NodeHandle, NodeError> {
        NodeHandle::spawn(self)
            .map_err(|error| HostError::new("start the node's thread", error).into())
    }

    /// Puts a state in force: pods come and go as it says, all others go on undisturbed. What is
    /// new passes nothing before the state that knows it (N13). Pods that were added one by one stay.
    ///
    /// # Errors
    /// The state is refused, and the one in force stays; the system refuses something.
    pub fn apply(&mut self, state: impl Into<State>) -> Result<Epoch, NodeError> {
        let result = self.put_in_force(state.into());
        self.deliver_events();
        result
    }

    /// Puts changes of single objects in force, all or none of them; of two for one name the last
    /// counts. At the cost of what changes, unless other nodes or attached pods come, go or move.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn update(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<Epoch, NodeError> {
        let result = self.change(changes.into_iter().collect());
        self.deliver_events();
        result
    }

    /// Attaches a pod (CNI ADD), whatever annotations say: makes its interface and gives it a port, which it
    /// has until [`remove_pod`](Self::remove_pod), through whatever states. A pod that is attached so
    /// already stays as it is; one that is attached otherwise is attached anew.
    ///
    /// Packets pass once the state knows the pod (N13), or at once if the attachment has labels.
    ///
    /// # Errors
    /// The interface cannot be made, or the pod clashes with others of the state. What was made is removed
    /// again.
    pub fn add_pod(&mut self, attachment: PodAttachment) -> Result<PortId, NodeError> {
        let pod = attachment.pod.clone();
        let before = self.added.insert(pod.clone(), attachment.clone());
        let result = self.attach_added(&attachment);
        if result.is_err() {
            match before {
                Some(before) => self.added.insert(pod, before),
                None => self.added.remove(&pod),
            };
        }
        self.deliver_events();
        result
    }

    /// Detaches a pod that was [added](Self::add_pod) and removes its interface (CNI DEL). Says whether
    /// there was one. Where the state attaches the pod as well, it does so from now on.
    ///
    /// # Errors
    /// The state without the pod cannot be put in force; the pod stays then.
    pub fn remove_pod(&mut self, pod: &PodName) -> Result<bool, NodeError> {
        let Some(before) = self.added.remove(pod) else { return Ok(false) };
        let wanted = Wanted::of(self.desired.state(), &self.added);
        let gone = self.pods.outdated(&wanted).into_iter().filter(|name| name == pod).collect();
        let result = self.reconcile_ports(gone, false).and_then(|_| self.follow());
        if result.is_err() {
            self.added.insert(pod.clone(), before);
        }
        self.deliver_events();
        result.map(|()| true)
    }

    /// Reconciles the node with what changed since the last call: interfaces and neighbours, failed devices, pods
    /// whose namespace appeared or was replaced. Collects events. Call it again after the returned time, or earlier.
    ///
    /// # Errors
    /// The node's own port failed, or the system refuses something: the switch should be
    /// [stopped](Self::stop).
    pub fn poll(&mut self) -> Result<Duration, NodeError> {
        let result = self.poll_parts();
        self.deliver_events();
        result
    }

    /// The port of an attached pod.
    pub fn port(&self, pod: &PodName) -> Option<PortId> {
        self.pods.port(pod)
    }

    /// Ports of attached pods.
    pub fn ports(&self) -> &HashMap<PodName, PortId> {
        self.pods.ports()
    }

    /// The state in force, as workers have it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.control.snapshot()
    }

    /// Which state is in force.
    pub fn epoch(&self) -> Epoch {
        self.control.snapshot().epoch
    }

    /// The counters, all workers together.
    pub fn stats(&self) -> Stats {
        Stats::read(&self.control, self.pods.ports().len())
    }

    /// Every connection alive. Packets and bytes of those that are neither TCP nor translated may be some
    /// ten seconds old.
    pub fn flows(&self) -> Vec<Flow> {
        flows::list(&self.control)
    }

    /// Why a connection passes or does not, as the state in force has it. `None`: its addresses are of two
    /// families.
    pub fn explain(&self, connection: &Connection) -> Option<Verdict> {
        explain::explain(&self.control.snapshot(), connection)
    }

    /// The control plane, for what this does not offer.
    pub fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// The control plane, to attach ports that no state names.
    pub fn control_mut(&mut self) -> &mut ControlPlane {
        &mut self.control
    }

    /// Ends the switch and removes all that it made: interfaces, routes, rules, settings. What becomes of pods'
    /// interfaces see [`PodInterfaces`].
    ///
    /// # Errors
    /// Something could not be removed; the first such error.
    pub fn stop(self, interfaces: PodInterfaces) -> Result<(), HostError> {
        let Self { control, pods, host, underlay, added, reporter, mut sink, .. } = self;
        drop(control);
        drop(host);
        underlay.stop();
        let result = match interfaces {
            PodInterfaces::Keep => Ok(()),
            PodInterfaces::Remove => pods.remove(&added),
        };
        while let Some(event) = reporter.next() {
            if let Some(sink) = &mut sink {
                sink.event(event);
            }
        }
        result
    }

    fn put_in_force(&mut self, state: State) -> Result<Epoch, NodeError> {
        let before = std::mem::replace(&mut self.desired, state.into());
        let gone = self.pods.outdated(&Wanted::of(self.desired.state(), &self.added));
        match self.reconcile_ports(gone, true) {
            Ok(_) => {
                self.follow()?;
                Ok(self.epoch())
            }
            Err(error) => {
                self.desired = before;
                Err(error)
            }
        }
    }

    fn change(&mut self, changes: Vec<Change>) -> Result<Epoch, NodeError> {
        if changes.iter().any(|change| self.moves_ports(change)) {
            let mut desired = self.desired.clone();
            changes.into_iter().for_each(|change| desired.change(change));
            return self.put_in_force(desired.state().clone());
        }
        let with_ports = changes.iter().map(|change| match change {
            Change::Pod(endpoint) => {
                let mut endpoint = endpoint.clone();
                let attachment = self.pods.attachment_of(&endpoint.cookie);
                if endpoint.attachment != attachment {
                    Arc::make_mut(&mut endpoint).attachment = attachment;
                }
                Change::Pod(endpoint)
            }
            other => other.clone(),
        });
        let epoch = self.control.update(with_ports)?;
        let mut concerns_host = false;
        for change in changes {
            concerns_host |= self.concerns_host(&change);
            self.desired.change(change);
        }
        self.acknowledged(epoch)?;
        if concerns_host {
            self.follow()?;
        }
        Ok(epoch)
    }

    /// Whether a change may add or remove ports of the configuration.
    fn moves_ports(&self, change: &Change) -> bool {
        match change {
            Change::Node(_) | Change::NodeGone(_) => true,
            Change::Pod(endpoint) => {
                let is_here = endpoint.node == self.desired.config().node.name;
                // A port is not named while the state does not know its pod.
                self.pods.has(&endpoint.cookie) && !(is_here && self.is_named(endpoint))
            }
            Change::PodGone(cookie) => self.pods.has(cookie),
            _ => false,
        }
    }

    /// Whether the state in force names the port of a pod.
    fn is_named(&self, endpoint: &podswitch_core::config::Endpoint) -> bool {
        let snapshot = self.control.snapshot();
        endpoint.workload.addresses.iter().any(|address| {
            snapshot.endpoints.get(address).is_some_and(|facts| {
                facts.endpoint.cookie == endpoint.cookie
                    && matches!(facts.location, Location::Attached { .. })
            })
        })
    }

    /// Whether a change concerns the node's kernel: frontends of Services, and pods outside the ranges of
    /// nodes do.
    fn concerns_host(&mut self, change: &Change) -> bool {
        let before = match change {
            Change::Service(_) | Change::ServiceGone(_) => return true,
            Change::Pod(endpoint) => self.desired.endpoint(&endpoint.cookie).cloned(),
            Change::PodGone(cookie) => self.desired.endpoint(cookie).cloned(),
            _ => return false,
        };
        let after = match change {
            Change::Pod(endpoint) => Some(endpoint),
            _ => None,
        };
        let config = self.desired.config();
        let of_nodes = config.nodes.iter().flat_map(|node| &node.pod_cidrs);
        let ranges: Vec<&Cidr> = config.node.pod_cidrs.iter().chain(of_nodes).collect();
        let mut addresses =
            before.iter().chain(after).flat_map(|endpoint| &endpoint.workload.addresses);
        addresses.any(|address| !ranges.iter().any(|range| range.contains(*address)))
    }

    fn attach_added(&mut self, attachment: &PodAttachment) -> Result<PortId, NodeError> {
        let pod = &attachment.pod;
        let wanted = Wanted::of(self.desired.state(), &self.added);
        let gone: Vec<_> =
            self.pods.outdated(&wanted).into_iter().filter(|name| name == pod).collect();
        if gone.is_empty()
            && let Some(port) = self.pods.port(pod)
        {
            if self.pods.set_labels(attachment) {
                self.publish()?;
            }
            return Ok(port);
        }
        self.release(gone, false)?;
        let port = self
            .pods
            .attach_one(&mut self.control, attachment)
            .map_err(|error| NodeError::Pod { pod: pod.clone(), error })?;
        if let Err(error) = self.publish() {
            // The state in force names no port of it.
            self.pods.detach(&mut self.control, vec![pod.clone()]);
            return Err(error);
        }
        self.follow()?;
        Ok(port)
    }

    fn poll_parts(&mut self) -> Result<Duration, NodeError> {
        if self.underlay.has_changed() {
            let changed = self.reconcile_ports(Vec::new(), false);
            self.unless_refused(changed)?;
        }
        let now = self.clock.now();
        if now >= self.reconcile_at {
            self.reconcile_at = now + RECONCILE_INTERVAL;
            let reconciled = self.reconcile();
            self.unless_refused(reconciled)?;
        }
        if let Some(drops) = &self.drops {
            drops.report(&self.reporter, |port| self.pods.at(port));
        }
        let mut due = self.reconcile_at;
        if let Some((every, flows)) = &mut self.flows {
            if now >= self.flows_at {
                self.flows_at = now + *every;
                flows.report(&self.control, &self.reporter);
            }
            due = due.min(self.flows_at);
        }
        Ok(due.since(now).min(POLL_INTERVAL))
    }

    /// What the node's interfaces became may be refused (an MTU that leaves nothing for the tunnel): that is
    /// reported, and the state in force stays.
    fn unless_refused(
        &mut self,
        result: Result<Option<Epoch>, NodeError>,
    ) -> Result<(), NodeError> {
        match result {
            Ok(None) => Ok(()),
            Ok(Some(_)) => match self.follow() {
                Err(NodeError::Host(error)) => {
                    self.reporter.failure(Failure::HostSide(error));
                    Ok(())
                }
                result => result,
            },
            Err(NodeError::Refused(errors)) => {
                self.reporter.event(Event::Refused(errors));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces devices that failed and pods that are not attached as wanted.
    fn reconcile(&mut self) -> Result<Option<Epoch>, NodeError> {
        let mut failed = Vec::new();
        for worker in self.control.workers() {
            failed.extend(std::iter::from_fn(|| worker.next_failure()));
        }
        let mut gone = self.pods.outdated(&Wanted::of(self.desired.state(), &self.added));
        for (port, error) in failed {
            if port == self.host.port() {
                return Err(NodeError::HostPortFailed(error));
            }
            if self.underlay.has_failed(port, &error) {
                continue;
            }
            if let Some(pod) = self.pods.at(port).filter(|pod| !gone.contains(pod)) {
                self.reporter.failure(Failure::PodInterfaceLost { pod: pod.clone(), error });
                gone.push(pod);
            }
        }
        self.host.reconcile(&self.control);
        self.reconcile_ports(gone, false)
    }

    /// Reconciles the ports: detaches `gone` pods and outdated underlay ports, attaches what is missing. Publishes
    /// the state if a port changed, or in any case if `always`.
    fn reconcile_ports(
        &mut self,
        gone: Vec<PodName>,
        always: bool,
    ) -> Result<Option<Epoch>, NodeError> {
        let outdated = self.underlay.plan(self.desired.config());
        let epoch = self.release(gone, outdated)?;
        let mut changed = self.underlay.attach(&mut self.control);
        let mtu = self.underlay.mtu(self.desired.config());
        changed |= self.pods.set_mtu(mtu) | self.host.set_mtu(&self.settings, mtu);
        let wanted = Wanted::of(self.desired.state(), &self.added);
        changed |= self.pods.attach(&mut self.control, &wanted);
        changed |= self.underlay.find_neighbours(self.desired.config());
        changed |= self.host.find_addresses(&self.settings, self.desired.config());
        let epoch =
            if changed || always && epoch.is_none() { Some(self.publish()?) } else { epoch };
        Ok(epoch)
    }

    /// Detaches pods and, if `outdated`, ports of the underlay. A configuration without these ports is in force
    /// before their numbers are free for others.
    fn release(&mut self, gone: Vec<PodName>, outdated: bool) -> Result<Option<Epoch>, NodeError> {
        if gone.is_empty() && !outdated {
            return Ok(None);
        }
        self.pods.withdraw(&gone);
        match self.publish() {
            Ok(epoch) => {
                self.pods.detach(&mut self.control, gone);
                self.underlay.detach(&mut self.control);
                Ok(Some(epoch))
            }
            Err(error) => {
                self.pods.restore(gone);
                Err(error)
            }
        }
    }

    /// Publishes the state with the ports that there are, and waits for the workers.
    fn publish(&mut self) -> Result<Epoch, NodeError> {
        let config = self.config();
        let epoch = self.control.apply(&config)?;
        self.acknowledged(epoch)?;
        Ok(epoch)
    }

    fn acknowledged(&mut self, epoch: Epoch) -> Result<(), NodeError> {
        self.control.wait(epoch, PUBLISH_TIMEOUT)?;
        self.reporter.event(Event::Applied { epoch });
        Ok(())
    }

    /// Updates the node's kernel to the state in force.
    fn follow(&mut self) -> Result<(), NodeError> {
        let (config, snapshot) = (self.config(), self.control.snapshot());
        let remote = self.underlay.remote_pods();
        self.host.follow(&self.settings, &config, &snapshot, remote)?;
        self.host.reconcile(&self.control);
        self.underlay.claim(&config, &snapshot);
        Ok(())
    }

    /// The desired configuration with the ports that there are.
    fn config(&self) -> Config {
        let mut config = self.desired.config().clone();
        config.ports.clear();
        config.neighbours.clear();
        self.pods.complete(&mut config);
        config.ports.push(self.host.port_config());
        config.node.local_addresses.extend(self.host.local_addresses());
        if let Some(masquerade) = self.settings.masquerade.by_switch(&self.settings.cluster_cidrs) {
            config.masquerade = Some(masquerade);
        }
        self.underlay.complete(&mut config);
        config
    }

    fn deliver_events(&mut self) {
        while let Some(event) = self.reporter.next() {
            if let Some(sink) = &mut self.sink {
                sink.event(event);
            }
        }
    }
}
