//! Path MTU of the underlay, learned from ICMP errors that quote a packet of this node (RFC 1191,
//! RFC 8201; threat T-O7: a forged error must not starve a tunnel).
//!
//! Called when ICMP arrives on the underlay, which is rare.

use core::net::IpAddr;

use podswitch_wire::flow_key::proto;

use crate::header::{self, Header, Vni};
use crate::template::{Outer, SourcePort};
use crate::vtep::{VtepIndex, VtepTable};

/// Lowest path MTU accepted over IPv4; Linux has the same floor (`min_pmtu`).
pub const FLOOR_IPV4: u16 = 552;
/// Lowest over IPv6: no link has a smaller MTU (RFC 8200 §5).
pub const FLOOR_IPV6: u16 = 1280;

/// A tunnel packet as an ICMP error quotes it, truncated somewhere behind its UDP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quoted {
    /// Outer source: this node.
    pub source: IpAddr,
    /// Outer destination: a VTEP.
    pub destination: IpAddr,
    /// Length of the quoted packet, its IP header included.
    pub len: usize,
    /// Outer UDP source port.
    pub source_port: u16,
    /// Outer UDP destination port.
    pub port: u16,
    /// VNI, if the quotation includes it.
    pub vni: Option<Vni>,
    /// Start of the inner frame in the quotation, if the quotation includes it.
    pub inner: Option<usize>,
}

/// Reads a quotation: the ICMP error's payload from the quoted IP header on. `None` if it is not a
/// whole UDP packet, or truncated before the end of the UDP header.
pub fn read_quote(quote: &[u8]) -> Option<Quoted> {
    let (source, destination, len, udp): (IpAddr, IpAddr, usize, usize) = match quote.first()? >> 4
    {
        4 => {
            let head = quote.get(..20)?;
            let start = usize::from(head[0] & 0x0f) * 4;
            let later = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
            if start < 20 || head[9] != proto::UDP || later {
                return None;
            }
            let bytes = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3]];
            let len = u16::from_be_bytes([head[2], head[3]]);
            (bytes(12).into(), bytes(16).into(), len.into(), start)
        }
        6 => {
            let head = quote.get(..40)?;
            if head[6] != proto::UDP {
                return None;
            }
            let bytes = |at: usize| <[u8; 16]>::try_from(&head[at..at + 16]).ok();
            let len = usize::from(u16::from_be_bytes([head[4], head[5]])) + 40;
            (bytes(8)?.into(), bytes(24)?.into(), len, 40)
        }
        _ => return None,
    };
    let ports = quote.get(udp..udp + 8)?;
    let vxlan = Header::new_checked(&quote[udp + 8..]).ok();
    let inner = udp + 8 + header::LEN;
    Some(Quoted {
        source,
        destination,
        len,
        source_port: u16::from_be_bytes([ports[0], ports[1]]),
        port: u16::from_be_bytes([ports[2], ports[3]]),
        vni: vxlan.filter(Header::has_vni).map(|h| h.vni()),
        inner: (quote.len() > inner).then_some(inner),
    })
}

/// Why a reported path MTU is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PmtuRefusal {
    /// The quotation is not a tunnel packet that this node can have sent.
    #[error("the error quotes no tunnel packet of this node")]
    NotOurs,
    /// The quoted packet would have fitted, or no MTU was reported.
    #[error("the quoted packet fits the reported MTU")]
    Implausible,
}

/// The VTEP that an ICMP "fragmentation needed" or "packet too big" is about, and the path MTU to
/// it, never below [`FLOOR_IPV4`] or [`FLOOR_IPV6`]. The caller may in addition require that the
/// quoted inner packet belongs to a live connection.
///
/// # Errors
/// [`PmtuRefusal`].
pub fn learn(
    table: &VtepTable,
    quoted: &Quoted,
    reported_mtu: u32,
) -> Result<(VtepIndex, u16), PmtuRefusal> {
    let ours = table.is_local(quoted.source) && quoted.source_port >= SourcePort::MIN;
    let vnis = table.vnis().filter(|vni| quoted.vni.is_none_or(|quoted| quoted == *vni));
    let end = vnis
        .filter_map(|vni| table.by_source(quoted.destination, vni))
        .find(|end| table.get(*end).is_some_and(|end| sent_by(end.outer(), quoted)))
        .filter(|_| ours)
        .ok_or(PmtuRefusal::NotOurs)?;
    let floor = if quoted.destination.is_ipv4() { FLOOR_IPV4 } else { FLOOR_IPV6 };
    match usize::try_from(reported_mtu) {
        Ok(mtu) if mtu > 0 && mtu < quoted.len => {
            let mtu = u16::try_from(mtu).map_err(|_| PmtuRefusal::Implausible)?;
            Ok((end, mtu.max(floor)))
        }
        _ => Err(PmtuRefusal::Implausible),
    }
}

fn sent_by(outer: &Outer, quoted: &Quoted) -> bool {
    outer.destination == quoted.destination
        && outer.source == quoted.source
        && outer.port == quoted.port
}
