//! IPv4 fragmentation (RFC 791 §3.2, RFC 1812 §5.2.7.1) of packets that exceed the next hop's MTU.
//! IPv6 routers do not fragment.

use super::gso::{SegmentError, finish_ipv4, segment};
use super::layout::{Link, be16, put_be16};
use super::{Packet, Pool};
use crate::action::DropReason;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
const RESERVED: u16 = 0x8000;

/// The bit of an option's type for options that are copied to all fragments.
const COPIED: u8 = 0x80;

/// Smallest MTU of an IPv4 link, in bytes (RFC 791 §3.2).
const LEAST_MTU: usize = 68;

/// Fragments an IPv4 packet to at most `mtu` bytes, after its checksum was computed. A GSO packet is
/// segmented first, and segments that fit are not fragmented. A packet that is a fragment already is
/// fragmented further; its offset and "more fragments" bit are taken into account. Later fragments
/// repeat only options with the copied bit (RFC 791 §3.1).
///
/// `out` gets each packet, and the pool. The first has the packet's origin, the others are copies.
/// Returns the number of packets. `packet` is always returned to the pool.
///
/// # Errors
/// [`DropReason::MtuExceeded`] if the packet must not be fragmented, is not IPv4 or `mtu` is below
/// 68; [`DropReason::Ipv4Options`]; and the errors of [`fit`](super::fit).
pub fn fragment_v4(
    packet: Packet,
    mtu: usize,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<usize, SegmentError> {
    let mut produced = 0;
    let mut failed = None;
    let result = segment(packet, pool, &mut |pool: &mut Pool, packet: Packet| {
        if failed.is_some() {
            pool.free(packet);
            return;
        }
        failed = fragment_one(packet, mtu, pool, &mut |pool, piece| {
            produced += 1;
            out(pool, piece);
        })
        .err();
    });
    match failed.or(result.err().map(|error| error.reason)) {
        None => Ok(produced),
        Some(reason) => Err(SegmentError::new(reason, produced)),
    }
}

/// As [`fragment_v4`], for a packet with complete checksums.
fn fragment_one(
    packet: Packet,
    mtu: usize,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<(), DropReason> {
    let frame = packet.bytes();
    let result = match Link::of(frame).filter(|link| link.v4) {
        None => Err(DropReason::MtuExceeded),
        Some(link) if link.ip_end(frame) - link.l3 <= mtu => {
            out(pool, packet);
            return Ok(());
        }
        Some(link) => pieces(&packet, link, mtu, pool, out),
    };
    pool.free(packet);
    result
}

fn pieces(
    packet: &Packet,
    link: Link,
    mtu: usize,
    pool: &mut Pool,
    out: &mut impl FnMut(&mut Pool, Packet),
) -> Result<(), DropReason> {
    let frame = packet.bytes();
    let (l3, end) = (link.l3, link.ip_end(frame));
    let flags = be16(frame, l3 + 6);
    if mtu < LEAST_MTU || flags & DONT_FRAGMENT != 0 {
        return Err(DropReason::MtuExceeded);
    }
    let first = link.header_len(frame);
    if first < 20 || l3 + first > end {
        return Err(DropReason::Ipv4HeaderLength);
    }
    let later = Later::of(&frame[l3..l3 + first])?;
    let start = l3 + first;
    let offset = usize::from(flags & OFFSET);
    if offset * 8 + end - start > 65_535 {
        return Err(DropReason::FragmentLength);
    }
    let mut at = start;
    while at < end {
        let header = if at == start { &frame[l3..start] } else { later.header() };
        let room = mtu - header.len();
        let to = if end - at <= room { end } else { at + (room & !7) };
        let wanted = l3 + header.len() + to - at;
        let mut piece = pool.alloc_for(wanted).ok_or(DropReason::PoolExhausted)?;
        piece.inherit(packet, at == start);
        piece.fill_parts([&frame[..l3], header, &frame[at..to]]);
        let more = if to < end { MORE_FRAGMENTS } else { flags & MORE_FRAGMENTS };
        let place = (offset + (at - start) / 8) as u16;
        let bytes = piece.bytes_mut();
        put_be16(bytes, l3 + 2, (header.len() + to - at) as u16);
        put_be16(bytes, l3 + 6, flags & RESERVED | more | place);
        finish_ipv4(bytes, l3, header.len());
        out(pool, piece);
        at = to;
    }
    Ok(())
}

/// The IPv4 header of all fragments but the first.
struct Later {
    bytes: [u8; 60],
    len: usize,
}

impl Later {
    /// From the header of the packet: keeps the options with the copied bit, padded to whole words.
    fn of(header: &[u8]) -> Result<Self, DropReason> {
        let mut later = Self { bytes: [0; 60], len: 20 };
        later.bytes[..20].copy_from_slice(&header[..20]);
        let mut at = 20;
        while at < header.len() {
            let len = match header[at] {
                0 => break,
                1 => 1,
                _ => usize::from(*header.get(at + 1).ok_or(DropReason::Ipv4Options)?),
            };
            let option = header.get(at..at + len).ok_or(DropReason::Ipv4Options)?;
            if len == 0 || (len == 1 && option[0] != 1) {
                return Err(DropReason::Ipv4Options);
            }
            if option[0] & COPIED != 0 {
                later.bytes[later.len..later.len + len].copy_from_slice(option);
                later.len += len;
            }
            at += len;
        }
        later.len = later.len.next_multiple_of(4);
        later.bytes[0] = 0x40 | (later.len / 4) as u8;
        Ok(later)
    }

    fn header(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests;
