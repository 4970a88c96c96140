//! The demo's world: a node, its pods, and an outside that the node has a link to but no pod's
//! address is known in.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use kubernetes::Manifests;
use switch_core::host::netlink::{LinkSpec, Route};
use switch_core::host::{HostError, NetNs, Netlink, pod};
use wire::addr::Mac;

use crate::cluster::{ClusterArgs, Masquerading};
use crate::failure::Failure;
use crate::node::{Node, NodeOptions, UnderlayOptions};
use crate::state;

/// The node's name, and what named namespaces begin with.
const NODE: &str = "demo";
const PREFIX: &str = "podswitch-demo";

/// The node's addresses on its link to the outside, and what the link's ends have.
pub(super) const NODE_ADDRESSES: Family =
    Family { v4: Ipv4Addr::new(192, 0, 2, 1), v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1) };
const NEAR: [&str; 2] = ["192.0.2.1/24", "2001:db8:1::1/64"];
const FAR: [&str; 2] = ["192.0.2.2/24", "2001:db8:1::2/64"];
/// Somewhere on the internet.
pub(super) const FAR_AWAY: Family = Family {
    v4: Ipv4Addr::new(198, 51, 100, 7),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 7),
};

/// An address of each family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

impl Family {
    /// Both, with their families' names.
    pub(super) fn each(self) -> [(&'static str, IpAddr); 2] {
        [("IPv4", self.v4.into()), ("IPv6", self.v6.into())]
    }
}

/// A pod.
#[derive(Clone, Debug)]
pub(super) struct DemoPod {
    pub(super) name: &'static str,
    pub(super) namespace: NetNs,
    pub(super) addresses: Family,
    pub(super) mac: Mac,
    /// Attached by a TAP, else by a veth pair and AF_PACKET.
    pub(super) tap: bool,
}

impl DemoPod {
    /// What it is attached by.
    pub(super) fn kind(&self) -> &'static str {
        if self.tap { "TAP" } else { "AF_PACKET" }
    }
}

/// See the module's description.
pub(super) struct World {
    pub(super) node: Node,
    /// The node's own namespace.
    pub(super) node_namespace: NetNs,
    pub(super) outside: NetNs,
    pub(super) switch_namespace: NetNs,
    pub(super) pods: Vec<DemoPod>,
    manifest: String,
    named: bool,
}

impl World {
    /// Makes everything and starts the switch.
    pub(super) fn make(with_tap: bool, named: bool) -> Result<Self, Failure> {
        let node_namespace = namespace("-node", named)?;
        let outside = namespace("-outside", named)?;
        let switch_namespace = namespace("", named)?;
        pod::silence(&switch_namespace)?;
        link_outside(&node_namespace, &outside)?;
        let mut pods = Vec::new();
        for (number, name) in ["red", "green", "blue", "black"].into_iter().enumerate() {
            let last = number as u8 + 2;
            let addresses = Family {
                v4: Ipv4Addr::new(10, 77, 0, last),
                v6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(last)),
            };
            let namespace = namespace(&format!("-{name}"), named)?;
            let mac = Mac([0x0a, 0x58, 10, 77, 0, last]);
            pods.push(DemoPod { name, namespace, addresses, mac, tap: with_tap && number < 2 });
        }
        let manifest = manifest(&pods);
        let options = NodeOptions {
            name: NODE.to_owned(),
            namespace: node_namespace.clone(),
            switch_namespace: Some(switch_namespace.clone()),
            workers: 1,
            masquerade: Masquerading::Kernel,
            cluster: Vec::new(),
            underlay: UnderlayOptions::default(),
        };
        let node = start(options, &manifest)?;
        let lacking = pods.iter().find(|p| node.port(&format!("demo/{}", p.name)).is_none());
        if let Some(pod) = lacking {
            return Err(Failure::Setup(format!("pod {} could not be attached", pod.name)));
        }
        Ok(Self { node, node_namespace, outside, switch_namespace, pods, manifest, named })
    }

    /// The pod of that name.
    pub(super) fn pod(&self, name: &str) -> &DemoPod {
        self.pods.iter().find(|pod| pod.name == name).expect("a pod of the demo's own")
    }

    /// Ends the switch and removes everything. With `keep` everything but the switch stays; what
    /// to know about it is returned.
    pub(super) fn end(self, keep: bool) -> Result<Option<String>, Failure> {
        let Self { node, node_namespace, outside, switch_namespace, pods, manifest, named } = self;
        node.stop(keep)?;
        if !(keep && named) {
            return Ok(None);
        }
        let folder = std::env::temp_dir().join(PREFIX);
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(folder.join("demo.yaml"), manifest))
            .map_err(|e| Failure::Setup(format!("{}: {e}", folder.display())))?;
        let of_pods = pods.iter().map(|pod| &pod.namespace);
        for namespace in of_pods.chain([&node_namespace, &outside, &switch_namespace]) {
            namespace.keep();
        }
        Ok(Some(format!(
            "kept: the namespaces {PREFIX}* in {}. The switch has ended; to run it again:\n\
             vswitch run --node {NODE} --manifests {} --node-netns {}",
            NetNs::directory().display(),
            folder.display(),
            node_namespace.path().display(),
        )))
    }
}

fn namespace(name: &str, named: bool) -> Result<NetNs, HostError> {
    if !named {
        return NetNs::anonymous();
    }
    let name = format!("{PREFIX}{name}");
    // What an earlier demo was told to keep.
    if NetNs::find(&name)?.is_some() {
        NetNs::remove(&name)?;
    }
    NetNs::create(&name)
}

fn start(options: NodeOptions, manifest: &str) -> Result<Node, Failure> {
    let manifests = Manifests::parse(Path::new("demo.yaml"), manifest)?;
    let compiled =
        state::judge(&manifests, Some(NODE), &ClusterArgs::default()).map_err(Failure::Refused)?;
    Ok(Node::start(options, compiled)?.0)
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taps = self.pods.iter().filter(|pod| pod.tap).count();
        let others = self.pods.len() - taps;
        write!(f, "a node, {taps} pods on TAP and {others} on AF_PACKET, and an outside")
    }
}

/// A link from the node to the outside, which knows the way to nowhere else.
fn link_outside(node: &NetNs, outside: &NetNs) -> Result<(), HostError> {
    let (mut near, mut far) = (Netlink::open(node)?, Netlink::open(outside)?);
    let spec = LinkSpec::new("uplink").up();
    near.add_veth(&spec, &spec, outside)?;
    let (here, there) = (near.link("uplink")?.index, far.link("uplink")?.index);
    let lo = far.link("lo")?.index;
    for (at_node, at_outside) in NEAR.into_iter().zip(FAR) {
        near.add_address(here, at_node.parse().expect("an address of our own"))?;
        far.add_address(there, at_outside.parse().expect("an address of our own"))?;
    }
    for (_, address) in FAR_AWAY.each() {
        far.add_address(lo, address.into())?;
    }
    for (range, via) in [("0.0.0.0/0", "192.0.2.2"), ("::/0", "2001:db8:1::2")] {
        let range = range.parse().expect("a range of our own");
        let via = via.parse().expect("an address of our own");
        near.add_route(&Route::to(range).via(via).link(here))?;
    }
    Ok(())
}

/// The state as Kubernetes would tell it.
fn manifest(pods: &[DemoPod]) -> String {
    let Family { v4, v6 } = NODE_ADDRESSES;
    let mut text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo}}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata: {{name: {NODE}}}\n\
         spec: {{podCIDRs: [10.77.0.0/24, \"fd77::/64\"]}}\nstatus:\n  addresses:\n  \
         - {{type: InternalIP, address: {v4}}}\n  - {{type: InternalIP, address: \"{v6}\"}}\n"
    );
    for pod in pods {
        let Family { v4, v6 } = pod.addresses;
        let kind = if pod.tap { "tap" } else { "veth" };
        let (name, netns) = (pod.name, pod.namespace.path());
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: demo\n  \
             annotations:\n    podswitch.io/netns: {}\n    podswitch.io/port: {kind}\n\
             spec: {{nodeName: {NODE}}}\n\
             status: {{phase: Running, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n",
            netns.display(),
        ));
    }
    text
}
