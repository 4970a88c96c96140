//! The switch of one node: control plane and workers, the node's own port, its pods, and what
//! the node's kernel is told. `run` drives one from manifests, `demo` one that it makes up.
//!
//! Used by one thread. Everything that is made here is removed again by [`Node::stop`], or when the
//! process dies; pods' interfaces outlive a kill, and the next run attaches to them as they are.

mod host;
mod neighbours;
mod pods;
mod routes;
mod services;
mod taken;
mod underlay;
mod veth;

use std::time::Duration;

use hashbrown::HashMap;
use podswitch_core::config::Config;
use podswitch_core::control::{ControlPlane, Options};
use podswitch_core::id::{Epoch, PortId};
use podswitch_core::snapshot::Snapshot;
use podswitch_kubernetes::Compiled;
use podswitch_linux::{HostError, NetNs};
use podswitch_wire::cidr::Cidr;
use std::sync::Arc;

use crate::cluster::Masquerading;
use crate::failure::{Failure, Refused};
use crate::print;
use host::HostSide;
use pods::{Pods, Wanted};
use underlay::Underlay;
pub(crate) use underlay::{UnderlayKind, UnderlayOptions};

/// The longest that workers take to see a new state.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is chosen when a switch is started.
#[derive(Debug)]
pub(crate) struct NodeOptions {
    /// The node's name.
    pub(crate) name: String,
    /// The node's own network namespace.
    pub(crate) namespace: NetNs,
    /// Where the switch keeps its ends of veth pairs. `None`: a named one, made when needed.
    pub(crate) switch_namespace: Option<NetNs>,
    /// How many workers.
    pub(crate) workers: usize,
    /// What happens to the source of packets that leave the cluster.
    pub(crate) masquerade: Masquerading,
    /// Ranges of the cluster beyond what nodes and pods say.
    pub(crate) cluster: Vec<Cidr>,
    /// How other nodes are reached.
    pub(crate) underlay: UnderlayOptions,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Node {
    options: NodeOptions,
    /// First, so that it is dropped first: workers let go of devices before those are removed.
    control: ControlPlane,
    pods: Pods,
    host: HostSide,
    underlay: Underlay,
    state: Compiled,
}

impl Node {
    /// Starts the switch with its first state.
    pub(crate) fn start(options: NodeOptions, state: Compiled) -> Result<(Self, Epoch), Failure> {
        let mut control = ControlPlane::new(Options::default());
        control.set_workers(options.workers)?;
        let underlay = Underlay::new(&options)?;
        let mut pods = Pods::new(&options);
        let host = HostSide::open(&options, &state, &mut control, || pods.own_namespace())?;
        let mut node = Self { options, control, pods, host, underlay, state: Compiled::default() };
        let started = node.apply(state).and_then(|epoch| match node.underlay.trouble() {
            Some(trouble) if node.underlay.is_asked_for() => {
                Err(Failure::Setup(trouble.to_owned()))
            }
            _ => Ok(epoch),
        });
        match started {
            Ok(epoch) => Ok((node, epoch)),
            Err(error) => {
                // The first error is the one to tell.
                let _ = node.stop(false);
                Err(error)
            }
        }
    }

    /// Puts a state in force: pods come and go as it says, all others go on undisturbed. What is
    /// new passes nothing before the state that knows it (N13).
    pub(crate) fn apply(&mut self, state: Compiled) -> Result<Epoch, Failure> {
        let before = std::mem::replace(&mut self.state, state);
        let gone = self.pods.not_in(&Wanted::of(&self.state));
        let epoch = match self.settle(gone, true) {
            Ok(epoch) => epoch.unwrap_or_default(),
            Err(error) => {
                self.state = before;
                return Err(error);
            }
        };
        let remote = self.underlay.remote();
        self.host.update(&self.options, &self.state, remote, &self.control)?;
        Ok(epoch)
    }

    /// Looks after what went wrong since: devices that failed, pods whose namespace was not there
    /// yet or is another one now. To be called every few seconds; says so if there is a new epoch.
    pub(crate) fn tend(&mut self) -> Result<Option<Epoch>, Failure> {
        let mut failed = Vec::new();
        for worker in self.control.workers() {
            failed.extend(std::iter::from_fn(|| worker.next_failure()));
        }
        let mut gone = self.pods.not_in(&Wanted::of(&self.state));
        for (port, error) in failed {
            if port == self.host.port() {
                return Err(Failure::Setup(format!("the node's own port failed: {error}")));
            }
            if self.underlay.has_failed(port, &error) {
                continue;
            }
            if let Some(name) = self.pods.at(port).filter(|name| !gone.contains(name)) {
                print::note(format_args!("{name}: its interface is gone: {error}"));
                gone.push(name);
            }
        }
        self.host.tend(&self.control);
        self.settle(gone, false)
    }

    /// Looks after what the node's kernel learnt since: where other nodes are, what became of the
    /// uplink. Costs little when it was nothing; to be called often.
    pub(crate) fn watch(&mut self) -> Result<Option<Epoch>, Failure> {
        if self.underlay.has_changed() { self.settle(Vec::new(), false) } else { Ok(None) }
    }

    /// Makes ports what they should be, `gone` pods' not to be, and publishes the state if that
    /// changed anything or is to be done in any case (`always`).
    fn settle(&mut self, gone: Vec<String>, always: bool) -> Result<Option<Epoch>, Failure> {
        let outdated = self.underlay.plan(&self.state);
        let epoch = self.release(gone, outdated)?;
        let mut news = self.underlay.attach(&mut self.control);
        let mtu = self.underlay.mtu(&self.state);
        news |= self.pods.set_mtu(mtu) | self.host.set_mtu(&self.options, mtu);
        let wanted = Wanted::of(&self.state);
        if self.pods.is_lacking(&wanted) {
            news |= self.pods.attach(&mut self.control, &wanted);
        }
        news |= self.underlay.find_neighbours(&self.state.config);
        let moved = self.host.find_addresses(&self.options, &self.state);
        news |= moved;
        let epoch = if news || always && epoch.is_none() { Some(self.publish()?) } else { epoch };
        if moved {
            self.host.steer(&self.control)?;
        }
        self.underlay.take(&self.state, &self.control.snapshot());
        Ok(epoch)
    }

    /// Detaches pods, if there are any, and `outdated` ports of the underlay: first nobody is told
    /// of their ports any more, whose numbers may then be given to others.
    fn release(&mut self, gone: Vec<String>, outdated: bool) -> Result<Option<Epoch>, Failure> {
        if gone.is_empty() && !outdated {
            return Ok(None);
        }
        self.pods.forget(&gone);
        match self.publish() {
            Ok(epoch) => {
                self.pods.detach(&mut self.control, gone);
                self.underlay.detach(&mut self.control);
                Ok(Some(epoch))
            }
            Err(error) => {
                self.pods.recall(gone);
                Err(error)
            }
        }
    }

    /// Publishes the state with the ports that there are, and waits for the workers.
    fn publish(&mut self) -> Result<Epoch, Failure> {
        let config = self.config();
        let epoch = self
            .control
            .apply(&config)
            .map_err(|refused| Failure::Refused(refused.0.iter().map(Refused::from).collect()))?;
        self.control.wait(epoch, PATIENCE)?;
        Ok(epoch)
    }

    fn config(&self) -> Config {
        let mut state = self.state.clone();
        for pod in 0..state.pods.len() {
            if let Some(port) = self.pods.port(&state.pods[pod].name) {
                state.attach(pod, port, self.pods.mtu());
            }
        }
        state.config.ports.push(self.host.config());
        state.config.node.local_addresses.extend(self.host.local_addresses());
        self.underlay.complete(&mut state.config);
        state.config
    }

    /// The control plane, for its counters and connections.
    pub(crate) fn control(&self) -> &ControlPlane {
        &self.control
    }

    /// The control plane, to attach what no state tells of.
    pub(crate) fn control_mut(&mut self) -> &mut ControlPlane {
        &mut self.control
    }

    /// The port of an attached pod, `namespace/name`.
    pub(crate) fn port(&self, pod: &str) -> Option<PortId> {
        self.pods.port(pod)
    }

    /// The state in force, as workers have it.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.control.snapshot()
    }

    /// Ports of attached pods, by name.
    pub(crate) fn ports(&self) -> &HashMap<String, PortId> {
        self.pods.ports()
    }

    /// Ends the switch and removes all that it made; pods keep their interfaces if `keep`.
    pub(crate) fn stop(self, keep: bool) -> Result<(), HostError> {
        let Self { control, pods, host, underlay, .. } = self;
        drop(control);
        drop(host);
        underlay.stop();
        if keep { Ok(()) } else { pods.remove() }
    }
}
