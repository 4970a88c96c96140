//! Packets: a buffer with headroom, the frame in it, and its offload metadata. Also the operations on
//! whole frames: segmentation, coalescing, fragmentation, checksums. A packet is owned by one worker
//! at a time; nothing here is shared.

mod batch;
mod checksum;
mod fit;
mod fragment;
mod gro;
mod gso;
mod layout;
mod offload;
mod pool;
#[cfg(any(test, feature = "testkit"))]
#[allow(missing_docs, reason = "for property tests")]
pub mod testkit;
#[cfg(test)]
mod tests;
mod udp_runs;

pub use batch::{BATCH, Batch};
pub use checksum::finish_checksum;
pub use fit::{fit, is_fit, largest_l3};
pub use fragment::fragment_v4;
pub use gro::{GroRun, coalesce};
pub use gso::{SegmentError, TunnelOffsets, TunnelSegments, segment, tunnel_offsets};
pub use layout::ip_end;
pub use offload::{GsoType, Offload, Offloads};
pub use pool::{Pool, PoolConfig, SizeClass};
pub use udp_runs::{MAX_HEADERS as MAX_UDP_HEADERS, UdpRun, UdpRuns};

use core::fmt;
use core::ops::{Deref, DerefMut};

use podswitch_vxlan::vtep::VtepIndex;

use crate::id::PortId;

/// Bytes reserved in front of a received frame. Outer IPv6, UDP, VXLAN and two VLAN tags take 86, and
/// the virtio-net header of TAP and AF_PACKET takes at most 24.
pub const HEADROOM: usize = 128;

/// Length of the longest frame: a 64 KiB IP packet with Ethernet header and two VLAN tags.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

/// The origin of a packet. Only received packets count in received = forwarded + consumed +
/// dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Origin {
    /// A port received it.
    #[default]
    Received,
    /// The switch created it: an ARP reply, an ICMP error.
    Originated,
    /// A copy of a frame that is counted already: flooding, fragmentation.
    Copy,
}

/// A frame in its buffer. Dropping it frees the buffer; returning it to a [`Pool`] keeps the buffer
/// for the next frame.
///
/// A packet is moved often (burst, queue, pool), so it is one pointer. It dereferences to [`Meta`],
/// which describes the frame.
pub struct Packet(Box<Meta>);

/// Metadata of a frame. One cache line.
#[repr(align(64))]
pub struct Meta {
    buf: Box<[u8]>,
    head: u32,
    len: u32,
    /// Start of a received frame: behind the headroom, on a cache line.
    start: u32,
    /// End of the space for a frame.
    end: u32,
    /// A mark that the receiving port may set, to recognise the frame. The engine does not change it.
    pub mark: u32,
    /// Identifies the frame in a running [capture](crate::capture); 0: it has not been tagged.
    pub(crate) tag: u32,
    /// Offload metadata: partial checksum, GSO.
    pub offload: Offload,
    /// The port that the frame was received on.
    pub ingress: PortId,
    /// Received, originated by the switch, or a copy.
    pub origin: Origin,
    /// VTEP that it came from, plus one; 0 if it did not come through the tunnel.
    via: u16,
}

const _: () = assert!(size_of::<Packet>() == 8 && size_of::<Meta>() == ALIGN);

/// Alignment of received frames: a cache line, which then contains all headers of most packets.
const ALIGN: usize = 64;

impl Deref for Packet {
    type Target = Meta;

    #[inline]
    fn deref(&self) -> &Meta {
        &self.0
    }
}

impl DerefMut for Packet {
    #[inline]
    fn deref_mut(&mut self) -> &mut Meta {
        &mut self.0
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packet")
            .field("len", &self.len)
            .field("headroom", &self.headroom())
            .field("offload", &self.offload)
            .field("ingress", &self.ingress)
            .field("origin", &self.origin)
            .field("mark", &self.mark)
            .finish_non_exhaustive()
    }
}

impl Packet {
    /// An empty packet in a fresh buffer of `capacity` bytes behind the usual headroom.
    pub fn with_capacity(capacity: usize) -> Self {
        let buf = vec![0; HEADROOM + capacity + ALIGN].into_boxed_slice();
        let start = HEADROOM + (buf.as_ptr().addr() + HEADROOM).wrapping_neg() % ALIGN;
        Self(Box::new(Meta {
            buf,
            head: start as u32,
            len: 0,
            start: start as u32,
            end: (start + capacity) as u32,
            mark: 0,
            tag: 0,
            offload: Offload::default(),
            ingress: PortId::default(),
            origin: Origin::Received,
            via: 0,
        }))
    }

    /// A packet with a copy of `frame`, in a buffer of its own.
    pub fn from_frame(frame: &[u8]) -> Self {
        let mut packet = Self::with_capacity(frame.len());
        packet.fill(frame);
        packet
    }

    /// The frame.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let (head, len) = (self.head as usize, self.len as usize);
        &self.buf[head..head + len]
    }

    /// The frame, mutable.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let (head, len) = (self.head as usize, self.len as usize);
        &mut self.buf[head..head + len]
    }

    /// Length of the frame in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the frame is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes free in front of the frame.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.head as usize + HEADROOM - self.start as usize
    }

    /// Largest length of the frame without moving its start.
    #[inline]
    pub fn capacity(&self) -> usize {
        (self.end - self.head) as usize
    }

    /// The buffer from the frame's start to its end, for a receiver to fill. To be followed by
    /// [`set_len`](Self::set_len).
    #[inline]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let (head, end) = (self.head as usize, self.end as usize);
        &mut self.buf[head..end]
    }

    /// Sets the length of the frame. Added bytes have arbitrary values.
    ///
    /// # Panics
    /// If `len` exceeds [`capacity`](Self::capacity).
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "frame longer than its buffer");
        self.len = len as u32;
    }

    /// Replaces the frame with a copy of `frame`.
    ///
    /// # Panics
    /// If `frame` is longer than [`capacity`](Self::capacity).
    #[inline]
    pub fn fill(&mut self, frame: &[u8]) {
        self.spare_mut()[..frame.len()].copy_from_slice(frame);
        self.len = frame.len() as u32;
    }

    /// [`fill_from`](Self::fill_from) copies up to this length as fast as any shorter one.
    pub(crate) const LINE: usize = 64;

    /// Replaces the frame with a copy of the first `len` bytes of `bytes`. Bytes behind them may be
    /// copied as well, so that a short frame takes a few moves instead of a call.
    ///
    /// # Panics
    /// If there are fewer bytes than `len`, or it exceeds [`capacity`](Self::capacity).
    #[inline]
    pub(crate) fn fill_from(&mut self, bytes: &[u8], len: usize) {
        let spare = self.spare_mut();
        if len <= Self::LINE
            && let Some(to) = spare.first_chunk_mut::<{ Self::LINE }>()
            && let Some(from) = bytes.first_chunk::<{ Self::LINE }>()
        {
            // Copies integers: the compiler would merge a byte copy with the call below.
            let (to, from) = (to.as_chunks_mut::<16>().0, from.as_chunks::<16>().0);
            let words = [0, 1, 2, 3].map(|i| u128::from_ne_bytes(from[i]));
            for i in 0..4 {
                to[i] = words[i].to_ne_bytes();
            }
        } else {
            spare[..len].copy_from_slice(&bytes[..len]);
        }
        self.len = len as u32;
    }

    /// Replaces the frame with the concatenation of `parts`. Panics if it exceeds the capacity.
    #[inline]
    fn fill_parts<const N: usize>(&mut self, parts: [&[u8]; N]) {
        let mut at = 0;
        let spare = self.spare_mut();
        for part in parts {
            spare[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.len = at as u32;
    }

    /// Inherits the ingress metadata of `whole`. `first`: this packet is its first piece.
    #[inline]
    fn inherit(&mut self, whole: &Packet, first: bool) {
        self.ingress = whole.ingress;
        self.via = whole.via;
        self.mark = whole.mark;
        self.tag = whole.tag;
        self.origin = if first { whole.origin } else { Origin::Copy };
    }

    /// The VTEP that the frame came from, if it came through the tunnel.
    #[inline]
    pub fn via(&self) -> Option<VtepIndex> {
        self.via.checked_sub(1).map(|index| VtepIndex(index.into()))
    }

    /// Sets the VTEP that the frame came from. Indices above 65,534 are not representable and set none.
    #[inline]
    pub fn set_via(&mut self, end: Option<VtepIndex>) {
        self.via = end.and_then(|end| u16::try_from(end.0 + 1).ok()).unwrap_or(0);
    }

    /// Extends the frame by `n` bytes into the headroom, and returns the new bytes.
    ///
    /// # Panics
    /// If there is less headroom than `n`.
    #[inline]
    pub fn push_front(&mut self, n: usize) -> &mut [u8] {
        assert!(n <= self.headroom(), "headroom exhausted");
        self.head -= n as u32;
        self.len += n as u32;
        &mut self.bytes_mut()[..n]
    }

    /// Removes `n` bytes from the start of the frame; they become headroom.
    ///
    /// # Panics
    /// If the frame is shorter than `n`.
    #[inline]
    pub fn pull_front(&mut self, n: usize) {
        assert!(n <= self.len(), "frame shorter than the bytes to remove");
        self.head += n as u32;
        self.len -= n as u32;
    }

    /// Truncates the frame to at most `len` bytes.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u32);
    }

    /// Resets the packet for the next frame.
    #[inline]
    pub fn reset(&mut self) {
        self.head = self.start;
        self.len = 0;
        self.offload = Offload::default();
        self.origin = Origin::Received;
        self.via = 0;
        self.mark = 0;
        self.tag = 0;
    }

    /// Length of the whole buffer, headroom included.
    #[inline]
    pub fn buffer_len(&self) -> usize {
        self.buf.len() - ALIGN
    }
}
