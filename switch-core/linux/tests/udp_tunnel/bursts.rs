//! Bursts of datagrams that a pod sends with one call (UDP_SEGMENT, as QUIC does): each datagram arrives as it was
//! sent, and nothing else arrives, no matter where the burst is segmented, merged or passed on.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use podswitch_core::port::Device;
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice};
use podswitch_linux::{NetNs, Netlink};
use podswitch_wire::checksum::{fill_l4, finish_partial};
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;

use crate::frames::{Hand, inner};
use crate::world::{Near, POD, Tunnel, Underlay, ip, kernel_pod};
use podswitch_testkit::net as common;

/// Tunnels over both families, with GSO packets passed unsegmented and segmented by the switch.
const TUNNELS: [Tunnel; 4] = [
    Tunnel { v6: false, vni: 42, port: 4789, tunnel_gso: true },
    Tunnel { v6: true, vni: 7, port: 8472, tunnel_gso: true },
    Tunnel { v6: false, vni: 42, port: 4789, tunnel_gso: false },
    Tunnel { v6: true, vni: 7, port: 8472, tunnel_gso: false },
];

/// Bytes of each datagram, number of full ones, bytes of the last one.
const BURSTS: [(usize, usize, usize); 17] = [
    (1, 60, 0),
    (2, 3, 1),
    (33, 63, 32),
    (100, 10, 0),
    (500, 2, 0),
    (500, 1, 499),
    (600, 3, 1),
    (900, 2, 0),
    // The tunnel packet's payload just fits a small buffer of the switch (1,984 bytes) or just does not fit, with inner
    // IPv4 and IPv6.
    (640, 3, 14),
    (640, 3, 15),
    (638, 3, 0),
    (638, 3, 1),
    (650, 3, 0),
    (1000, 2, 8),
    (1200, 40, 0),
    (1360, 46, 700),
    (1, 1, 0),
];

/// Number of random bursts in addition to those.
const ANY_BURSTS: usize = 40;

/// A burst of datagrams of up to `most` bytes; the next one has another shape.
fn any_burst(seed: &mut u64, most: usize) -> (usize, usize, usize) {
    let mut any = |range: std::ops::RangeInclusive<usize>| {
        *seed =
            seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        range.start() + (*seed >> 33) as usize % (range.end() - range.start() + 1)
    };
    // Short and long ones are equally frequent.
    let longest = any(1..=most);
    let size = any(1..=longest);
    let full = any(1..=63.min(60_000 / size));
    (size, full, any(0..=size - 1))
}

/// The seed of the bursts between these ends.
fn seed(ends: [IpAddr; 2]) -> u64 {
    u64::from(ends[0].is_ipv6()) << 1 | u64::from(ends[0] < ends[1])
}

/// Length of the headers before a pod's payload in a datagram: VXLAN, Ethernet, IP and UDP.
fn headers(v6: bool) -> usize {
    8 + 14 + if v6 { 40 } else { 20 } + 8
}

/// A tunnel packet's payload with a datagram from a pod that does not exist.
fn forged(tunnel: &Tunnel, to: SocketAddr, mac: [u8; 6]) -> Vec<u8> {
    let vni = tunnel.vni.to_be_bytes();
    let mut datagram = vec![8, 0, 0, 0, vni[1], vni[2], vni[3], 0];
    let mut frame = mac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 0x99]);
    let payload = b"forged";
    let udp_len = (8 + payload.len()) as u16;
    match to.ip() {
        IpAddr::V4(to) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + udp_len).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 99]);
            frame.extend(to.octets());
            let sum = podswitch_wire::checksum::sum(&frame[14..34]).checksum();
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        IpAddr::V6(to) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(udp_len.to_be_bytes());
            frame.extend([17, 64, 0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99]);
            frame.extend(to.octets());
        }
    }
    frame.extend(4444u16.to_be_bytes());
    frame.extend(to.port().to_be_bytes());
    frame.extend(udp_len.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    let parsed = parse(&frame, &HashKey::new(1)).unwrap();
    fill_l4(&mut frame, &parsed);
    datagram.extend(frame);
    datagram
}

fn mac(pod: &NetNs) -> [u8; 6] {
    Netlink::open(pod).unwrap().link("eth0").unwrap().mac.unwrap().0
}

/// Sends every burst from one pod to the other, plain and with forged tunnel packets at positions where a wrong
/// implementation might split.
fn bursts(tunnel: &Tunnel, from: &NetNs, to: &NetNs, ends: [IpAddr; 2]) {
    let bind = |ns: &NetNs, address| ns.enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    let receiver = bind(to, ends[1]);
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&receiver, 4 << 20).unwrap();
    let at = receiver.local_addr().unwrap();
    let forged = forged(tunnel, at, mac(to));
    let mut sender = bind(from, ends[0]);
    let headroom = headers(ends[0].is_ipv6()) - 22;
    let any = (0..ANY_BURSTS).scan(seed(ends), |seed, _| Some(any_burst(seed, 1400 - headroom)));
    for (n, (size, full, last)) in BURSTS.into_iter().chain(any).enumerate() {
        for is_forged in [false, true] {
            // Other flows take other paths through the tunnel.
            if n % 3 == 0 {
                sender = bind(from, ends[0]);
            }
            let mut burst: Vec<u8> =
                (0..size * full + last).map(|i| (i * 13 / 7 + n) as u8).collect();
            if is_forged {
                // The positions of a wrong split at the inner size, counted from the VXLAN header, and at the outer
                // size.
                let head = headers(ends[0].is_ipv6());
                for at in (1..full).flat_map(|k| [k * size - head.min(k * size), k * size]) {
                    if let Some(place) = burst.get_mut(at..at + forged.len()) {
                        place.copy_from_slice(&forged);
                    }
                }
            }
            common::set_udp_segment(&sender, size as i32);
            assert_eq!(sender.send_to(&burst, at).unwrap(), burst.len());
            let what = || format!("{tunnel:?} {ends:?}: {full} of {size}, {last}, {is_forged}");
            // The datagrams of a burst cannot overtake each other on this path.
            for (i, expected) in burst.chunks(size).enumerate() {
                let mut buffer = [0; 2000];
                let (len, source) = receiver
                    .recv_from(&mut buffer)
                    .unwrap_or_else(|e| panic!("{}: datagram {i}: {e}", what()));
                assert_eq!(source, sender.local_addr().unwrap(), "{}: {i}", what());
                assert!(buffer[..len] == *expected, "{}: {i} has {len} bytes", what());
            }
        }
    }
    common::set_udp_segment(&sender, 0);
    sender.send_to(b"end", at).unwrap();
    assert_eq!(receiver.recv_from(&mut [0; 10]).unwrap(), (3, sender.local_addr().unwrap()));
    receiver.set_nonblocking(true).unwrap();
    assert!(receiver.recv_from(&mut [0; 10]).is_err(), "nothing except the data that was sent");
}

fn both_ways(tunnel: &Tunnel, near: &NetNs, far: &NetNs) {
    for family in [0, 1] {
        let ends = [ip(POD[0][family]), ip(POD[1][family])];
        bursts(tunnel, near, far, ends);
        bursts(tunnel, far, near, [ends[1], ends[0]]);
    }
}

#[test]
fn to_and_from_the_kernel() {
    podswitch_testkit::require_tap!();
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let far = kernel_pod(&underlay.far, &tunnel, true);
        let near = Near::new(&underlay.near, &tunnel);
        both_ways(&tunnel, &near.pod, &far);
    }
}

#[test]
fn between_two_of_our_ports() {
    podswitch_testkit::require_tap!();
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let near = Near::new(&underlay.near, &tunnel);
        let far = Near::far(&underlay.far, &tunnel);
        both_ways(&tunnel, &near.pod, &far.pod);
    }
}

#[test]
fn by_frames() {
    podswitch_testkit::require_tap!();
    for tunnel in TUNNELS.into_iter().take(2) {
        let underlay = Underlay::new();
        let near = Near::raw(&underlay, &tunnel, false);
        let far = Near::far(&underlay.far, &tunnel);
        both_ways(&tunnel, &near.pod, &far.pod);
        let underlay = Underlay::new();
        let near = Near::raw(&underlay, &tunnel, false);
        let far = kernel_pod(&underlay.far, &tunnel, true);
        both_ways(&tunnel, &near.pod, &far);
    }
}

/// The underlay accepts no GSO packets: every datagram is on the wire, and the receiving interface merges them if they
/// have an outer checksum.
fn underlay_that_cuts() -> Underlay {
    let underlay = Underlay::new();
    for ns in [&underlay.near, &underlay.far] {
        common::set_tso(ns, "u0", false);
        for feature in ["tx-udp-segmentation", "tx-udp_tnl-segmentation"] {
            common::set_feature(ns, "u0", feature, false);
        }
        common::set_gro(ns, "u0", true);
    }
    underlay
}

fn near(underlay: &Underlay, tunnel: &Tunnel, by_frames: bool) -> Near {
    match by_frames {
        true => Near::raw(underlay, tunnel, false),
        false => Near::new(&underlay.near, tunnel),
    }
}

#[test]
fn underlay_that_segments_and_merges() {
    podswitch_testkit::require_tap!();
    for tunnel in TUNNELS {
        for by_frames in [false, true] {
            let underlay = underlay_that_cuts();
            let far = kernel_pod(&underlay.far, &tunnel, true);
            both_ways(&tunnel, &near(&underlay, &tunnel, by_frames).pod, &far);
            let underlay = underlay_that_cuts();
            let far = Near::far(&underlay.far, &tunnel);
            both_ways(&tunnel, &near(&underlay, &tunnel, by_frames).pod, &far.pod);
        }
    }
}

/// Merged datagrams whose inner checksums are partial: the sender left them to hardware that does not exist (nodes that
/// are virtual machines of one host). Here the sender merges them itself.
#[test]
fn partial_checksums_in_merged_datagrams() {
    podswitch_testkit::require_privilege!();
    for tunnel in TUNNELS.into_iter().take(2) {
        for by_frames in [false, true] {
            let underlay = Underlay::new();
            let config = PacketConfig { tunnel: Some(tunnel.port), ..PacketConfig::default() };
            let port = match by_frames {
                true => PacketDevice::new(&underlay.near, "u0", config).unwrap().open(0, 1),
                false => tunnel.device(&underlay.near, false).open(0, 1),
            };
            let mut near = Hand::new(port.unwrap());
            let far =
                underlay.far.enter(|| UdpSocket::bind((tunnel.far(), 5555))).unwrap().unwrap();
            // TCP and UDP alternately, so that nothing is merged.
            let finished: Vec<Vec<u8>> = (0..20)
                .map(|n| inner(n % 2 == 0, n, 0, if n % 2 == 0 { 500 } else { 512 }))
                .collect();
            let mut sent = Vec::new();
            for frame in &finished {
                let (protocol, field) = if frame[23] == 6 { (6, 50) } else { (17, 40) };
                let len = (frame.len() - 34) as u16;
                let pseudo = podswitch_wire::checksum::pseudo_v4(
                    [10, 9, 0, 1],
                    [10, 9, 0, 2],
                    protocol,
                    len,
                );
                sent.extend([8, 0, 0, 0, 0, 0, tunnel.vni as u8, 0]);
                let start = sent.len();
                sent.extend(frame);
                sent[start + field..start + field + 2]
                    .copy_from_slice(&pseudo.fold().to_be_bytes());
            }
            let size = sent.len() / finished.len();
            common::set_udp_segment(&far, size as i32);
            let to = SocketAddr::new(tunnel.near(), tunnel.port);
            assert_eq!(far.send_to(&sent, to).unwrap(), sent.len());
            let head = if tunnel.v6 { 62 } else { 42 } + 8;
            let got: Vec<Vec<u8>> = near
                .receive(finished.len())
                .into_iter()
                .filter(|packet| packet.bytes()[head - 16..].starts_with(&5555u16.to_be_bytes()))
                .map(|mut packet| {
                    assert!(packet.offload.csum_partial && !packet.offload.is_gso());
                    let start = usize::from(packet.offload.csum_start);
                    let offset = usize::from(packet.offload.csum_offset);
                    assert!(finish_partial(packet.bytes_mut(), start, offset));
                    packet.bytes()[head..].to_vec()
                })
                .collect();
            assert_eq!(got, finished, "{tunnel:?}, by frames: {by_frames}");
        }
    }
}
