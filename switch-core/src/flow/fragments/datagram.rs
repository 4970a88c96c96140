//! One datagram in the making: which bytes of it are there.

use podswitch_wire::parse::{Fragment as Place, Network, Parsed};

use super::{Fragment, Released};
use crate::action::DropReason;
use crate::packet::Packet;

/// What a held fragment costs in bytes: its buffer and the record about it.
pub(super) fn cost(packet: &Packet) -> usize {
    packet.buffer_len() + size_of::<Piece>()
}

/// The bytes of the datagram's payload that a fragment carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub(super) start: u32,
    pub(super) end: u32,
    /// Where they stand in the frame.
    pub(super) data: u32,
    /// Whether more fragments follow it.
    pub(super) more: bool,
}

impl Extent {
    /// Read from the frame. `None` if it is no fragment, or an empty one, which `parse` does
    /// not let pass.
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
            Place::First => 0,
            _ => u32::from(parsed.fragment_offset),
        };
        Some(Self { start, end: start + u32::try_from(len).ok()?, data: data as u32, more })
    }
}

/// Offset of the IPv6 fragment header. In a first fragment extension headers may follow it,
/// which belong to what was cut into fragments (RFC 8200 §4.5).
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

/// A fragment that is held.
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

/// What became of a fragment.
#[derive(Debug)]
pub(super) enum Added {
    /// Held.
    Held,
    /// Held, and nothing is missing now.
    Whole,
    /// The same bytes are there already.
    Duplicate(Packet),
    /// The datagram must be refused.
    Refused(Packet, DropReason),
}

/// The fragments that are there, in the order of their offsets, without overlap.
#[derive(Debug, Default)]
pub(super) struct Datagram {
    pieces: Vec<Piece>,
    /// Bytes that the pieces carry.
    present: u32,
    /// Length of the whole, once its last fragment is there.
    total: Option<u32>,
}

impl Datagram {
    /// Adds a fragment, unless it contradicts the others. `limit` is the most pieces.
    pub(super) fn add(&mut self, fragment: Fragment, extent: Extent, limit: usize) -> Added {
        let at = self.pieces.partition_point(|piece| piece.extent.start < extent.start);
        if let Some(same) = self.pieces.get(at).filter(|piece| piece.extent == extent) {
            // Networks duplicate packets: one that says the same twice is no attack. One that
            // says something else in the same place is (RFC 3128, RFC 5722).
            return match same.data() == data(&fragment, &extent) {
                true => Added::Duplicate(fragment.packet),
                false => Added::Refused(fragment.packet, DropReason::FragmentOverlap),
            };
        }
        if self.contradicts(&extent, at) {
            return Added::Refused(fragment.packet, DropReason::FragmentOverlap);
        }
        if self.pieces.len() >= limit {
            return Added::Refused(fragment.packet, DropReason::FragmentLimit);
        }
        if !extent.more {
            self.total = Some(extent.end);
        }
        self.present += extent.end - extent.start;
        self.pieces.insert(at, Piece { extent, fragment });
        if self.total == Some(self.present) { Added::Whole } else { Added::Held }
    }

    /// Whether a fragment that belongs before piece `at` overlaps another, lies beyond the end
    /// that is known, or moves that end.
    fn contradicts(&self, extent: &Extent, at: usize) -> bool {
        let before = at.checked_sub(1).and_then(|before| self.pieces.get(before));
        let overlaps = before.is_some_and(|piece| piece.extent.end > extent.start)
            || self.pieces.get(at).is_some_and(|piece| piece.extent.start < extent.end);
        let last = self.pieces.last().map_or(0, |piece| piece.extent.end);
        let misfit = match self.total {
            Some(total) => extent.end > total || !extent.more,
            None => !extent.more && extent.end < last,
        };
        overlaps || misfit
    }

    /// Lets all pieces go, in order; returns how many.
    pub(super) fn release(&mut self, out: &mut Vec<Fragment>) -> usize {
        let count = self.pieces.len();
        out.extend(self.pieces.drain(..).map(|piece| piece.fragment));
        count
    }

    /// Drops all pieces; returns how many.
    pub(super) fn drop_all(&mut self, reason: DropReason, out: &mut Released) -> usize {
        let count = self.pieces.len();
        out.dropped.extend(self.pieces.drain(..).map(|piece| (piece.fragment.packet, reason)));
        count
    }
}
