//! virtio-net offload metadata (virtio 1.2 §5.1.6), carried with a frame from port to port.

use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::{Fragment, Network, Parsed};

use crate::action::DropReason;

/// How a GSO packet is segmented.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[repr(u8)]
pub enum GsoType {
    /// Not a GSO packet.
    #[default]
    None = 0,
    /// TCP over IPv4.
    TcpV4 = 1,
    /// TCP over IPv6.
    TcpV6 = 4,
    /// UDP datagrams of equal size (UDP segmentation offload), either family.
    UdpL4 = 5,
}

/// The work that a port does itself on transmission.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offloads {
    /// Accepts frames with partial layer-4 checksums.
    pub checksum: bool,
    /// Segments TCP/IPv4 GSO packets (TSO).
    pub tso4: bool,
    /// Segments TCP/IPv6 GSO packets (TSO).
    pub tso6: bool,
    /// Segments UDP GSO packets (USO).
    pub uso: bool,
    /// Segments GSO packets of these kinds inside a UDP tunnel, too, at the inner header.
    pub tunnel: bool,
}

impl Offloads {
    /// Accepts every packet as it is.
    pub const ALL: Offloads =
        Offloads { checksum: true, tso4: true, tso6: true, uso: true, tunnel: true };
    /// Accepts only single packets with complete checksums.
    pub const NONE: Offloads =
        Offloads { checksum: false, tso4: false, tso6: false, uso: false, tunnel: false };
}

/// Offload metadata of a frame. All offsets are from the start of the frame, and are adjusted when
/// headers are added or removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Offload {
    /// Whether and how the frame is to be segmented.
    pub gso_type: GsoType,
    /// TCP with ECN: CWR only on the first segment (VIRTIO_NET_HDR_GSO_ECN).
    pub ecn: bool,
    /// The layer-4 checksum is partial: its field holds only the pseudo-header sum, and the sum from
    /// `csum_start` on must be added ("CHECKSUM_PARTIAL").
    pub csum_partial: bool,
    /// The device has verified the layer-4 checksum (VIRTIO_NET_HDR_F_DATA_VALID).
    pub csum_valid: bool,
    /// Bytes of payload in each segment.
    pub gso_size: u16,
    /// Bytes of headers before the payload, according to the sender (a hint).
    pub hdr_len: u16,
    /// Where the summed bytes begin.
    pub csum_start: u16,
    /// Offset of the checksum field from `csum_start`.
    pub csum_offset: u16,
}

impl Offload {
    /// Maximum number of segments of one GSO packet: limits the work that one received frame can cause. 64 KiB in
    /// segments of 48 bytes, the smallest size to which Linux lets a path MTU reduce TCP, are 1,366.
    pub const MAX_SEGMENTS: usize = 2048;

    /// Metadata that contradicts every frame and never passes [`check`](Self::check). For ports, which
    /// cannot drop a frame with a reason: the worker then does.
    pub const INVALID: Offload = Offload {
        gso_type: GsoType::TcpV4,
        ecn: false,
        csum_partial: false,
        csum_valid: false,
        gso_size: 0,
        hdr_len: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Checks the metadata against the parsed packet. Done once for each frame, before policy is
    /// evaluated: with an arbitrary offset a sender could make the switch write an address or port
    /// into the frame afterwards.
    ///
    /// A partial checksum must be that of the packet's own layer-4 header, or one within its payload;
    /// a fragment has none. A GSO packet must be segmented at its own TCP or UDP header, or at one
    /// inside a UDP tunnel, as the kernel marks the GSO packets of its VXLAN devices.
    ///
    /// # Errors
    /// [`DropReason::OffloadInvalid`].
    #[inline]
    pub fn check(&self, parsed: &Parsed) -> Result<(), DropReason> {
        if self.is_unfinished() {
            return self.check_unfinished(parsed);
        }
        Ok(())
    }

    /// Whether a port still has work to do: a partial checksum, or segmentation.
    #[inline]
    pub const fn is_unfinished(&self) -> bool {
        // Without a branch: nearly always neither is set.
        self.csum_partial | self.is_gso()
    }

    fn check_unfinished(&self, parsed: &Parsed) -> Result<(), DropReason> {
        let ip = matches!(parsed.network, Network::Ipv4 | Network::Ipv6);
        let end = u32::from(self.csum_start) + u32::from(self.csum_offset) + 2;
        let own = self.is_of(parsed);
        let inside = parsed.payload > parsed.l4 && self.csum_start >= parsed.payload;
        let sound = self.csum_partial
            && ip
            && parsed.fragment == Fragment::Whole
            && end <= parsed.end
            && (own || inside);
        let protocol = parsed.key.proto;
        let tunnel = inside && protocol == proto::UDP;
        let gso = match self.gso_type {
            GsoType::None => true,
            GsoType::TcpV4 => {
                tunnel || own && protocol == proto::TCP && parsed.network == Network::Ipv4
            }
            GsoType::TcpV6 => {
                tunnel || own && protocol == proto::TCP && parsed.network == Network::Ipv6
            }
            GsoType::UdpL4 => tunnel || own && protocol == proto::UDP,
        };
        let size = self.gso_type == GsoType::None || self.gso_size != 0;
        if sound && gso && size { Ok(()) } else { Err(DropReason::OffloadInvalid) }
    }

    /// Whether the partial checksum is that of the parsed packet's own layer-4 header.
    #[inline]
    pub fn is_of(&self, parsed: &Parsed) -> bool {
        let field = match parsed.key.proto {
            proto::TCP => 16,
            proto::UDP => 6,
            proto::SCTP => 8,
            proto::ICMP | proto::ICMPV6 => 2,
            _ => return false,
        };
        self.csum_partial && self.csum_start == parsed.l4 && self.csum_offset == field
    }

    /// Whether the partial checksum is a CRC32c and not an Internet checksum. Only SCTP's field is at
    /// offset 8; virtio has no other indication.
    #[inline]
    pub const fn is_crc32c(&self) -> bool {
        self.csum_partial && self.csum_offset == 8
    }

    /// Whether the frame is a GSO packet, which will be segmented into several packets.
    #[inline]
    pub const fn is_gso(&self) -> bool {
        !matches!(self.gso_type, GsoType::None)
    }

    /// Moves the offsets by `delta` bytes; positive if a header was added at the front.
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

#[cfg(test)]
mod tests {
    use super::*;
    use podswitch_wire::flow_key::FlowKey;

    fn parsed(network: Network, protocol: u8) -> Parsed {
        let l4: u16 = if network == Network::Ipv4 { 34 } else { 54 };
        Parsed {
            key: FlowKey { proto: protocol, ..FlowKey::default() },
            network,
            l4,
            payload: l4 + if protocol == proto::TCP { 20 } else { 8 },
            end: 1000,
            ..Parsed::default()
        }
    }

    fn partial(start: u16, offset: u16) -> Offload {
        Offload { csum_partial: true, csum_start: start, csum_offset: offset, ..Offload::default() }
    }

    #[test]
    fn a_checksum_must_be_the_packets_own_or_in_its_payload() {
        let tcp = parsed(Network::Ipv4, proto::TCP);
        assert_eq!(partial(34, 16).check(&tcp), Ok(()));
        assert!(partial(34, 16).is_of(&tcp));
        assert_eq!(partial(54, 6).check(&tcp), Ok(()), "in the payload");
        assert!(!partial(54, 6).is_of(&tcp));
        // Offsets at which a sum would overwrite the address (26), the ports (34) or the flags.
        for (start, offset) in [(14, 12), (34, 0), (34, 6), (33, 17), (50, 0), (990, 16)] {
            let got = partial(start, offset).check(&tcp);
            assert_eq!(got, Err(DropReason::OffloadInvalid), "{start}+{offset}");
        }
        assert_eq!(partial(54, 6).check(&parsed(Network::Ipv6, proto::UDP)), Ok(()));
        assert_eq!(partial(54, 8).check(&parsed(Network::Ipv6, proto::SCTP)), Ok(()));
        let unknown = Parsed { payload: 34, ..parsed(Network::Ipv4, 47) };
        assert_eq!(partial(38, 0).check(&unknown), Err(DropReason::OffloadInvalid));
        let arp = parsed(Network::Arp, proto::TCP);
        assert_eq!(partial(54, 16).check(&arp), Err(DropReason::OffloadInvalid));
        for fragment in [Fragment::First, Fragment::Later] {
            let tcp = Parsed { fragment, ..tcp };
            assert_eq!(partial(34, 16).check(&tcp), Err(DropReason::OffloadInvalid));
        }
        assert_eq!(Offload::default().check(&Parsed::default()), Ok(()));
    }

    #[test]
    fn segmentation_is_that_of_the_packets_protocol() {
        use GsoType::*;
        let gso =
            |gso_type, start, offset| Offload { gso_type, gso_size: 100, ..partial(start, offset) };
        let (v4, v6) = (Network::Ipv4, Network::Ipv6);
        assert_eq!(gso(TcpV4, 34, 16).check(&parsed(v4, proto::TCP)), Ok(()));
        assert_eq!(gso(TcpV6, 54, 16).check(&parsed(v6, proto::TCP)), Ok(()));
        assert_eq!(gso(UdpL4, 34, 6).check(&parsed(v4, proto::UDP)), Ok(()));
        assert_eq!(gso(UdpL4, 54, 6).check(&parsed(v6, proto::UDP)), Ok(()));
        assert_eq!(gso(TcpV4, 34 + 8 + 8 + 34, 16).check(&parsed(v4, proto::UDP)), Ok(()));
        let bad = [
            (gso(TcpV6, 34, 16), parsed(v4, proto::TCP)),
            (gso(TcpV4, 54, 16), parsed(v6, proto::TCP)),
            (gso(UdpL4, 34, 16), parsed(v4, proto::TCP)),
            (gso(TcpV4, 34, 6), parsed(v4, proto::UDP)),
            (gso(TcpV4, 60, 16), parsed(v4, proto::TCP)),
            (Offload { csum_partial: false, ..gso(TcpV4, 34, 16) }, parsed(v4, proto::TCP)),
            (Offload { gso_size: 0, ..gso(TcpV4, 34, 16) }, parsed(v4, proto::TCP)),
        ];
        for (offload, parsed) in bad {
            assert_eq!(offload.check(&parsed), Err(DropReason::OffloadInvalid), "{offload:?}");
        }
    }
}
