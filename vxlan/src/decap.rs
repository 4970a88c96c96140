//! Decapsulation: finds the inner frame in an outer packet, or the reason why it is refused.
//!
//! Called on the packet path, with the outer packet parsed by `podswitch_wire::parse` (raw uplink),
//! or with the payload of a datagram (UDP socket; the kernel has checked the outer headers).
//! Whether the sender is trusted is checked next, by [`vtep`](crate::vtep).

use core::net::IpAddr;

use podswitch_wire::checksum::{ipv4_header_holds, pseudo_l4, sum};
use podswitch_wire::flow_key::{Family, proto};
use podswitch_wire::parse::{Fragment, Network, Parsed, ethertype};

use crate::ecn::Ecn;
use crate::header::{self, Header, Vni};

/// Which tunnel packets are accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DecapRules {
    /// UDP destination port of the tunnel.
    pub port: u16,
    /// Accept packets without UDP checksum over IPv6 (RFC 6935 §5: only if configured).
    pub ipv6_zero_checksum: bool,
    /// Accept inner frames with an 802.1Q tag (RFC 7348 §6.1: only if configured).
    pub inner_vlan: bool,
}

impl Default for DecapRules {
    fn default() -> Self {
        Self { port: crate::template::PORT, ipv6_zero_checksum: false, inner_vlan: false }
    }
}

/// Whether the outer UDP checksum has been verified already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChecksumState {
    /// Not verified: a non-zero one is verified here.
    Unknown,
    /// The device verified it, or it is partial and the packet came from the same machine
    /// (CHECKSUM_PARTIAL, starting at the outer UDP header).
    Good,
}

/// A decapsulated packet. Offsets are bytes from the start of the outer frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decap {
    /// VXLAN network of the inner frame.
    pub vni: Vni,
    /// Start of the inner frame.
    pub start: u32,
    /// End of the inner frame; bytes behind it are padding.
    pub end: u32,
    /// Outer source: the remote VTEP, if it is known.
    pub source: IpAddr,
    /// Outer destination.
    pub destination: IpAddr,
    /// ECN field of the outer header, to be combined into the inner packet by
    /// [`ecn::apply`](crate::ecn::apply).
    pub ecn: Ecn,
}

/// Why a packet is not an acceptable tunnel packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecapError {
    /// Not UDP to the tunnel's port, so the packet may belong to something else.
    #[error("not UDP to the tunnel's port")]
    NotVxlan,
    /// A fragment of a tunnel packet; VTEPs must not fragment (RFC 7348 §4.3).
    #[error("a fragment of a tunnel packet")]
    Fragment,
    /// The outer UDP checksum is wrong.
    #[error("the outer UDP checksum is wrong")]
    Checksum,
    /// No UDP checksum over IPv6, and the configuration does not allow that.
    #[error("no UDP checksum over IPv6")]
    ZeroChecksum,
    /// The VXLAN header is truncated.
    #[error("the VXLAN header is truncated")]
    HeaderTruncated,
    /// The I flag is clear.
    #[error("the VXLAN header's I flag is clear")]
    NoVni,
    /// Too short for an inner Ethernet header.
    #[error("the inner frame is truncated")]
    InnerTruncated,
    /// The inner frame carries an 802.1Q tag, and the configuration does not allow that.
    #[error("the inner frame carries an 802.1Q tag")]
    InnerVlan,
}

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of a UDP header.
const UDP: usize = 8;

/// Decapsulates a packet; `outer` is the parse of `frame`.
///
/// # Errors
/// [`DecapError`]. [`DecapError::NotVxlan`] only says that this is not a tunnel packet.
#[inline]
pub fn decap(
    frame: &[u8],
    outer: &Parsed,
    checksum: ChecksumState,
    rules: &DecapRules,
) -> Result<Decap, DecapError> {
    let ip = matches!(outer.network, Network::Ipv4 | Network::Ipv6);
    if !ip || outer.key.proto != proto::UDP || outer.key.dst_port != rules.port {
        return Err(DecapError::NotVxlan);
    }
    if outer.fragment != Fragment::Whole {
        return Err(DecapError::Fragment);
    }
    let l4 = usize::from(outer.l4);
    let head = frame.get(l4..l4 + UDP).ok_or(DecapError::HeaderTruncated)?;
    let udp_len = u16::from_be_bytes([head[4], head[5]]);
    let end = l4 + usize::from(udp_len);
    let datagram = frame.get(l4..end).ok_or(DecapError::HeaderTruncated)?;
    let payload = datagram.get(UDP..).ok_or(DecapError::HeaderTruncated)?;
    let vni = payload_vni(payload, rules)?;
    match u16::from_be_bytes([head[6], head[7]]) {
        0 if outer.key.family == Family::V6 && !rules.ipv6_zero_checksum => {
            return Err(DecapError::ZeroChecksum);
        }
        0 => {}
        _ if checksum == ChecksumState::Good => {}
        _ if (sum(datagram) + pseudo_l4(&outer.key, udp_len.into())).holds() => {}
        _ => return Err(DecapError::Checksum),
    }
    Ok(Decap {
        vni,
        start: (l4 + UDP + header::LEN) as u32,
        end: end as u32,
        source: outer.key.src_addr(),
        destination: outer.key.dst_addr(),
        ecn: Ecn::from_traffic_class(outer.traffic_class),
    })
}

/// A tunnel packet of the common kind, as [`decap_fast`] finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FastDecap {
    /// Outer source followed by outer destination.
    pub addresses: [u8; 8],
    /// VXLAN network of the inner frame.
    pub vni: Vni,
    /// End of the inner frame, in bytes from the start of the outer one.
    pub end: u32,
    /// ECN field of the outer header.
    pub ecn: Ecn,
}

impl FastDecap {
    /// Start of the inner frame, in bytes from the start of the outer one.
    pub const START: u32 = (ETHERNET + 20 + UDP + header::LEN) as u32;

    /// Converts to the general form.
    pub fn decap(&self) -> Decap {
        let [a, b, c, d, e, f, g, h] = self.addresses;
        let Self { vni, end, ecn, .. } = *self;
        let (source, destination) = ([a, b, c, d].into(), [e, f, g, h].into());
        Decap { vni, start: Self::START, end, source, destination, ecn }
    }
}

/// Parse and [`decap`] combined, for frames of the common kind: untagged, IPv4 without options, not
/// a fragment, no UDP checksum, nothing malformed. `None`: use the two general functions, which may
/// accept the frame or find the error.
#[inline]
pub fn decap_fast(frame: &[u8], rules: &DecapRules) -> Option<FastDecap> {
    const IP: usize = ETHERNET;
    const L4: usize = IP + 20;
    const INNER: usize = FastDecap::START as usize;
    let head: &[u8; INNER + ETHERNET] = frame.first_chunk()?;
    let be16 = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let be32 = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    // EtherType, version and header length; no fragment; protocol; destination port.
    let shape = be32(12) >> 8 == u32::from(ethertype::IPV4) << 8 | 0x45
        && be16(IP + 6) & 0x3fff == 0
        && head[IP + 9] == proto::UDP
        && be16(L4 + 2) == rules.port
        && be16(L4 + 6) == 0
        && head[L4 + UDP] & header::FLAG_VNI != 0;
    let total = usize::from(be16(IP + 2));
    let udp_len = usize::from(be16(L4 + 4));
    let lengths = total <= frame.len() - IP
        && L4 + udp_len <= IP + total
        && udp_len >= UDP + header::LEN + ETHERNET;
    let tagged = matches!(be16(INNER + 12), ethertype::VLAN | ethertype::QINQ);
    let mut ip = [0; 20];
    ip.copy_from_slice(&head[IP..L4]);
    if !shape || !lengths || tagged || !ipv4_header_holds(&ip) {
        return None;
    }
    let mut addresses = [0; 8];
    addresses.copy_from_slice(&ip[12..20]);
    Some(FastDecap {
        addresses,
        vni: Vni::from_bytes([head[INNER - 4], head[INNER - 3], head[INNER - 2]]),
        end: (L4 + udp_len) as u32,
        ecn: Ecn::from_traffic_class(ip[1]),
    })
}

/// The VNI of a tunnel datagram's payload, as a UDP socket delivers it, after the same checks. The
/// inner frame starts at offset [`header::LEN`].
///
/// # Errors
/// [`DecapError`], those variants that concern the datagram's content.
#[inline]
pub fn payload_vni(payload: &[u8], rules: &DecapRules) -> Result<Vni, DecapError> {
    let vxlan = Header::new_checked(payload).map_err(|_| DecapError::HeaderTruncated)?;
    if !vxlan.has_vni() {
        return Err(DecapError::NoVni);
    }
    let inner = vxlan.payload();
    if inner.len() < ETHERNET {
        return Err(DecapError::InnerTruncated);
    }
    let kind = u16::from_be_bytes([inner[12], inner[13]]);
    if !rules.inner_vlan && matches!(kind, ethertype::VLAN | ethertype::QINQ) {
        return Err(DecapError::InnerVlan);
    }
    Ok(vxlan.vni())
}

/// Whether an inner packet is itself a tunnel packet, which no pod may send (threats T-O1 and
/// T-O6). Later fragments have no ports; they follow their first fragment.
#[inline]
pub fn is_nested(inner: &Parsed, rules: &DecapRules) -> bool {
    matches!(inner.network, Network::Ipv4 | Network::Ipv6)
        && inner.key.proto == proto::UDP
        && inner.fragment != Fragment::Later
        && inner.key.dst_port == rules.port
}
