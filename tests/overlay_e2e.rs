//! Nodes joined by the overlay, with real sockets: pods, nodes, Services and clients outside, through
//! UDP sockets and by frames on the uplink, over IPv4 and IPv6.

#[path = "support/cluster.rs"]
mod cluster;
mod support;

use std::net::IpAddr;

use cluster::{Cut, Fabric, Node, Pod, Switch, is_root, mtu, namespace, node_address, ping, put};
use cluster::{serve, set_mtu, tcp, udp, udp_once};
use rustix::net::sockopt;
use support::Folder;
use switch_core::host::{NetNs, Netlink};

const PORT: u16 = 8080;
const NODE_PORT: u16 = 30_080;

/// A Service whose only backend is `pod`.
fn service(pod: &Pod, node: &str) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: a}}\n\
         spec: {{type: NodePort, ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6],\
         clusterIPs: [10.96.0.10, \"fd96::10\"], clusterIP: 10.96.0.10, ports: \
         [{{name: t, port: 80, targetPort: {PORT}, nodePort: {NODE_PORT}, protocol: TCP}},\
         {{name: u, port: 80, targetPort: {PORT}, nodePort: {NODE_PORT}, protocol: UDP}}]}}\n"
    );
    for (family, address) in [("IPv4", pod.addresses[0]), ("IPv6", pod.addresses[1])] {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-{}, namespace: a, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: {family}\nports: [{{name: t, port: {PORT}, protocol: TCP}}, \
             {{name: u, port: {PORT}, protocol: UDP}}]\n\
             endpoints: [{{addresses: [\"{address}\"], nodeName: {node}, conditions: {{ready: true}}}}]\n",
            family.to_lowercase()
        );
    }
    text
}

/// Two nodes with two pods each on a segment with MTU 1500, and a client outside.
struct World {
    nodes: [Node; 2],
    client: NetNs,
    folder: Folder,
    families: Vec<bool>,
    _fabric: Fabric,
}

impl World {
    fn new(families: &[bool]) -> Self {
        let fabric = Fabric::new(1500);
        let nodes = [1, 2].map(|n| Node::new(&fabric, n, families, &["tap", "veth"]));
        let client = namespace();
        let outside: Vec<IpAddr> = families.iter().map(|v6| node_address(9, *v6)).collect();
        fabric.plug(&client, &outside, None);
        let world = Self {
            nodes,
            client,
            folder: Folder::new(),
            families: families.to_vec(),
            _fabric: fabric,
        };
        world.put();
        world
    }

    fn put(&self) {
        let [one, two] = &self.nodes;
        put(&self.folder, &[one.manifest(), two.manifest(), service(&two.pods[0], &two.name)]);
    }

    fn start(&self, more: &[&str]) -> [Switch; 2] {
        let ranges = ["--service-cidr", "10.96.0.0/16", "--service-cidr", "fd96::/112"];
        let more = [&ranges, more].concat();
        let switches = [0, 1].map(|n| self.nodes[n].start(&self.folder, &more));
        for switch in &switches {
            switch.says("ready");
        }
        switches
    }
}

fn everything(families: &[bool], more: &[&str]) {
    if !is_root() {
        return;
    }
    let world = World::new(families);
    let [one, two] = &world.nodes;
    let routes = |node: &Node| Netlink::open(&node.ns).unwrap().routes().unwrap();
    let before = [one, two].map(routes);
    let switches = world.start(more);
    let inner = if families[0] { 1430 } else { 1450 };
    for node in &world.nodes {
        assert_eq!(mtu(&node.ns, "podswitch0"), inner);
        for pod in &node.pods {
            assert_eq!(mtu(&pod.ns, "eth0"), inner, "{}", pod.name);
            serve(&pod.ns, PORT);
        }
        serve(&node.ns, PORT);
    }
    pods(&world);
    node_processes(&world);
    services(&world);
    sweep(&world, inner as usize);
    for switch in switches {
        assert_eq!(switch.stop(), Some(0));
    }
    for (node, before) in world.nodes.iter().zip(before) {
        assert_eq!(routes(node), before, "routes are as they were");
        assert!(Netlink::open(&node.ns).unwrap().find_link("podswitch0").unwrap().is_none());
    }
}

/// Each pod to each of the other node, both families inside whatever is outside.
fn pods(world: &World) {
    let [one, two] = &world.nodes;
    for (from, to) in [(one, two), (two, one)] {
        for (source, target) in from.pods.iter().zip(&to.pods) {
            for address in target.addresses {
                udp(&source.ns, address, PORT, 1);
                udp_once(&source.ns, address, PORT);
                udp(&source.ns, address, PORT, 1300);
                // In fragments.
                udp(&source.ns, address, PORT, 5000);
                tcp(&source.ns, address, PORT, 3_000_000);
            }
        }
    }
}

/// A node's processes and the other node's pods.
fn node_processes(world: &World) {
    let [one, two] = &world.nodes;
    for (node, other) in [(one, two), (two, one)] {
        for pod in &other.pods {
            // From an address of the node's, so in the underlay's families.
            for v6 in &world.families {
                let address = pod.addresses[usize::from(*v6)];
                udp(&node.ns, address, PORT, 100);
                udp_once(&node.ns, address, PORT);
                tcp(&node.ns, address, PORT, 300_000);
            }
        }
        for address in &node.addresses {
            for pod in &other.pods {
                udp(&pod.ns, *address, PORT, 100);
                udp_once(&pod.ns, *address, PORT);
                tcp(&pod.ns, *address, PORT, 300_000);
            }
        }
    }
}

/// The backend is on the second node.
fn services(world: &World) {
    let [one, two] = &world.nodes;
    for address in ["10.96.0.10", "fd96::10"].map(cluster::ip) {
        for pod in one.pods.iter().chain(&two.pods) {
            // The backend itself among them.
            udp(&pod.ns, address, 80, 100);
            tcp(&pod.ns, address, 80, 300_000);
        }
    }
    for v6 in &world.families {
        let cluster_ip = cluster::ip(["10.96.0.10", "fd96::10"][usize::from(*v6)]);
        for node in &world.nodes {
            tcp(&node.ns, cluster_ip, 80, 300_000);
            let address = node_address(node.number, *v6);
            udp(&world.client, address, NODE_PORT, 100);
            udp_once(&world.client, address, NODE_PORT);
            tcp(&world.client, address, NODE_PORT, 300_000);
            tcp(&node.ns, address, NODE_PORT, 300_000);
            // What is not for the switch is the node's, undisturbed and once.
            udp_once(&world.client, address, PORT);
            tcp(&world.client, address, PORT, 300_000);
            for other in world.nodes.iter().filter(|other| other.number != node.number) {
                udp_once(&other.ns, address, PORT);
                tcp(&other.ns, address, PORT, 300_000);
            }
        }
    }
}

/// Packets of every size around what the tunnel carries, from a pod that takes its interface to carry
/// more.
fn sweep(world: &World, inner: usize) {
    let (source, target) = (&world.nodes[0].pods[0], &world.nodes[1].pods[0]);
    for address in target.addresses {
        for len in inner - 4..=inner {
            for cut in [Cut::Never, Cut::Allowed] {
                let answered = ping(&source.ns, address, len, cut);
                assert!(matches!(answered, Ok(true)), "{address} {len} {cut:?}: {answered:?}");
            }
        }
    }
    set_mtu(&source.ns, "eth0", 1500);
    for address in target.addresses {
        let family = usize::from(address.is_ipv6());
        for len in [inner + 1, inner + 2, inner + 3, inner + 4, inner + 8, 1499, 1500, 1501, 3000] {
            let answered = ping(&source.ns, address, len, Cut::Allowed);
            assert!(matches!(answered, Ok(true)), "{address} {len}: {answered:?}");
            let refused = ping(&source.ns, address, len, Cut::Never);
            assert!(refused.is_err(), "{address} {len} goes whole: {refused:?}");
        }
        // What was learnt is what there is, not less.
        let probe = || std::net::UdpSocket::bind((["0.0.0.0", "::"][family], 0));
        let socket = source.ns.enter(probe).unwrap().unwrap();
        socket.connect((address, 9)).unwrap();
        let learnt =
            if family == 0 { sockopt::ip_mtu(&socket) } else { sockopt::ipv6_mtu(&socket) };
        assert_eq!(learnt.unwrap() as usize, inner, "{address}");
        let answered = ping(&source.ns, address, inner, Cut::Never);
        assert!(matches!(answered, Ok(true)), "{address} {inner}: {answered:?}");
        tcp(&source.ns, address, PORT, 1_000_000);
    }
}

#[test]
fn through_udp_sockets_over_ipv4() {
    everything(&[false], &[]);
}

#[test]
fn through_udp_sockets_over_ipv6() {
    everything(&[true], &["--underlay", "udp"]);
}

#[test]
fn by_frames_over_ipv4() {
    everything(&[false], &["--underlay", "packet", "--uplink", "eth0"]);
}

#[test]
fn by_frames_over_ipv6() {
    everything(&[true], &["--underlay", "packet", "--uplink", "eth0", "--workers", "2"]);
}

/// Sockets for the tunnel, frames for clients outside; nodes with both families.
#[test]
fn through_udp_sockets_with_an_uplink() {
    everything(&[false, true], &["--uplink", "eth0"]);
}
