//! GSO packets that bypass the sockets unsegmented: they take the same path and look like the sockets' datagrams.

use podswitch_core::packet::{GsoType, Offload, Packet};
use podswitch_core::port::Device;
use podswitch_linux::netlink::{LinkSpec, Route};
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_wire::addr::Mac;
use podswitch_wire::checksum::sum;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;

use crate::frames::{Hand, gso_packet, inner, wrapped};
use crate::pmtu::learnt;
use crate::world::{Tunnel, Underlay, add_address, encapsulate, ip};
use podswitch_testkit::net;

const TUNNELS: [Tunnel; 2] = [
    Tunnel { v6: false, vni: 42, port: 4789, tunnel_gso: true },
    Tunnel { v6: true, vni: 7, port: 8472, tunnel_gso: true },
];

/// Bytes of the inner packet's payload.
const LEN: usize = 20_000;

fn mac(ns: &NetNs, name: &str) -> Mac {
    Netlink::open(ns).unwrap().link(name).unwrap().mac.unwrap()
}

/// The packets that pass an interface.
fn tap_wire(ns: &NetNs, name: &str) -> Hand {
    Hand::new(PacketDevice::new(ns, name, PacketConfig::default()).unwrap().open(0, 1).unwrap())
}

fn port(tunnel: &Tunnel, ns: &NetNs) -> Hand {
    Hand::new(tunnel.device(ns, false).open(0, 1).unwrap())
}

fn long(tunnel: &Tunnel, sport: u16, size: u16) -> Packet {
    let mut packet = gso_packet(sport, LEN, size);
    assert!(encapsulate(&mut packet, &tunnel.template(false)));
    packet
}

/// A tunnel packet as seen on the wire.
#[derive(Debug)]
struct Seen {
    packet: Packet,
    source_port: u16,
    /// It is a GSO packet, to be segmented at the inner header.
    is_whole: bool,
}

/// The tunnel's packets to the other end among the packets that pass.
fn seen(tunnel: &Tunnel, wire: &mut Hand) -> Vec<Seen> {
    let tunnel_packet = |packet: Packet| {
        let key = parse(packet.bytes(), &HashKey::new(1)).ok()?.key;
        let is_whole = packet.offload.gso_type == GsoType::TcpV4 && packet.len() > LEN;
        (key.dst_port == tunnel.port).then_some(Seen {
            packet,
            source_port: key.src_port,
            is_whole,
        })
    };
    wire.receive(200).into_iter().filter_map(tunnel_packet).collect()
}

/// Sends until the path is known and a packet has arrived unsegmented; empties the wire.
fn warm_up(tunnel: &Tunnel, near: &mut Hand, far: &mut Hand) {
    let is_known = (0..20).any(|_| {
        assert_eq!(near.send(vec![long(tunnel, 5, 1_200)]), 1);
        seen(tunnel, far).iter().any(|seen| seen.is_whole)
    });
    assert!(is_known, "never whole");
}

/// Whether this kernel supports it.
fn is_possible(test: &str) -> bool {
    let underlay = Underlay::new();
    let config = PacketConfig { tunnel: Some(4789), ..PacketConfig::default() };
    let device = PacketDevice::new(&underlay.near, "u0", config).unwrap();
    let possible = device.info().offloads.tunnel;
    if !possible {
        podswitch_testkit::privilege::skip(test, "a kernel before Linux 6.17");
    }
    possible
}

#[test]
fn headers_and_order_are_the_sockets() {
    podswitch_testkit::require_tap!();
    if !is_possible("headers_and_order_are_the_sockets") {
        return;
    }
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let mut far = tap_wire(&underlay.far, "u0");
        let mut near = port(&tunnel, &underlay.near);
        warm_up(&tunnel, &mut near, &mut far);
        // The kernel must find the neighbour.
        let mut netlink = Netlink::open(&underlay.near).unwrap();
        let index = netlink.link("u0").unwrap().index;
        netlink.set_down(index).unwrap();
        netlink.set_up(index).unwrap();
        if tunnel.v6 {
            add_address(&mut netlink, index, tunnel.near(), 64);
        }
        warm_up(&tunnel, &mut near, &mut far);
        // This may have taken so long that the path is queried again.
        assert_eq!(near.send(vec![long(&tunnel, 6, 1_200)]), 1);
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert_eq!(near.send(vec![long(&tunnel, 5, 1_376)]), 1);
        let short = |n| wrapped(&tunnel, false, &inner(true, 5, 0, n));
        let burst = vec![short(100), long(&tunnel, 5, 1_376), short(200), long(&tunnel, 5, 1_376)];
        let lengths: Vec<_> = burst.iter().map(Packet::len).collect();
        assert_eq!(near.send(burst), 4);
        let mut got = seen(&tunnel, &mut far);
        let inner_port = if tunnel.v6 { 54 } else { 34 } + 8 + 8 + 34;
        got.retain(|seen| seen.packet.bytes()[inner_port..inner_port + 2] == [0, 5]);
        let whole: Vec<_> = got.iter().map(|seen| seen.is_whole).collect();
        assert_eq!(whole, [true, false, true, false, true]);
        assert_eq!(got[1..].iter().map(|seen| seen.packet.len()).collect::<Vec<_>>(), lengths);
        let (ours, theirs) = (mac(&underlay.near, "u0"), mac(&underlay.far, "u0"));
        let sent = long(&tunnel, 5, 1_376);
        let (udp, ttl) = if tunnel.v6 { (54, 21) } else { (34, 22) };
        for seen in &got {
            let frame = seen.packet.bytes();
            assert_eq!(seen.source_port, got[0].source_port, "one flow, one port");
            assert!(frame[..6] == theirs.0 && frame[6..12] == ours.0, "{:x?}", &frame[..14]);
            assert_eq!(frame[ttl], 64);
            match tunnel.v6 {
                true => assert_ne!(frame[udp + 6..udp + 8], [0, 0], "IPv6 requires a checksum"),
                false => assert_eq!(sum(&frame[14..34]).checksum(), 0),
            }
            if seen.is_whole {
                assert_eq!(frame[udp + 8..], sent.bytes()[udp + 8..]);
                assert_eq!(seen.packet.offload.gso_size, 1_376);
            }
        }
    }
}

/// The receiver recognises an unsegmented packet by its inner length. If there are bytes behind the inner packet, it is
/// not sent unsegmented, and the sockets send its segments.
#[test]
fn packets_with_trailing_bytes_are_sent_by_the_sockets() {
    podswitch_testkit::require_tap!();
    if !is_possible("packets_with_trailing_bytes_are_sent_by_the_sockets") {
        return;
    }
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let mut far = Hand::new(tunnel.device(&underlay.far, true).open(0, 1).unwrap());
        let mut near = port(&tunnel, &underlay.near);
        {
            let mut wire = tap_wire(&underlay.far, "u0");
            warm_up(&tunnel, &mut near, &mut wire);
            far.receive(200);
        }
        for (behind, datagrams) in [(0, 1), (400, 3)] {
            // Three segments; where the second one would begin, there is a tunnel packet.
            let mut frame = inner(false, 5, 0, 1_200);
            let headers = frame.len() - 1_200;
            let forged = [&[8, 0, 0, 0, 0, 0, tunnel.vni as u8, 0][..], &inner(false, 6, 0, 20)];
            let forged = forged.concat();
            let at = 400 - 8;
            frame[at..at + forged.len()].copy_from_slice(&forged);
            let pseudo =
                podswitch_wire::checksum::pseudo_v4([10, 9, 0, 1], [10, 9, 0, 2], 17, 1_208);
            frame[40..42].copy_from_slice(&pseudo.fold().to_be_bytes());
            let payload = frame[headers..].to_vec();
            frame.resize(frame.len() + behind, 0xa5);
            let mut send = || {
                let mut packet = Packet::with_capacity(4_000);
                packet.fill(&frame);
                packet.offload = Offload {
                    gso_type: GsoType::UdpL4,
                    csum_partial: true,
                    gso_size: 400,
                    hdr_len: headers as u16,
                    csum_start: 34,
                    csum_offset: 6,
                    ..Offload::default()
                };
                assert!(encapsulate(&mut packet, &tunnel.template(false)));
                assert_eq!(near.send(vec![packet]), 1);
                far.receive(8)
            };
            // On a slow machine the path may have to be queried again: until it is known, the sockets send.
            let mut got = send();
            for _ in 0..20 {
                if got.len() == datagrams {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
                got = send();
            }
            assert_eq!(got.len(), datagrams, "{behind} bytes behind");
            let outer = if tunnel.v6 { 62 } else { 42 } + 8;
            let payloads: Vec<_> = got.iter().map(|p| &p.bytes()[outer + headers..]).collect();
            assert_eq!(payloads.concat(), payload);
        }
    }
}

/// Only through sockets, if so configured or if the interface cannot segment tunnelled packets.
#[test]
fn only_if_configured_and_supported() {
    podswitch_testkit::require_privilege!();
    for (tunnel, configured) in TUNNELS.into_iter().flat_map(|t| [(t, false), (t, true)]) {
        let underlay = Underlay::new();
        if configured {
            net::set_tunnel_offloads(&underlay.near, "u0", false);
        }
        let tunnel = Tunnel { tunnel_gso: configured, ..tunnel };
        let mut far = tap_wire(&underlay.far, "u0");
        assert_eq!(port(&tunnel, &underlay.near).send(vec![long(&tunnel, 5, 1_376)]), 1);
        let got = seen(&tunnel, &mut far);
        assert!(!got.is_empty() && got.iter().all(|seen| !seen.is_whole));
    }
}

/// The sockets refuse segments that do not fit the path; others pass.
#[test]
fn path_mtu_holds() {
    podswitch_testkit::require_tap!();
    if !is_possible("path_mtu_holds") {
        return;
    }
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let mut netlink = Netlink::open(&underlay.near).unwrap();
        let index = netlink.link("u0").unwrap().index;
        let host = if tunnel.v6 { 128 } else { 32 };
        let to = format!("{}/{host}", tunnel.far()).parse().unwrap();
        netlink.add_route(&Route::to(to).link(index).mtu(1400)).unwrap();
        let mut far = tap_wire(&underlay.far, "u0");
        let mut near = port(&tunnel, &underlay.near);
        assert_eq!(near.send(vec![long(&tunnel, 5, 1_376)]), 0);
        let reports = near.receive(1);
        assert_eq!(learnt(&tunnel, reports[0].bytes()), 1400);
        assert!(seen(&tunnel, &mut far).is_empty());
        // Headers outside and inside, but for the outermost.
        let most = 1400 - (tunnel.template(false).len() - 14 + 14 + 40) as u16;
        warm_up(&tunnel, &mut near, &mut far);
        assert_eq!(near.send(vec![long(&tunnel, 5, most + 1)]), 0);
        assert_eq!(near.send(vec![long(&tunnel, 5, most)]), 1);
        let got = seen(&tunnel, &mut far);
        assert!(got.len() == 1 && got[0].is_whole);
    }
}

/// Packets that must be encrypted must not bypass the encryption.
#[test]
fn transformed_packets_are_sent_by_the_sockets() {
    podswitch_testkit::require_tap!();
    if !is_possible("transformed_packets_are_sent_by_the_sockets") {
        return;
    }
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let mut wire = tap_wire(&underlay.far, "u0");
        let flow = || long(&tunnel, 5, 1_376);
        let mut near = port(&tunnel, &underlay.near);
        warm_up(&tunnel, &mut near, &mut wire);
        assert_eq!(near.send(vec![flow()]), 1);
        let before = seen(&tunnel, &mut wire);
        drop(near);
        assert!(before.len() == 1 && before[0].is_whole);
        // For datagrams of this socket only, so that nothing else shows the policy.
        let (near, far) = (tunnel.near().to_string(), tunnel.far().to_string());
        let sport = before[0].source_port.to_string();
        let policy = ["xfrm", "policy", "add", "dir", "out", "src", &near, "dst", &far];
        let rest = ["proto", "udp", "sport", &sport, "action", "block"];
        let add = underlay.near.command("ip").args(policy).args(rest).output();
        if !add.is_ok_and(|output| output.status.success()) {
            return podswitch_testkit::privilege::skip(
                "transformed_packets_are_sent_by_the_sockets",
                "no `ip xfrm`",
            );
        }
        let mut near = port(&tunnel, &underlay.near);
        for _ in 0..3 {
            assert_eq!(near.send(vec![flow()]), 0);
            assert!(seen(&tunnel, &mut wire).is_empty(), "the policy blocks it");
        }
    }
}

/// Behind a router: unsegmented over IPv4, through the sockets over IPv6, both to the router. When the route changes,
/// unsegmented packets follow.
#[test]
fn routes_of_the_node_are_used() {
    podswitch_testkit::require_tap!();
    if !is_possible("routes_of_the_node_are_used") {
        return;
    }
    for (tunnel, gateways, prefix) in [
        (TUNNELS[0], ["192.0.2.1", "198.51.100.1"], 24),
        (TUNNELS[1], ["fd00:b::1", "fd00:c::1"], 64),
    ] {
        let node = NetNs::anonymous().unwrap();
        let mut netlink = Netlink::open(&node).unwrap();
        let routers = [NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap()];
        let mut links = Vec::new();
        for (n, (router, gateway)) in routers.iter().zip(gateways).enumerate() {
            let (here, there) = (LinkSpec::new(format!("u{n}")).up(), LinkSpec::new("r0").up());
            links.push(netlink.add_veth(&here, &there, router).unwrap());
            let address = gateway.strip_suffix('1').unwrap().to_owned() + "9";
            add_address(&mut netlink, links[n], ip(&address), prefix);
            let mut netlink = Netlink::open(router).unwrap();
            let index = netlink.link("r0").unwrap().index;
            add_address(&mut netlink, index, ip(gateway), prefix);
            let _ = sysctl::set(router, "net/ipv4/ip_forward", "0");
        }
        let (local, remote) = match tunnel.v6 {
            false => (ip("203.0.113.1"), ip("203.0.113.2")),
            true => (ip("fd00:d::1"), ip("fd00:d::2")),
        };
        let host = if tunnel.v6 { 128 } else { 32 };
        add_address(&mut netlink, links[0], local, host);
        let by = |n: usize| {
            Route::to(format!("{remote}/{host}").parse().unwrap())
                .via(ip(gateways[n]))
                .link(links[n])
        };
        let mut wires = routers.each_ref().map(|router| tap_wire(router, "r0"));
        let config = tunnel.config(local);
        let mut device =
            podswitch_linux::port::udp_tunnel::UdpTunnelDevice::new(&node, config).unwrap();
        let mut port = Hand::new(device.open(0, 1).unwrap());
        for n in [0, 1, 0] {
            netlink.add_route(&by(n)).unwrap();
            // It may have taken the other's place.
            let _ = netlink.delete_route(&by(1 - n));
            // Wait for packets that do not arrive: the new path is known within a second.
            let arrived = (0..50).any(|_| {
                let mut packet = gso_packet(5, LEN, 1_300);
                assert!(encapsulate(&mut packet, &tunnel.template_between(local, remote)));
                assert_eq!(port.send(vec![packet]), 1);
                let got = seen(&tunnel, &mut wires[n]);
                let router = mac(&routers[n], "r0").0;
                assert!(got.iter().all(|seen| seen.packet.bytes()[..6] == router));
                assert!(!tunnel.v6 || got.iter().all(|seen| !seen.is_whole));
                got.iter().any(|seen| seen.is_whole != tunnel.v6)
            });
            assert!(arrived, "still over the old route");
            wires.iter_mut().for_each(|wire| drop(wire.receive(200)));
        }
    }
}
