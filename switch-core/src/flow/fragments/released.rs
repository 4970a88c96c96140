//! The input and the output of the store.

use podswitch_wire::parse::Parsed;

use crate::action::DropReason;
use crate::packet::Packet;

/// A fragment and its parsed headers.
#[derive(Debug)]
pub struct Fragment {
    /// The packet.
    pub packet: Packet,
    /// Its parsed headers.
    pub parsed: Parsed,
}

/// The packets that the store returns; reused by the caller, which empties it after each call.
#[derive(Debug, Default)]
pub struct Released {
    /// All fragments of one complete datagram, by offset. The first contains the layer-4 header, and its
    /// flow key applies to all.
    pub whole: Vec<Fragment>,
    /// Fragments to be dropped, each with its reason.
    pub dropped: Vec<(Packet, DropReason)>,
}
