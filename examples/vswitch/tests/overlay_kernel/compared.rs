//! The kernel's own tunnel packets beside ours, for the same packets inside, field by field as an
//! independent parser reads them.

use std::net::{IpAddr, UdpSocket};

use podswitch_core::port::Device;
use podswitch_core::port::Port;
use podswitch_linux::NetNs;
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use rustix::net::sockopt;

use super::passing::{Seen, capture, dissect};
use super::{PORT, World};
use podswitch_vswitch_testkit::cluster::{node_address, udp};

/// Sends one datagram with a traffic class, and gives the tunnel packet that carries it.
fn tunnelled(port: &mut dyn Port, from: &NetNs, to: IpAddr, class: u8, len: usize) -> Seen {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.enter(|| UdpSocket::bind(any)).expect("entered").expect("bound");
    match to {
        IpAddr::V4(_) => sockopt::set_ip_tos(&socket, class).expect("set"),
        IpAddr::V6(_) => sockopt::set_ipv6_tclass(&socket, class.into()).expect("set"),
    }
    // Another port than the servers': no answer comes back.
    let _ = socket.send_to(&vec![7; len], (to, 9));
    let mut found = None;
    capture(port, |frame| {
        let seen = dissect(frame, 8472).filter(|seen| seen.is_for(to, 9));
        found = seen.or(found.take());
        found.is_some()
    });
    found.expect("seen")
}

fn compare(families: &[bool], more: &[&str]) {
    podswitch_testkit::require_privilege!();
    let world = World::flannel(families);
    let switch = world.start(more);
    // Each port of the segment receives what its node sends.
    let [mut ours, mut theirs] = ["port0", "port1"].map(|name| {
        let device = PacketDevice::new(&world.fabric.ns, name, PacketConfig::default());
        device.expect("a port of the segment").open(0, 1).expect("opened")
    });
    let (pod, other) = (&world.ours.pods[0], &world.theirs);
    for (f, there) in other.pod_addresses.into_iter().enumerate() {
        let here = pod.addresses[f];
        udp(&pod.ns, there, PORT, 10);
        let v6 = if families.len() == 2 { f == 1 } else { families[0] };
        let ends = [1, 2].map(|n| node_address(n, v6));
        for len in [1, 100, 1000] {
            // DSCP "expedited forwarding", and all but "congestion experienced".
            for class in [0, 0xb8, 0xb9, 0x02] {
                let a = tunnelled(&mut *ours, &pod.ns, there, class, len);
                let b = tunnelled(&mut *theirs, &other.pod, here, class, len);
                let context = format!("{class:#x}, {len} bytes\nours {a:?}\nthe kernel's {b:?}");
                assert_eq!([a.source, a.destination], ends, "{context}");
                assert_eq!([b.destination, b.source], ends, "{context}");
                let alike = |seen: &Seen| {
                    (
                        (seen.class, seen.ttl, seen.ports.1, seen.header),
                        (seen.total_len, seen.udp_len, seen.inner_len),
                        (seen.inner_ttl, seen.inner_class),
                    )
                };
                assert_eq!(alike(&a), alike(&b), "{context}");
                assert_eq!((a.inner_class, a.inner_ttl, a.ttl), (class, 63, 64), "{context}");
                assert_eq!(a.header, [8, 0, 0, 0, 0, 0, 1, 0], "{context}");
                let (ip, link) = if v6 { (40, 14) } else { (20, 14) };
                assert_eq!(a.udp_len, 16 + link + a.inner_len, "{context}");
                assert_eq!(a.total_len, ip + a.udp_len, "{context}");
                assert!(a.checksum_holds && b.checksum_holds, "{context}");
                // Sockets have one of their own each (RFC 6438); it is asked for nowhere.
                let labels = (a.flow_label, b.flow_label);
                assert!(labels == (0, 0) || labels.1 == 0 && more.is_empty(), "{context}");
                // Without over IPv4, but with over IPv6 (RFC 6935).
                assert!(!v6 || a.has_checksum && b.has_checksum, "{context}");
                // Ours are never cut (RFC 7348 §4.3); over IPv4 Linux's may be, unless it is told.
                assert!(a.dont_fragment, "{context}");
                // From the range that RFC 7348 §5 names; Linux takes its local ports.
                assert!(a.ports.0 >= 49_152 && b.ports.0 >= 32_768, "{context}");
                assert_eq!(a.macs.0, b.macs.1, "{context}");
                assert_eq!(a.macs.1, b.macs.0, "{context}");
            }
        }
        // RFC 6040 §4.1 copies "congestion experienced"; Linux still has RFC 3168's way, and begins
        // anew with ECT(0).
        let a = tunnelled(&mut *ours, &pod.ns, there, 3, 100);
        let b = tunnelled(&mut *theirs, &other.pod, here, 3, 100);
        assert_eq!((a.inner_class, b.inner_class), (3, 3));
        assert_eq!((a.class, b.class), (3, 2), "ours {a:?}\nthe kernel's {b:?}");
    }
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn ours_and_the_kernels_through_udp_sockets() {
    compare(&[false, true], &[]);
}

#[test]
fn ours_and_the_kernels_by_frames() {
    compare(&[false, true], &["--underlay", "packet", "--uplink", "eth0"]);
}

#[test]
fn ours_and_the_kernels_over_ipv6_alone() {
    compare(&[true], &[]);
}
