//! The demo's world: two nodes, their pods, and an outside host that is linked to the nodes and has
//! no routes to pods.

mod links;
mod manifest;
mod pod;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use podswitch_core::action::DropReason;
use podswitch_core::stats::WorkerCounters;
use podswitch_kubernetes::{Manifests, NameOptions};
use podswitch_linux::{HostError, NetNs, Netlink, attach};
use podswitch_node::{ClusterOptions, Node, NodeOptions, PodInterfaces, PodName};
use podswitch_wire::addr::Mac;

use super::sockets::Outcome;
use crate::failure::{Failure, Refused};
use crate::print;
use crate::state;
pub(super) use links::{
    FAR_AWAY, NODE_ADDRESSES, OUTSIDE, SEGMENT, UPLINK, address, bridge_port, segment,
    without_netfilter,
};
#[cfg(feature = "ingress")]
pub(super) use manifest::HTTP_PORT;
pub(super) use manifest::{SERVICE_PORT, Service, Setup, TARGET_PORT};
pub(super) use pod::{DemoPod, Family, NODE_NAMES};

/// The prefix of named namespaces.
const PREFIX: &str = "podswitch-demo";
/// The pods and their nodes, and whether they are attached by TAP.
const PODS: [(&str, usize, bool); 6] = [
    ("red", 0, true),
    ("green", 0, true),
    ("blue", 0, false),
    ("black", 0, false),
    ("cyan", 1, true),
    ("white", 1, false),
];

/// A node and its switch.
pub(super) struct DemoNode {
    pub(super) node: Node,
    /// The node's own namespace.
    pub(super) namespace: NetNs,
    /// Where its switch keeps its ends of veth pairs.
    pub(super) switch_namespace: NetNs,
    pub(super) addresses: Family,
}

impl DemoNode {
    /// A counter of its switch, all workers together.
    pub(super) fn sum(&self, count: impl Fn(&WorkerCounters) -> u64) -> u64 {
        let workers = self.node.control().workers();
        workers.map(|w| count(&w.counters)).fold(0, u64::wrapping_add)
    }

    /// Frames that its switch dropped for a reason.
    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.sum(|counters| counters.dropped(reason))
    }
}

/// See the module's description.
pub(super) struct World {
    pub(super) nodes: [DemoNode; 2],
    pub(super) outside: NetNs,
    pub(super) pods: Vec<DemoPod>,
    setup: Setup,
    manifest: String,
    named: bool,
}

impl World {
    /// Makes everything and starts the switches.
    pub(super) fn make(with_tap: bool, named: bool) -> Result<Self, Failure> {
        let outside = namespace("-outside", named)?;
        let [one, two] = [Namespaces::make("-one", named)?, Namespaces::make("-two", named)?];
        links::join(&outside, [&one.node, &two.node])?;
        let mut pods = Vec::new();
        for (number, (name, node, tap)) in PODS.into_iter().enumerate() {
            let (net, last) = (node as u8, number as u8 + 2);
            let addresses = Family {
                v4: Ipv4Addr::new(10, 77, net, last),
                v6: Ipv6Addr::new(0xfd77, 0, 0, net.into(), 0, 0, 0, last.into()),
            };
            let namespace = namespace(&format!("-{name}"), named)?;
            let mac = Mac([0x0a, 0x58, 10, 77, net, last]);
            pods.push(DemoPod { name, node, namespace, addresses, mac, tap: tap && with_tap });
        }
        let setup = Setup::default();
        let manifest = manifest::write(&pods, &setup);
        let nodes = [one.start(0, &manifest)?, two.start(1, &manifest)?];
        let is_attached = |pod: &DemoPod| {
            let name = PodName::new("demo", pod.name);
            name.is_ok_and(|name| nodes[pod.node].node.port(&name).is_some())
        };
        if let Some(pod) = pods.iter().find(|pod| !is_attached(pod)) {
            return Err(Failure::Setup(format!("pod {} could not be attached", pod.name)));
        }
        Ok(Self { nodes, outside, pods, setup, manifest, named })
    }

    /// The pod of that name.
    pub(super) fn pod(&self, name: &str) -> &DemoPod {
        self.pods.iter().find(|pod| pod.name == name).expect("a pod of the demo's own")
    }

    /// The node of a pod.
    pub(super) fn node_of(&self, pod: &DemoPod) -> &DemoNode {
        &self.nodes[pod.node]
    }

    /// The MTU of the pods' interfaces, in bytes.
    pub(super) fn mtu(&self) -> Outcome<u32> {
        let text = |e: HostError| e.to_string();
        let link = Netlink::open(&self.pods[0].namespace).and_then(|mut n| n.link("eth0"));
        link.map(|link| link.mtu).map_err(text)
    }

    /// Changes policies and Services. Both switches use them when this returns.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Setup)) -> Outcome<()> {
        change(&mut self.setup);
        self.manifest = manifest::write(&self.pods, &self.setup);
        for (node, name) in self.nodes.iter_mut().zip(NODE_NAMES) {
            let applied = compile(name, &self.manifest)
                .and_then(|state| node.node.apply(state).map_err(Failure::from));
            applied.map_err(|failure| text(&failure))?;
        }
        Ok(())
    }

    /// Stops the switches and removes everything. With `keep` everything except the switches
    /// remains; instructions for using it are returned.
    pub(super) fn end(self, keep: bool) -> Result<Option<String>, Failure> {
        let Self { nodes, outside, pods, manifest, named, .. } = self;
        let mut namespaces = vec![outside];
        namespaces.extend(pods.into_iter().map(|pod| pod.namespace));
        let mut commands = String::new();
        let folder = std::env::temp_dir().join(PREFIX);
        let mut ended = Ok(());
        for (node, name) in nodes.into_iter().zip(NODE_NAMES) {
            commands.push_str(&format!(
                "\nvswitch run --node {name} --manifests {} --node-netns {}",
                folder.display(),
                node.namespace.path().display(),
            ));
            let interfaces = if keep { PodInterfaces::Keep } else { PodInterfaces::Remove };
            let stopped = node.node.stop(interfaces);
            // The first error is the one to report.
            ended = ended.and(stopped);
            namespaces.extend([node.namespace, node.switch_namespace]);
        }
        ended?;
        if !(keep && named) {
            return Ok(None);
        }
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(folder.join("demo.yaml"), manifest))
            .map_err(|e| Failure::Setup(format!("{}: {e}", folder.display())))?;
        namespaces.iter().for_each(NetNs::keep);
        Ok(Some(format!(
            "kept: the namespaces {PREFIX}* in {}. The switches have ended; to run them again:{commands}",
            NetNs::directory().display(),
        )))
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, title) in ["one", "two"].into_iter().enumerate() {
            let of_node = || self.pods.iter().filter(|pod| pod.node == number);
            let taps = of_node().filter(|pod| pod.tap).count();
            let others = of_node().count() - taps;
            write!(f, "node {title} with {taps} pods on TAP and {others} on AF_PACKET, ")?;
        }
        write!(f, "and an outside")
    }
}

/// The namespaces of a node and its switch.
struct Namespaces {
    node: NetNs,
    switch: NetNs,
}

impl Namespaces {
    fn make(name: &str, named: bool) -> Result<Self, HostError> {
        let node = namespace(&format!("{name}-node"), named)?;
        // The name under which `vswitch run` looks for the namespace.
        let switch = namespace(name, named)?;
        attach::silence(&switch)?;
        Ok(Self { node, switch })
    }

    fn start(self, number: usize, manifest: &str) -> Result<DemoNode, Failure> {
        let Self { node: namespace, switch: switch_namespace } = self;
        let options = NodeOptions::new(NODE_NAMES[number])
            .namespace(namespace.clone())
            .switch_namespace(switch_namespace.clone())
            .on_event(print::event);
        let node = Node::start(options, compile(NODE_NAMES[number], manifest)?)?;
        let addresses = NODE_ADDRESSES[number];
        Ok(DemoNode { node, namespace, switch_namespace, addresses })
    }
}

/// The text of a failure, as far as a configuration can cause it.
fn text(failure: &Failure) -> String {
    match failure {
        Failure::Input(text) | Failure::Setup(text) => text.clone(),
        Failure::Refused(refused) => {
            refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        }
        Failure::Checked => String::new(),
    }
}

fn namespace(name: &str, named: bool) -> Result<NetNs, HostError> {
    if !named {
        return NetNs::anonymous();
    }
    let name = format!("{PREFIX}{name}");
    // Left by an earlier demo with --keep.
    if NetNs::find(&name)?.is_some() {
        NetNs::remove(&name)?;
    }
    NetNs::create(&name)
}

fn compile(node: &str, manifest: &str) -> Result<podswitch_kubernetes::Compiled, Failure> {
    let manifests = Manifests::parse(Path::new("demo.yaml"), manifest)?;
    let mut cluster = ClusterOptions::default();
    cluster.names = Some(NameOptions::default());
    let compiled = state::compile(&manifests, Some(node), &cluster);
    let refused: Vec<_> = compiled.refused().map(Refused::from).collect();
    if refused.is_empty() { Ok(compiled) } else { Err(Failure::Refused(refused)) }
}
