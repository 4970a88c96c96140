//! The packet inside an ICMP error.

use super::bytes::{array, be16};
use super::ipv4;
use super::ipv6::{Chain, follow_chain};
use super::layer4::{Layer4, icmp};
use super::parsed::{Fragment, Icmp, Network};
use super::place::Place;
use crate::flow_key::{Family, FlowKey, HashKey, proto};

/// The packet that an ICMP error quotes, as far as is needed to find its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// The quoted packet's own key: its source is the addressee of the error. Ports are zero in a
    /// later fragment.
    pub key: FlowKey,
    /// `key.hash(hash_key)`.
    pub hash: u64,
    /// Start of the layer-4 header within the quote. Unless the quote is of a later fragment, it
    /// has at least eight bytes of TCP, UDP, SCTP or ICMP.
    pub l4: u16,
    /// Length of the quoted packet according to its header; the quote may be shorter.
    pub total_len: u32,
    /// The quoted ICMP message: [`Icmp::Query`], [`Icmp::Reply`], [`Icmp::Other`], or
    /// [`Icmp::None`] for another protocol.
    pub icmp: Icmp,
    /// Place in the datagram.
    pub fragment: Fragment,
    /// Identification of the datagram, if it is a fragment (see [`Parsed::fragment_id`](super::Parsed::fragment_id)).
    pub fragment_id: u32,
}

/// Reads the packet that an ICMP error quotes (`&frame[parsed.payload..parsed.end]`). It is
/// lenient, because quotes are truncated and routers have changed the packet: lengths are not
/// compared with the bytes present, and the header checksum is not verified. `None` if the flow
/// cannot be determined, and for a quoted ICMP error, about which no error may be sent (RFC 1122
/// §3.2.2).
pub fn parse_quoted(quote: &[u8], network: Network, hash_key: &HashKey) -> Option<Quoted> {
    let (family, total_len, src, dst, chain) = match network {
        Network::Ipv4 => quoted_ipv4(quote)?,
        Network::Ipv6 => quoted_ipv6(quote)?,
        Network::Other | Network::Arp => return None,
    };
    let header = quote.get(usize::from(chain.l4)..).unwrap_or_default();
    let layer4 = match (chain.place.fragment, chain.protocol) {
        (Fragment::Later, _) => Layer4::NONE,
        (_, proto::TCP | proto::UDP | proto::SCTP) => {
            Layer4::from_ports(header.first_chunk::<8>()?, 0)
        }
        (_, proto::ICMP) if family == Family::V4 => icmp::<false>(header.first_chunk::<8>()?),
        (_, proto::ICMPV6) if family == Family::V6 => icmp::<true>(header.first_chunk::<8>()?),
        _ => Layer4::NONE,
    };
    if layer4.icmp == Icmp::Error {
        return None;
    }
    let key = FlowKey {
        src,
        dst,
        src_port: layer4.src_port,
        dst_port: layer4.dst_port,
        proto: chain.protocol,
        family,
        zone: 0,
    };
    Some(Quoted {
        key,
        hash: key.hash(hash_key),
        l4: chain.l4,
        total_len,
        icmp: layer4.icmp,
        fragment: chain.place.fragment,
        fragment_id: chain.place.id,
    })
}

type QuotedHeader = (Family, u32, [u8; 16], [u8; 16], Chain);

fn quoted_ipv4(quote: &[u8]) -> Option<QuotedHeader> {
    let header = quote.first_chunk::<20>()?;
    let header_len = u16::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return None;
    }
    let field = be16(header, 6);
    let offset = (field & 0x1fff) * 8;
    let place = if field & 0x3fff == 0 {
        Place::WHOLE
    } else {
        Place::unchecked(offset, u32::from(be16(header, 4)))
    };
    let chain = Chain { protocol: header[9], l4: header_len, place };
    Some((
        Family::V4,
        u32::from(be16(header, 2)),
        ipv4::address(header, 12),
        ipv4::address(header, 16),
        chain,
    ))
}

fn quoted_ipv6(quote: &[u8]) -> Option<QuotedHeader> {
    let header = quote.first_chunk::<40>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let chain = follow_chain(quote, header[6], false).ok()?;
    let total = 40 + u32::from(be16(header, 4));
    Some((Family::V6, total, array(header, 8), array(header, 24), chain))
}
