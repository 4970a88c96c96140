//! Encapsulation. The outer headers are built once, when tables are compiled. For each packet they
//! are copied into the headroom, and the few fields that depend on the packet are patched.
//!
//! The control plane builds [`Template`]s; workers call [`Template::encap`] on the packet path. It
//! never allocates, and knows frames only as byte slices.

use core::net::IpAddr;

use podswitch_wire::addr::Mac;
use podswitch_wire::checksum::{self, Sum};
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;

use crate::header::{self, Vni};

mod inner;
mod outer;

pub use inner::{InnerFacts, PartialChecksum, SourcePort};
pub use outer::{DontFragment, Dscp, Outer, PORT, PORT_FLANNEL, TemplateError, UdpChecksum};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;

/// Length of the longest outer headers: Ethernet, IPv6, UDP, VXLAN.
pub const MAX_LEN: usize = ETHERNET + IPV6 + UDP + header::LEN;

/// Bytes of the underlay's MTU that the tunnel uses: outer IP, UDP and VXLAN headers and the inner
/// Ethernet header. 50 over IPv4, 70 over IPv6.
pub const fn overhead(outer_is_ipv6: bool) -> usize {
    (if outer_is_ipv6 { IPV6 } else { IPV4 }) + UDP + header::LEN + ETHERNET
}

/// The largest inner network-layer packet that an underlay with `underlay_mtu` carries, in bytes;
/// zero if none fits.
pub const fn inner_mtu(underlay_mtu: usize, outer_is_ipv6: bool) -> usize {
    underlay_mtu.saturating_sub(overhead(outer_is_ipv6))
}

/// State of the outer UDP checksum after [`Template::encap`], for the offload metadata. A partial
/// checksum of the inner frame stays partial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OuterChecksum {
    /// Zero: none.
    None,
    /// Complete. Where the inner checksum is partial, the outer one is right once the inner one is
    /// completed (Linux: "local checksum offload").
    Complete,
    /// The field holds the pseudo-header sum, and the device must complete it.
    Partial(PartialChecksum),
}

/// Why a frame cannot be encapsulated. The frame is unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncapError {
    /// Fewer bytes than the outer headers need.
    #[error("no room for the outer headers")]
    Headroom,
    /// The outer length fields cannot express the length: the GSO packet must be segmented first.
    #[error("longer than 65535 bytes with the outer headers")]
    TooLong,
    /// The frame is tagged and the tunnel does not carry tags.
    #[error("the inner frame carries an 802.1Q tag")]
    InnerVlan,
    /// The partial checksum lies outside the frame.
    #[error("the partial inner checksum lies outside the frame")]
    Partial,
}

/// How a tunnel packet is sent through a UDP socket: the header in front of the frame within the
/// datagram, and the socket options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// The VXLAN header.
    pub header: [u8; header::LEN],
    /// Type of service or traffic class (IP_TOS, IPV6_TCLASS).
    pub traffic_class: u8,
    /// Set the "don't fragment" bit.
    pub dont_fragment: bool,
}

/// Outer headers of one tunnel, ready to be copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Template {
    bytes: [u8; MAX_LEN],
    len: u8,
    ipv6: bool,
    /// The bits of the inner traffic class that are copied to the outer one, and the fixed other
    /// bits.
    class_mask: u8,
    class: u8,
    /// Whether [`encap_fast`](Self::encap_fast) can be used.
    is_common: bool,
    /// Sum of the IPv4 header's words that do not depend on the packet.
    ip_sum: u16,
    /// Sum of the UDP pseudo-header's addresses and protocol, and of the UDP destination port: the
    /// part of the UDP checksum that does not depend on the packet. The length is added twice for
    /// each packet, once for the pseudo-header and once for the UDP header.
    pseudo_sum: u16,
    dscp: Dscp,
    dont_fragment: DontFragment,
    checksum: UdpChecksum,
    inner_vlan: bool,
}

impl Template {
    /// Builds the outer headers.
    ///
    /// # Errors
    /// [`TemplateError`] names the invalid field.
    pub fn new(outer: &Outer) -> Result<Self, TemplateError> {
        outer::check(outer)?;
        let mut bytes = [0; MAX_LEN];
        let mut at = 0;
        if let Some((source, destination)) = outer.ethernet {
            bytes[..6].copy_from_slice(&destination.0);
            bytes[6..12].copy_from_slice(&source.0);
            let ethertype = if outer.source.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
            bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
            at = ETHERNET;
        }
        let ip = at;
        match (outer.source, outer.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes[at] = 0x45;
                bytes[at + 8..at + 10].copy_from_slice(&[outer.ttl, proto::UDP]);
                bytes[at + 12..at + 16].copy_from_slice(&source.octets());
                bytes[at + 16..at + 20].copy_from_slice(&destination.octets());
                at += IPV4;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes[at] = 0x60;
                bytes[at + 6..at + 8].copy_from_slice(&[proto::UDP, outer.ttl]);
                bytes[at + 8..at + 24].copy_from_slice(&source.octets());
                bytes[at + 24..at + 40].copy_from_slice(&destination.octets());
                at += IPV6;
            }
            (source, destination) => return Err(TemplateError::Family(source, destination)),
        }
        let addresses = if outer.source.is_ipv4() { ip + 12..at } else { ip + 8..at };
        let pseudo = checksum::sum(&bytes[addresses]) + Sum::word(proto::UDP.into());
        bytes[at + 2..at + 4].copy_from_slice(&outer.port.to_be_bytes());
        let vxlan = at + UDP;
        bytes[vxlan..vxlan + header::LEN].copy_from_slice(&header::bytes(outer.vni));
        let (class_mask, class) = match outer.dscp {
            Dscp::Fixed(dscp) => (crate::ecn::MASK, dscp << 2),
            Dscp::Inherit => (0xff, 0),
        };
        Ok(Self {
            bytes,
            len: (vxlan + header::LEN) as u8,
            ipv6: outer.source.is_ipv6(),
            class_mask,
            class,
            is_common: outer.source.is_ipv4()
                && outer.checksum == UdpChecksum::Zero
                && outer.dont_fragment == DontFragment::Set,
            ip_sum: checksum::sum(&bytes[ip..at]).fold(),
            pseudo_sum: pseudo.fold(),
            dscp: outer.dscp,
            dont_fragment: outer.dont_fragment,
            checksum: outer.checksum,
            inner_vlan: outer.inner_vlan,
        })
    }

    /// Length of the outer headers in bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "headers are never empty")]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// The VNI of the tunnel.
    #[inline]
    pub fn vni(&self) -> Vni {
        let at = self.len() - header::LEN;
        header::Header::new_unchecked(&self.bytes[at..at + header::LEN]).vni()
    }

    /// Whether the underlay is IPv6.
    #[inline]
    pub const fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The same tunnel with other MAC addresses on the underlay, for when a neighbour's address
    /// changes. A template without an Ethernet header stays without one.
    pub fn with_ethernet(mut self, source: Mac, destination: Mac) -> Self {
        if self.ip_start() == ETHERNET {
            self.bytes[..6].copy_from_slice(&destination.0);
            self.bytes[6..12].copy_from_slice(&source.0);
        }
        self
    }

    /// Writes the outer headers into the first [`len`](Self::len) bytes of `frame`; the inner frame
    /// follows them. Returns the state of the outer UDP checksum.
    ///
    /// # Errors
    /// [`EncapError`]; `frame` is unchanged then.
    #[inline]
    pub fn encap(&self, inner: &InnerFacts, frame: &mut [u8]) -> Result<OuterChecksum, EncapError> {
        let ip = self.ip_start();
        let udp = self.len() - header::LEN - UDP;
        let inner_len = frame.len().checked_sub(self.len()).ok_or(EncapError::Headroom)?;
        let udp_len = UDP + header::LEN + inner_len;
        // IPv4 counts its own header in its length, IPv6 does not.
        let ip_len = if self.ipv6 { udp_len } else { udp_len + IPV4 };
        let ip_len = u16::try_from(ip_len).map_err(|_| EncapError::TooLong)?;
        let udp_len = udp_len as u16;
        if inner.tagged && !self.inner_vlan {
            return Err(EncapError::InnerVlan);
        }
        let field = match inner.partial {
            Some(partial) => Some(self.inner_field(partial, frame)?),
            None => None,
        };

        self.copy_to(frame);
        self.patch_ip(inner, ip_len, &mut frame[ip..udp]);
        frame[udp..udp + 2].copy_from_slice(&inner.source_port.get().to_be_bytes());
        frame[udp + 4..udp + 6].copy_from_slice(&udp_len.to_be_bytes());
        Ok(match self.checksum {
            UdpChecksum::Zero => OuterChecksum::None,
            _ if inner.gso => self.leave_checksum(frame, udp, udp_len),
            UdpChecksum::Offloaded if field.is_none() => self.leave_checksum(frame, udp, udp_len),
            _ => self.finish_checksum(frame, udp, udp_len, field),
        })
    }

    /// [`encap`](Self::encap) of a frame of the common kind (untagged, complete checksums) by a
    /// tunnel of the common kind (over IPv4, DF always set, without UDP checksum). False: nothing
    /// was written, because one of the two is of another kind, or the packet does not fit.
    #[inline]
    pub fn encap_fast(&self, source_port: SourcePort, traffic_class: u8, frame: &mut [u8]) -> bool {
        match self.len {
            50 if self.is_common => self.write::<50>(source_port, traffic_class, frame),
            36 if self.is_common => self.write::<36>(source_port, traffic_class, frame),
            _ => false,
        }
    }

    /// [`encap_fast`](Self::encap_fast) with outer headers of `LEN` bytes.
    #[inline(always)]
    fn write<const LEN: usize>(
        &self,
        source_port: SourcePort,
        traffic_class: u8,
        frame: &mut [u8],
    ) -> bool {
        let ip = LEN - header::LEN - UDP - IPV4;
        let len = frame.len().wrapping_sub(ip);
        let Some(head) = frame.first_chunk_mut::<LEN>() else { return false };
        if len > usize::from(u16::MAX) {
            return false;
        }
        head.copy_from_slice(&self.bytes[..LEN]);
        let class = self.class | traffic_class & self.class_mask;
        head[ip + 1] = class;
        head[ip + 2..ip + 4].copy_from_slice(&(len as u16).to_be_bytes());
        head[ip + 6] = 0x40;
        let sum = u32::from(self.ip_sum) + u32::from(class) + len as u32 + 0x4000;
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        head[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        let udp = ip + IPV4;
        head[udp..udp + 2].copy_from_slice(&source_port.get().to_be_bytes());
        head[udp + 4..udp + 6].copy_from_slice(&((len - IPV4) as u16).to_be_bytes());
        true
    }

    /// The tunnel packet for a UDP socket: the kernel writes the outer IP and UDP headers. The
    /// source port is the socket's own; choose the socket by [`InnerFacts::source_port`].
    ///
    /// # Errors
    /// [`EncapError::InnerVlan`].
    #[inline]
    pub fn datagram(&self, inner: &InnerFacts) -> Result<Datagram, EncapError> {
        if inner.tagged && !self.inner_vlan {
            return Err(EncapError::InnerVlan);
        }
        Ok(Datagram {
            header: header::bytes(self.vni()),
            traffic_class: self.traffic_class(inner),
            dont_fragment: self.forbids_fragmentation(inner),
        })
    }

    #[inline]
    const fn ip_start(&self) -> usize {
        self.len() - header::LEN - UDP - if self.ipv6 { IPV6 } else { IPV4 }
    }

    /// A copy of fixed length compiles to a few moves instead of a call.
    #[inline]
    fn copy_to(&self, frame: &mut [u8]) {
        match self.len() {
            36 => frame[..36].copy_from_slice(&self.bytes[..36]),
            50 => frame[..50].copy_from_slice(&self.bytes[..50]),
            56 => frame[..56].copy_from_slice(&self.bytes[..56]),
            len => frame[..len].copy_from_slice(&self.bytes[..len]),
        }
    }

    /// ECN from the inner packet, DSCP as configured.
    #[inline]
    fn traffic_class(&self, inner: &InnerFacts) -> u8 {
        self.class | inner.traffic_class & self.class_mask
    }

    #[inline]
    fn forbids_fragmentation(&self, inner: &InnerFacts) -> bool {
        match self.dont_fragment {
            DontFragment::Set => true,
            DontFragment::Clear => false,
            DontFragment::Inherit => inner.dont_fragment,
        }
    }

    #[inline]
    fn patch_ip(&self, inner: &InnerFacts, len: u16, ip: &mut [u8]) {
        let class = self.traffic_class(inner);
        if self.ipv6 {
            ip[0] |= class >> 4;
            ip[1] = class << 4;
            ip[4..6].copy_from_slice(&len.to_be_bytes());
            return;
        }
        let (id, fragment) =
            if self.forbids_fragmentation(inner) { (0, 0x4000) } else { (inner.identification, 0) };
        // Five words: no carry exceeds 32 bits.
        let sum = u32::from(self.ip_sum)
            + u32::from(class)
            + u32::from(len)
            + u32::from(id)
            + u32::from(fragment);
        let sum = Sum::word(sum as u16) + Sum::word((sum >> 16) as u16);
        ip[1] = class;
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        ip[6..8].copy_from_slice(&u16::to_be_bytes(fragment));
        ip[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
    }

    /// Position and content of the inner frame's partial checksum: the start of the summed part in
    /// `frame`, and the pseudo-header sum in its field.
    #[inline]
    fn inner_field(
        &self,
        partial: PartialChecksum,
        frame: &[u8],
    ) -> Result<(usize, u16), EncapError> {
        let start = self.len() + usize::from(partial.start);
        let field = start + usize::from(partial.offset);
        let value = frame.get(field..field + 2).ok_or(EncapError::Partial)?;
        Ok((start, u16::from_be_bytes([value[0], value[1]])))
    }

    /// Leaves the checksum to the device: the pseudo-header sum in the field.
    #[inline]
    fn leave_checksum(&self, frame: &mut [u8], udp: usize, udp_len: u16) -> OuterChecksum {
        let sum = (Sum::word(self.pseudo_sum) + Sum::word(udp_len)).fold();
        frame[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
        OuterChecksum::Partial(PartialChecksum { start: udp as u16, offset: 6 })
    }

    /// Computes the checksum. A partial inner checksum covers bytes that will sum to the complement
    /// of the pseudo-header sum in its field once it is completed. So this part of the frame does
    /// not need to be read (Linux: local checksum offload).
    #[inline]
    fn finish_checksum(
        &self,
        frame: &mut [u8],
        udp: usize,
        udp_len: u16,
        field: Option<(usize, u16)>,
    ) -> OuterChecksum {
        let (end, rest) = match field {
            Some((start, pseudo)) => (start, !pseudo),
            None => (frame.len(), 0),
        };
        // From an odd offset on, bytes are in the other half of the sum's words.
        let rest = if (end - udp).is_multiple_of(2) { rest } else { rest.swap_bytes() };
        let sum = checksum::sum(&frame[udp..end])
            + Sum::word(rest)
            + Sum::word(self.pseudo_sum)
            + Sum::word(udp_len);
        // A computed zero is sent as all ones: zero would mean "none" (RFC 768).
        let value = match sum.checksum() {
            0 => 0xffff,
            value => value,
        };
        frame[udp + 6..udp + 8].copy_from_slice(&value.to_be_bytes());
        OuterChecksum::Complete
    }
}
