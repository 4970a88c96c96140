//! Nodes joined by the overlay, with real sockets: pods, nodes, Services and clients outside, through
//! UDP sockets and by frames on the uplink, over IPv4 and IPv6.

use std::net::IpAddr;

use podswitch_linux::{NetNs, Netlink};
use podswitch_vswitch_testkit::Folder;
use podswitch_vswitch_testkit::cluster::{
    self, Cut, Fabric, Node, Running, mtu, namespace, node_address, ping, put,
};
use podswitch_vswitch_testkit::cluster::{serve, set_mtu, tcp, udp, udp_once};
use rustix::net::sockopt;

const PORT: u16 = 8080;
const NODE_PORT: u16 = 30_080;

/// A Service with one backend, which has these addresses on this node: cluster IPs 10.96.0.`number` and
/// fd96::`number`, node port 30,070 + `number`.
fn service(number: u16, backend: &[IpAddr], node: &str) -> String {
    let node_port = NODE_PORT - 10 + number;
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: a}}\n\
         spec: {{type: NodePort, ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6],\
         clusterIPs: [10.96.0.{number}, \"fd96::{number}\"], clusterIP: 10.96.0.{number}, ports: \
         [{{name: t, port: 80, targetPort: {PORT}, nodePort: {node_port}, protocol: TCP}},\
         {{name: u, port: 80, targetPort: {PORT}, nodePort: {node_port}, protocol: UDP}}]}}\n"
    );
    for address in backend {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: s{number}-{}, namespace: a, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
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
        // A pod's, and one that the second node's own stack serves.
        let pod = service(10, &two.pods[0].addresses, &two.name);
        let host = service(11, &two.addresses, &two.name);
        put(&self.folder, &[one.manifest(), two.manifest(), pod, host]);
    }

    fn start(&self, more: &[&str]) -> [Running; 2] {
        let ranges = ["--service-cidr", "10.96.0.0/16", "--service-cidr", "fd96::/112"];
        let more = [&ranges, more].concat();
        let switches = [0, 1].map(|n| self.nodes[n].start(&self.folder, &more));
        for switch in &switches {
            switch.event("ready");
        }
        switches
    }
}

/// Whether packets between nodes go through a tunnel, whose headers take their part.
fn is_tunnelled(more: &[&str]) -> bool {
    !more.contains(&"host-gw")
}

fn everything(families: &[bool], more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let world = World::new(families);
    let [one, two] = &world.nodes;
    let routes = |node: &Node| Netlink::open(&node.ns).unwrap().routes().unwrap();
    let before = [one, two].map(routes);
    let switches = world.start(more);
    let over_ipv6 = families[0] || more.contains(&"inner");
    let inner = match (is_tunnelled(more), over_ipv6) {
        (true, false) => 1450,
        (true, true) => 1430,
        (false, _) => 1500,
    };
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
    if is_tunnelled(more) {
        sweep(&world, inner as usize);
    }
    if let [.., "eth0"] = more {
        let unreachable: u64 = world.nodes.iter().map(|node| refused_datagrams(&node.ns)).sum();
        assert_eq!(unreachable, 0, "what the switch takes is not the stack's to refuse");
    }
    for switch in switches {
        assert_eq!(switch.stop(), Some(0));
    }
    for (node, before) in world.nodes.iter().zip(before) {
        assert_eq!(routes(node), before, "routes are as they were");
        assert!(Netlink::open(&node.ns).unwrap().find_link("podswitch0").unwrap().is_none());
    }
}

/// Datagrams that nobody listened for: the stack answers that a port is unreachable.
fn refused_datagrams(ns: &NetNs) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let text = ns.enter(read).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("Udp: ")).collect();
    let mut columns = lines[0].split(' ').zip(lines[1].split(' '));
    columns.find(|(name, _)| *name == "NoPorts").unwrap().1.parse().unwrap()
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
            // The Service of a node's stack.
            let host = cluster::ip(["10.96.0.11", "fd96::11"][usize::from(*v6)]);
            for ns in node.pods.iter().map(|pod| &pod.ns).chain([&node.ns]) {
                udp(ns, host, 80, 100);
                udp_once(ns, host, 80);
                tcp(ns, host, 80, 300_000);
            }
            udp_once(&world.client, address, NODE_PORT + 1);
            tcp(&world.client, address, NODE_PORT + 1, 300_000);
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
    everything(&[true], &["--workers", "2", "--underlay", "packet", "--uplink", "eth0"]);
}

/// A tunnel for each family.
#[test]
fn in_two_tunnels() {
    everything(&[false, true], &["--underlay-family", "inner"]);
    everything(
        &[false, true],
        &["--underlay-family", "inner", "--underlay", "packet", "--uplink", "eth0"],
    );
}

/// Sockets for the tunnel, frames for clients outside; nodes with both families.
#[test]
fn through_udp_sockets_with_an_uplink() {
    everything(&[false, true], &["--uplink", "eth0"]);
}

/// What sockets receive of the tunnel is none of the uplink's.
#[test]
fn tunnel_packets_come_once() {
    podswitch_testkit::require_privilege!();
    let world = World::new(&[false, true]);
    let [first, second] = world.start(&["--underlay-family", "inner", "--uplink", "eth0"]);
    let [one, two] = &world.nodes;
    serve(&two.pods[0].ns, PORT);
    for address in two.pods[0].addresses {
        udp(&one.pods[0].ns, address, PORT, 100);
    }
    // Frames received, and those of them that were dropped.
    let counts = |switch: &Running| {
        let stats = switch.next_event("stats");
        let drops = stats["drops"].as_object().expect("drops by reason");
        let dropped = drops.values().filter_map(serde_json::Value::as_u64).sum::<u64>();
        (stats["received"].as_u64().expect("a count"), dropped)
    };
    let before = [&first, &second].map(counts);
    // One by one: what is sent together comes together, as one frame.
    for _ in 0..150 {
        for address in two.pods[0].addresses {
            udp(&one.pods[0].ns, address, PORT, 100);
        }
    }
    for (switch, before) in [&first, &second].into_iter().zip(before) {
        // 300 by the tunnel and 300 from the pod; neighbours are asked for, too.
        let now = counts(switch);
        let (received, dropped) = (now.0 - before.0, now.1 - before.1);
        assert!(
            (600..750).contains(&received) && dropped < 100,
            "{received} received, {dropped} dropped"
        );
    }
}

/// No tunnel: the nodes' kernels carry packets between them.
#[test]
fn past_the_tunnel_by_the_nodes_kernels() {
    everything(&[false, true], &["--routing", "host-gw"]);
}

/// No tunnel, frames to the other node's link-layer address.
#[test]
fn past_the_tunnel_by_frames() {
    everything(&[false, true], &["--routing", "host-gw", "--uplink", "eth0"]);
}

/// What cannot be set up is said at the start, with the option and the interface.
#[test]
fn a_start_without_its_underlay_fails() {
    podswitch_testkit::require_privilege!();
    let world = World::new(&[false]);
    let [one, two] = &world.nodes;
    let fails = |more: &[&str]| {
        let [state, netns] = [world.folder.text("state"), one.ns.path().display().to_string()];
        let node = ["run", "--node", &one.name, "--manifests", &state, "--node-netns", &netns];
        let output = podswitch_vswitch_testkit::run(&[&node, more].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (more, code, words) in [
        (&["--underlay", "packet"][..], 2, "--uplink <IF>"),
        (&["--underlay", "pigeon"], 2, "neither udp nor packet"),
        (&["--mtu", "100"], 2, "1280"),
        (&["--uplink", "nowhere"], 1, "--uplink nowhere: "),
        (&["--underlay", "packet", "--uplink", "lo"], 1, "--uplink lo: "),
    ] {
        let (status, told) = fails(more);
        assert_eq!(status, Some(code), "{more:?}: {told}");
        assert!(told.contains(words), "{more:?}: {told}");
    }
    // The node's address is elsewhere: asked for, that is a failure; otherwise pods of this node go on.
    let mut netlink = Netlink::open(&one.ns).unwrap();
    let link = netlink.link("eth0").unwrap().index;
    netlink.delete_address(link, "192.0.2.1/24".parse().unwrap()).unwrap();
    let (status, told) = fails(&["--underlay", "udp"]);
    assert_eq!(status, Some(1), "{told}");
    assert!(
        told.contains("--underlay udp: no interface has") && told.contains("192.0.2.1"),
        "{told}"
    );
    let switch = one.start(&world.folder, &["--mtu", "1400"]);
    switch.event("ready");
    assert_eq!(mtu(&one.pods[0].ns, "eth0"), 1400);
    serve(&one.pods[1].ns, PORT);
    udp(&one.pods[0].ns, one.pods[1].addresses[0], PORT, 100);
    // It comes after all, and nobody has to say so.
    netlink.add_address(link, "192.0.2.1/24".parse().unwrap()).unwrap();
    let other = two.start(&world.folder, &[]);
    other.event("ready");
    serve(&two.pods[0].ns, PORT);
    udp(&one.pods[0].ns, two.pods[0].addresses[1], PORT, 100);
}
