//! The overlay's other end is Linux itself: a node with bridge and VXLAN device as Flannel sets them up,
//! and a device that learns. What is on the wire is looked at with an independent parser.

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/kernel.rs"]
mod kernel;
mod support;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use cluster::{Cut, Fabric, Limit, Node, PATIENCE, Switch, is_possible, is_root, ping, put, serve};
use cluster::{tcp, udp, udp_once};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use kernel::{KernelNode, Tunnel, checksum_errors, first, flannel};
use support::Folder;
use switch_core::host::{NetNs, Netlink};
use switch_core::packet::{Batch, Packet, Pool, PoolConfig};
use switch_core::port::af_packet::{PacketConfig, PacketDevice};
use switch_core::port::{Device, Port};
use wire::addr::Mac;

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

    fn start(&self, more: &[&str]) -> Switch {
        let switch = self.ours.start(&self.folder, more);
        switch.says("ready");
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
    fn talk(&self, octets: usize) {
        for pod in &self.ours.pods {
            for (f, address) in self.theirs.pod_addresses.into_iter().enumerate() {
                udp(&pod.ns, address, PORT, 1000);
                udp(&self.theirs.pod, pod.addresses[f], PORT, 4000);
                tcp(&pod.ns, address, PORT, octets);
                tcp(&self.theirs.pod, pod.addresses[f], PORT, octets);
            }
        }
        self.no_checksum_errors();
    }
}

fn interoperates(families: &[bool], more: &[&str]) {
    if !is_root() {
        return;
    }
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
            // Of its IPv6 tunnel's device; what comes in by the other, as ours does where both nodes
            // have IPv4, is to Linux for the anycast address of the pods' network (RFC 4291
            // §2.6.1), at which it opens no TCP connection.
            if !(pods_v6 && families.len() == 2) {
                tcp(&pod.ns, first(2, pods_v6), PORT, 300_000);
            }
        }
    }
}

/// Segmentation and checksums by whoever is left to do them.
fn offloads(world: &World) {
    let there = Command::new("ethtool").arg("--version").output().is_ok();
    if !is_possible("ethtool", there) {
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

/// Receives what passes a port of the segment until `wanted` says that it has seen enough.
fn capture(port: &mut dyn Port, mut wanted: impl FnMut(&[u8]) -> bool) {
    let mut pool = Pool::new(PoolConfig::default());
    let (limit, mut batch) = (Limit::new(PATIENCE), Batch::new());
    while limit.left().is_some() {
        port.rx(&mut pool, &mut batch).expect("received");
        if batch.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        for packet in batch.drain(..) {
            let done = wanted(packet.bytes());
            pool.free(packet);
            if done {
                return;
            }
        }
    }
    panic!("what was wanted does not pass");
}

/// A tunnel packet as an independent parser reads it.
#[derive(Debug)]
struct Seen {
    source: IpAddr,
    destination: IpAddr,
    dont_fragment: bool,
    ttl: u8,
    ports: (u16, u16),
    /// The VXLAN header.
    header: [u8; 8],
    /// Inner link-layer destination and source.
    macs: ([u8; 6], [u8; 6]),
    inner_ttl: u8,
    inner: (IpAddr, IpAddr),
}

fn addresses(net: &NetSlice<'_>) -> (IpAddr, IpAddr, u8, bool) {
    match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let (from, to) = (header.source_addr().into(), header.destination_addr().into());
            (from, to, header.ttl(), header.dont_fragment())
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (from, to) = (header.source_addr().into(), header.destination_addr().into());
            (from, to, header.hop_limit(), true)
        }
        NetSlice::Arp(_) => panic!("ARP"),
    }
}

fn dissect(frame: &[u8], port: u16) -> Option<Seen> {
    let outer = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Udp(udp)) = &outer.transport else { return None };
    if udp.destination_port() != port {
        return None;
    }
    let (source, destination, ttl, dont_fragment) = addresses(outer.net.as_ref()?);
    let (header, inner) = udp.payload().split_first_chunk::<8>().expect("a VXLAN header");
    let frame = SlicedPacket::from_ethernet(inner).expect("a frame inside");
    let (from, to, inner_ttl, _) = match frame.net.as_ref()? {
        NetSlice::Arp(_) => return None,
        net => addresses(net),
    };
    Some(Seen {
        source,
        destination,
        dont_fragment,
        ttl,
        ports: (udp.source_port(), udp.destination_port()),
        header: *header,
        macs: (inner[..6].try_into().ok()?, inner[6..12].try_into().ok()?),
        inner_ttl,
        inner: (from, to),
    })
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
        let underlay = usize::from(families[0]);
        assert_eq!(ours.source, cluster::node_address(1, families[0]));
        assert_eq!(ours.destination, cluster::node_address(2, families[0]));
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
    fn new() -> Self {
        let fabric = Fabric::new(1500);
        let mut nodes = [1, 2].map(|n| Node::new(&fabric, n, &[false], &["tap", "tap"]));
        nodes[1].annotations = format!("podswitch.io/vtep-mac: \"{}\"", THEIRS[0]);
        let stranger = cluster::namespace();
        // It answers for the third node, too.
        fabric.plug(&stranger, &[66, 3].map(|n| cluster::node_address(n, false)), None);
        let pair = Self { nodes, stranger, folder: Folder::new(), fabric };
        pair.put();
        pair
    }

    fn put(&self) {
        // A third node that nobody runs.
        let third = "---\napiVersion: v1\nkind: Node\nmetadata: {name: third}\n\
             spec: {podCIDRs: [10.3.0.0/24]}\n\
             status: {addresses: [{type: InternalIP, address: 192.0.2.3}]}\n";
        put(&self.folder, &[self.nodes[0].manifest(), self.nodes[1].manifest(), third.to_owned()]);
    }

    fn start(&self, n: usize, more: &[&str]) -> Switch {
        let switch = self.nodes[n].start(&self.folder, more);
        switch.says("ready");
        for pod in &self.nodes[n].pods {
            serve(&pod.ns, PORT);
        }
        switch
    }
}

/// The second node is another machine from one moment to the next: first with the same address, then
/// with another one and another tunnel end.
fn replaced(more: &[&str]) {
    if !is_root() {
        return;
    }
    let mut pair = Pair::new();
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
        node.addresses = vec![cluster::node_address(address, false)];
        node.annotations = format!("podswitch.io/vtep-mac: \"{vtep}\"");
        pair.fabric.plug(&node.ns, &node.addresses, None);
        if more.is_empty() {
            // Any new machine says something, which tells its neighbours' kernels where it is.
            let to = (cluster::node_address(1, false), 9);
            let hello = || UdpSocket::bind("0.0.0.0:0").and_then(|s| s.send_to(b"hello", to));
            node.ns.enter(hello).unwrap().unwrap();
        }
        pair.put();
        second = pair.nodes[1].start(&pair.folder, more);
        second.says("ready");
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
    replaced(&[]);
}

#[test]
fn a_node_replaced_under_traffic_by_frames() {
    replaced(&["--underlay", "packet", "--uplink", "eth0"]);
}

/// The port that nobody may reach.
const FORBIDDEN: u16 = 6666;

/// An inner frame: a datagram to the forbidden port, or another one.
fn inner(from: Ipv4Addr, to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    // The first node's tunnel end has the address that it has without annotations.
    let builder = PacketBuilder::ethernet2(THEIRS[0].0, [0x0e, 0x58, 192, 0, 2, 1]);
    let builder = builder.ipv4(from.octets(), to.octets(), 60).udp(1000, port);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("it fits");
    frame
}

/// A tunnel packet for the first node.
fn tunnelled(from: Ipv4Addr, header: [u8; 8], inner: &[u8], macs: [Mac; 2]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs[0].0, macs[1].0);
    let builder = builder.ipv4(from.octets(), [192, 0, 2, 1], 64).udp(50_000, 4789);
    let mut frame = Vec::new();
    builder.write(&mut frame, &[&header, inner].concat()).expect("it fits");
    frame
}

/// "Fragmentation needed", to the first node, about a tunnel packet that is none of its.
fn too_big(quoted: &[u8], macs: [Mac; 2]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs[0].0, macs[1].0);
    let kind = etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
    let kind = etherparse::Icmpv4Type::DestinationUnreachable(kind);
    let builder = builder.ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64).icmpv4(kind);
    let mut frame = Vec::new();
    builder.write(&mut frame, quoted).expect("it fits");
    frame
}

/// What a stranger on the segment makes up, and what a pod sends to the tunnel's port.
fn injected(more: &[&str]) {
    if !is_root() {
        return;
    }
    let pair = Pair::new();
    let (first, second) = (pair.start(0, more), pair.start(1, more));
    let [x, y] = [&pair.nodes[0].pods[0], &pair.nodes[1].pods[0]];
    udp(&x.ns, y.addresses[0], PORT, 100);
    // Everybody listens for what nobody may get.
    let everybody = pair.nodes.iter().flat_map(|n| n.pods.iter().map(|p| &p.ns).chain([&n.ns]));
    let listeners: Vec<UdpSocket> = everybody
        .map(|ns| ns.enter(|| UdpSocket::bind(("::", FORBIDDEN))).unwrap().unwrap())
        .collect();
    let mac_of = |ns: &NetNs| Netlink::open(ns).unwrap().link("eth0").unwrap().mac.unwrap();
    let macs = [mac_of(&pair.stranger), mac_of(&pair.nodes[0].ns)];
    let [a, b, c] = [[10, 1, 0, 2], [10, 2, 0, 2], [10, 3, 0, 2]].map(Ipv4Addr::from);
    let [node, third, stranger] = [2, 3, 66].map(|n| Ipv4Addr::new(192, 0, 2, n));
    let good = [8, 0, 0, 0, 0, 0, 1, 0];
    let plain = inner(b, a, FORBIDDEN, b"!");
    let nested = tunnelled(node, good, &plain, macs);
    let cases = [
        ("tunnel_unknown_vtep", tunnelled(stranger, good, &plain, macs)),
        ("tunnel_unknown_vni", tunnelled(node, [8, 0, 0, 0, 0, 0, 2, 0], &plain, macs)),
        ("tunnel_header", tunnelled(node, [0, 0, 0, 0, 0, 0, 1, 0], &plain, macs)),
        // A pod of another node than the one that it comes from; one of this node; no pod at all.
        ("tunnel_inner_source", tunnelled(node, good, &inner(c, a, FORBIDDEN, b"!"), macs)),
        ("tunnel_inner_source", tunnelled(third, good, &plain, macs)),
        ("tunnel_inner_source", tunnelled(node, good, &inner(a, a, FORBIDDEN, b"!"), macs)),
        ("tunnel_inner_source", tunnelled(node, good, &inner(stranger, a, FORBIDDEN, b"!"), macs)),
        ("tunnel_nested", tunnelled(node, good, &inner(b, a, 4789, &nested[42..]), macs)),
        ("tunnel_inner_destination", tunnelled(node, good, &inner(b, c, FORBIDDEN, b"!"), macs)),
    ];
    let device = PacketDevice::new(&pair.stranger, "eth0", PacketConfig::default());
    let mut port = device.unwrap().open(0, 1).unwrap();
    let mut pool = Pool::new(PoolConfig::default());
    const COUNT: u64 = 7;
    let mut inject = |frame: &[u8]| {
        for _ in 0..COUNT {
            let mut batch = Batch::new();
            batch.push(Packet::from_frame(frame));
            port.tx(&mut pool, &mut batch).unwrap();
            assert!(batch.is_empty(), "it is sent");
        }
    };
    let mut counts = std::collections::BTreeMap::new();
    for (reason, frame) in &cases {
        inject(frame);
        let count = counts.entry(*reason).or_insert(0);
        *count += COUNT;
        first.has_dropped(reason, *count);
    }
    // Nobody believes what is not quoted from a packet that was sent.
    let quoted = tunnelled(Ipv4Addr::new(192, 0, 2, 1), good, &plain, macs);
    inject(&too_big(&quoted[14..], macs));
    let from_pod = x.ns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    for _ in 0..COUNT {
        from_pod.send_to(&[&good[..], &plain].concat(), "192.0.2.2:4789").unwrap();
    }
    first.has_dropped("tunnel_from_pod", COUNT);
    for socket in listeners {
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 64]).is_err(), "somebody got it");
    }
    // All goes on as before, whole.
    udp(&x.ns, y.addresses[0], PORT, 100);
    assert!(matches!(ping(&x.ns, y.addresses[0], 1450, Cut::Never), Ok(true)));
    assert_eq!(first.stop(), Some(0));
    assert_eq!(second.stop(), Some(0));
}

#[test]
fn injected_through_udp_sockets() {
    injected(&[]);
}

#[test]
fn injected_by_frames() {
    injected(&["--underlay", "packet", "--uplink", "eth0"]);
}

/// A device that asks for neighbours through the tunnel, and learns where they are.
fn learning(more: &[&str]) {
    if !is_root() {
        return;
    }
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
    switch.says("ready");
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
