//! 48 kinds of spoofing (threats T-S1 to T-S5, T-C3, T-N2, T-O1 to T-O6), from a pod, through the tunnel and from the
//! node: every frame is dropped and counted with its reason, nobody receives anything, and no table changes.
//!
//! `PODSWITCH_SPOOFED_FRAMES` sets how many frames of each kind are sent.

use podswitch_testkit::rig;

use std::net::IpAddr;

use podswitch_core::action::DropReason::{self, *};
use podswitch_core::config::Underlay;
use podswitch_wire::addr::Mac;
use rig::frames::{arp, ethernet, fragments, icmp, icmp_protocol, ip, tagged};
use rig::overlay::*;
use rig::random::Rng;
use rig::{GATEWAY, HOST, HOST_MAC, Switch};

/// Number of frames of each kind, unless the environment sets another one.
const FRAMES: usize = 1_500;
/// The pod that spoofs.
const EVIL: usize = 0;

/// A kind of frame: its false claim, where it is received, its drop reason.
struct Kind {
    name: &'static str,
    port: usize,
    reason: DropReason,
    frame: fn(&mut Rng, Family) -> Vec<u8>,
}

/// The family of the tunnel. Kinds that need a certain family select it themselves.
#[derive(Clone, Copy)]
struct Family {
    v6: bool,
}

const fn from_evil(
    name: &'static str,
    reason: DropReason,
    frame: fn(&mut Rng, Family) -> Vec<u8>,
) -> Kind {
    Kind { name, port: EVIL, reason, frame }
}

const fn tunnelled(
    name: &'static str,
    reason: DropReason,
    frame: fn(&mut Rng, Family) -> Vec<u8>,
) -> Kind {
    Kind { name, port: UPLINK, reason, frame }
}

#[rustfmt::skip]
const KINDS: [Kind; 48] = [
    from_evil("source: a pod of this node, IPv4", SpoofedIp, |rng, _| packet(rng, pod(0, 1, false))),
    from_evil("source: a pod of this node, IPv6", SpoofedIp, |rng, _| packet(rng, pod(0, 2, true))),
    from_evil("source: a pod of another node", SpoofedIp, |rng, _| { let v6 = rng.chance(50); let n = 1 + rng.below(2); packet(rng, pod(n, 1, v6)) }),
    from_evil("source: a pod that is not there", SpoofedIp, |rng, _| { let v6 = rng.chance(50); let i = 100 + rng.below(100); packet(rng, pod(0, i, v6)) }),
    from_evil("source: this node", SpoofedIp, |rng, _| { let v6 = rng.chance(50); packet(rng, node_address(0, v6)) }),
    from_evil("source: another node", SpoofedIp, |rng, _| { let v6 = rng.chance(50); packet(rng, node_address(1, v6)) }),
    from_evil("source: off the cluster", SpoofedIp, |rng, _| { let source = outside(rng); packet(rng, source) }),
    from_evil("source: another's, in fragments", SpoofedIp, |rng, _| fragment(rng)),
    from_evil("source: another's, a reset of its connection", SpoofedIp, |rng, _| reset(rng)),
    from_evil("source: the gateway", MartianSource, |rng, _| of(rng, &["169.254.1.1", "fe80::1"])),
    from_evil("source: loopback", MartianSource, |rng, _| of(rng, &["127.0.0.1", "127.8.9.10", "::1"])),
    from_evil("source: unspecified", MartianSource, |rng, _| of(rng, &["0.0.0.0", "0.1.2.3", "::"])),
    from_evil("source: link-local of others", MartianSource, |rng, _| of(rng, &["169.254.77.7", "fe80::99", "febf::1"])),
    from_evil("source: a group", MartianSource, |rng, _| of(rng, &["224.0.0.1", "239.1.2.3", "ff02::1", "ff0e::5"])),
    from_evil("source: class E and broadcast", MartianSource, |rng, _| of(rng, &["240.0.0.1", "255.255.255.255"])),
    from_evil("source: IPv4 mapped into IPv6", MartianSource, |rng, _| of(rng, &["::ffff:10.1.0.11", "::ffff:127.0.0.1"])),
    from_evil("MAC: another pod's", SpoofedMac, |rng, _| { let mac = mac_of_pod(0, 1 + rng.below(2)); with_mac(rng, mac) }),
    from_evil("MAC: the gateway's", SpoofedMac, |rng, _| with_mac(rng, GATEWAY)),
    from_evil("MAC: any", SpoofedMac, |rng, _| { let mac = Mac([2, 0, 0, 9, rng.next() as u8, rng.next() as u8]); with_mac(rng, mac) }),
    from_evil("MAC: a group", SourceMulticast, |rng, _| { let mut mac = [0; 6]; rng.fill(&mut mac); mac[0] |= 1; with_mac(rng, Mac(mac)) }),
    from_evil("one VLAN tag", VlanFromPod, |rng, _| { let frame = own(rng); tagged(&frame, rng.next() as u16) }),
    from_evil("two VLAN tags", VlanFromPod, |rng, _| { let frame = own(rng); let once = tagged(&frame, rng.next() as u16); tagged(&once, rng.next() as u16) }),
    from_evil("ARP: another's address", SpoofedArp, |rng, _| { let victim = victim(rng); arp_frame(rng, (own_mac(), victim), (Mac::ZERO, v4(0, 2))) }),
    from_evil("ARP: another's address, gratuitous", SpoofedArp, |rng, _| { let victim = victim(rng); arp_frame(rng, (own_mac(), victim), (Mac::BROADCAST, victim)) }),
    from_evil("ARP: own address at another's MAC", SpoofedArp, |rng, _| arp_frame(rng, (mac_of_pod(0, 1), v4(0, 0)), (Mac::ZERO, v4(0, 2)))),
    from_evil("ARP: another's address at its MAC", SpoofedArp, |rng, _| arp_frame(rng, (mac_of_pod(0, 1), v4(0, 1)), (Mac::ZERO, v4(0, 2)))),
    from_evil("ARP: a probe of another's address", SpoofedArp, |rng, _| { let victim = v4(0, 1 + rng.below(2)); ethernet(Mac::BROADCAST, own_mac(), 0x0806, &arp(1, (own_mac(), [0; 4]), (Mac::ZERO, victim))) }),
    from_evil("ND: an advertisement of another's address", SpoofedNeighbour, |rng, _| { let to = ["ff02::1".parse().unwrap(), pod(0, 2, true)]; let body = claim(v6(0, 1 + rng.below(2)), 2, own_mac()); nd(pod(0, EVIL, true), *rng.pick(&to), [136, 0], [0x20, 0, 0, 0], &body) }),
    from_evil("ND: own address at another's MAC", SpoofedNeighbour, |rng, _| { let body = claim(v6(0, EVIL), 2, mac_of_pod(0, 1 + rng.below(2))); nd(pod(0, EVIL, true), "ff02::1".parse().unwrap(), [136, 0], [0x20, 0, 0, 0], &body) }),
    from_evil("ND: a solicitation in another's MAC", SpoofedNeighbour, |rng, _| { let body = claim(v6(0, 1), 1, mac_of_pod(0, 1 + rng.below(2))); nd(pod(0, EVIL, true), pod(0, 1, true), [135, 0], [0; 4], &body) }),
    from_evil("ND: a solicitation from another's address", SpoofedNeighbour, |rng, _| { let body = claim(v6(0, 1), 1, own_mac()); nd(pod(0, 1 + rng.below(2), true), pod(0, 1, true), [135, 0], [0; 4], &body) }),
    from_evil("ND: a router advertisement", RogueRouter, |rng, _| { let life = rng.next() as u8; nd("fe80::858:aff:fe01:a".parse().unwrap(), "ff02::1".parse().unwrap(), [134, 0], [64, 0, 7, life], &[0; 8]) }),
    from_evil("ND: a redirect", RogueRouter, |rng, _| { let body = [v6(0, EVIL), v6(0, 1 + rng.below(2))].concat(); nd("fe80::858:aff:fe01:a".parse().unwrap(), pod(0, 1, true), [137, 0], [0; 4], &body) }),
    from_evil("ICMPv4: a redirect", RogueRouter, |rng, _| { let quote = udp(pod(0, 1, false), pod(0, 2, false), (1000, 53), b"x"); let code = rng.below(4) as u8; icmp_v4([5, code], v4(0, EVIL), &quote) }),
    from_evil("ICMPv4: a router advertisement", RogueRouter, |rng, _| { let life = rng.next() as u8; icmp_v4([9, 0], [1, 2, 7, life], &[0; 8]) }),
    from_evil("DHCPv4: a server", RogueDhcp, |rng, _| { let to = *rng.pick(&[pod(0, 1, false), [255; 4].into()]); datagram(rng, pod(0, EVIL, false), to, (67, 68)) }),
    from_evil("DHCPv6: a server", RogueDhcp, |rng, _| datagram(rng, pod(0, EVIL, true), pod(0, 1, true), (547, 546))),
    from_evil("an ICMP error about others' packets", IcmpUnrelated, |rng, _| error_about_others(rng)),
    from_evil("a tunnel packet to a node", TunnelFromPod, |rng, _| { let v6 = rng.chance(50); let to = node_address(rng.below(3), v6); datagram(rng, pod(0, EVIL, v6), to, (50_000, VXLAN)) }),
    from_evil("a tunnel packet to a pod", TunnelFromPod, |rng, _| { let v6 = rng.chance(50); let to = pod(rng.below(2), 1, v6); datagram(rng, pod(0, EVIL, v6), to, (50_000, VXLAN)) }),
    from_evil("to a bridge's group address", BridgeReserved, |rng, _| { let mut frame = own(rng); frame[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, rng.below(16) as u8]); frame }),
    tunnelled("tunnel: from no VTEP", TunnelUnknownVtep, |rng, f| { let source = node_address(6 + rng.below(200), f.v6); Tunnelled { source, ..good(rng, f) }.frame() }),
    tunnelled("tunnel: from this node's own VTEP", TunnelUnknownVtep, |rng, f| Tunnelled { source: node_address(0, f.v6), ..good(rng, f) }.frame()),
    tunnelled("tunnel: a VNI that is not ours", TunnelUnknownVni, |rng, f| { let vni = 2 + rng.below(250) as u8; Tunnelled { header: [8, 0, 0, 0, 0, 0, vni, 0], ..good(rng, f) }.frame() }),
    tunnelled("tunnel: as a pod of a third node or of this one", TunnelInnerSource, |rng, f| { let v6 = rng.chance(50); let source = *rng.pick(&[pod(2, 1, v6), pod(0, 1, v6), node_address(2, v6), node_address(0, v6)]); inside(rng, f, source) }),
    tunnelled("tunnel: from off the cluster", TunnelInnerSource, |rng, f| { let source = outside(rng); inside(rng, f, source) }),
    tunnelled("tunnel: tagged inside", TunnelInnerVlan, |rng, f| { let plain = good(rng, f); let inner = tagged(&plain.inner, rng.next() as u16); Tunnelled { inner, ..plain }.frame() }),
    Kind { name: "node: as a pod", port: HOST, reason: HostSpoofsPod, frame: |rng, _| {
        let v6 = rng.chance(50);
        let source = pod(0, rng.below(3), v6);
        let mut frame = packet(rng, source);
        frame[6..12].copy_from_slice(&HOST_MAC.0);
        frame
    } },
];

fn own_mac() -> Mac {
    mac_of_pod(0, EVIL)
}

fn v4(n: usize, i: usize) -> [u8; 4] {
    match pod(n, i, false) {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => unreachable!("an IPv4 address was requested"),
    }
}

fn v6(n: usize, i: usize) -> [u8; 16] {
    match pod(n, i, true) {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(_) => unreachable!("an IPv6 address was requested"),
    }
}

fn outside(rng: &mut Rng) -> IpAddr {
    if rng.chance(50) {
        let [a, b, c, ..] = rng.next().to_be_bytes();
        return [11 + a % 100, a, b, c].into();
    }
    let mut address = [0; 16];
    rng.fill(&mut address);
    address[0] = 0x20;
    address.into()
}

/// A packet of any protocol from `source` to one of the other pods.
fn packet(rng: &mut Rng, source: IpAddr) -> Vec<u8> {
    let to = pod(0, 1 + rng.below(2), source.is_ipv6());
    from_pod(0, EVIL, &any(rng, source, to))
}

fn any(rng: &mut Rng, source: IpAddr, to: IpAddr) -> Vec<u8> {
    let ports = *rng.pick(&[(1000, 53), (53, 1000), (1000, 80), (80, 1000), (7, 40_000)]);
    let number = rng.below(20) as u32;
    match rng.below(4) {
        0 => udp(source, to, ports, b"spoofed"),
        1 => tcp(source, to, ports, (number, number, *rng.pick(&[2, 16, 18, 4, 20, 17])), b""),
        2 => echo(source, to, b"ping", 64),
        _ => ip(source, to, 132, 64, None, &rig::services::sctp(ports)),
    }
}

/// A valid frame.
fn own(rng: &mut Rng) -> Vec<u8> {
    let v6 = rng.chance(50);
    packet(rng, pod(0, EVIL, v6))
}

fn of(rng: &mut Rng, sources: &[&str]) -> Vec<u8> {
    let source = rng.pick(sources).parse().unwrap();
    packet(rng, source)
}

fn with_mac(rng: &mut Rng, mac: Mac) -> Vec<u8> {
    let mut frame = if rng.chance(50) {
        own(rng)
    } else {
        let v6 = rng.chance(50);
        packet(rng, pod(0, 1, v6))
    };
    frame[6..12].copy_from_slice(&mac.0);
    frame
}

fn fragment(rng: &mut Rng) -> Vec<u8> {
    let v6 = rng.chance(50);
    let (source, to) = (pod(0, 1, v6), pod(0, 2, v6));
    let message = rig::frames::udp(source, to, (1000, 53), &[7; 200]);
    let pieces = fragments((source, to), 17, rng.below(50) as u32, &message, &[64, 64]);
    from_pod(0, EVIL, &pieces[rng.below(pieces.len())])
}

/// With sequence numbers that the connection would accept.
fn reset(rng: &mut Rng) -> Vec<u8> {
    let (source, to, ports, seq) = match rng.chance(50) {
        true => (pod(0, 1, false), pod(0, 2, false), (1000, 80), 2),
        false => (pod(0, 2, false), pod(0, 1, false), (80, 1000), 10),
    };
    let flags = *rng.pick(&[4, 20, 2, 17]);
    from_pod(0, EVIL, &tcp(source, to, ports, (seq, 10, flags), b""))
}

fn victim(rng: &mut Rng) -> [u8; 4] {
    *rng.pick(&[v4(0, 1), v4(0, 2), [169, 254, 1, 1], v4(1, 1), [10, 1, 0, 200]])
}

fn arp_frame(rng: &mut Rng, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    let to = *rng.pick(&[Mac::BROADCAST, GATEWAY]);
    ethernet(to, own_mac(), 0x0806, &arp(1 + rng.below(2) as u8, sender, target))
}

/// An address with a MAC address option.
fn claim(address: [u8; 16], option: u8, mac: Mac) -> Vec<u8> {
    [&address[..], &[option, 1], &mac.0].concat()
}

fn nd(from: IpAddr, to: IpAddr, head: [u8; 2], rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let message = icmp(from, to, head, rest, body);
    ethernet(GATEWAY, own_mac(), 0x86dd, &ip(from, to, 58, 255, None, &message))
}

fn icmp_v4(head: [u8; 2], rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let (from, to) = (pod(0, EVIL, false), pod(0, 1, false));
    from_pod(0, EVIL, &ip(from, to, 1, 64, None, &icmp(from, to, head, rest, body)))
}

fn datagram(rng: &mut Rng, from: IpAddr, to: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    let mut payload = vec![0; 16 + rng.below(300)];
    rng.fill(&mut payload);
    payload[..8].copy_from_slice(&[8, 0, 0, 0, 0, 0, 1, 0]);
    from_pod(0, EVIL, &udp(from, to, ports, &payload))
}

/// About packets that their receiver really sent, to another pod.
fn error_about_others(rng: &mut Rng) -> Vec<u8> {
    let v6 = rng.chance(50);
    let [from, to, other] = [EVIL, 1, 2].map(|i| pod(0, i, v6));
    let quote = match rng.chance(50) && !v6 {
        true => tcp(to, other, (1000, 80), (2, 10, 16), b""),
        false => udp(to, other, (1000, 53), b"x"),
    };
    let (head, rest) = match v6 {
        false => (*rng.pick(&[[3, 4], [3, 1], [3, 3], [11, 0], [12, 0]]), [0, 0, 0, 68]),
        true => (*rng.pick(&[[2, 0], [1, 0], [1, 4], [3, 0]]), [0, 0, 5, 0]),
    };
    let message = icmp(from, to, head, rest, &quote);
    from_pod(0, EVIL, &ip(from, to, icmp_protocol(from), 64, None, &message))
}

/// A valid tunnel packet, from pod 1 of node 1 to pod 1.
fn good(rng: &mut Rng, family: Family) -> Tunnelled {
    let v6 = rng.chance(50);
    let payload = any(rng, pod(1, 1, v6), pod(0, 1, v6));
    Tunnelled::new(1, 0, family.v6, &inner(1, 0, &payload))
}

/// From node 1 with a packet of `source` inside.
fn inside(rng: &mut Rng, family: Family, source: IpAddr) -> Vec<u8> {
    let payload = any(rng, source, pod(0, 1, source.is_ipv6()));
    Tunnelled::new(1, 0, family.v6, &inner(1, 0, &payload)).frame()
}

/// Everything that a frame could change: connections with their counters, flows, learned addresses.
fn tables(switch: &Switch) -> String {
    let mut connections: Vec<String> =
        switch.control.connections().iter().map(|c| format!("{c:?}")).collect();
    connections.sort_unstable();
    let entries = switch.workers.iter().map(|w| w.engine().flows().len()).collect::<Vec<_>>();
    let fdb = switch.control.shared().fdb.dump(switch.now);
    format!("{connections:#?} {entries:?} {fdb:?}")
}

/// Pods 1 and 2 communicate with each other and with another node's pods, over UDP and TCP.
fn busy(underlay: Underlay) -> Switch {
    let mut switch = Switch::new(&node_config(0, underlay));
    for v6 in [false, true] {
        let [one, two, far] = [pod(0, 1, v6), pod(0, 2, v6), pod(1, 1, v6)];
        for (from, packet) in [
            (1, udp(one, two, (1000, 53), b"x")),
            (2, udp(two, one, (53, 1000), b"x")),
            (1, udp(one, far, (1000, 53), b"x")),
            (1, tcp(one, two, (1000, 80), (1, 0, 2), b"")),
            (2, tcp(two, one, (80, 1000), (9, 2, 18), b"")),
            (1, tcp(one, two, (1000, 80), (2, 10, 16), b"")),
        ] {
            switch.send(from, &from_pod(0, from, &packet));
        }
    }
    for port in 0..=UPLINK {
        switch.recv(port);
    }
    assert_eq!(switch.dropped(), []);
    assert_eq!(switch.control.connections().len(), 6);
    switch
}

fn frames_of_each() -> usize {
    let set = std::env::var("PODSWITCH_SPOOFED_FRAMES");
    set.map_or(FRAMES, |n| n.parse().expect("PODSWITCH_SPOOFED_FRAMES is a number"))
}

#[test]
fn each_of_48_kinds_is_dropped_with_its_reason() {
    let count = frames_of_each();
    for (v6, underlay) in [(false, Underlay::Ipv4First), (true, Underlay::Ipv6First)] {
        let mut switch = busy(underlay);
        let before = tables(&switch);
        for (number, kind) in KINDS.iter().enumerate() {
            let mut rng = Rng::new(number as u64);
            let counted = |switch: &Switch| switch.count(|c| c.dropped(kind.reason));
            let counted_before = counted(&switch);
            for n in 0..count.div_ceil(2) {
                let frame = (kind.frame)(&mut rng, Family { v6 });
                switch.send(kind.port, &frame);
                let dropped = switch.dropped();
                let expected = [(kind.port as u16, kind.reason)];
                assert_eq!(dropped, expected, "{}, {n}: {frame:02x?}", kind.name);
                for port in 0..=UPLINK {
                    let pending = switch.ends[port].pending();
                    assert_eq!(pending, 0, "{}: port {port} got something", kind.name);
                }
            }
            let counted = counted(&switch) - counted_before;
            assert_eq!(counted, count.div_ceil(2) as u64, "{}", kind.name);
            assert_eq!(tables(&switch), before, "{}", kind.name);
        }
        switch.assert_adds_up();
    }
}
