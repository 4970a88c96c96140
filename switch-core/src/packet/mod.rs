//! Packets: a buffer with headroom, the frame in it, and the offload metadata that travels with
//! it. Handled by one worker at a time; nothing here is shared.

mod batch;
mod finish;
mod fragment;
mod gro;
mod gso;
mod layout;
mod offload;
mod pool;
#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests;

pub use batch::{BATCH, Batch};
pub use finish::{CutError, finish_checksum, fit, is_fit, largest_l3};
pub use fragment::fragment_v4;
pub use gro::{GroRun, coalesce};
pub use gso::{TunnelOffsets, TunnelSegments, segment, tunnel_offsets};
pub use offload::{GsoType, Offload, Offloads};
pub use pool::{Pool, PoolConfig, SizeClass};

use core::fmt;
use core::ops::{Deref, DerefMut};

use podswitch_vxlan::vtep::EndIndex;

use crate::id::PortId;

/// Bytes free in front of a received frame: outer IPv6 + UDP + VXLAN + two VLAN tags is 86,
/// and the virtio-net header that TAP and AF_PACKET want in front is at most 24.
pub const HEADROOM: usize = 128;

/// The longest frame: a 64 KiB IP packet behind Ethernet and two VLAN tags.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

/// Where a packet comes from, for the sum received = forwarded + consumed + dropped, in which
/// only received frames count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Origin {
    /// A port received it.
    #[default]
    Received,
    /// The switch made it: an ARP answer, an ICMP error.
    Originated,
    /// A further copy of a frame that is counted already: flooding, fragmenting.
    Copy,
}

/// A frame in its buffer. Dropping it frees the buffer; giving it back to a [`Pool`] keeps the
/// buffer for the next frame.
///
/// A packet passes through many hands (burst, queue, pool), so it is one pointer; what is known
/// about the frame stands in the [`Meta`] that it dereferences to.
pub struct Packet(Box<Meta>);

/// What is known about a frame beside its bytes. One cache line, so that whoever asks for one
/// thing has all.
#[repr(align(64))]
pub struct Meta {
    buf: Box<[u8]>,
    head: u32,
    len: u32,
    /// Where a received frame begins: behind the headroom, on a cache line.
    start: u32,
    /// How far a frame may reach.
    end: u32,
    /// For whoever receives it to recognise it by; the engine hands it on untouched.
    pub mark: u32,
    /// Offload metadata: unfinished checksum, GSO.
    pub offload: Offload,
    /// The port that the frame came in by.
    pub ingress: PortId,
    /// Received, made here, or a copy.
    pub origin: Origin,
    /// The tunnel end that it came from, plus one; zero: it came through none.
    via: u16,
}

const _: () = assert!(size_of::<Packet>() == 8 && size_of::<Meta>() == ALIGN);

/// Received frames begin on a multiple of this: a cache line, so that a small packet's headers
/// are in one.
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
            offload: Offload::default(),
            ingress: PortId::default(),
            origin: Origin::Received,
            via: 0,
        }))
    }

    /// A packet that holds a copy of `frame`, outside any pool.
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

    /// The frame, to be written.
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

    /// Whether there is no frame.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes free in front of the frame.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.head as usize + HEADROOM - self.start as usize
    }

    /// Bytes that the frame may grow to without moving its start.
    #[inline]
    pub fn capacity(&self) -> usize {
        (self.end - self.head) as usize
    }

    /// Everything from the frame's start to the buffer's end, for a receiver to fill; follow
    /// with [`set_len`](Self::set_len).
    #[inline]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let (head, end) = (self.head as usize, self.end as usize);
        &mut self.buf[head..end]
    }

    /// Sets the frame's length; new bytes are whatever the buffer held.
    ///
    /// # Panics
    /// If `len` exceeds [`capacity`](Self::capacity).
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "frame longer than its buffer");
        self.len = len as u32;
    }

    /// Makes the frame a copy of `frame`.
    ///
    /// # Panics
    /// If `frame` is longer than [`capacity`](Self::capacity).
    #[inline]
    pub fn fill(&mut self, frame: &[u8]) {
        self.spare_mut()[..frame.len()].copy_from_slice(frame);
        self.len = frame.len() as u32;
    }

    /// So many bytes are copied as fast as fewer.
    pub(crate) const LINE: usize = 64;

    /// Makes the frame a copy of the first `len` of `bytes`. Those behind it may be copied, too: a
    /// short frame is a few moves then instead of a call.
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
            // By way of numbers: a copy the compiler would join with the other one's call.
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

    /// Makes the frame the concatenation of `parts`. Panics if it is longer than the capacity.
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

    /// Takes over whence `whole` came: this packet is the `first` or a later piece of it.
    #[inline]
    fn inherit(&mut self, whole: &Packet, first: bool) {
        self.ingress = whole.ingress;
        self.via = whole.via;
        self.mark = whole.mark;
        self.origin = if first { whole.origin } else { Origin::Copy };
    }

    /// The tunnel end that the frame came from, if it came through a tunnel.
    #[inline]
    pub fn via(&self) -> Option<EndIndex> {
        self.via.checked_sub(1).map(|index| EndIndex(index.into()))
    }

    /// Notes the tunnel end that the frame came from. Those beyond 65,534 are none.
    #[inline]
    pub fn set_via(&mut self, end: Option<EndIndex>) {
        self.via = end.and_then(|end| u16::try_from(end.0 + 1).ok()).unwrap_or(0);
    }

    /// Moves the frame's start `n` bytes forward into the headroom and returns the new bytes.
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

    /// Drops `n` bytes from the frame's start; they become headroom.
    ///
    /// # Panics
    /// If the frame is shorter than `n`.
    #[inline]
    pub fn pull_front(&mut self, n: usize) {
        assert!(n <= self.len(), "frame shorter than what is pulled");
        self.head += n as u32;
        self.len -= n as u32;
    }

    /// Cuts the frame to its first `len` bytes; longer than it is changes nothing.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u32);
    }

    /// Empties the packet for the next frame.
    #[inline]
    pub fn reset(&mut self) {
        self.head = self.start;
        self.len = 0;
        self.offload = Offload::default();
        self.origin = Origin::Received;
        self.via = 0;
        self.mark = 0;
    }

    /// Length of the whole buffer, headroom included.
    #[inline]
    pub fn buffer_len(&self) -> usize {
        self.buf.len() - ALIGN
    }
}
