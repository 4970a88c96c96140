//! A burst of packets: what one call of a port moves.

use arrayvec::ArrayVec;

use super::Packet;

/// The most packets in a burst (DESIGN §3: the second pass over a burst hides memory latency).
pub const BATCH: usize = 64;

/// Up to [`BATCH`] packets, in order.
pub type Batch = ArrayVec<Packet, BATCH>;
