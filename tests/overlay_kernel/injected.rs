//! What strangers on the segment and pods make up reaches nobody, and is counted by its reason.

use std::net::{Ipv4Addr, UdpSocket};

use etherparse::PacketBuilder;
use switch_core::host::{NetNs, Netlink};
use switch_core::packet::{Batch, Packet, Pool, PoolConfig};
use switch_core::port::af_packet::{PacketConfig, PacketDevice};
use switch_core::port::{Device, Port};
use wire::addr::Mac;

use super::cluster::{Cut, is_root, ping, udp};
use super::{PORT, Pair, THEIRS};

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
