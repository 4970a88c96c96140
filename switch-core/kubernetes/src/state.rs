//! A state compiled for one node: the configuration for the control plane, and this node's pods.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use podswitch_core::config::{Attachment, Config, PortConfig, PortRole};
use podswitch_core::id::{Cookie, PortId};
use podswitch_wire::addr::Mac;

use crate::report::{Counts, Record};

/// A state compiled from manifests.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The configuration for the control plane. Its `ports` are empty, and no endpoint is attached
    /// until [`Compiled::attach`] sets the ports of pods.
    pub config: Config,
    /// The pods of this node that can be attached, in the order of the manifests: those that have
    /// their own address. Empty if no node was named.
    pub pods: Vec<LocalPod>,
    /// The overlay in Flannel's annotations, if any node has them.
    pub flannel: Option<Overlay>,
    /// Whether the node that it was compiled for has a usable Node object. A state without one must
    /// not be applied. True if no node was named.
    pub has_node: bool,
    /// Records about objects, in the order of the manifests.
    pub records: Vec<Record>,
}

/// The overlay according to Flannel's annotations. With it, a node can join a Flannel cluster,
/// whose tunnels use UDP port 8472.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// The VXLAN network identifier, the same on all nodes.
    pub vni: Option<u32>,
}

/// A pod of this node, to be attached to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// `namespace/pod`, the name in captures and references.
    pub name: String,
    /// Its name in drops, flows and explanations.
    pub cookie: Cookie,
    /// Its index in [`Config::endpoints`], in a [`Compiled`] state.
    pub endpoint: usize,
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// How to attach it to its network namespace. `None`: its object names no namespace.
    pub interface: Option<PodInterface>,
}

/// Where and how a pod is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// Its network namespace, a path such as `/run/netns/web`. The caller must check that it is a
    /// network namespace, and neither the node's own nor another pod's.
    pub netns: PathBuf,
    /// Kind of device.
    pub kind: InterfaceKind,
    /// Name of the device inside the pod.
    pub name: String,
}

/// The kind of device that attaches a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceKind {
    /// A TAP created in the pod's namespace.
    Tap,
    /// A veth pair whose other end the switch uses through AF_PACKET.
    Veth,
}

impl Compiled {
    /// Attaches pod number `pod` of [`Compiled::pods`] to the port `port` with an MTU of `mtu`
    /// bytes.
    ///
    /// # Panics
    /// There is no such pod.
    pub fn attach(&mut self, pod: usize, port: PortId, mtu: u16) {
        let pod = &self.pods[pod];
        let endpoint = Arc::make_mut(&mut self.config.endpoints[pod.endpoint]);
        endpoint.attachment = Some(Attachment { port, mac: pod.mac, mtu });
        self.config.ports.push(PortConfig { port, role: PortRole::Pod });
    }

    /// Records that make a check of the manifests fail.
    pub fn refused(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.refused)
    }

    /// The number of records of each kind.
    pub fn counts(&self) -> Counts {
        Counts::of(&self.records)
    }
}
