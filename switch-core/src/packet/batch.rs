//! A burst of packets: the packets that one call of a port receives or transmits.

use arrayvec::ArrayVec;

use super::Packet;

/// The maximum number of packets in a burst (DESIGN §3: the second pass over a burst hides memory
/// latency).
pub const BATCH: usize = 64;

/// Up to [`BATCH`] packets, in order.
pub type Batch = ArrayVec<Packet, BATCH>;
