//! Code for fuzz targets: the splitting of buffers received by a tunnel's UDP socket. Panics if an invariant does not
//! hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podswitch_wire::checksum::pseudo_l4;
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Network, Parsed, parse};

use super::{Mtus, Outer, Received, UDP, VXLAN};
use podswitch_core::packet::{GsoType, Packet, Pool, PoolConfig, segment};

const KEY: HashKey = HashKey::new(1);
/// The longest datagram over IPv4, without UDP header.
const LONGEST: usize = 65_507;

/// Processes `data` as a buffer that the socket returned, and as packets that a pod sends through a peer that passes
/// GSO packets unsegmented. The first four bytes select families, segment size and MTU.
pub fn receive(data: &[u8]) {
    let Some(([choice, size @ .., mtu], bytes)) = data.split_first_chunk::<4>() else { return };
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let segment = usize::from(u16::from_be_bytes(*size));
    let mtu = 256 + usize::from(*mtu) * 32;
    let outer = outer(choice & 1 == 0);
    let mtus = Mtus { underlay: mtu, inner: if choice & 2 == 0 { usize::MAX } else { mtu } };
    any_bytes(&outer, bytes, segment, mtus);
    let payload = &bytes[..bytes.len().min(LONGEST - VXLAN - 14 - 40 - UDP)];
    passed_whole(&outer, &udp_frame(choice & 4 == 0, payload), payload, segment.max(1), mtus);
}

fn outer(v4: bool) -> Outer {
    let (from, to): (IpAddr, IpAddr) = match v4 {
        true => (Ipv4Addr::new(192, 0, 2, 2).into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        false => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
    };
    Outer::new(SocketAddr::new(from, 50_000), SocketAddr::new(to, 4789), 3)
}

/// The resulting frames, without their outer headers, which are checked; and how many were lost.
fn frames(outer: &Outer, bytes: &[u8], size: usize, mtus: Mtus) -> (Vec<Packet>, u64) {
    let mut pool = Pool::new(PoolConfig::default());
    let mut packet = Packet::with_capacity(bytes.len());
    packet.fill(bytes);
    let mut got = Vec::new();
    let lost = outer.receive(packet, size, mtus, &mut pool, &mut |packet| got.push(packet));
    for packet in &got {
        let parsed = parse(packet.bytes(), &KEY).expect("outer headers");
        assert_eq!(parsed.end as usize, packet.len());
        assert_eq!(usize::from(parsed.payload), outer.udp + UDP);
        assert_eq!((parsed.key.src_port, parsed.key.dst_port), (50_000, 4789));
    }
    (got, lost)
}

/// No frame is invented, and lost datagrams are counted.
fn any_bytes(outer: &Outer, bytes: &[u8], size: usize, mtus: Mtus) {
    let (got, lost) = frames(outer, bytes, size, mtus);
    let head = outer.udp + UDP;
    let size = match Received::of(bytes, size) {
        Received::Joined(size) => size,
        kind => {
            assert_eq!((got.len(), lost), (1, 0));
            assert_eq!(&got[0].bytes()[head..], bytes);
            let parsed = parse(got[0].bytes(), &KEY).expect("looked at above");
            let is_sound = got[0].offload.check(&parsed).is_ok();
            assert_eq!(is_sound, kind != Received::Inconsistent);
            return;
        }
    };
    // Segmented again, they are the received datagrams, in their order.
    let mut pool = Pool::new(PoolConfig::default());
    let mut datagrams = bytes.chunks(size);
    let mut count = 0;
    for packet in got {
        let is_merged = packet.offload.is_gso();
        if is_merged {
            assert_ne!(packet.offload.gso_type, GsoType::UdpL4, "only TCP is merged");
            let parsed = parse(packet.bytes(), &KEY).expect("looked at above");
            assert_eq!(packet.offload.check(&parsed), Ok(()));
        }
        let mut same = |piece: &Packet| {
            let datagram = datagrams.next().expect("no more than were received");
            let piece = &piece.bytes()[head..];
            match is_merged {
                true => is_same_segment(piece, datagram),
                false => assert_eq!(piece, datagram),
            }
            count += 1;
        };
        match is_merged {
            false => same(&packet),
            true => {
                let cut = segment(packet, &mut pool, &mut |pool, piece| {
                    same(&piece);
                    pool.free(piece);
                });
                cut.expect("it can be segmented");
            }
        }
    }
    assert_eq!(count + lost as usize, bytes.len().div_ceil(size));
}

/// Merging may change the IPv4 identification of packets that must not be fragmented.
fn is_same_segment(piece: &[u8], datagram: &[u8]) {
    const IP: usize = VXLAN + 14;
    assert_eq!(piece.len(), datagram.len());
    let is_v4 = piece[IP - 2..IP] == [8, 0];
    let is_free = |at: usize| is_v4 && matches!(at - IP, 4 | 5 | 10 | 11);
    for (at, (a, b)) in piece.iter().zip(datagram).enumerate() {
        assert!(a == b || at >= IP && is_free(at), "byte {at}");
    }
}

/// Whatever a pod writes into its datagrams: they arrive unchanged, and nothing else arrives.
fn passed_whole(outer: &Outer, frame: &[u8], payload: &[u8], size: usize, mtus: Mtus) {
    let bytes = [&[8, 0, 0, 0, 0, 0, 1, 0][..], frame].concat();
    // A packet that is not longer than a segment is not a GSO packet for the kernel.
    let is_gso = payload.len() > size;
    let (got, lost) = frames(outer, &bytes, if is_gso { size } else { 0 }, mtus);
    assert_eq!((got.len(), lost), (1, 0));
    let (packet, head) = (&got[0], outer.udp + UDP);
    assert_eq!(&packet.bytes()[head..], bytes);
    let offload = packet.offload;
    let expected = if is_gso { (GsoType::UdpL4, size) } else { (GsoType::None, 0) };
    assert_eq!((offload.gso_type, usize::from(offload.gso_size)), expected);
    if is_gso {
        let l4 = head + bytes.len() - payload.len() - UDP;
        assert_eq!((usize::from(offload.csum_start), offload.csum_offset), (l4, 6));
        assert_eq!(usize::from(offload.hdr_len), l4 + UDP);
    }
}

/// A UDP packet with a partial checksum.
fn udp_frame(v4: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    let len = (UDP + payload.len()) as u16;
    match v4 {
        true => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + len).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let checksum = podswitch_wire::checksum::sum(&frame[14..]).checksum();
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        false => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([17, 64]);
            frame.extend([0xfd; 16]);
            frame.extend([0xfc; 16]);
        }
    }
    let field = frame.len() + 6;
    frame.extend([0x9c, 0x40, 0x1f, 0x90]);
    frame.extend(len.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    let parsed: Parsed = parse(&frame, &KEY).expect("a good frame");
    assert!(matches!(parsed.network, Network::Ipv4 | Network::Ipv6));
    let pseudo = pseudo_l4(&parsed.key, len.into()).fold();
    frame[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    frame
}
