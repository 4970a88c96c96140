//! What strangers on the segment and pods make up reaches nobody, and is counted by its reason.

use std::net::{IpAddr, UdpSocket};

use etherparse::PacketBuilder;
use etherparse::icmpv4::DestUnreachableHeader;
use podswitch_core::packet::{Batch, Packet, Pool, PoolConfig};
use podswitch_core::port::{Device, Port};
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::{NetNs, Netlink};
use podswitch_wire::addr::Mac;

use super::{OURS, PORT, Pair, THEIRS};
use podswitch_vswitch_testkit::cluster::{Cut, ip, node_address, ping, udp};

/// The port that nobody may reach.
const FORBIDDEN: u16 = 6666;

/// A datagram's frame. `macs`: from, to; `ports` likewise.
pub(super) fn datagram(
    macs: [Mac; 2],
    [from, to]: [IpAddr; 2],
    ports: [u16; 2],
    payload: &[u8],
) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs[0].0, macs[1].0);
    let builder = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 60),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 60),
        _ => panic!("two families in one packet"),
    };
    let mut frame = Vec::new();
    builder.udp(ports[0], ports[1]).write(&mut frame, payload).expect("it fits");
    frame
}

/// An inner frame: a datagram to the forbidden port, or another one.
fn inner(from: IpAddr, to: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    datagram([THEIRS[0], OURS[0]], [from, to], [1000, port], payload)
}

/// A tunnel packet for the first node.
fn tunnelled(from: IpAddr, header: [u8; 8], inner: &[u8], macs: [Mac; 2]) -> Vec<u8> {
    let first = node_address(1, from.is_ipv6());
    datagram(macs, [from, first], [50_000, 4789], &[&header, inner].concat())
}

/// "Fragmentation needed" or "packet too big", to the first node, about a tunnel packet that is none of its.
fn too_big(quoted: &[u8], macs: [Mac; 2], v6: bool) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs[0].0, macs[1].0);
    let mut frame = Vec::new();
    match (node_address(2, v6), node_address(1, v6)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let kind = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 600 };
            let kind = etherparse::Icmpv4Type::DestinationUnreachable(kind);
            let builder = builder.ipv4(from.octets(), to.octets(), 64).icmpv4(kind);
            builder.write(&mut frame, quoted)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let kind = etherparse::Icmpv6Type::PacketTooBig { mtu: 1280 };
            let builder = builder.ipv6(from.octets(), to.octets(), 64).icmpv6(kind);
            builder.write(&mut frame, quoted)
        }
        _ => unreachable!("one family"),
    }
    .expect("it fits");
    frame
}

/// What a stranger on the segment makes up, and what a pod sends to the tunnel's port.
fn injected(v6: bool, more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let pair = Pair::new(v6);
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
    let [node, third, stranger] = [2, 3, 66].map(|n| node_address(n, v6));
    let good = [8, 0, 0, 0, 0, 0, 1, 0];
    let mut cases = Vec::new();
    for (a, b, c, nobody) in [
        ("10.1.0.2", "10.2.0.2", "10.3.0.2", "192.0.2.66"),
        ("fd00:1::2", "fd00:2::2", "fd00:3::2", "2001:db8:1::66"),
    ] {
        let [a, b, c, nobody] = [a, b, c, nobody].map(ip);
        let plain = inner(b, a, FORBIDDEN, b"!");
        let headers = if v6 { 62 } else { 42 };
        let nested = tunnelled(node, good, &plain, macs);
        let nested = inner(b, a, 4789, &nested[headers..]);
        let from = |node, inner: &[u8]| tunnelled(node, good, inner, macs);
        cases.extend([
            ("tunnel_unknown_vtep", from(stranger, &plain)),
            ("tunnel_unknown_vni", tunnelled(node, [8, 0, 0, 0, 0, 0, 2, 0], &plain, macs)),
            ("tunnel_header", tunnelled(node, [0, 0, 0, 0, 0, 0, 1, 0], &plain, macs)),
            // A pod of another node than the one that it comes from; one of this node; no pod at all.
            ("tunnel_inner_source", from(node, &inner(c, a, FORBIDDEN, b"!"))),
            ("tunnel_inner_source", from(third, &plain)),
            ("tunnel_inner_source", from(node, &inner(a, a, FORBIDDEN, b"!"))),
            ("tunnel_inner_source", from(node, &inner(nobody, a, FORBIDDEN, b"!"))),
            ("tunnel_nested", from(node, &nested)),
            ("tunnel_inner_destination", from(node, &inner(b, c, FORBIDDEN, b"!"))),
        ]);
    }
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
    let plain = inner(y.addresses[0], x.addresses[0], FORBIDDEN, b"!");
    let quoted = tunnelled(node_address(1, v6), good, &plain, macs);
    inject(&too_big(&quoted[14..], macs, v6));
    let from_pod = x.ns.enter(|| UdpSocket::bind("[::]:0")).unwrap().unwrap();
    for _ in 0..COUNT {
        from_pod.send_to(&[&good[..], &plain].concat(), (node, 4789)).unwrap();
    }
    first.has_dropped("tunnel_from_pod", COUNT);
    for socket in listeners {
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 64]).is_err(), "somebody got it");
    }
    // All goes on as before, whole.
    udp(&x.ns, y.addresses[0], PORT, 100);
    let mtu = if v6 { 1430 } else { 1450 };
    for address in y.addresses {
        assert!(matches!(ping(&x.ns, address, mtu, Cut::Never), Ok(true)), "{address}");
    }
    assert_eq!(first.stop(), Some(0));
    assert_eq!(second.stop(), Some(0));
}

#[test]
fn injected_through_udp_sockets() {
    injected(false, &[]);
}

#[test]
fn injected_through_udp_sockets_over_ipv6() {
    injected(true, &[]);
}

#[test]
fn injected_by_frames() {
    injected(false, &["--underlay", "packet", "--uplink", "eth0"]);
}

#[test]
fn injected_by_frames_over_ipv6() {
    injected(true, &["--underlay", "packet", "--uplink", "eth0"]);
}
