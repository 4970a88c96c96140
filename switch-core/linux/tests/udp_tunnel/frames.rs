//! Single frames: the packets that the port sends, and the frames that it makes from received
//! packets.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use podswitch_core::packet::{Batch, GsoType, Offload, Packet, Pool, PoolConfig, segment};
use podswitch_core::port::{Device, Port};
use podswitch_linux::NetNs;
use podswitch_linux::port::af_packet::{PacketConfig, PacketDevice, Receive};
use podswitch_linux::port::{
    udp_tunnel::{UdpTunnelConfig, UdpTunnelDevice},
    underlay_mac,
};
use podswitch_testkit::net::set_udp_segment;
use podswitch_vxlan::decap::{ChecksumState, DecapError, DecapRules, decap};
use podswitch_wire::checksum::{fill_l4, finish_partial, verify_l4};
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::parse;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::world::{Tunnel, Underlay, encapsulate, ip};

pub(crate) const TUNNELS: [Tunnel; 2] = [
    Tunnel { v6: false, vni: 42, port: 4789, tunnel_gso: true },
    Tunnel { v6: true, vni: 7, port: 8472, tunnel_gso: false },
];

/// A port with everything that it needs to be polled by the test.
pub(crate) struct Hand {
    pub(crate) port: Box<dyn Port>,
    pub(crate) pool: Pool,
}

impl Hand {
    pub(crate) fn new(port: Box<dyn Port>) -> Self {
        Self { port, pool: Pool::new(PoolConfig::default()) }
    }

    /// Sends all packets; returns how many were accepted.
    pub(crate) fn send(&mut self, packets: Vec<Packet>) -> usize {
        let mut batch: Batch = packets.into_iter().collect();
        let count = self.port.tx(&mut self.pool, &mut batch).unwrap();
        batch.into_iter().for_each(|packet| self.pool.free(packet));
        count
    }

    /// Receives until nothing has arrived for a while or there are `most`.
    pub(crate) fn receive(&mut self, most: usize) -> Vec<Packet> {
        let mut all = Vec::new();
        while all.len() < most {
            let mut batch = Batch::new();
            if self.port.rx(&mut self.pool, &mut batch).unwrap() > 0 {
                all.extend(batch);
                continue;
            }
            if !self.port.arm() {
                continue;
            }
            let fd = self.port.poll_fd().unwrap();
            let timeout = Timespec { tv_sec: 0, tv_nsec: 400_000_000 };
            if poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() == 0 {
                break;
            }
        }
        all
    }

    /// Receives all frames and returns their number, which may exceed the number of buffers.
    pub(crate) fn count(&mut self) -> usize {
        let mut count = 0;
        loop {
            let some = self.receive(64);
            if some.is_empty() {
                return count;
            }
            count += some.len();
            some.into_iter().for_each(|packet| self.pool.free(packet));
        }
    }
}

/// An inner frame: TCP or UDP between pods with `payload` bytes and valid checksums.
pub(crate) fn inner(tcp: bool, sport: u16, tos: u8, payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let l4 = if tcp { 20 } else { 8 };
    let total = (20 + l4 + payload) as u16;
    frame.extend([0x45, tos]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0]);
    frame.extend([10, 9, 0, 1, 10, 9, 0, 2]);
    let sum = podswitch_wire::checksum::sum(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(sport.to_be_bytes());
    frame.extend([0x1f, 0x90]);
    if tcp {
        frame.extend([0, 0, 1, 0, 0, 0, 0, 1, 0x50, 0x18, 0x10, 0, 0, 0, 0, 0]);
    } else {
        frame.extend(((8 + payload) as u16).to_be_bytes());
        frame.extend([0, 0]);
    }
    frame.extend((0..payload).map(|n| (n * 31 / 4) as u8));
    let parsed = parse(&frame, &HashKey::new(1)).unwrap();
    fill_l4(&mut frame, &parsed);
    frame
}

/// The same as a TCP GSO packet with a partial checksum.
pub(crate) fn gso_packet(sport: u16, payload: usize, size: u16) -> Packet {
    let mut frame = inner(true, sport, 0, payload);
    let len = (frame.len() - 34) as u16;
    let pseudo = podswitch_wire::checksum::pseudo_v4([10, 9, 0, 1], [10, 9, 0, 2], 6, len);
    frame[50..52].copy_from_slice(&pseudo.fold().to_be_bytes());
    let mut packet = Packet::with_capacity(66_000);
    packet.fill(&frame);
    packet.offload = Offload {
        gso_type: GsoType::TcpV4,
        csum_partial: true,
        gso_size: size,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        ..Offload::default()
    };
    packet
}

pub(crate) fn wrapped(tunnel: &Tunnel, is_far: bool, frame: &[u8]) -> Packet {
    let mut packet = Packet::from_frame(frame);
    assert!(encapsulate(&mut packet, &tunnel.template(is_far)));
    packet
}

fn open(tunnel: &Tunnel, ns: &NetNs, is_far: bool) -> Hand {
    Hand::new(tunnel.device(ns, is_far).open(0, 1).unwrap())
}

/// The inner frame of a received packet, and its outer traffic class.
fn opened(tunnel: &Tunnel, packet: &Packet) -> (Vec<u8>, u8) {
    let parsed = parse(packet.bytes(), &HashKey::new(1)).unwrap();
    assert!(packet.offload.csum_valid);
    assert_eq!(packet.offload.check(&parsed), Ok(()));
    let rules = DecapRules { port: tunnel.port, ..DecapRules::default() };
    let got = decap(packet.bytes(), &parsed, ChecksumState::Good, &rules).unwrap();
    assert_eq!(got.vni.get(), tunnel.vni);
    (packet.bytes()[got.start as usize..got.end as usize].to_vec(), parsed.traffic_class)
}

/// Datagrams for which the socket has no room are counted: every datagram that arrived is in some
/// count.
#[test]
fn datagrams_that_the_socket_has_no_room_for_are_counted() {
    podswitch_testkit::require_privilege!();
    const SENT: usize = 40_000;
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let mut near = open(&tunnel, &underlay.near, false);
        let outer = if tunnel.v6 { 62 } else { 42 };
        let packet = wrapped(&tunnel, true, &inner(false, 1, 0, 10));
        let payload = &packet.bytes()[outer..];
        let bind = || UdpSocket::bind((tunnel.far(), 0));
        let socket = underlay.far.enter(bind).unwrap().unwrap();
        for _ in 0..SENT {
            socket.send_to(payload, (tunnel.near(), tunnel.port)).unwrap();
        }
        let mut received = near.count();
        let mut lost = near.port.take_lost() as usize;
        assert!(received > 1000, "it holds a burst: {received}");
        // Only a later datagram reports how many were lost before it.
        socket.send_to(payload, (tunnel.near(), tunnel.port)).unwrap();
        received += near.count();
        lost += near.port.take_lost() as usize;
        assert!(lost > 0, "{received} received");
        assert_eq!(received + lost, SENT + 1);
    }
}

#[test]
fn outer_headers_are_the_kernels() {
    podswitch_testkit::require_privilege!();
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let config = PacketConfig { receive: Receive::Messages, ..PacketConfig::default() };
        let mut wire = PacketDevice::new(&underlay.far, "u0", config).unwrap();
        let mut wire = Hand::new(wire.open(0, 1).unwrap());
        let mut near = open(&tunnel, &underlay.near, false);
        let frame = inner(false, 1000, 0xba, 300);
        assert_eq!(near.send(vec![wrapped(&tunnel, false, &frame)]), 1);
        let seen = wire.receive(20);
        let seen = seen.iter().find(|packet| packet.bytes().ends_with(&frame)).unwrap();
        let parsed = parse(seen.bytes(), &HashKey::new(1)).unwrap();
        assert_eq!(parsed.key.src_addr(), tunnel.near());
        assert_eq!(parsed.key.dst_addr(), tunnel.far());
        assert_eq!(parsed.key.dst_port, tunnel.port);
        assert!(parsed.key.src_port >= 49152);
        assert_eq!(parsed.traffic_class, 0xba, "DSCP and ECN");
        assert!(parsed.dont_fragment);
        assert_eq!(seen.bytes()[if tunnel.v6 { 21 } else { 22 }], 64, "TTL");
        let at = usize::from(parsed.payload);
        assert_eq!(seen.bytes()[at..at + 8], [8, 0, 0, 0, 0, 0, tunnel.vni as u8, 0]);
    }
}

#[test]
fn source_ports_follow_flows_and_spread() {
    podswitch_testkit::require_privilege!();
    let tunnel = TUNNELS[0];
    let underlay = Underlay::new();
    let mut near = open(&tunnel, &underlay.near, false);
    let mut far = open(&tunnel, &underlay.far, true);
    let mut ports = BTreeSet::new();
    for _ in 0..2 {
        for sport in 0..300u16 {
            near.send(vec![wrapped(&tunnel, false, &inner(false, sport, 0, 20))]);
        }
        for packet in far.receive(300) {
            let parsed = parse(packet.bytes(), &HashKey::new(1)).unwrap();
            let (frame, _) = opened(&tunnel, &packet);
            ports.insert((parsed.key.src_port, u16::from_be_bytes([frame[34], frame[35]])));
        }
    }
    assert_eq!(ports.len(), 300, "one flow keeps its port");
    let distinct: BTreeSet<u16> = ports.iter().map(|pair| pair.0).collect();
    assert!(distinct.len() >= 60, "{} of 64 ports", distinct.len());
}

/// From one port to the other: all packets arrive in order, and unsegmented if possible.
#[test]
fn bursts_arrive_as_they_were_sent() {
    podswitch_testkit::require_privilege!();
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let mut near = open(&tunnel, &underlay.near, false);
        let mut far = open(&tunnel, &underlay.far, true);
        // Equal datagrams of one flow leave together and are not merged.
        let frames: Vec<_> = (0..50).map(|n| inner(false, 7, 1 + (n / 25), 900)).collect();
        let packets = frames.iter().map(|frame| wrapped(&tunnel, false, frame)).collect();
        assert_eq!(near.send(packets), 50);
        let got: Vec<_> = far.receive(50).iter().map(|p| opened(&tunnel, p)).collect();
        let expected: Vec<_> = frames.iter().map(|f| (f.clone(), f[15])).collect();
        assert_eq!(got, expected);
        // Datagrams of all lengths, which do not leave in one call.
        for length in [|n: usize| (n * 37) % 1400, |n| 900 + n % 3 * 20, |n| 940 - n % 3 * 20] {
            let frames: Vec<_> = (0..40).map(|n| inner(false, 8, 0, length(n))).collect();
            let packets = frames.iter().map(|frame| wrapped(&tunnel, false, frame)).collect();
            assert_eq!(near.send(packets), 40);
            let got: Vec<_> = far.receive(40).iter().map(|p| opened(&tunnel, p).0).collect();
            assert_eq!(got, frames);
        }
        // A GSO packet that is too long for one call: two pieces that contain everything.
        for payload in [3_000usize, 20_001, 64_000] {
            let whole = gso_packet(9, payload, 1_376);
            let frame = whole.bytes().to_vec();
            let mut packet = whole;
            assert!(encapsulate(&mut packet, &tunnel.template(false)));
            assert_eq!(near.send(vec![packet]), 1);
            let mut bytes = Vec::new();
            let pieces = far.receive(100);
            assert!(pieces.len() <= 2, "{} pieces of {payload}", pieces.len());
            for mut piece in pieces {
                let (start, offset) =
                    (usize::from(piece.offload.csum_start), usize::from(piece.offload.csum_offset));
                let (inner, _) = opened(&tunnel, &piece);
                bytes.extend_from_slice(&inner[54..]);
                let head = piece.len() - inner.len();
                if piece.offload.csum_partial {
                    assert!(finish_partial(piece.bytes_mut(), start, offset));
                }
                let inner = &piece.bytes()[head..];
                let parsed = parse(inner, &HashKey::new(1)).unwrap();
                assert!(verify_l4(inner, &parsed));
            }
            assert_eq!(bytes, frame[54..]);
        }
    }
}

/// Consecutive segments in different networks.
#[test]
fn networks_are_not_mixed() {
    podswitch_testkit::require_privilege!();
    let tunnel = TUNNELS[0];
    let other = Tunnel { vni: 43, ..tunnel };
    let underlay = Underlay::new();
    let mut near = open(&tunnel, &underlay.near, false);
    let mut far = open(&tunnel, &underlay.far, true);
    for (second, expected) in [(tunnel, 1), (other, 2)] {
        let mut cut = Vec::new();
        let whole = gso_packet(3, 2_752, 1_376);
        segment(whole, &mut near.pool, &mut |_: &mut Pool, piece| cut.push(piece)).unwrap();
        let packets = [tunnel, second]
            .iter()
            .zip(&cut)
            .map(|(tunnel, piece)| wrapped(tunnel, false, piece.bytes()))
            .collect();
        assert_eq!(near.send(packets), 2);
        assert_eq!(far.receive(2).len(), expected);
    }
}

#[test]
fn malformed_packets_do_no_harm() {
    podswitch_testkit::require_privilege!();
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let mut near = open(&tunnel, &underlay.near, false);
        let far = underlay.far.enter(|| UdpSocket::bind((tunnel.far(), 5555))).unwrap().unwrap();
        let to = SocketAddr::new(tunnel.near(), tunnel.port);
        let rules = DecapRules { port: tunnel.port, ..DecapRules::default() };
        let noise: Vec<u8> =
            (0..60_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut no_vni = vec![0; 100];
        no_vni[4] = 1;
        for (junk, expected) in [
            (&[][..], Some(DecapError::HeaderTruncated)),
            (&[8], Some(DecapError::HeaderTruncated)),
            (&[8, 0, 0, 0, 0, 0, 42], Some(DecapError::HeaderTruncated)),
            (&[8, 0, 0, 0, 0, 0, 42, 0], Some(DecapError::InnerTruncated)),
            (&no_vni, Some(DecapError::NoVni)),
            (&noise, None),
        ] {
            far.send_to(junk, to).unwrap();
            let got = near.receive(1);
            assert_eq!(got.len(), 1, "{} bytes", junk.len());
            let parsed = parse(got[0].bytes(), &HashKey::new(1)).unwrap();
            assert_eq!(parsed.key.src_addr(), tunnel.far());
            assert_eq!((parsed.key.src_port, parsed.key.dst_port), (5555, tunnel.port));
            assert_eq!(&got[0].bytes()[usize::from(parsed.payload)..parsed.end as usize], junk);
            let result = decap(got[0].bytes(), &parsed, ChecksumState::Good, &rules);
            if let Some(expected) = expected {
                assert_eq!(result, Err(expected));
            }
        }
        // Merged by the kernel, so that the sender determines the lengths.
        for size in [1usize, 7, 9, 21, 500] {
            set_udp_segment(&far, size as i32);
            let len = (size * 40).min(18_000);
            far.send_to(&noise[..len], to).unwrap();
            let bytes: usize = near
                .receive(40)
                .iter()
                .map(|packet| packet.len() - if tunnel.v6 { 62 } else { 42 })
                .sum();
            assert_eq!(bytes, len, "in datagrams of {size}");
        }
        set_udp_segment(&far, 0);
        let (small, large) = near.pool.outstanding();
        assert!(small + large < 500, "buffers are returned or held by the test: {small} {large}");
    }
}

/// Sending sockets do not queue received datagrams.
#[test]
fn senders_receive_nothing() {
    podswitch_testkit::require_privilege!();
    let tunnel = TUNNELS[0];
    let underlay = Underlay::new();
    let mut near = open(&tunnel, &underlay.near, false);
    let far = underlay.far.enter(|| UdpSocket::bind((tunnel.far(), tunnel.port))).unwrap().unwrap();
    far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    near.send(vec![wrapped(&tunnel, false, &inner(false, 1, 0, 20))]);
    let (_, from) = far.recv_from(&mut [0; 200]).unwrap();
    for _ in 0..100 {
        far.send_to(&[0; 1000], from).unwrap();
    }
    assert!(near.receive(1).is_empty());
    let table = underlay
        .near
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/udp").unwrap())
        .unwrap();
    let port = format!(":{:04X}", from.port());
    let line = table.lines().find(|line| line.contains(&port)).expect("the socket is listed");
    assert!(line.contains(":00000000 "), "{line}");
    let queue = line.split_whitespace().nth(4).unwrap();
    assert!(queue.ends_with(":00000000"), "nothing queued: {line}");
}

#[test]
fn workers_share_received_packets() {
    podswitch_testkit::require_privilege!();
    let tunnel = TUNNELS[0];
    let underlay = Underlay::new();
    let mut device = tunnel.device(&underlay.near, false);
    let mut workers = [0, 1].map(|n| Hand::new(device.open(n, 2).unwrap()));
    let mut far = open(&tunnel, &underlay.far, true);
    for sport in 0..200 {
        far.send(vec![wrapped(&tunnel, true, &inner(false, sport, 0, 20))]);
    }
    let counts = workers.each_mut().map(|worker| worker.receive(200).len());
    assert_eq!(counts[0] + counts[1], 200);
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    // Both send with the same source ports.
    for worker in &mut workers {
        assert_eq!(worker.send(vec![wrapped(&tunnel, false, &inner(false, 5, 0, 20))]), 1);
    }
    let got = far.receive(2);
    let ports = [0, 1].map(|n| parse(got[n].bytes(), &HashKey::new(1)).unwrap().key.src_port);
    assert_eq!(ports[0], ports[1]);
}

#[test]
fn packets_that_are_not_tunnel_packets_are_not_sent() {
    podswitch_testkit::require_privilege!();
    let tunnel = TUNNELS[0];
    let underlay = Underlay::new();
    let mut near = open(&tunnel, &underlay.near, false);
    let good = wrapped(&tunnel, false, &inner(false, 1, 0, 20));
    let foreign = wrapped(&tunnel, true, &inner(false, 1, 0, 20));
    let plain = Packet::from_frame(&inner(true, 1, 0, 20));
    let six = wrapped(&TUNNELS[1], false, &inner(false, 1, 0, 20));
    let mut broken = gso_packet(1, 3_000, 1_000);
    broken.offload.csum_start = 2;
    assert!(!encapsulate(&mut Packet::from_frame(&[0; 5]), &tunnel.template(false)));
    broken.push_front(50).copy_from_slice(&good.bytes()[..50]);
    assert_eq!(near.send(vec![foreign, plain, good, six, broken]), 1);
}

#[test]
fn invalid_configurations_are_refused() {
    podswitch_testkit::require_privilege!();
    let ns = Underlay::new();
    let refused = |config: UdpTunnelConfig, word: &str| {
        let error = UdpTunnelDevice::new(&ns.near, config).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    let address: IpAddr = ip(crate::world::NEAR[0]);
    let good = UdpTunnelConfig::new(&[address]);
    refused(UdpTunnelConfig::new(&[]), "addresses");
    refused(UdpTunnelConfig::new(&[ip("192.0.2.77")]), "192.0.2.77");
    refused(UdpTunnelConfig { port: 0, ..good.clone() }, "port");
    refused(UdpTunnelConfig { ttl: 0, ..good.clone() }, "ttl");
    refused(UdpTunnelConfig { senders: 0, ..good.clone() }, "senders");
    refused(UdpTunnelConfig { senders: 1025, ..good.clone() }, "senders");
    let mut device = UdpTunnelDevice::new(&ns.near, good).unwrap();
    assert_eq!(device.info().mtu, 1500);
    assert_eq!(device.info().mac, Some(underlay_mac(address)));
    // Another socket has the port, even one that would share it.
    let taken = ns.near.enter(|| UdpSocket::bind((address, 4789))).unwrap().unwrap();
    let error = device.open(0, 1).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains("192.0.2.1:4789"), "{error}");
    drop(taken);
    device.open(0, 1).unwrap();
}

/// A raw uplink whose interface can segment gets GSO packets unsegmented, in their order among
/// other packets.
#[test]
fn tunnelled_gso_packets_leave_unsegmented() {
    podswitch_testkit::require_tap!();
    for tunnel in TUNNELS {
        let underlay = Underlay::new();
        let config = PacketConfig { tunnel: Some(tunnel.port), ..PacketConfig::default() };
        let mut device = PacketDevice::new(&underlay.near, "u0", config).unwrap();
        if !device.info().offloads.tunnel {
            podswitch_testkit::privilege::skip(
                "tunnelled_gso_packets_leave_unsegmented",
                "a kernel before Linux 6.17",
            );
            return;
        }
        let mut near = Hand::new(device.open(0, 1).unwrap());
        let mut far = PacketDevice::new(&underlay.far, "u0", PacketConfig::default()).unwrap();
        let mut far = Hand::new(far.open(0, 1).unwrap());
        let template = tunnel.template_on(&underlay);
        let mut burst = Vec::new();
        for n in 0..6u16 {
            let mut packet = match n % 3 {
                0 => Packet::from_frame(&inner(true, n, 0, 100)),
                _ => gso_packet(n, 20_000, 1_376),
            };
            assert!(encapsulate(&mut packet, &template));
            burst.push(packet);
        }
        let sent: Vec<_> = burst.iter().map(|p| (p.bytes().to_vec(), p.offload.gso_type)).collect();
        assert_eq!(near.send(burst), 6);
        let got = far.receive(40);
        let vxlan = |packet: &&Packet| {
            let parsed = parse(packet.bytes(), &HashKey::new(1)).unwrap();
            assert_eq!(packet.offload.check(&parsed), Ok(()));
            parsed.key.dst_port == tunnel.port
        };
        let got: Vec<_> = got.iter().filter(vxlan).collect();
        let seen: Vec<_> = got.iter().map(|p| (p.bytes().to_vec(), p.offload.gso_type)).collect();
        assert!(seen == sent, "{:?}", got.iter().map(|p| p.len()).collect::<Vec<_>>());
    }
}
