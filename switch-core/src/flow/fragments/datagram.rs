//! An incomplete datagram: which of its bytes have arrived.

use podswitch_wire::parse::{Fragment as Position, Network, Parsed};

use super::released::{Fragment, Released};
use crate::action::DropReason;
use crate::packet::Packet;

/// Memory for a held fragment, in bytes: its buffer and its record.
pub(super) fn cost(packet: &Packet) -> usize {
    packet.buffer_len() + size_of::<Piece>()
}

/// The bytes of the datagram's payload that a fragment carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub(super) start: u32,
    pub(super) end: u32,
    /// Their offset in the frame.
    pub(super) data: u32,
    /// Whether the "more fragments" flag is set.
    pub(super) more: bool,
}

impl Extent {
    /// Reads it from the frame. `None` if the frame is no fragment, or an empty one, which `parse`
    /// rejects.
    pub(super) fn of(frame: &[u8], parsed: &Parsed) -> Option<Self> {
        let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
        let (data, more) = match parsed.network {
            Network::Ipv4 => (l4, frame.get(l3 + 6)? & 0x20 != 0),
            Network::Ipv6 => {
                let header = fragment_header(frame, l3, l4)?;
                (header + 8, frame.get(header + 3)? & 1 != 0)
            }
            Network::Other | Network::Arp => return None,
        };
        let len = (parsed.end as usize).checked_sub(data).filter(|len| *len > 0)?;
        let start = match parsed.fragment {
            Position::First => 0,
            _ => u32::from(parsed.fragment_offset),
        };
        Some(Self { start, end: start + u32::try_from(len).ok()?, data: data as u32, more })
    }
}

/// Offset of the IPv6 fragment header. Extension headers may follow it: they belong to the fragmented
/// part (RFC 8200 §4.5).
fn fragment_header(frame: &[u8], l3: usize, l4: usize) -> Option<usize> {
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    let mut kind = *frame.get(l3 + 6)?;
    let mut at = l3 + 40;
    while at + 8 <= l4 {
        let units = usize::from(*frame.get(at + 1)?);
        match kind {
            FRAGMENT => return Some(at),
            AUTHENTICATION => at += (units + 2) * 4,
            _ => at += (units + 1) * 8,
        }
        kind = *frame.get(at)?;
    }
    None
}

/// A held fragment.
#[derive(Debug)]
struct Piece {
    extent: Extent,
    fragment: Fragment,
}

impl Piece {
    fn data(&self) -> &[u8] {
        data(&self.fragment, &self.extent)
    }
}

fn data<'a>(fragment: &'a Fragment, extent: &Extent) -> &'a [u8] {
    let range = extent.data as usize..fragment.parsed.end as usize;
    fragment.packet.bytes().get(range).unwrap_or_default()
}

/// The result of [`Datagram::add`].
#[derive(Debug)]
pub(super) enum Added {
    /// Held.
    Held,
    /// Held, and the datagram is complete.
    Whole,
    /// The same bytes have arrived before.
    Duplicate(Packet),
    /// The datagram must be rejected.
    Rejected(Packet, DropReason),
}

/// The fragments that have arrived, by offset, without overlap.
#[derive(Debug, Default)]
pub(super) struct Datagram {
    pieces: Vec<Piece>,
    /// Bytes that have arrived.
    present: u32,
    /// Length of the datagram, if its last fragment has arrived.
    total: Option<u32>,
}

impl Datagram {
    /// Adds a fragment, unless it contradicts the others. `limit`: most fragments.
    pub(super) fn add(&mut self, fragment: Fragment, extent: Extent, limit: usize) -> Added {
        let at = self.pieces.partition_point(|piece| piece.extent.start < extent.start);
        if let Some(same) = self.pieces.get(at).filter(|piece| piece.extent == extent) {
            // Networks duplicate packets, so an identical fragment is not an attack. Different data at the same offset
            // is an attack (RFC 3128, RFC 5722).
            return match same.data() == data(&fragment, &extent) {
                true => Added::Duplicate(fragment.packet),
                false => Added::Rejected(fragment.packet, DropReason::FragmentOverlap),
            };
        }
        if self.contradicts(&extent, at) {
            return Added::Rejected(fragment.packet, DropReason::FragmentOverlap);
        }
        if self.pieces.len() >= limit {
            return Added::Rejected(fragment.packet, DropReason::FragmentLimit);
        }
        if !extent.more {
            self.total = Some(extent.end);
        }
        self.present += extent.end - extent.start;
        self.pieces.insert(at, Piece { extent, fragment });
        if self.total == Some(self.present) { Added::Whole } else { Added::Held }
    }

    /// Whether a fragment to be inserted before piece `at` overlaps another, exceeds the known end, or
    /// changes it.
    fn contradicts(&self, extent: &Extent, at: usize) -> bool {
        let before = at.checked_sub(1).and_then(|before| self.pieces.get(before));
        let overlaps = before.is_some_and(|piece| piece.extent.end > extent.start)
            || self.pieces.get(at).is_some_and(|piece| piece.extent.start < extent.end);
        let last = self.pieces.last().map_or(0, |piece| piece.extent.end);
        let contradicts_end = match self.total {
            Some(total) => extent.end > total || !extent.more,
            None => !extent.more && extent.end < last,
        };
        overlaps || contradicts_end
    }

    /// Releases all pieces, in order; returns their number.
    pub(super) fn release(&mut self, out: &mut Vec<Fragment>) -> usize {
        let count = self.pieces.len();
        out.extend(self.pieces.drain(..).map(|piece| piece.fragment));
        count
    }

    /// Drops all pieces; returns their number.
    pub(super) fn drop_all(&mut self, reason: DropReason, out: &mut Released) -> usize {
        let count = self.pieces.len();
        out.dropped.extend(self.pieces.drain(..).map(|piece| (piece.fragment.packet, reason)));
        count
    }
}
