//! Whether one read of a tunnel's UDP socket returned one datagram or several. This is the only place
//! that decides it, for buffers of every size.

use podswitch_core::packet::ip_end;

/// Bytes of a VXLAN header.
pub(super) const VXLAN: usize = podswitch_vxlan::header::LEN;

/// The result of one read of a socket with `UDP_GRO`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Received {
    /// One datagram.
    Datagram,
    /// One datagram with a GSO packet inside, to be segmented by this many bytes of payload.
    Gso(usize),
    /// Several datagrams of this many bytes each; the last one may be shorter.
    Joined(usize),
    /// Neither: the inner IP length contradicts the segment size.
    Inconsistent,
}

impl Received {
    /// Decides from the bytes read, VXLAN header first, and the segment size in the kernel's
    /// `UDP_GRO` control message (zero: there was none).
    ///
    /// The kernel reports `gso_size` whenever `SKB_GSO_UDP_L4` is set (`udp_cmsg_recv`), which is
    /// the case for two kinds of packets that it does not tell apart:
    ///
    /// * datagrams that it merged (GRO), or that a sender on this machine passed as one buffer
    ///   (`UDP_SEGMENT`). `gso_size` is the length of each datagram;
    /// * one datagram with a UDP GSO packet inside, from a VXLAN device or an [injector] on this
    ///   machine. `gso_size` is the payload of each *inner* segment.
    ///
    /// Only the inner IP length tells them apart: a GSO packet ends where the datagram ends, and
    /// the packet in the first of several datagrams ends within that datagram. Both kinds of sender
    /// ensure that this length is right: Linux trims routed packets to it (`ip_rcv_core`,
    /// `ip6_rcv_core`), the engine does the same, and an injector refuses everything else. A pod
    /// controls the bytes behind it, so these prove nothing: a forged tunnel packet may be at any
    /// position.
    ///
    /// [injector]: crate::port::injector::Injector::send
    pub(super) fn of(bytes: &[u8], segment: usize) -> Self {
        if segment == 0 || segment >= bytes.len() {
            return Self::Datagram;
        }
        let inner_end = bytes.get(VXLAN..).and_then(ip_end).map(|end| VXLAN + end);
        match inner_end {
            Some(end) if end == bytes.len() => Self::Gso(segment),
            // Splitting here could make two packets out of one.
            Some(end) if end > segment => Self::Inconsistent,
            _ => Self::Joined(segment),
        }
    }
}
