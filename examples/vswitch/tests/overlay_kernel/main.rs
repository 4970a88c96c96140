//! The overlay's other end is Linux itself: a node with bridge and VXLAN device as Flannel sets them up,
//! and a device that learns. What is on the wire is looked at with an independent parser.

mod bursts;
mod compared;
mod injected;
mod passing;

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use passing::{capture, dissect};
use podswitch_core::port::Device;
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::{NetNs, Netlink};
use podswitch_testkit::privilege::is_there;
use podswitch_vswitch_testkit::Folder;
use podswitch_vswitch_testkit::cluster::{
    self, Cut, Fabric, Limit, Node, PATIENCE, Running, ping, put, serve,
};
use podswitch_vswitch_testkit::cluster::{tcp, udp, udp_once};
use podswitch_vswitch_testkit::kernel::{KernelNode, Tunnel, checksum_errors, first, flannel};
use podswitch_wire::addr::Mac;

const PORT: u16 = 8080;
/// Tunnel ends of the switch's node and of the kernel's, for IPv4 and IPv6 underlays.
const OURS: [Mac; 2] = [Mac([0x0e, 0x58, 1, 1, 1, 4]), Mac([0x0e, 0x58, 1, 1, 1, 6])];
const THEIRS: [Mac; 2] = [Mac([0x0e, 0x58, 2, 2, 2, 4]), Mac([0x0e, 0x58, 2, 2, 2, 6])];

/// A node with a switch and one without, in one Flannel cluster.
struct World {
    ours: Node,
    theirs: KernelNode,
    folder: Folder,
    port: String,
    fabric: Fabric,
}

impl World {
    fn flannel(families: &[bool]) -> Self {
        let fabric = Fabric::new(1500);
        let mut ours = Node::new(&fabric, 1, families, &["tap", "veth"]);
        // Flannel leaves room for the longer of the two headers.
        let mtu = if families.contains(&true) { 1430 } else { 1450 };
        let theirs = KernelNode::new(&fabric, 2, families, mtu);
        ours.annotations = flannel(1, families, OURS);
        for v6 in families {
            let name = if *v6 { "flannel-v6.1" } else { "flannel.1" };
            let mac = THEIRS[usize::from(*v6)];
            let tunnel = Tunnel { name, vni: 1, port: 8472, v6: *v6, mac, remote: None };
            let device = theirs.add_tunnel(&tunnel);
            // IPv4 pods through IPv4, IPv6 pods through IPv6, or all through the only one.
            for pods_v6 in [false, true] {
                if families.len() == 1 || pods_v6 == *v6 {
                    theirs.add_tunnel_address(device, pods_v6);
                    let end = cluster::node_address(1, *v6);
                    theirs.add_peer(device, 1, pods_v6, OURS[usize::from(*v6)], end);
                }
            }
        }
        let folder = Folder::new();
        put(&folder, &[ours.manifest(), theirs.manifest(&flannel(2, families, THEIRS))]);
        serve(&theirs.pod, PORT);
        Self { ours, theirs, folder, port: "port0".to_owned(), fabric }
    }

    fn start(&self, more: &[&str]) -> Running {
        let switch = self.ours.start(&self.folder, more);
        switch.event("ready");
        for pod in &self.ours.pods {
            serve(&pod.ns, PORT);
        }
        switch
    }

    /// All namespaces in which something receives.
    fn receivers(&self) -> impl Iterator<Item = &NetNs> {
        let ours = self.ours.pods.iter().map(|pod| &pod.ns);
        ours.chain([&self.ours.ns, &self.theirs.ns, &self.theirs.pod])
    }

    fn no_checksum_errors(&self) {
        let errors: u64 = self.receivers().map(checksum_errors).sum();
        assert_eq!(errors, 0, "packets that their receivers took for damaged");
    }

    /// Traffic both ways, both families inside.
    fn talk(&self, bytes: usize) {
        for pod in &self.ours.pods {
            for (f, address) in self.theirs.pod_addresses.into_iter().enumerate() {
                udp(&pod.ns, address, PORT, 1000);
                udp(&self.theirs.pod, pod.addresses[f], PORT, 4000);
                tcp(&pod.ns, address, PORT, bytes);
                tcp(&self.theirs.pod, pod.addresses[f], PORT, bytes);
            }
        }
        self.no_checksum_errors();
    }
}

fn interoperates(families: &[bool], more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let world = World::flannel(families);
    let switch = world.start(more);
    for pod in &world.ours.pods {
        for address in world.theirs.pod_addresses {
            udp(&pod.ns, address, PORT, 1);
            udp_once(&pod.ns, address, PORT);
        }
        for address in pod.addresses {
            udp_once(&world.theirs.pod, address, PORT);
        }
    }
    on_the_wire(&world, families);
    world.talk(4_000_000);
    nodes(&world, families);
    if families.len() == 1 {
        sizes(&world, if families[0] { 1430 } else { 1450 });
    }
    offloads(&world);
    assert_eq!(switch.stop(), Some(0));
}

/// Every length up to the tunnel's, whole; none longer.
fn sizes(world: &World, inner: usize) {
    let pod = &world.ours.pods[0];
    for (f, address) in world.theirs.pod_addresses.into_iter().enumerate() {
        for len in inner - 3..=inner {
            for (from, to) in [(&pod.ns, address), (&world.theirs.pod, pod.addresses[f])] {
                let answered = ping(from, to, len, Cut::Never);
                assert!(matches!(answered, Ok(true)), "{to} {len}: {answered:?}");
            }
        }
        assert!(ping(&pod.ns, address, inner + 1, Cut::Never).is_err());
        let cut = ping(&pod.ns, address, 4000, Cut::Allowed);
        assert!(matches!(cut, Ok(true)), "{address}: {cut:?}");
        let cut = ping(&world.theirs.pod, pod.addresses[f], 4000, Cut::Allowed);
        assert!(matches!(cut, Ok(true)), "{address}: {cut:?}");
    }
}

/// The kernel's node itself, which speaks from the first address of its range, and our pods.
fn nodes(world: &World, families: &[bool]) {
    serve(&world.theirs.ns, PORT);
    for pod in &world.ours.pods {
        for pods_v6 in [false, true] {
            if families.len() == 1 && families[0] != pods_v6 && !pods_v6 {
                // An IPv4 address on a device over IPv6 is nothing that Flannel has.
                continue;
            }
            let address = pod.addresses[usize::from(pods_v6)];
            tcp(&world.theirs.ns, address, PORT, 300_000);
            // Linux opens a TCP connection at this address (to it the anycast address of the pods'
            // network, RFC 4291 §2.6.1) only by the device that has it.
            tcp(&pod.ns, first(2, pods_v6), PORT, 300_000);
        }
    }
}

/// Segmentation and checksums by whoever is left to do them.
fn offloads(world: &World) {
    let there = Command::new("ethtool").arg("--version").output().is_ok();
    if !is_there("offloads of kernel tunnels", "ethtool", there) {
        return;
    }
    let (ours, theirs) = (&world.ours, &world.theirs);
    let tunnels = ["flannel.1", "flannel-v6.1"];
    let all = ["tx", "rx", "tso", "gso", "gro"];
    let set = |ns: &NetNs, name: &str, names: &[&str], on: &str| {
        let mut command = ns.command("ethtool");
        command.args(["-K", name]);
        for feature in names {
            command.args([feature, on]);
        }
        // Some a device does not have; a device may not be there.
        let _ = command.output().expect("ethtool runs");
    };
    // The underlay, the ends, the kernel's tunnel, then all of them.
    for round in 0..4 {
        for on in ["off", "on"] {
            if round == 0 || round == 3 {
                set(&ours.ns, "eth0", &all, on);
                set(&theirs.ns, "eth0", &all, on);
            }
            if round == 1 || round == 3 {
                set(&theirs.pod, "eth0", &all, on);
                ours.pods.iter().for_each(|pod| set(&pod.ns, "eth0", &all, on));
            }
            if round >= 2 {
                tunnels.iter().for_each(|name| set(&theirs.ns, name, &all, on));
            }
            if on == "off" {
                world.talk(1_000_000);
            }
        }
    }
}

/// Our tunnel packets have what the kernel's have.
fn on_the_wire(world: &World, families: &[bool]) {
    let config = PacketConfig::default();
    let device = PacketDevice::new(&world.fabric.ns, &world.port, config);
    let mut port = device.expect("the segment's port").open(0, 1).expect("opened");
    let pod = &world.ours.pods[0];
    for (f, address) in world.theirs.pod_addresses.into_iter().enumerate() {
        udp(&pod.ns, address, PORT, 100);
        // The port receives what our node sends only; the kernel's leaves by it.
        let mut ours = None;
        capture(&mut *port, |frame| {
            ours = dissect(frame, 8472).filter(|seen| seen.inner.1 == address);
            ours.is_some()
        });
        let ours = ours.expect("seen");
        // Of two tunnels each carries its own family.
        let v6 = if families.len() == 2 { f == 1 } else { families[0] };
        let underlay = usize::from(v6);
        assert_eq!(ours.source, cluster::node_address(1, v6));
        assert_eq!(ours.destination, cluster::node_address(2, v6));
        assert_eq!(ours.inner, (pod.addresses[f], address));
        assert_eq!(ours.macs, (THEIRS[underlay].0, OURS[underlay].0), "as Flannel's");
        assert_eq!(ours.header, [8, 0, 0, 0, 0, 0, 1, 0]);
        assert!(ours.ports.0 >= 49_152 && ours.dont_fragment && ours.ttl == 64, "{ours:?}");
        assert_eq!(ours.inner_ttl, 63);
    }
}

#[test]
fn flannel_over_ipv4_through_udp_sockets() {
    interoperates(&[false], &[]);
}

#[test]
fn flannel_over_ipv6_through_udp_sockets() {
    interoperates(&[true], &[]);
}

#[test]
fn flannel_with_both_families_through_udp_sockets() {
    interoperates(&[false, true], &["--workers", "2"]);
}

/// Whoever hands us a super-frame does not tell how long its segments are: they must fit our pods.
#[test]
fn pods_that_take_less_than_the_underlay() {
    podswitch_testkit::require_privilege!();
    for more in
        [&["--mtu", "1400"][..], &["--mtu", "1400", "--underlay", "packet", "--uplink", "eth0"]]
    {
        let world = World::flannel(&[false]);
        let switch = world.start(more);
        // Datagrams that are too long for them, too: their sender is told.
        world.talk(1_000_000);
        assert_eq!(switch.stop(), Some(0));
    }
}

#[test]
fn flannel_over_ipv4_by_frames() {
    interoperates(&[false], &["--underlay", "packet", "--uplink", "eth0"]);
}

#[test]
fn flannel_with_both_families_by_frames() {
    interoperates(&[false, true], &["--underlay", "packet", "--uplink", "eth0"]);
}

/// Two nodes with a switch each, and a stranger on their segment.
struct Pair {
    nodes: [Node; 2],
    stranger: NetNs,
    folder: Folder,
    fabric: Fabric,
}

impl Pair {
    /// `v6`: the family of the underlay.
    fn new(v6: bool) -> Self {
        let fabric = Fabric::new(1500);
        let mut nodes = [1, 2].map(|n| Node::new(&fabric, n, &[v6], &["tap", "tap"]));
        for (node, mac) in nodes.iter_mut().zip([OURS[0], THEIRS[0]]) {
            node.annotations = format!("podswitch.io/vtep-mac: \"{mac}\"");
        }
        let stranger = cluster::namespace();
        // It answers for the third node, too.
        fabric.plug(&stranger, &[66, 3].map(|n| cluster::node_address(n, v6)), None);
        let pair = Self { nodes, stranger, folder: Folder::new(), fabric };
        pair.put(v6);
        pair
    }

    fn put(&self, v6: bool) {
        // A third node that nobody runs.
        let third = format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: third}}\n\
             spec: {{podCIDRs: [10.3.0.0/24, \"fd00:3::/64\"]}}\n\
             status: {{addresses: [{{type: InternalIP, address: \"{}\"}}]}}\n",
            cluster::node_address(3, v6)
        );
        put(&self.folder, &[self.nodes[0].manifest(), self.nodes[1].manifest(), third]);
    }

    fn start(&self, n: usize, more: &[&str]) -> Running {
        let switch = self.nodes[n].start(&self.folder, more);
        switch.event("ready");
        for pod in &self.nodes[n].pods {
            serve(&pod.ns, PORT);
        }
        switch
    }
}

/// The second node is another machine from one moment to the next: first with the same address, then
/// with another one and another tunnel end.
fn replaced(v6: bool, more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let mut pair = Pair::new(v6);
    let first = pair.start(0, more);
    let mut second = pair.start(1, more);
    let source = pair.nodes[0].pods[0].ns.clone();
    let targets = pair.nodes[1].pods[0].addresses;
    let sockets = targets.map(|target| {
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = source.enter(|| UdpSocket::bind(any)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket.connect((target, PORT)).unwrap();
        socket
    });
    // The same flows all the time.
    let mut number = 0u32;
    let mut flows = || {
        for socket in &sockets {
            let limit = Limit::new(PATIENCE);
            loop {
                number += 1;
                let _ = socket.send(&number.to_be_bytes());
                let mut buffer = [0; 4];
                match socket.recv(&mut buffer) {
                    Ok(4) if buffer == number.to_be_bytes() => break,
                    _ => assert!(limit.left().is_some(), "traffic does not resume"),
                }
            }
        }
    };
    flows();
    for (address, vtep) in [(2, THEIRS[0]), (7, Mac([0x0e, 0x58, 7, 7, 7, 7]))] {
        // Gone without a word.
        drop(second);
        let mut netlink = Netlink::open(&pair.nodes[1].ns).unwrap();
        let link = netlink.link("eth0").unwrap().index;
        netlink.delete_link(link).unwrap();
        let node = &mut pair.nodes[1];
        node.ns = cluster::namespace();
        node.addresses = vec![cluster::node_address(address, v6)];
        node.annotations = format!("podswitch.io/vtep-mac: \"{vtep}\"");
        pair.fabric.plug(&node.ns, &node.addresses, None);
        if more.is_empty() {
            // Any new machine says something, which tells its neighbours' kernels where it is.
            let to = (cluster::node_address(1, v6), 9);
            let hello = || UdpSocket::bind("[::]:0").and_then(|s| s.send_to(b"hello", to));
            node.ns.enter(hello).unwrap().unwrap();
        }
        pair.put(v6);
        second = pair.nodes[1].start(&pair.folder, more);
        second.event("ready");
        flows();
        for target in targets {
            tcp(&source, target, PORT, 300_000);
            let back = pair.nodes[0].pods[0].addresses[usize::from(target.is_ipv6())];
            udp(&pair.nodes[1].pods[1].ns, back, PORT, 100);
        }
    }
    drop(second);
    assert_eq!(first.stop(), Some(0));
}

#[test]
fn a_node_replaced_under_traffic_through_udp_sockets() {
    replaced(false, &[]);
}

#[test]
fn a_node_replaced_under_traffic_through_udp_sockets_over_ipv6() {
    replaced(true, &[]);
}

#[test]
fn a_node_replaced_under_traffic_by_frames() {
    replaced(false, &["--underlay", "packet", "--uplink", "eth0"]);
}

#[test]
fn a_node_replaced_under_traffic_by_frames_over_ipv6() {
    replaced(true, &["--underlay", "packet", "--uplink", "eth0"]);
}

/// A device that asks for neighbours through the tunnel, and learns where they are.
fn learning(more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let fabric = Fabric::new(1500);
    let ours = Node::new(&fabric, 1, &[false], &["tap", "veth"]);
    let theirs = KernelNode::new(&fabric, 2, &[false], 1450);
    let remote = Some(cluster::node_address(1, false));
    let mac = THEIRS[0];
    let tunnel = Tunnel { name: "vxlan0", vni: 1, port: 4789, v6: false, mac, remote };
    let device = theirs.add_tunnel(&tunnel);
    for v6 in [false, true] {
        theirs.add_tunnel_address(device, v6);
        theirs.add_route(device, 1, v6);
    }
    let folder = Folder::new();
    put(&folder, &[ours.manifest(), theirs.manifest(&format!("podswitch.io/vtep-mac: \"{mac}\""))]);
    serve(&theirs.pod, PORT);
    let switch = ours.start(&folder, more);
    switch.event("ready");
    for pod in &ours.pods {
        serve(&pod.ns, PORT);
        for (f, address) in theirs.pod_addresses.into_iter().enumerate() {
            udp(&theirs.pod, pod.addresses[f], PORT, 100);
            udp_once(&theirs.pod, pod.addresses[f], PORT);
            udp_once(&pod.ns, address, PORT);
            tcp(&theirs.pod, pod.addresses[f], PORT, 2_000_000);
            tcp(&pod.ns, address, PORT, 2_000_000);
        }
    }
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn a_learning_device_through_udp_sockets() {
    learning(&[]);
}

#[test]
fn a_learning_device_by_frames() {
    learning(&["--underlay", "packet", "--uplink", "eth0"]);
}
