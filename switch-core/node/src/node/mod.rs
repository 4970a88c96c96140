//! The switch of one node: control plane and workers, the node's own port, its pods, and the
//! settings of the node's kernel.
//!
//! Used by one thread. [`Node::stop`], or the end of the process, removes everything created here.
//! Pods' interfaces outlive a kill, and the next run attaches to them.

mod changes;
mod counts;
mod handover;
mod hold;
mod holding;
mod ownership;
mod publish;
mod reconcile;
mod request;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use podswitch_core::control::{Change, ControlPlane, LeftOut, Options, Published as Outcome};
use podswitch_core::id::{Epoch, PortId};
use podswitch_core::snapshot::Snapshot;
use podswitch_core::time::{Clock, Instant};
use podswitch_linux::{HostError, NetNs};
use podswitch_wire::cidr::Cidr;

use crate::attachment::PodAttachment;
use crate::capture::{Capture, CaptureError, CaptureRequest};
use crate::error::NodeError;
use crate::events::{DropReader, Event, EventSink, FlowReader, Reporter};
use crate::explain::{self, Connection, Verdict};
use crate::first_packet::{self, SendError, SentPacket};
use crate::flow_view::FlowView;
use crate::flows::{self, Flow};
use crate::host_side::{Behind, HostSide};
use crate::inspect::PodInfo;
use crate::kept::Kept;
use crate::metrics::Meters;
use crate::names::{self, UnknownName};
use crate::options::{NodeOptions, Settings};
use crate::perf::PerfReading;
use crate::pod_name::PodName;
use crate::pods::Pods;
use crate::ranges::Ranges;
use crate::state::{Desired, State, StateChanges};
use crate::stats::{PortKinds, Stats};
use crate::totals::Totals;
use crate::underlay::Underlay;
use holding::Holding;
use ownership::Ownership;
use request::Published;

/// Timeout for the workers' acknowledgement of a new state.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of the comparison of devices and pods' namespaces with the desired state.
pub const RECONCILE_INTERVAL: Duration = Duration::from_secs(2);
/// Interval at which changes of interfaces and neighbours, and dropped frames, are collected.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// What [`Node::stop`] does with the interfaces of pods that the state attached. Interfaces of pods
/// added by [`Node::add_pod`] always stay: [`Node::remove_pod`] removes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodInterfaces {
    /// Removes them.
    Remove,
    /// Leaves them for the next run, and what keeps the switch's packets from the node's stack, which would reset their
    /// connections: steering of Services, drops on the uplink, reserved ports, forwarding. Packets are discarded until
    /// the next run. Where none follows, [`remove_leftovers`](crate::remove_leftovers).
    Keep,
}

/// What becomes of the settings of the node's kernel.
#[derive(Clone, Copy)]
enum NodeSide {
    Remove,
    Keep,
}

/// See the module's description.
pub struct Node {
    settings: Settings,
    /// Declared before what holds devices, so that it is dropped first: workers close devices
    /// before those are removed.
    control: ControlPlane,
    pods: Pods,
    host: HostSide,
    underlay: Underlay,
    desired: Desired,
    published: Published,
    ranges: Ranges,
    /// Pods added by [`Node::add_pod`].
    added: HashMap<PodName, PodAttachment>,
    reporter: Reporter,
    sink: Option<Box<dyn EventSink>>,
    drops: Option<DropReader>,
    flows: Option<FlowReader>,
    meters: Meters,
    port_kinds: PortKinds,
    /// What earlier runs have counted.
    earlier: Totals,
    clock: Clock,
    reconcile_at: Instant,
    /// Ports changed, and no state that names them is in force yet.
    is_unpublished: bool,
    /// Whose the devices and the kernel are.
    ownership: Ownership,
    /// Connections that outlive the process.
    kept: Option<Kept>,
    /// Devices that outlive it.
    holding: Holding,
    /// What the node's kernel does not have yet of the published state.
    behind: Behind,
    /// The last reported failure, so that it is reported once.
    reported: Option<String>,
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
    /// Starts the switch with its first state, which is in force on return. Pods that cannot be
    /// attached are reported as [`Event::Failure`](crate::Event::Failure) and retried.
    ///
    /// # Errors
    /// A bad option; the state is refused; missing privilege (CAP_NET_ADMIN and CAP_SYS_ADMIN); the
    /// node's own port or a required underlay is not available. What was created on the node is
    /// removed again, unless connections of an earlier run wait; pods keep their interfaces.
    pub fn start(options: NodeOptions, state: impl Into<State>) -> Result<Self, NodeError> {
        options.check()?;
        let namespace = options.open_namespace()?;
        let NodeOptions { name, switch_namespace, workers, masquerade, cluster_cidrs, .. } =
            options;
        let reporter = Reporter::default();
        let settings = Settings {
            beside_kube_proxy: options.kube_proxy.is_present(&namespace, &reporter),
            name,
            namespace,
            switch_namespace,
            workers,
            masquerade,
            cluster_cidrs,
            underlay: options.underlay,
            lenient: options.lenient,
            inherited: options.inherited,
        };
        let takes_over = settings.inherited.has_predecessor();
        let switch_options = Options {
            limits: options.limits,
            pinning: options.pinning,
            on_worker_start: Some(podswitch_linux::confine::worker_thread),
            ..Options::default()
        };
        let state = state.into();
        let folder = options.keep_connections.as_deref();
        let (mut control, kept) = Kept::open(folder, takes_over, switch_options, &reporter);
        control.set_workers(settings.workers)?;
        // What waits in devices is read when all pods are attached.
        let is_held = !takes_over && settings.inherited.has_files();
        let is_restart = kept.as_ref().is_some_and(Kept::has_saved) || is_held;
        if is_restart || takes_over {
            // No segment may meet the switch before its connection is open again.
            control.hold_workers(true);
        }
        let drops = options.report_drops.then(|| DropReader::observe(&control, &settings.name));
        let flows = options
            .report_flows
            .then(|| FlowReader::observe(&control, &settings.name, options.update_flows));
        let underlay = Underlay::new(&settings, &reporter)?;
        let mut pods = Pods::new(&settings, &reporter);
        let own_namespace = || pods.own_namespace();
        let local = state.config.node.pod_cidrs.clone();
        let host = HostSide::open(
            &settings,
            &state.config,
            local,
            &mut control,
            &reporter,
            own_namespace,
        )?;
        let clock = Clock::start();
        let mut node = Self {
            settings,
            control,
            pods,
            host,
            underlay,
            desired: Desired::default(),
            published: Published::default(),
            ranges: Ranges::default(),
            added: HashMap::new(),
            reporter,
            sink: options.sink,
            drops,
            flows,
            meters: options.meters,
            port_kinds: PortKinds::default(),
            earlier: Totals::default(),
            reconcile_at: clock.now() + RECONCILE_INTERVAL,
            clock,
            is_unpublished: false,
            ownership: if takes_over { Ownership::Predecessor } else { Ownership::Own },
            kept,
            holding: Holding::of_start(is_held),
            behind: Behind::default(),
            reported: None,
        };
        let started =
            node.put_in_force(state).and_then(|_| match node.underlay.required_but_missing() {
                Some(error) => Err(error.clone().into()),
                None => Ok(()),
            });
        if !takes_over {
            if let (Ok(()), Some(kept)) = (&started, &mut node.kept) {
                node.earlier = kept.start(&node.control, node.clock.now(), true);
                node.pods.restore_counts(node.earlier.take_pods());
            }
            node.control.hold_workers(is_held);
        }
        node.deliver_events();
        match started {
            Ok(()) => {
                if !takes_over {
                    HostSide::ask_lost_clients(&node.settings, &node.control);
                }
                Ok(node)
            }
            Err(error) => {
                // The first error is returned. Pods may have had their interfaces from an earlier run, whose connections
                // a later one goes on with.
                let node_side = if is_restart { NodeSide::Keep } else { NodeSide::Remove };
                let _ = node.end(PodInterfaces::Keep, node_side);
                Err(error)
            }
        }
    }

    /// Puts a state in force: attaches and detaches pods accordingly, without disturbing the
    /// others. New pods forward nothing before the state that describes them is in force (N13).
    /// Pods added by [`add_pod`](Self::add_pod) stay.
    ///
    /// # Errors
    /// The state is refused, and the one in force stays; or the system refuses a step.
    pub fn apply(&mut self, state: impl Into<State>) -> Result<Epoch, NodeError> {
        let result = self.put_in_force(state.into());
        self.deliver_events();
        result
    }

    /// Puts changes of single objects in force, all or none of them; of two for one name the last
    /// counts. The cost depends on the changes only, except that with an uplink interface a change
    /// of another node or of a route looks up all neighbours. Changes of ports are ignored, since
    /// the node manages ports.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn update(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<Epoch, NodeError> {
        let changes: Vec<Change> = changes.into_iter().collect();
        self.update_state(StateChanges::from(changes))
    }

    /// As [`update`](Self::update), also for pods that the state attaches, and for settings
    /// ([`Change::Settings`]).
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn update_state(&mut self, changes: StateChanges) -> Result<Epoch, NodeError> {
        let result = self.change(changes);
        self.deliver_events();
        result
    }

    /// Attaches a pod (CNI ADD), regardless of annotations: creates its interface and a port, which
    /// it keeps until [`remove_pod`](Self::remove_pod), independent of states. A pod that is
    /// attached in the same way already stays as it is; one attached differently is attached again.
    ///
    /// Packets are forwarded once the state describes the pod (N13), or immediately if the
    /// attachment has labels.
    ///
    /// # Errors
    /// The interface cannot be created, or the pod conflicts with others of the state. What was
    /// created is removed again.
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

    /// Detaches a pod that was [added](Self::add_pod) and removes its interface (CNI DEL). Returns
    /// whether there was one. If the state attaches the pod as well, it is attached as the state
    /// says.
    ///
    /// # Errors
    /// The state without the pod cannot be put in force; the pod stays then.
    pub fn remove_pod(&mut self, pod: &PodName) -> Result<bool, NodeError> {
        let Some(before) = self.added.remove(pod) else { return Ok(false) };
        let result = self.detach_removed(&before);
        if result.is_err() {
            self.added.insert(pod.clone(), before);
        }
        self.deliver_events();
        result.map(|()| true)
    }

    /// Reconciles the node with what changed since the last call: interfaces and neighbours, failed
    /// devices, pods whose namespace appeared or was replaced. Restores settings of the switch that
    /// were removed ([`Event::Repaired`](crate::Event::Repaired)). Collects events. Call it again
    /// after the returned time, or earlier.
    ///
    /// # Errors
    /// Workers failed: the switch should be [stopped](Self::stop), and pods should
    /// [keep](PodInterfaces::Keep) their interfaces for the next run.
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

    /// Largest network-layer packet of pods' interfaces, in bytes.
    pub fn pod_mtu(&self) -> u16 {
        self.pods.mtu()
    }

    /// Ranges of this node's pods, as the desired state has them.
    pub fn pod_cidrs(&self) -> &[Cidr] {
        &self.desired.settings.node.pod_cidrs
    }

    /// The node's own network namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.settings.namespace
    }

    /// The state in force, as the workers see it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.control.snapshot()
    }

    /// All objects that are not in force as written, with the reasons
    /// ([`NodeOptions::lenient`](crate::NodeOptions::lenient)). The cost is proportional to their
    /// number.
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.control.left_out()
    }

    /// The epoch of the state in force.
    pub fn epoch(&self) -> Epoch {
        self.control.snapshot().epoch
    }

    /// Where the node and others enter what they measure.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// What the workers did with their time until now.
    pub fn perf(&self) -> PerfReading {
        PerfReading::read(&self.control, &self.settings.name)
    }

    /// Begins a packet capture. It ends when it is dropped.
    ///
    /// # Errors
    /// A name is not known; another capture runs.
    pub fn capture(&mut self, request: &CaptureRequest) -> Result<Capture, CaptureError> {
        Capture::start(&mut self.control, &self.pods, request)
    }

    /// Sends the first packet of each connection out of the interface of the pod that has its source address, for real: the
    /// switch forwards it, and the server gets it. TCP opens with SYN, SCTP with INIT; UDP and ICMP echo carry a short
    /// text. The pod's stack knows nothing of it and resets what a server accepts.
    ///
    /// # Errors
    /// Nothing was sent: a pod is not attached here, or has such a connection; the protocol has no first packet. Or the
    /// system refused a packet, perhaps after others were sent.
    pub fn send_first_packets(
        &self,
        connections: &[Connection],
    ) -> Result<Vec<SentPacket>, SendError> {
        first_packet::send(&self.control, &self.pods, connections)
    }

    /// The addresses of what is called `name`: an address, `namespace/pod`, `node/NAME` or
    /// `service/NAMESPACE/NAME`. At the cost of all pods.
    ///
    /// # Errors
    /// There is no such thing.
    pub fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, UnknownName> {
        names::addresses(&self.control.snapshot(), name)
    }

    /// Every live connection. Packet and byte counts of those that are neither TCP nor translated may be up to
    /// about ten seconds old.
    pub fn flows(&self) -> Vec<Flow> {
        flows::list(&self.control)
    }

    /// The connections for queries with filters, of which any thread may make any number without the node's.
    pub fn flow_view(&self) -> FlowView {
        FlowView::new(&self.control)
    }

    /// Explains why a connection is forwarded or not, by the state in force. `None`: its addresses
    /// are of two families.
    pub fn explain(&self, connection: &Connection) -> Option<Verdict> {
        explain::explain(&self.control.snapshot(), connection)
    }

    /// The control plane, for operations that are not offered here.
    pub fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// The control plane, for example to attach further ports.
    pub fn control_mut(&mut self) -> &mut ControlPlane {
        &mut self.control
    }

    /// Stops the switch and removes everything that it created: interfaces, routes, rules,
    /// settings; or leaves what the next run needs, see [`PodInterfaces`].
    ///
    /// # Errors
    /// The first error of removing something.
    pub fn stop(self, interfaces: PodInterfaces) -> Result<(), HostError> {
        let node_side = match interfaces {
            PodInterfaces::Remove => NodeSide::Remove,
            PodInterfaces::Keep => NodeSide::Keep,
        };
        self.end(interfaces, node_side)
    }

    fn end(self, interfaces: PodInterfaces, node_side: NodeSide) -> Result<(), HostError> {
        let is_own = self.ownership == Ownership::Own;
        // Another process goes on, or has begun to.
        let (interfaces, node_side) = match is_own {
            true => (interfaces, node_side),
            false => (PodInterfaces::Keep, NodeSide::Keep),
        };
        let Self {
            mut control,
            pods,
            mut host,
            underlay,
            added,
            reporter,
            mut sink,
            mut kept,
            holding,
            ..
        } = self;
        // The next run goes on with the devices as they are, as after a kill.
        let is_held = is_own && holding.is_held();
        match interfaces {
            PodInterfaces::Keep if is_held => control.leave_devices_in_force(true),
            // Before devices are removed: some are there as long as anybody has them open.
            PodInterfaces::Remove if is_own => holding.end(),
            PodInterfaces::Keep | PodInterfaces::Remove => {}
        }
        let (mut drops, mut flows) = (self.drops, self.flows);
        let pod = |port| pods.at(port);
        if let Some(drops) = &mut drops {
            drops.read(&control, &reporter, &self.meters, pod);
        }
        // Workers hand over what they have counted when they stop. There is no device to open for others.
        let workers = control.workers().cloned().collect();
        let _ = control.set_workers(0);
        if let (Some(kept), PodInterfaces::Keep, true) = (&mut kept, interfaces, is_own) {
            let mut stats = Stats::of_workers(&workers, &self.port_kinds);
            self.earlier.add_to(&mut stats);
            let list = PodInfo::list(&control, &workers, &pods);
            let totals = Totals::new(&stats, &list, pods.waiting_counts());
            kept.save(&control, self.clock, || totals);
        }
        if let Some(drops) = &mut drops {
            drops.read(&control, &reporter, &self.meters, pod);
        }
        if let Some(flows) = &mut flows {
            flows.finish(&control, &reporter);
        }
        drop(control);
        match node_side {
            NodeSide::Remove => underlay.stop(),
            NodeSide::Keep if is_held => host.hand_over(),
            NodeSide::Keep => host.leave_in_force(),
        }
        match self.ownership {
            Ownership::Successor => {
                host.hand_over();
                if let Some(kept) = kept.take() {
                    kept.remove_retired();
                }
            }
            Ownership::Predecessor => {
                if let Some(kept) = kept.take() {
                    kept.abandon();
                }
            }
            Ownership::Own | Ownership::Forwarding => {}
        }
        drop(host);
        let result = match interfaces {
            PodInterfaces::Keep => Ok(()),
            PodInterfaces::Remove => {
                if let Some(kept) = kept {
                    kept.remove();
                }
                pods.remove(&added)
            }
        };
        while let Some(event) = reporter.next() {
            if let Some(sink) = &mut sink {
                sink.event(event);
            }
        }
        result
    }

    /// Publishes single changes, strictly or leniently.
    fn update_control(&mut self, changes: Vec<Change>) -> Result<Epoch, NodeError> {
        if !self.settings.lenient {
            return Ok(self.control.update(changes)?);
        }
        let published = self.control.update_lenient(changes)?;
        Ok(self.reported(published))
    }

    /// Reports what a publish left out and put in force again. Returns its epoch.
    fn reported(&self, published: Outcome) -> Epoch {
        let Outcome { left_out, taken, epoch, .. } = published;
        left_out.into_iter().for_each(|object| self.reporter.event(Event::LeftOut(object)));
        taken.into_iter().for_each(|object| self.reporter.event(Event::Taken { object }));
        epoch
    }

    fn deliver_events(&mut self) {
        while let Some(event) = self.reporter.next() {
            if let Some(sink) = &mut self.sink {
                sink.event(event);
            }
        }
    }
}
