//! Tunnel packets that are too long for the underlay: the switch gets the same ICMP error as on a
//! raw uplink.

use podswitch_core::port::Device;
use podswitch_linux::netlink::{LinkSpec, Route};
use podswitch_linux::port::udp_tunnel::UdpTunnelDevice;
use podswitch_linux::{NetNs, Netlink, sysctl};
use podswitch_vxlan::header::Vni;
use podswitch_vxlan::pmtu::{learn, read_quote};
use podswitch_vxlan::template::Outer;
use podswitch_vxlan::vtep::{RemoteVtep, VtepTable};
use podswitch_wire::addr::Mac;
use podswitch_wire::checksum::verify_l4;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Icmp, parse};

use crate::frames::{Hand, inner, wrapped};
use crate::world::{Tunnel, Underlay, add_address, ip};

const TUNNELS: [Tunnel; 2] = [
    Tunnel { v6: false, vni: 42, port: 4789, tunnel_gso: true },
    Tunnel { v6: true, vni: 42, port: 4789, tunnel_gso: true },
];

/// The path MTU that the ICMP error in `frame` reports, if it is accepted.
pub(crate) fn learnt(tunnel: &Tunnel, frame: &[u8]) -> u16 {
    let parsed = parse(frame, &HashKey::new(1)).unwrap();
    assert_eq!(parsed.icmp, Icmp::Error);
    assert!(verify_l4(frame, &parsed));
    assert_eq!(parsed.key.dst_addr(), tunnel.near());
    let message = &frame[usize::from(parsed.l4)..parsed.end as usize];
    let (kind, mtu) = match tunnel.v6 {
        true => ([2, 0], u32::from_be_bytes(message[4..8].try_into().unwrap())),
        false => ([3, 4], u32::from(u16::from_be_bytes([message[6], message[7]]))),
    };
    assert_eq!(message[..2], kind);
    let vni = Vni::new(tunnel.vni).unwrap();
    let outer = Outer { port: tunnel.port, ..Outer::new(tunnel.near(), tunnel.far(), vni) };
    let mut table = VtepTable::new([tunnel.near()], [(vni, 0)]);
    table.insert(RemoteVtep::new(outer, Mac([2, 1, 1, 1, 1, 1])).unwrap()).unwrap();
    let quoted = read_quote(&message[8..]).unwrap();
    assert_eq!((quoted.source, quoted.destination), (tunnel.near(), tunnel.far()));
    learn(&table, &quoted, mtu).unwrap().1
}

/// The kernel knows that the route to the other end is narrow, so it refuses the packet at once.
#[test]
fn refused_by_this_node() {
    podswitch_testkit::require_privilege!();
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let mut netlink = Netlink::open(&underlay.near).unwrap();
        let index = netlink.link("u0").unwrap().index;
        let host = if tunnel.v6 { 128 } else { 32 };
        let to = format!("{}/{host}", tunnel.far()).parse().unwrap();
        netlink.add_route(&Route::to(to).link(index).mtu(1400)).unwrap();
        let mut near = Hand::new(tunnel.device(&underlay.near, false).open(0, 1).unwrap());
        let long = wrapped(&tunnel, false, &inner(false, 1, 0, 1_330));
        let short = wrapped(&tunnel, false, &inner(false, 1, 0, 1_000));
        let again = wrapped(&tunnel, false, &inner(false, 2, 0, 1_000));
        assert_eq!(near.send(vec![short, long, again]), 2, "the others pass");
        let reports = near.receive(1);
        assert_eq!(learnt(&tunnel, reports[0].bytes()), 1400);
        // As many datagrams at once as the kernel would have segmented: one report, and nothing is
        // sent.
        let frame = inner(false, 1, 0, 1_330);
        let many = (0..20).map(|_| wrapped(&tunnel, false, &frame)).collect();
        assert_eq!(near.send(many), 0);
        let reports = near.receive(8);
        assert!(!reports.is_empty());
        assert_eq!(learnt(&tunnel, reports[0].bytes()), 1400);
    }
}

/// A router on the path reports it.
#[test]
fn refused_by_a_router() {
    podswitch_testkit::require_privilege!();
    for tunnel in TUNNELS {
        let (near, router, far) =
            (NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap(), NetNs::anonymous().unwrap());
        let key = if tunnel.v6 { "net/ipv6/conf/all/forwarding" } else { "net/ipv4/ip_forward" };
        sysctl::set(&router, key, "1").unwrap();
        let mut at_router = Netlink::open(&router).unwrap();
        let spec = LinkSpec::new("u0").up();
        at_router.add_veth(&LinkSpec::new("r0").up(), &spec, &near).unwrap();
        let narrow = LinkSpec::new("r1").mtu(1340).up();
        at_router.add_veth(&narrow, &LinkSpec::new("u0").mtu(1340).up(), &far).unwrap();
        let (prefix, gateways, beyond) = match tunnel.v6 {
            false => (30, ["192.0.2.6", "192.0.2.9"], "192.0.2.8/30"),
            true => (64, ["fd00:a::9", "fd00:b::9"], "fd00:b::/64"),
        };
        let ends = match tunnel.v6 {
            false => ["192.0.2.5", "192.0.2.10"],
            true => ["fd00:a::1", "fd00:b::2"],
        };
        for (link, address) in ["r0", "r1"].iter().zip(gateways) {
            let index = at_router.link(link).unwrap().index;
            add_address(&mut at_router, index, ip(address), prefix);
        }
        let mut at_near = Netlink::open(&near).unwrap();
        let index = at_near.link("u0").unwrap().index;
        add_address(&mut at_near, index, ip(ends[0]), prefix);
        let route = Route::to(beyond.parse().unwrap()).via(ip(gateways[0])).link(index);
        at_near.add_route(&route).unwrap();
        let mut at_far = Netlink::open(&far).unwrap();
        let index = at_far.link("u0").unwrap().index;
        add_address(&mut at_far, index, ip(ends[1]), prefix);

        let tunnel = Tunnel { ..tunnel };
        let template = tunnel.template_between(ip(ends[0]), ip(ends[1]));
        let mut device = UdpTunnelDevice::new(&near, tunnel.config(ip(ends[0]))).unwrap();
        let mut hand = Hand::new(device.open(0, 1).unwrap());
        let mut packet = podswitch_core::packet::Packet::from_frame(&inner(false, 1, 0, 1_330));
        assert!(crate::world::encapsulate(&mut packet, &template));
        assert_eq!(hand.send(vec![packet]), 1);
        let reports = hand.receive(1);
        assert_eq!(reports.len(), 1, "over IPv6: {}", tunnel.v6);
        let frame = reports[0].bytes();
        let parsed = parse(frame, &HashKey::new(1)).unwrap();
        assert_eq!(parsed.key.src_addr(), ip(gateways[0]), "the router speaks");
        assert!(verify_l4(frame, &parsed));
        let quoted = read_quote(&frame[usize::from(parsed.l4) + 8..]).unwrap();
        assert_eq!((quoted.source, quoted.destination), (ip(ends[0]), ip(ends[1])));
        assert_eq!(quoted.vni, Vni::new(tunnel.vni));
        assert!(quoted.source_port >= 49152 && quoted.port == tunnel.port && quoted.len == 1500);
    }
}
