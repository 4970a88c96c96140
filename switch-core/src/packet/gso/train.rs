//! A tunnelled super-frame as a train of datagrams: the headers of each written once, the payload
//! left where it is. For a way out that gathers, and lets the kernel cut by length alone.

use core::ops::Range;

use wire::checksum::{Sum, sum};

use super::{Place, put_be16};
use crate::action::DropReason;
use crate::packet::layout::{Layout, Link, be16};
use crate::packet::{GsoType, Offload, Packet};

/// Where the parts of the datagrams are. The first datagram is the first `head_len` octets of
/// `heads` and the first `size` octets of `payload`, and so on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Train {
    /// The headers in front of each datagram's payload, one behind the other: where they begin in
    /// what [`train`] wrote to.
    pub(crate) heads: usize,
    /// Octets of headers of one datagram.
    pub(crate) head_len: usize,
    /// Payload of all datagrams, in the super-frame.
    pub(crate) payload: Range<usize>,
    /// Octets of payload in each datagram but the last.
    pub(crate) size: usize,
}

impl Train {
    /// How many datagrams there are.
    pub(crate) fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }
}

/// Appends to `heads` the headers of every datagram that the super-frame `packet` stands for, from
/// the tunnel's own header behind UDP's on, every checksum inside finished.
///
/// # Errors
/// The metadata contradicts the frame, or it is no tunnelled super-frame
/// ([`DropReason::OffloadInvalid`], [`DropReason::GsoUnsupported`]); nothing was appended.
pub(crate) fn train(packet: &Packet, heads: &mut Vec<u8>) -> Result<Train, DropReason> {
    let (frame, offload) = (packet.bytes(), &packet.offload);
    let layout = Layout::of(frame, offload)?;
    let (_, udp) = layout.outer.ok_or(DropReason::OffloadInvalid)?;
    let from = udp + 8;
    let train = Train {
        heads: heads.len(),
        head_len: layout.payload - from,
        payload: layout.payload..layout.end,
        size: usize::from(offload.gso_size),
    };
    let count = train.count();
    if count > Offload::MAX_SEGMENTS {
        return Err(DropReason::OffloadInvalid);
    }
    let shifted = Layout {
        ip: Link { l3: layout.ip.l3 - from, ..layout.ip },
        outer: None,
        l4: layout.l4 - from,
        payload: layout.payload - from,
        end: layout.end - from,
    };
    heads.reserve(count * train.head_len);
    for index in 0..count {
        let at = heads.len();
        heads.extend_from_slice(&frame[from..layout.payload]);
        let start = layout.payload + index * train.size;
        let payload = &frame[start..(start + train.size).min(layout.end)];
        let place = Place { index, last: index + 1 == count, finish: true };
        place.rewrite_head(&mut heads[at..], payload, &shifted, offload);
    }
    Ok(train)
}

impl Place {
    /// Makes copied headers those of this segment, whose payload stands elsewhere.
    fn rewrite_head(self, head: &mut [u8], payload: &[u8], layout: &Layout, whole: &Offload) {
        let l4 = layout.l4;
        let length = head.len() + payload.len();
        if whole.gso_type == GsoType::UdpL4 {
            put_be16(head, l4 + 4, (length - l4) as u16);
        } else {
            self.rewrite_tcp(head, l4, whole);
        }
        self.rewrite_ip(head, layout.ip, length - layout.ip.l3);
        // As for whole segments: only the length in the pseudo-header differs. Headers are even.
        let field = l4 + usize::from(whole.csum_offset);
        let pseudo = Sum::word(be16(head, field))
            + Sum::word(!((layout.end - l4) as u16))
            + Sum::word((length - l4) as u16);
        put_be16(head, field, pseudo.fold());
        let checksum = match (sum(&head[l4..]) + sum(payload)).checksum() {
            0 => 0xffff,
            checksum => checksum,
        };
        put_be16(head, field, checksum);
    }
}
