//! The outer headers of one tunnel as configured. Used by the control plane.

use core::net::IpAddr;

use podswitch_wire::addr::Mac;

use crate::header::Vni;

/// The port that IANA assigned to VXLAN (RFC 7348 §5).
pub const PORT: u16 = 4789;
/// The port that Linux used before IANA assigned one; Flannel still uses it.
pub const PORT_FLANNEL: u16 = 8472;

/// DSCP of the outer header. The ECN field always comes from the inner packet (RFC 6040 §4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dscp {
    /// A fixed value (its lower six bits), independent of the inner packet.
    Fixed(u8),
    /// The value of the inner packet (RFC 2983, uniform model).
    Inherit,
}

/// Whether routers on the underlay may fragment tunnel packets over IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DontFragment {
    /// Never: the tunnel learns the path MTU from ICMP (RFC 7348 §4.3).
    Set,
    /// They may; the remote VTEP must reassemble.
    Clear,
    /// As in the inner packet.
    Inherit,
}

/// The outer UDP checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UdpChecksum {
    /// Zero: no checksum. This is the rule over IPv4 (RFC 7348 §5); over IPv6 both VTEPs must be
    /// configured for it (RFC 6935, 6936).
    Zero,
    /// Computed here over the whole packet.
    Computed,
    /// Left to the device: the field gets the pseudo-header sum.
    Offloaded,
}

/// The outer headers of one tunnel, as configured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// Source and destination MAC on the underlay, if the tunnel writes Ethernet frames itself.
    pub ethernet: Option<(Mac, Mac)>,
    /// This node's tunnel address.
    pub source: IpAddr,
    /// The remote VTEP's address.
    pub destination: IpAddr,
    /// VXLAN network identifier.
    pub vni: Vni,
    /// UDP destination port: [`PORT`], or [`PORT_FLANNEL`].
    pub port: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP.
    pub dscp: Dscp,
    /// Fragmentation on the underlay; IPv4 only.
    pub dont_fragment: DontFragment,
    /// UDP checksum.
    pub checksum: UdpChecksum,
    /// Carry inner 802.1Q tags (RFC 7348 §6.1: only if configured).
    pub inner_vlan: bool,
}

impl Outer {
    /// The usual tunnel: port 4789, TTL 64, DSCP 0, DF always set; UDP checksum zero over IPv4,
    /// computed over IPv6.
    pub const fn new(source: IpAddr, destination: IpAddr, vni: Vni) -> Self {
        Self {
            ethernet: None,
            source,
            destination,
            vni,
            port: PORT,
            ttl: 64,
            dscp: Dscp::Fixed(0),
            dont_fragment: DontFragment::Set,
            checksum: match source {
                IpAddr::V4(_) => UdpChecksum::Zero,
                IpAddr::V6(_) => UdpChecksum::Computed,
            },
            inner_vlan: false,
        }
    }
}

/// Why a template cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TemplateError {
    /// IPv4 on one side and IPv6 on the other.
    #[error("tunnel source {0} and destination {1} are of different families")]
    Family(IpAddr, IpAddr),
    /// The address cannot be that of a VTEP.
    #[error("{0} is not a unicast address, as a VTEP needs")]
    Address(IpAddr),
    /// Port 0.
    #[error("UDP port 0")]
    Port,
    /// TTL 0.
    #[error("TTL 0: no packet would leave")]
    Ttl,
    /// More than six bits.
    #[error("DSCP {0} has more than six bits")]
    Dscp(u8),
}

/// Validates a tunnel's configuration.
pub(super) fn check(outer: &Outer) -> Result<(), TemplateError> {
    if outer.source.is_ipv4() != outer.destination.is_ipv4() {
        return Err(TemplateError::Family(outer.source, outer.destination));
    }
    for address in [outer.source, outer.destination] {
        let broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
        if address.is_unspecified() || address.is_multicast() || broadcast {
            return Err(TemplateError::Address(address));
        }
    }
    match outer {
        Outer { port: 0, .. } => Err(TemplateError::Port),
        Outer { ttl: 0, .. } => Err(TemplateError::Ttl),
        Outer { dscp: Dscp::Fixed(dscp), .. } if *dscp > 63 => Err(TemplateError::Dscp(*dscp)),
        _ => Ok(()),
    }
}
