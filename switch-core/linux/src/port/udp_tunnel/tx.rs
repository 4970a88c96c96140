//! Transmission: removes the outer headers and passes datagrams of one length to one destination to
//! the kernel as one buffer that it segments (UDP_SEGMENT). A pod's GSO packet is segmented here
//! into consecutive datagrams: copying costs less than gathering headers and payloads.

use std::io::{self, IoSlice};
use std::ops::Range;

use arrayvec::ArrayVec;
use podswitch_core::packet::{BATCH, Batch, Packet, Pool};
use rustix::io::Errno;

use super::plan::{Group, Outer, Piece, Plan, owners, read};
use super::port::UdpTunnelPort;
use crate::sys::datagram::{self, Outgoing};

/// Maximum number of parts gathered in one call: the headers and payloads of several buffers.
const PARTS: usize = 1024;

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
