//! The virtio-net header (virtio 1.2 §5.1.6), which TAP devices and AF_PACKET sockets put in front
//! of a frame: the work that the sender left to offloads.
//!
//! Kernel ports call this for every frame, on their worker's thread. The bytes are untrusted: a pod
//! with a packet socket controls them. [`decode`] checks them against the frame; [`Offload::check`]
//! compares the offsets with the parsed packet.
//!
//! Both users of this header pass it in native byte order (a TAP unless TUNSETVNETLE/BE is set).

use podswitch_core::action::DropReason;
use podswitch_core::packet::{GsoType, Offload, TunnelOffsets};

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is partial.
const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID: the checksum is verified.
const DATA_VALID: u8 = 2;
/// VIRTIO_NET_HDR_GSO_ECN, a bit beside the GSO type.
const GSO_ECN: u8 = 0x80;

/// Length of the Ethernet header; no checksum starts inside it.
const ETHERNET: usize = 14;

/// The form of the header. The fields used here are the same in all forms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HeaderForm {
    /// 10 bytes: `virtio_net_hdr`, which AF_PACKET uses.
    Legacy,
    /// 12 bytes: `virtio_net_hdr_v1`, with a buffer count that a TAP ignores.
    #[default]
    V1,
    /// 24 bytes: `virtio_net_hdr_v1_hash_tunnel` (Linux 6.17). [`encode`] writes its tunnel fields
    /// as zero; tunnel segmentation is not accepted.
    Tunnel,
}

impl HeaderForm {
    /// The longest form, in bytes.
    pub const MAX_LEN: usize = 24;

    /// Length in bytes.
    #[inline]
    pub const fn len(self) -> usize {
        match self {
            Self::Legacy => 10,
            Self::V1 => 12,
            Self::Tunnel => 24,
        }
    }

    /// No form is empty.
    #[inline]
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// The error in a virtio-net header. The frame behind it is dropped with
/// [`DropReason::OffloadInvalid`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// Fewer bytes than the header has.
    #[error("virtio-net header truncated")]
    Truncated,
    /// A kind of segmentation that was not negotiated: UFO, tunnels, or an unknown one.
    #[error("unknown kind of segmentation {0:#04x}")]
    GsoType(u8),
    /// The checksum field lies outside the frame, or in its Ethernet header.
    #[error("checksum field outside the frame")]
    ChecksumOffset,
    /// Segmentation without a partial checksum, or with one at another offset than the protocol's.
    #[error("segmentation without the partial checksum of the protocol")]
    GsoChecksum,
    /// Segments of no bytes, or more than [`Offload::MAX_SEGMENTS`].
    #[error("segments of impossible size")]
    GsoSize,
    /// The headers of a GSO packet do not fit in it.
    #[error("headers longer than the GSO packet")]
    GsoHeader,
}

impl From<HeaderError> for DropReason {
    fn from(_: HeaderError) -> Self {
        Self::OffloadInvalid
    }
}

/// Reads the first ten bytes of `header`, with which every form begins, and checks them against the
/// `frame`. `Offload::hdr_len` of a GSO packet is set to the real length of its headers, because
/// senders may write any value there.
///
/// # Errors
/// [`HeaderError`] if the header contradicts the frame.
#[inline]
pub fn decode(header: &[u8], frame: &[u8]) -> Result<Offload, HeaderError> {
    let header: &[u8; 10] = header.first_chunk().ok_or(HeaderError::Truncated)?;
    // The common case, a frame without offloads, costs one comparison.
    if header[0] & NEEDS_CSUM == 0 && header[1] == 0 {
        return Ok(Offload { csum_valid: header[0] & DATA_VALID != 0, ..Offload::default() });
    }
    decode_unfinished(header, frame)
}

fn decode_unfinished(header: &[u8; 10], frame: &[u8]) -> Result<Offload, HeaderError> {
    let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let gso_type = gso_type(header[1])?;
    if header[0] & NEEDS_CSUM == 0 {
        // `decode` has returned for frames without offloads: this is segmentation alone.
        return Err(HeaderError::GsoChecksum);
    }
    let mut offload = Offload {
        csum_partial: true,
        csum_start: field(6),
        csum_offset: field(8),
        ..Offload::default()
    };
    let (start, offset) = (usize::from(offload.csum_start), usize::from(offload.csum_offset));
    if start < ETHERNET || start + offset + 2 > frame.len() {
        return Err(HeaderError::ChecksumOffset);
    }
    if gso_type == GsoType::None {
        return Ok(offload);
    }
    offload.gso_type = gso_type;
    offload.ecn = header[1] & GSO_ECN != 0;
    offload.gso_size = field(4);
    let headers = gso_headers(&offload, frame)?;
    offload.hdr_len = u16::try_from(headers).map_err(|_| HeaderError::GsoHeader)?;
    let payload = frame.len() - headers;
    let size = usize::from(offload.gso_size);
    if size == 0 || payload.div_ceil(size) > Offload::MAX_SEGMENTS {
        return Err(HeaderError::GsoSize);
    }
    Ok(offload)
}

fn gso_type(byte: u8) -> Result<GsoType, HeaderError> {
    match byte & !GSO_ECN {
        0 if byte == 0 => Ok(GsoType::None),
        1 => Ok(GsoType::TcpV4),
        4 => Ok(GsoType::TcpV6),
        5 if byte & GSO_ECN == 0 => Ok(GsoType::UdpL4),
        _ => Err(HeaderError::GsoType(byte)),
    }
}

/// Bytes before a GSO packet's payload.
fn gso_headers(offload: &Offload, frame: &[u8]) -> Result<usize, HeaderError> {
    let start = usize::from(offload.csum_start);
    let (field, l4) = match offload.gso_type {
        GsoType::None => (offload.csum_offset, 0),
        GsoType::TcpV4 | GsoType::TcpV6 => {
            let byte = frame.get(start + 12).ok_or(HeaderError::GsoHeader)?;
            (16, usize::from(byte >> 4) * 4)
        }
        GsoType::UdpL4 => (6, 8),
    };
    let shortest = if field == 16 { 20 } else { 8 };
    if offload.csum_offset != field {
        return Err(HeaderError::GsoChecksum);
    }
    if l4 < shortest || start + l4 > frame.len() {
        return Err(HeaderError::GsoHeader);
    }
    Ok(start + l4)
}

/// Writes the header that goes in front of a frame to be sent. VIRTIO_NET_HDR_F_DATA_VALID is
/// for receivers (virtio 1.2 §5.1.6.2.1) and is not written.
///
/// # Panics
/// If `out` is shorter than the form.
#[inline]
pub fn encode(offload: &Offload, form: HeaderForm, out: &mut [u8]) {
    let out = &mut out[..form.len()];
    out.fill(0);
    if !offload.csum_partial {
        return;
    }
    out[0] = NEEDS_CSUM;
    out[6..8].copy_from_slice(&offload.csum_start.to_ne_bytes());
    out[8..10].copy_from_slice(&offload.csum_offset.to_ne_bytes());
    if offload.is_gso() {
        out[1] = offload.gso_type as u8 | if offload.ecn { GSO_ECN } else { 0 };
        out[2..4].copy_from_slice(&offload.hdr_len.to_ne_bytes());
        out[4..6].copy_from_slice(&offload.gso_size.to_ne_bytes());
    }
}

/// Marks the GSO packet of an encoded header of form [`HeaderForm::Tunnel`] as tunnelled over UDP
/// (`struct virtio_net_hdr_v1_hash_tunnel`, Linux 6.17; its fields are little-endian).
pub(crate) fn encode_tunnel(places: &TunnelOffsets, out: &mut [u8; HeaderForm::MAX_LEN]) {
    const UDP_TUNNEL_CSUM: u8 = 8;
    const GSO_UDP_TUNNEL_IPV4: u8 = 0x20;
    const GSO_UDP_TUNNEL_IPV6: u8 = 0x40;
    out[1] |= if places.v4 { GSO_UDP_TUNNEL_IPV4 } else { GSO_UDP_TUNNEL_IPV6 };
    if places.is_summed {
        out[0] |= UDP_TUNNEL_CSUM;
    }
    out[20..22].copy_from_slice(&places.udp.to_le_bytes());
    out[22..24].copy_from_slice(&places.inner.to_le_bytes());
}

#[cfg(test)]
mod tests;
