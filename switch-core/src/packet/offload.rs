//! virtio-net offload metadata (virtio 1.2 §5.1.6), carried with a frame from port to port.

/// How a super-frame is to be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[repr(u8)]
pub enum GsoType {
    /// An ordinary frame.
    #[default]
    None = 0,
    /// TCP over IPv4.
    TcpV4 = 1,
    /// TCP over IPv6.
    TcpV6 = 4,
    /// UDP datagrams of equal size (UDP segmentation offload), either family.
    UdpL4 = 5,
}

/// What the sender left to the hardware. All offsets count from the start of the frame and move
/// with it when headers are pushed or pulled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Offload {
    /// Segmentation wanted.
    pub gso_type: GsoType,
    /// TCP with ECN: CWR only on the first segment (VIRTIO_NET_HDR_GSO_ECN).
    pub ecn: bool,
    /// The layer-4 checksum field holds the pseudo-header sum only and must be finished from
    /// `csum_start` on ("CHECKSUM_PARTIAL").
    pub csum_partial: bool,
    /// The device checked the layer-4 checksum already (VIRTIO_NET_HDR_F_DATA_VALID).
    pub csum_valid: bool,
    /// Octets of payload in each segment.
    pub gso_size: u16,
    /// Octets of headers in front of the payload, as the sender said (a hint).
    pub hdr_len: u16,
    /// Where the checksum starts.
    pub csum_start: u16,
    /// Where the checksum field stands, from `csum_start`.
    pub csum_offset: u16,
}

impl Offload {
    /// Whether the frame is a super-frame that stands for several packets.
    #[inline]
    pub const fn is_gso(&self) -> bool {
        !matches!(self.gso_type, GsoType::None)
    }

    /// Moves the offsets by `delta` octets: positive when a header was pushed in front.
    #[inline]
    pub fn shift(&mut self, delta: i32) {
        if self.csum_partial {
            self.csum_start = (i32::from(self.csum_start) + delta) as u16;
        }
        if self.hdr_len != 0 {
            self.hdr_len = (i32::from(self.hdr_len) + delta) as u16;
        }
    }
}
