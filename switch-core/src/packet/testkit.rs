//! Frames for the tests of this module: built field by field, and checked with `etherparse`, which
//! shares no code with the tested functions.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::{GsoType, Offload, Packet};

/// Properties of a test packet.
#[derive(Clone, Debug)]
pub struct Shape {
    pub v4: bool,
    pub tcp: bool,
    /// VLAN tags.
    pub tags: usize,
    /// Words of IPv4 options, or IPv6 destination-option headers of 8 bytes.
    pub extra: usize,
    /// Words of TCP options.
    pub tcp_options: usize,
    pub tcp_flags: u8,
    pub id: u16,
    pub seq: u32,
    pub payload: Vec<u8>,
}

pub fn shape(max_payload: usize) -> impl Strategy<Value = Shape> {
    (
        any::<(bool, bool)>(),
        (0usize..3, 0usize..3, 0usize..4),
        any::<(u8, u16, u32)>(),
        prop::collection::vec(any::<u8>(), 0..max_payload),
    )
        .prop_map(|((v4, tcp), (tags, extra, tcp_options), (tcp_flags, id, seq), payload)| {
            Shape { v4, tcp, tags, extra, tcp_options, tcp_flags, id, seq, payload }
        })
}

impl Shape {
    pub fn l3(&self) -> usize {
        14 + 4 * self.tags
    }

    pub fn l4(&self) -> usize {
        self.l3() + if self.v4 { 20 + 4 * self.extra } else { 40 + 8 * self.extra }
    }

    pub fn payload_at(&self) -> usize {
        self.l4() + if self.tcp { 20 + 4 * self.tcp_options } else { 8 }
    }

    pub fn gso_type(&self) -> GsoType {
        match (self.tcp, self.v4) {
            (false, _) => GsoType::UdpL4,
            (true, true) => GsoType::TcpV4,
            (true, false) => GsoType::TcpV6,
        }
    }

    /// The frame with a partial layer-4 checksum, as from a sender with offload.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in 0..self.tags {
            frame.extend([0x81, 0x00, 0x20, tag as u8 + 1]);
        }
        frame.extend(if self.v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        let l4_len = self.payload_at() - self.l4() + self.payload.len();
        let protocol = if self.tcp { 6 } else { 17 };
        let addresses = self.ip(&mut frame, l4_len, protocol);
        let pseudo: u32 =
            addresses.chunks(2).map(be).sum::<u32>() + u32::from(protocol) + l4_len as u32;
        // Ones' complement: a sum of words that are not all zero is never zero.
        let check = ((pseudo - 1) % 0xffff + 1) as u16;
        frame.extend([0x9c, 0x40, 0x1f, 0x90]);
        if self.tcp {
            frame.extend(self.seq.to_be_bytes());
            frame.extend([1, 2, 3, 4, (5 + self.tcp_options as u8) << 4, self.tcp_flags]);
            frame.extend([0x7f, 0xff]);
            frame.extend(check.to_be_bytes());
            frame.extend([0, 0]);
            frame.extend(vec![1; 4 * self.tcp_options]);
        } else {
            frame.extend((l4_len as u16).to_be_bytes());
            frame.extend(check.to_be_bytes());
        }
        frame.extend(&self.payload);
        frame
    }

    /// Appends the IP header and returns the addresses.
    fn ip(&self, frame: &mut Vec<u8>, l4_len: usize, protocol: u8) -> Vec<u8> {
        let at = frame.len();
        if self.v4 {
            let total = (20 + 4 * self.extra + l4_len) as u16;
            frame.extend([0x45 + self.extra as u8, 0x02]);
            frame.extend(total.to_be_bytes());
            frame.extend(self.id.to_be_bytes());
            frame.extend([0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            frame.extend(vec![1; 4 * self.extra]);
            let sum = !((frame[at..].chunks(2).map(be).sum::<u32>() % 0xffff) as u16);
            frame[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
            return frame[at + 12..at + 20].to_vec();
        }
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(((8 * self.extra + l4_len) as u16).to_be_bytes());
        frame.extend([if self.extra > 0 { 60 } else { protocol }, 64]);
        frame.extend([0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend([0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        for n in 1..=self.extra {
            let next = if n == self.extra { protocol } else { 60 };
            frame.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        frame[at + 8..at + 40].to_vec()
    }

    /// Offload metadata of that frame.
    pub fn partial(&self) -> Offload {
        Offload {
            csum_partial: true,
            csum_start: self.l4() as u16,
            csum_offset: if self.tcp { 16 } else { 6 },
            ..Offload::default()
        }
    }

    /// A GSO packet of segments of `size` bytes.
    pub fn packet(&self, size: u16) -> Packet {
        let mut packet = Packet::from_frame(&self.frame());
        packet.offload = Offload {
            gso_type: self.gso_type(),
            gso_size: size,
            hdr_len: self.payload_at() as u16,
            ..self.partial()
        };
        packet
    }
}

pub fn be(pair: &[u8]) -> u32 {
    u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))
}

/// The headers that `etherparse` parses from a TCP or UDP packet.
#[derive(Debug)]
pub struct Inspected {
    pub payload: Vec<u8>,
    pub seq: u32,
    pub flags: u8,
    pub id: u16,
    pub ip_len: usize,
}

/// Parses the frame and verifies every checksum in it.
pub fn inspect(frame: &[u8]) -> Inspected {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a valid frame");
    let (id, ip_len, addresses) = match sliced.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            // In ones' complement, all ones and all zeroes are the same number.
            let wanted = header.to_header().calc_header_checksum();
            assert_eq!(header.header_checksum() % 0xffff, wanted % 0xffff);
            (header.identification(), usize::from(header.total_len()), None)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let length = 40 + usize::from(header.payload_length);
            (0, length, Some((header.source, header.destination)))
        }
        other => panic!("not IP: {other:?}"),
    };
    let v4 = || match sliced.net.as_ref() {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source(), ip.header().destination()),
        _ => unreachable!(),
    };
    match sliced.transport.as_ref().expect("a transport header") {
        TransportSlice::Tcp(tcp) => {
            let sum = match addresses {
                Some((s, d)) => tcp.calc_checksum_ipv6(s, d).unwrap(),
                None => tcp.calc_checksum_ipv4(v4().0, v4().1).unwrap(),
            };
            // A sum of all ones and a sum of zero are the same number (RFC 1071).
            assert_eq!(tcp.checksum() % 0xffff, sum % 0xffff, "TCP checksum");
            Inspected {
                payload: tcp.payload().to_vec(),
                seq: tcp.sequence_number(),
                flags: tcp.slice()[13],
                id,
                ip_len,
            }
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let sum = match addresses {
                Some((s, d)) => header.calc_checksum_ipv6_raw(s, d, udp.payload()).unwrap(),
                None => {
                    let (s, d) = v4();
                    header.calc_checksum_ipv4_raw(s, d, udp.payload()).unwrap()
                }
            };
            assert_eq!(udp.checksum(), sum, "UDP checksum");
            assert_eq!(usize::from(udp.length()), udp.payload().len() + 8);
            Inspected { payload: udp.payload().to_vec(), seq: 0, flags: 0, id, ip_len }
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
}

/// The GSO packet `inner` with outer IP, UDP and VXLAN headers.
pub fn tunnelled(inner: &Shape, size: u16, outer_v4: bool, checksum: bool) -> Packet {
    let mut payload = vec![0x08, 0, 0, 0, 0, 0, 1, 0];
    payload.extend(inner.frame());
    let outer = Shape {
        v4: outer_v4,
        tcp: false,
        tags: 0,
        extra: 0,
        tcp_options: 0,
        tcp_flags: 0,
        id: 5,
        seq: 0,
        payload,
    };
    let mut packet = outer.packet(size);
    let field = outer.l4() + 6;
    if !checksum {
        packet.bytes_mut()[field..field + 2].fill(0);
    }
    packet.offload = inner.packet(size).offload;
    packet.offload.shift((outer.payload_at() + 8) as i32);
    packet
}
