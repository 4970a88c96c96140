//! The plan of a transmission: outer headers are parsed, and datagrams of one length to one destination become one buffer
//! for the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use podswitch_core::packet::{GsoType, Packet, TunnelSegments, finish_checksum};
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;

use super::senders::Senders;

/// Maximum number of datagrams into which the kernel segments one buffer (UDP_MAX_SEGMENTS; 128
/// since Linux 6.9).
const SEGMENTS: usize = 64;
/// Maximum bytes in one buffer: an IPv4 packet's length without its headers.
const BYTES: usize = 65_507;
/// Parsed outer headers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outer {
    pub(super) source: IpAddr,
    pub(super) to: SocketAddr,
    pub(super) source_port: u16,
    pub(super) class: u8,
    /// Start of the UDP header.
    pub(super) udp: usize,
    /// End of the UDP datagram.
    pub(super) end: usize,
}

/// Reads the outer headers of a frame; `None` if it is not a complete UDP packet.
pub(super) fn read(frame: &[u8]) -> Option<Outer> {
    let be16 = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let ip = frame.get(14..)?;
    let (source, to, class, udp): (IpAddr, IpAddr, _, _) = match be16(12)? {
        ethertype::IPV4 if ip.len() >= 20 => {
            let fragment = be16(20)? & 0x3fff != 0;
            if ip[0] >> 4 != 4 || ip[9] != proto::UDP || fragment {
                return None;
            }
            let address = |at: usize| Some(Ipv4Addr::from(*ip.get(at..)?.first_chunk::<4>()?));
            let udp = 14 + usize::from(ip[0] & 15) * 4;
            (address(12)?.into(), address(16)?.into(), ip[1], udp)
        }
        ethertype::IPV6 if ip.len() >= 40 => {
            if ip[0] >> 4 != 6 || ip[6] != proto::UDP {
                return None;
            }
            let address = |at: usize| Some(Ipv6Addr::from(*ip.get(at..)?.first_chunk::<16>()?));
            (address(8)?.into(), address(24)?.into(), ip[0] << 4 | ip[1] >> 4, 54)
        }
        _ => return None,
    };
    let end = udp + usize::from(be16(udp + 4)?);
    let to = SocketAddr::new(to, be16(udp + 2)?);
    let whole = end >= udp + 8 && end <= frame.len() && to.port() != 0;
    whole.then_some(Outer { source, to, source_port: be16(udp)?, class, udp, end })
}

/// A datagram.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Index of its packet in the burst.
    pub(super) packet: u8,
    /// Whether it was copied; otherwise it lies in the packet.
    pub(super) is_written: bool,
    pub(super) place: Range<usize>,
}

/// Datagrams that the kernel gets as one buffer.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) to: SocketAddr,
    pub(super) socket: usize,
    pub(super) class: u8,
    pub(super) pieces: Range<usize>,
    /// Bytes of each datagram but the last.
    pub(super) size: usize,
    pub(super) datagrams: usize,
    pub(super) bytes: usize,
    /// Nothing may follow a short datagram.
    pub(super) closed: bool,
}

/// The datagrams of a burst. Kept between bursts only to reuse the memory.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Datagrams of GSO packets. Grows to the size that the largest burst needs.
    pub(super) written: Vec<u8>,
    /// Bytes of it in use.
    pub(super) used: usize,
    pub(super) pieces: Vec<Piece>,
    pub(super) groups: Vec<Group>,
}

impl Plan {
    /// Empties it.
    pub(super) fn clear(&mut self) {
        self.used = 0;
        self.pieces.clear();
        self.groups.clear();
    }

    /// Adds a packet; false if this tunnel cannot send it.
    pub(super) fn add(&mut self, at: usize, packet: &mut Packet, senders: &Senders) -> bool {
        let Some(outer) = read(packet.bytes()) else { return false };
        let family = senders.family(outer.to.is_ipv6());
        let Some(family) = family.filter(|family| family.address == outer.source) else {
            return false;
        };
        let socket = family.index(outer.source_port);
        let packet_at = at as u8;
        let mut push = |is_written, place, size| {
            let piece = Piece { packet: packet_at, is_written, place };
            push(&mut self.pieces, &mut self.groups, piece, size, socket, &outer);
        };
        let offload = packet.offload;
        if !offload.is_gso() {
            if finish_checksum(packet).is_err() {
                return false;
            }
            push(false, outer.udp + 8..outer.end, outer.end - outer.udp - 8);
            return true;
        }
        if offload.gso_type == GsoType::UdpL4 && usize::from(offload.csum_start) == outer.udp {
            let size = usize::from(offload.gso_size);
            if size == 0 {
                return false;
            }
            for from in (outer.udp + 8..outer.end).step_by(size) {
                push(false, from..(from + size).min(outer.end), size);
            }
            return true;
        }
        let Ok(segments) = TunnelSegments::of(packet) else { return false };
        let needed = self.used + segments.total_len();
        if self.written.len() < needed {
            self.written.resize(needed, 0);
        }
        for n in 0..segments.count() {
            let from = self.used;
            self.used += segments.write(packet.bytes(), n, &mut self.written[from..]);
            push(true, from..self.used, segments.stride());
        }
        true
    }
}

/// Adds a datagram, to the group that it continues if there is one. `size` is the length of that
/// group's datagrams.
fn push(
    pieces: &mut Vec<Piece>,
    groups: &mut Vec<Group>,
    piece: Piece,
    size: usize,
    socket: usize,
    outer: &Outer,
) {
    let len = piece.place.len();
    let end = pieces.len() + 1;
    pieces.push(piece);
    if let Some(group) = groups.last_mut()
        && !group.closed
        && len <= group.size
        && group.datagrams < SEGMENTS
        && group.bytes + len <= BYTES
        && (group.to, group.socket, group.class) == (outer.to, socket, outer.class)
    {
        group.pieces.end = end;
        group.datagrams += 1;
        group.bytes += len;
        group.closed = len < group.size;
        return;
    }
    groups.push(Group {
        to: outer.to,
        socket,
        class: outer.class,
        pieces: end - 1..end,
        size: len,
        datagrams: 1,
        bytes: len,
        closed: len < size || len == 0,
    });
}

/// A bit for each packet that has a part in the group.
pub(super) fn owners(plan: &Plan, group: &Group) -> u64 {
    plan.pieces[group.pieces.clone()].iter().fold(0, |bits, piece| bits | 1 << piece.packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_udp_packets_are_not_read() {
        let mut frame = vec![0; 14];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame.extend([0x45, 3, 0, 33, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0xc0, 1, 0x12, 0xb5, 0, 13, 0, 0, 1, 2, 3, 4, 5, 0xaa]);
        let outer = read(&frame).unwrap();
        assert_eq!(outer.to, "10.0.0.2:4789".parse().unwrap());
        assert_eq!((outer.source_port, outer.class, outer.udp, outer.end), (0xc001, 3, 34, 47));
        type Break = fn(&mut Vec<u8>);
        let breaks: [Break; 7] = [
            |f| f[13] = 6,
            |f| f[14] = 0x65,
            |f| f[23] = 6,
            |f| f[20] = 0x20,
            |f| f[39] = 7,
            |f| f[39] = 15,
            |f| f[36..38].fill(0),
        ];
        for broken in breaks {
            let mut frame = frame.clone();
            broken(&mut frame);
            assert_eq!(read(&frame), None);
        }
        for len in 0..47 {
            assert_eq!(read(&frame[..len]), None, "{len}");
        }
    }
}
