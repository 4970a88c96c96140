//! A pod that spoofs addresses (P5, threats T-S1 to T-S5, T-C3): every frame is dropped with its
//! reason, nobody receives anything, and no table changes.

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::DropReason;
use podswitch_core::config::{BridgeDomain, PortConfig, PortRole, Vlans};
use podswitch_core::id::PortId;
use podswitch_wire::addr::Mac;
use rig::frames::*;
use rig::random::Rng;
use rig::*;

/// Number of frames of each kind.
const MANY: usize = 3000;
const EVIL: usize = 0;

/// Everything that a frame could change: connections with their counters, learned addresses,
/// neighbours' frames.
fn tables(switch: &Switch) -> String {
    let mut connections: Vec<String> =
        switch.control.connections().iter().map(|c| format!("{c:?}")).collect();
    connections.sort_unstable();
    let entries = switch.workers.iter().map(|w| w.engine().flows().len()).collect::<Vec<_>>();
    let fdb = switch.control.shared().fdb.dump(switch.now);
    format!("{connections:#?} {entries:?} {fdb:?}")
}

/// Two pods that communicate over UDP and TCP beside the one that spoofs, and a bridge.
fn busy() -> Switch {
    let mut config = config();
    let domain = BridgeDomain { name: "lan".into(), ageing_secs: 300, learn_limit: 10 };
    config.bridges.push(Arc::new(domain));
    for port in [4, 5] {
        let role = PortRole::Bridge { domain: "lan".into(), vlans: Vlans::default() };
        config.ports.push(PortConfig { port: PortId(port), role });
    }
    let mut switch = Switch::new(&config);
    switch.send(1, &udp4(1, pod_v4(2), (1000, 53), b"x"));
    switch.send(2, &udp4(2, pod_v4(1), (53, 1000), b"x"));
    switch.send(1, &udp6(1, pod_v6(2), (1000, 53), b"x"));
    let syn = |flags, seq, ack| Tcp { seq, ack, flags, payload: 0 };
    switch.send(1, &tcp4(1, 2, (1000, 80), &syn("S", 1, None)));
    switch.send(2, &tcp4(2, 1, (80, 1000), &syn("S", 9, Some(2))));
    // And a connection that is over, which a new SYN from its own end would open again.
    switch.send(1, &tcp4(1, 2, (1001, 80), &syn("S", 1, None)));
    switch.send(2, &tcp4(2, 1, (80, 1001), &syn("R", 0, Some(2))));
    let lan = |from: u8, to| ethernet(to, Mac([2, 0, 0, 0, 9, from]), 0x1234, &[0; 50]);
    switch.send(4, &lan(4, Mac::BROADCAST));
    switch.send(5, &lan(5, Mac([2, 0, 0, 0, 9, 4])));
    for port in 0..6 {
        switch.recv(port);
    }
    assert_eq!(switch.dropped(), []);
    assert_eq!(switch.control.connections().len(), 4);
    switch
}

/// Sends many frames from `make`; `nth` selects the variations.
fn all_dropped(reason: DropReason, make: impl Fn(&mut Rng) -> Vec<u8>) {
    let mut switch = busy();
    let before = tables(&switch);
    let mut rng = Rng::new(reason as u64);
    for n in 0..MANY {
        let frame = make(&mut rng);
        switch.send(EVIL, &frame);
        assert_eq!(switch.dropped(), [(EVIL as u16, reason)], "{n}: {frame:02x?}");
    }
    assert_eq!(tables(&switch), before);
    for port in 0..6 {
        assert_eq!(switch.ends[port].pending(), 0, "port {port} got something");
    }
    switch.assert_adds_up();
}

fn v4(n: usize) -> IpAddr {
    pod_v4(n).into()
}

fn v6(n: usize) -> IpAddr {
    pod_v6(n).into()
}

fn random_v4(rng: &mut Rng) -> IpAddr {
    let [a, b, c, _, ..] = rng.next().to_be_bytes();
    [11 + a % 100, a, b, c].into()
}

fn random_v6(rng: &mut Rng) -> IpAddr {
    let mut a = [0; 16];
    rng.fill(&mut a);
    a[0] = 0x20;
    a.into()
}

/// A packet of a random protocol from `src` to `dst`, in a frame with the pod's own MAC address; a
/// whole packet or a fragment.
fn packet(rng: &mut Rng, src: IpAddr, dst: IpAddr) -> Vec<u8> {
    let ports = *rng.pick(&[(1000, 53), (53, 1000), (1000, 80), (1001, 80), (80, 1001)]);
    let flags = *rng.pick(&[0x02, 0x10, 0x12, 0x04, 0x14, 0x11]);
    let number = rng.below(20) as u32;
    let (protocol, message) = match rng.below(4) {
        0 => (17, udp(src, dst, ports, b"spoofed")),
        1 => (6, tcp(src, dst, ports, (number, number, flags), b"")),
        2 => {
            let echo = if src.is_ipv4() { [8, 0] } else { [128, 0] };
            (icmp_protocol(src), icmp(src, dst, echo, [0; 4], b"ping"))
        }
        _ => {
            // An error about a packet that its receiver did send.
            let quote = ip(dst, src, 17, 60, None, &udp(dst, src, (53, 1000), b"x"));
            let head = if src.is_ipv4() { [3, 3] } else { [1, 4] };
            (icmp_protocol(src), icmp(src, dst, head, [0; 4], &quote))
        }
    };
    let fragment = rng.chance(20).then(|| (rng.below(9) as u32, 0, true));
    let message = if fragment.is_some() { [&message[..], &[0; 64]].concat() } else { message };
    let len = if fragment.is_some() { message.len() / 8 * 8 } else { message.len() };
    let packet = ip(src, dst, protocol, 64, fragment, &message[..len]);
    ethernet(GATEWAY, pod_mac(EVIL), ethertype(src), &packet)
}

#[test]
fn foreign_ip() {
    all_dropped(DropReason::SpoofedIp, |rng| {
        let to_gateway = rng.chance(10);
        let (src, dst) = match rng.below(4) {
            0 => (v4(1), v4(2)),
            1 => (v6(1), v6(2)),
            2 => (random_v4(rng), v4(1)),
            _ => (random_v6(rng), v6(1)),
        };
        let gateway: IpAddr = match src {
            IpAddr::V4(_) => [169, 254, 1, 1].into(),
            IpAddr::V6(_) => "fe80::1".parse().unwrap(),
        };
        packet(rng, src, if to_gateway { gateway } else { dst })
    });
}

#[test]
fn foreign_mac() {
    all_dropped(DropReason::SpoofedMac, |rng| {
        let (src, dst) = *rng.pick(&[(v4(EVIL), v4(1)), (v4(1), v4(2)), (v6(1), v6(2))]);
        let mut frame = packet(rng, src, dst);
        let mac = match rng.below(3) {
            0 => pod_mac(1),
            1 => GATEWAY,
            _ => Mac([2, 0, rng.next() as u8, 0, 0, 9]),
        };
        frame[6..12].copy_from_slice(&mac.0);
        frame
    });
}

#[test]
fn group_address_as_source_mac() {
    all_dropped(DropReason::SourceMulticast, |rng| {
        let mut frame = packet(rng, v4(EVIL), v4(1));
        rng.fill(&mut frame[6..12]);
        frame[6] |= 1;
        frame
    });
}

#[test]
fn martians() {
    all_dropped(DropReason::MartianSource, |rng| {
        let source = *rng.pick(&[
            "127.0.0.1",
            "127.8.9.10",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.1.1",
            "169.254.77.7",
            "224.0.0.1",
            "239.1.2.3",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "fe80::99",
            "::ffff:10.1.0.11",
        ]);
        let src: IpAddr = source.parse().unwrap();
        let dst = if src.is_ipv4() { v4(1) } else { v6(1) };
        packet(rng, src, dst)
    });
}

/// ARP from the pod's own MAC address, with a sender inside that is not its own.
#[test]
fn arp_for_another() {
    all_dropped(DropReason::SpoofedArp, |rng| {
        let own = (pod_mac(EVIL), pod_v4(EVIL));
        let victim = *rng.pick(&[pod_v4(1), pod_v4(2), [169, 254, 1, 1], [10, 1, 0, 200]]);
        let operation = 1 + rng.below(2) as u8;
        let message = match rng.below(5) {
            0 => arp(operation, (own.0, victim), (Mac::ZERO, pod_v4(1))),
            1 => arp(operation, (pod_mac(1), own.1), (Mac::ZERO, pod_v4(1))),
            2 => arp(operation, (pod_mac(1), pod_v4(1)), (Mac::ZERO, pod_v4(2))),
            // Gratuitous: sender and target are the same.
            3 => arp(operation, (own.0, victim), (Mac::BROADCAST, victim)),
            // A probe claims its target.
            _ => arp(1, (own.0, [0; 4]), (Mac::ZERO, *rng.pick(&[pod_v4(1), pod_v4(2)]))),
        };
        let to = *rng.pick(&[Mac::BROADCAST, GATEWAY]);
        ethernet(to, own.0, 0x0806, &message)
    });
}

fn nd(src: IpAddr, dst: IpAddr, head: [u8; 2], rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let message = icmp(src, dst, head, rest, body);
    let packet = ip(src, dst, 58, 255, None, &message);
    ethernet(GATEWAY, pod_mac(EVIL), 0x86dd, &packet)
}

/// Solicitations and advertisements that claim an address or MAC address of another pod.
#[test]
fn neighbour_discovery_for_another() {
    all_dropped(DropReason::SpoofedNeighbour, |rng| {
        let n = 1 + rng.below(2);
        let victim = pod_v6(n);
        let dst: IpAddr = "ff02::1".parse().unwrap();
        let option = |kind: u8, mac: Mac| [&[kind, 1][..], &mac.0].concat();
        let foreign_mac = [&pod_v6(1)[..], &option(1, pod_mac(n))].concat();
        match rng.below(4) {
            // An unsolicited advertisement that overrides.
            0 => {
                let body = [&victim[..], &option(2, pod_mac(EVIL))].concat();
                nd(v6(EVIL), dst, [136, 0], [0x20, 0, 0, 0], &body)
            }
            // A solicited one.
            1 => {
                let body = [&victim[..], &option(2, pod_mac(EVIL))].concat();
                nd(v6(EVIL), v6(2), [136, 0], [0x60, 0, 0, 0], &body)
            }
            // Its own address with another pod's MAC address.
            2 => {
                let body = [&pod_v6(EVIL)[..], &option(2, pod_mac(n))].concat();
                nd(v6(EVIL), dst, [136, 0], [0x20, 0, 0, 0], &body)
            }
            // A solicitation in the name of another MAC address.
            _ => nd(v6(EVIL), v6(1), [135, 0], [0; 4], &foreign_mac),
        }
    });
    all_dropped(DropReason::SpoofedNeighbour, |rng| {
        let n = 1 + rng.below(2);
        let body = [&pod_v6(1)[..], &[1, 1], &pod_mac(EVIL).0].concat();
        nd(v6(n), v6(1), [135, 0], [0; 4], &body)
    });
}

#[test]
fn routers() {
    all_dropped(DropReason::RogueRouter, |rng| {
        let router: IpAddr = "fe80::858:aff:fe01:a".parse().unwrap();
        let all: IpAddr = "ff02::1".parse().unwrap();
        match rng.below(4) {
            0 => nd(router, all, [134, 0], [64, 0, 7, 8], &[0; 8]),
            1 => {
                let body = [&pod_v6(EVIL)[..], &pod_v6(2)].concat();
                nd(router, v6(1), [137, 0], [0; 4], &body)
            }
            // ICMPv4 redirect about an existing flow, and router advertisement.
            2 => {
                let quote = ip(v4(1), v4(2), 17, 60, None, &udp(v4(1), v4(2), (1000, 53), b"x"));
                let message = icmp(v4(EVIL), v4(1), [5, 1], pod_v4(EVIL), &quote);
                let packet = ip(v4(EVIL), v4(1), 1, 64, None, &message);
                ethernet(GATEWAY, pod_mac(EVIL), 0x0800, &packet)
            }
            _ => {
                let message = icmp(v4(EVIL), v4(1), [9, 0], [1, 2, 7, 8], &[0; 8]);
                let packet = ip(v4(EVIL), v4(1), 1, 64, None, &message);
                ethernet(GATEWAY, pod_mac(EVIL), 0x0800, &packet)
            }
        }
    });
}

#[test]
fn dhcp_servers() {
    all_dropped(DropReason::RogueDhcp, |rng| {
        let (src, dst, ports) = *rng.pick(&[
            (v4(EVIL), v4(1), (67, 68)),
            (v4(EVIL), [255; 4].into(), (67, 68)),
            (v6(EVIL), v6(1), (547, 546)),
        ]);
        let message = udp(src, dst, ports, &vec![2; rng.below(300)]);
        let packet = ip(src, dst, 17, 64, None, &message);
        ethernet(GATEWAY, pod_mac(EVIL), ethertype(src), &packet)
    });
}

#[test]
fn vlan_tags() {
    all_dropped(DropReason::VlanFromPod, |rng| {
        let (src, dst) = *rng.pick(&[(v4(EVIL), v4(1)), (v6(EVIL), v6(2)), (v4(1), v4(2))]);
        let frame = packet(rng, src, dst);
        let once = tagged(&frame, rng.next() as u16);
        if rng.chance(50) { once } else { tagged(&once, rng.next() as u16) }
    });
}

#[test]
fn bridge_group_addresses() {
    all_dropped(DropReason::BridgeReserved, |rng| {
        let mut frame = packet(rng, v4(EVIL), v4(1));
        frame[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, rng.below(16) as u8]);
        frame
    });
    // Frames that no pod should ever send are dropped, too.
    all_dropped(DropReason::EtherTypeUnsupported, |rng| {
        ethernet(GATEWAY, pod_mac(EVIL), *rng.pick(&[0x88cc, 0x8809, 38, 0x22f3]), &[1; 60])
    });
    // STP, LACP, LLDP and similar protocols, with any content (T-S5).
    all_dropped(DropReason::BridgeReserved, |rng| {
        let to = Mac([1, 0x80, 0xc2, 0, 0, rng.below(16) as u8]);
        let kind = *rng.pick(&[0x88cc, 0x8809, 38, 0x22f3, 0x0806, 0x0800]);
        let payload = match kind {
            0x0806 => arp(1, (pod_mac(EVIL), pod_v4(EVIL)), (Mac::ZERO, pod_v4(1))),
            0x0800 => ip(v4(EVIL), v4(1), 17, 60, None, &udp(v4(EVIL), v4(1), (1, 2), b"x")),
            _ => vec![1; 60],
        };
        ethernet(to, pod_mac(EVIL), kind, &payload)
    });
}

/// An ICMP error of a pod about a flow between two others: it never saw such a packet (T-N2).
#[test]
fn errors_about_flows_of_others() {
    all_dropped(DropReason::IcmpUnrelated, |rng| {
        let (dst, other) = *rng.pick(&[(v4(1), v4(2)), (v6(1), v6(2))]);
        let src = if dst.is_ipv4() { v4(EVIL) } else { v6(EVIL) };
        let quote = match rng.chance(50) && dst.is_ipv4() {
            true => ip(dst, other, 6, 60, None, &tcp(dst, other, (1000, 80), (2, 10, 16), b"")),
            false => ip(dst, other, 17, 60, None, &udp(dst, other, (1000, 53), b"x")),
        };
        let (head, rest) = match dst.is_ipv4() {
            true => (*rng.pick(&[[3, 4], [3, 1], [11, 0], [4, 0]]), [0, 0, 0, 68]),
            false => (*rng.pick(&[[2, 0], [1, 0]]), [0, 0, 5, 0]),
        };
        let message = icmp(src, dst, head, rest, &quote);
        let packet = ip(src, dst, icmp_protocol(src), 64, None, &message);
        ethernet(GATEWAY, pod_mac(EVIL), ethertype(src), &packet)
    });
}
