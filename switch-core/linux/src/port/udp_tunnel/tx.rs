//! Transmission: removes the outer headers and passes datagrams of one length to one destination to
//! the kernel as one buffer that it segments (UDP_SEGMENT). A pod's GSO packet is segmented here
//! into consecutive datagrams: copying costs less than gathering headers and payloads.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use arrayvec::ArrayVec;
use podswitch_core::packet::{
    BATCH, Batch, GsoType, Packet, Pool, TunnelSegments, finish_checksum,
};
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;
use rustix::io::Errno;

use super::UdpTunnelPort;
use super::senders::Senders;
use crate::sys::datagram::{self, Outgoing};

/// Maximum number of datagrams into which the kernel segments one buffer (UDP_MAX_SEGMENTS; 128
/// since Linux 6.9).
const SEGMENTS: usize = 64;
/// Maximum bytes in one buffer: an IPv4 packet's length without its headers.
const BYTES: usize = 65_507;
/// Maximum number of parts gathered in one call: the headers and payloads of several buffers.
const PARTS: usize = 1024;

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
struct Piece {
    /// Index of its packet in the burst.
    packet: u8,
    /// Whether it was copied; otherwise it lies in the packet.
    is_written: bool,
    place: Range<usize>,
}

/// Datagrams that the kernel gets as one buffer.
#[derive(Clone, Debug)]
struct Group {
    to: SocketAddr,
    socket: usize,
    class: u8,
    pieces: Range<usize>,
    /// Bytes of each datagram but the last.
    size: usize,
    datagrams: usize,
    bytes: usize,
    /// Nothing may follow a short datagram.
    closed: bool,
}

/// The datagrams of a burst. Kept between bursts only to reuse the memory.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Datagrams of GSO packets. Grows to the size that the largest burst needs.
    written: Vec<u8>,
    /// Bytes of it in use.
    used: usize,
    pieces: Vec<Piece>,
    groups: Vec<Group>,
}

impl Plan {
    fn clear(&mut self) {
        self.used = 0;
        self.pieces.clear();
        self.groups.clear();
    }

    /// Adds a packet; false if this tunnel cannot send it.
    fn add(&mut self, at: usize, packet: &mut Packet, senders: &Senders) -> bool {
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

/// Gathers the parts of groups for one call.
struct Call<'a> {
    parts: ArrayVec<IoSlice<'a>, PARTS>,
}

impl<'a> Call<'a> {
    fn gather(&mut self, plan: &'a Plan, pieces: &[Piece], packets: &'a [Packet]) -> Range<usize> {
        let start = self.parts.len();
        let mut written: Option<Range<usize>> = None;
        for piece in pieces {
            // Adjacent datagrams are one part.
            written = match written {
                Some(before) if piece.is_written && before.end == piece.place.start => {
                    self.parts.pop();
                    Some(before.start..piece.place.end)
                }
                _ => piece.is_written.then(|| piece.place.clone()),
            };
            let bytes = match &written {
                Some(place) => &plan.written[place.clone()],
                None => &packets[usize::from(piece.packet)].bytes()[piece.place.clone()],
            };
            self.parts.push(IoSlice::new(bytes));
        }
        start..self.parts.len()
    }
}

impl UdpTunnelPort {
    /// Sends a burst; packets that could not be sent stay in `batch`.
    pub(super) fn transmit(&mut self, pool: &mut Pool, batch: &mut Batch) -> usize {
        let mut plan = std::mem::take(&mut self.plan);
        plan.clear();
        let mut failed = 0u64;
        for at in 0..batch.len() {
            if let Some(outer) = self.goes_whole(&batch[at]) {
                // Keeps the order.
                failed |= self.send(&plan, batch);
                plan.clear();
                match self.send_whole(&mut batch[at], &outer) {
                    Ok(()) => continue,
                    Err(Errno::AGAIN | Errno::NOBUFS) => {
                        failed |= 1 << at;
                        continue;
                    }
                    // The sockets report the error, or can send it.
                    Err(_) => {}
                }
            }
            if !plan.add(at, &mut batch[at], &self.senders) {
                failed |= 1 << at;
            }
        }
        failed |= self.send(&plan, batch);
        self.plan = plan;
        let waiting = std::mem::take(batch);
        let mut sent = 0;
        for (at, packet) in waiting.into_iter().enumerate() {
            if failed & 1 << at == 0 {
                pool.free(packet);
                sent += 1;
            } else {
                batch.push(packet);
            }
        }
        sent
    }

    /// The outer headers of a GSO packet that need not be segmented here.
    fn goes_whole(&self, packet: &Packet) -> Option<Outer> {
        let whole = self.tunnel_gso.as_ref().filter(|_| packet.offload.is_gso())?;
        let outer = read(packet.bytes())?;
        let family = self.senders.family(outer.to.is_ipv6())?;
        let is_ours = family.address == outer.source;
        (is_ours && whole.takes(packet, &outer)).then_some(outer)
    }

    fn send_whole(&self, packet: &mut Packet, outer: &Outer) -> Result<(), Errno> {
        let (whole, family) = (self.tunnel_gso.as_ref(), self.senders.family(outer.to.is_ipv6()));
        let (Some(whole), Some(family)) = (whole, family) else { return Err(Errno::INVAL) };
        let port = family.sockets[family.index(outer.source_port)].port;
        whole.send(packet, outer, port)
    }

    /// Sends all groups. Returns a bit for each packet that was not sent completely.
    fn send(&mut self, plan: &Plan, packets: &[Packet]) -> u64 {
        let (mut failed, mut at, mut retried) = (0, 0, usize::MAX);
        while at < plan.groups.len() {
            let senders = std::sync::Arc::clone(&self.senders);
            let first = &plan.groups[at];
            let Some(family) = senders.family(first.to.is_ipv6()) else { break };
            let same = |group: &Group| {
                (group.to.is_ipv6(), group.socket) == (first.to.is_ipv6(), first.socket)
            };
            let mut call = Call { parts: ArrayVec::new() };
            let mut ranges: ArrayVec<Range<usize>, BATCH> = ArrayVec::new();
            for group in plan.groups[at..].iter().take_while(|group| same(group)).take(BATCH) {
                if call.parts.remaining_capacity() < group.pieces.len() {
                    break;
                }
                ranges.push(call.gather(plan, &plan.pieces[group.pieces.clone()], packets));
            }
            let messages: ArrayVec<Outgoing<'_>, BATCH> = ranges
                .into_iter()
                .zip(&plan.groups[at..])
                .map(|(range, group)| Outgoing {
                    parts: &call.parts[range],
                    to: group.to,
                    class: group.class,
                    segment: if group.datagrams > 1 { group.size as u16 } else { 0 },
                })
                .collect();
            let error = match datagram::send(family.socket(first.socket), &messages) {
                Ok(count) if count > 0 => {
                    at += count;
                    continue;
                }
                Ok(_) => io::ErrorKind::WouldBlock.into(),
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                // The socket or the queue is full; later datagrams would overtake.
                None | Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                    return plan.groups[at..].iter().fold(failed, |bits, g| bits | owners(plan, g));
                }
                // The first may be a pending error of the socket, about another datagram.
                _ if retried != at => {
                    retried = at;
                    self.suspicious = true;
                }
                Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO) => {
                    failed |= self.send_singly(plan, first, packets);
                    at += 1;
                }
                _ => {
                    failed |= owners(plan, first);
                    at += 1;
                }
            }
        }
        failed
    }

    /// Sends the datagrams of a group one by one: the kernel cannot segment them, or they are too
    /// long.
    fn send_singly(&mut self, plan: &Plan, group: &Group, packets: &[Packet]) -> u64 {
        let senders = std::sync::Arc::clone(&self.senders);
        let Some(family) = senders.family(group.to.is_ipv6()) else { return owners(plan, group) };
        let mut failed = 0;
        for piece in &plan.pieces[group.pieces.clone()] {
            let mut call = Call { parts: ArrayVec::new() };
            call.gather(plan, std::slice::from_ref(piece), packets);
            let (to, class) = (group.to, group.class);
            let message = Outgoing { parts: &call.parts, to, class, segment: 0 };
            let error = match datagram::send(family.socket(group.socket), &[message]) {
                Ok(1..) => continue,
                Ok(_) => io::ErrorKind::WouldBlock.into(),
                Err(error) => error,
            };
            failed |= 1 << piece.packet;
            if error.raw_os_error() == Some(libc::EMSGSIZE) {
                let frame = packets[usize::from(piece.packet)].bytes();
                self.report_too_long(frame, piece.place.len(), family);
                // The others of the group have the same length.
                return failed | owners(plan, group);
            }
        }
        failed
    }
}

/// A bit for each packet that has a part in the group.
fn owners(plan: &Plan, group: &Group) -> u64 {
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
