//! IPv6 neighbour discovery (RFC 4861) and multicast listener discovery: checks of a neighbour's claims, and proxy
//! advertisements. None of it is forwarded.
//!
//! Pods have /128 addresses, link-local addresses chosen by their kernels, and the switch as their
//! link-local gateway. So the answer to a pod's solicitation is always the gateway's MAC address. No
//! router advertisements are sent: the gateway is configured in the pod.

use std::net::{IpAddr, Ipv6Addr};

use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::{Fragment, Network, Parsed};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, NdiscNeighborFlags,
    NdiscRepr, RawHardwareAddress,
};

use super::{Addressing, Binding, ETHERNET, Trust, is_link_local, is_one_host, macs};
use crate::action::DropReason;
use crate::config::Gateway;
use crate::packet::{Packet, Pool};

const MLD_QUERY: u8 = 130;
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD2_REPORT: u8 = 143;

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// ff02::1, all nodes.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
/// Bytes of a neighbour advertisement with one link-layer address option.
const ADVERTISEMENT: usize = 32;

/// The result of checking a frame of neighbour or multicast listener discovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NdVerdict {
    /// Consumed, and answered with [`advertise`] on the port that it was received on.
    Answer(Solicitation),
    /// Consumed.
    Consumed(NdKind),
    /// Dropped.
    Drop(DropReason),
}

/// The type of a consumed frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NdKind {
    /// Duplicate address detection for the neighbour's own address. It gets no answer, so that the
    /// neighbour keeps the address.
    OwnAddress,
    /// A solicitation for an address that the switch does not answer for.
    NotOurs,
    /// An advertisement of the neighbour's own address.
    Advertisement,
    /// A router solicitation.
    RouterSolicitation,
    /// A router advertisement or redirect from the node.
    Router,
    /// Multicast listener discovery.
    Listener,
}

/// A neighbour solicitation that is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Solicitation {
    /// The sender's MAC address.
    pub sender_mac: Mac,
    /// The sender's address; `None` for duplicate address detection.
    pub sender_ip: Option<Ipv6Addr>,
    /// The solicited address.
    pub target: Ipv6Addr,
}

/// An ICMPv6 message and the header fields that matter.
struct Message<'a> {
    src: Ipv6Addr,
    dst: Ipv6Addr,
    src_mac: Mac,
    kind: u8,
    hop_limit: u8,
    /// No extension headers.
    plain: bool,
    body: &'a [u8],
}

/// Checks a frame that `parse` classifies as `Icmp::Neighbour`, from the neighbour `binding` (RFC 4861
/// §6.1, §7.1, §8.1; threats T-C3, T-S1, T-S2). `answers`: whether the switch answers for an address
/// other than the neighbour's own. It always answers for the gateway's address, and never for other
/// link-local addresses.
pub fn check(
    packet: &Packet,
    parsed: &Parsed,
    binding: &Binding<'_>,
    answers: impl Fn(Ipv6Addr) -> bool,
) -> NdVerdict {
    use NdVerdict::{Consumed, Drop};

    let Some((message, dst_mac)) = Message::read(packet, parsed) else {
        return Drop(DropReason::NeighbourInvalid);
    };
    if message.src_mac != binding.mac {
        return Drop(DropReason::SpoofedMac);
    }
    if !dst_mac.is_multicast() && dst_mac != binding.gateway.mac {
        return Drop(DropReason::NotForUs);
    }
    let from_router = matches!(message.kind, ROUTER_ADVERTISEMENT | REDIRECT | MLD_QUERY);
    if from_router && binding.trust == Trust::Bound {
        return Drop(DropReason::RogueRouter);
    }
    let claims = Claims { binding, answers };
    if let Err(reason) = claims.sender(&message) {
        return Drop(reason);
    }
    if matches!(message.kind, MLD_QUERY | MLD_REPORT | MLD_DONE | MLD2_REPORT) {
        return match message.hop_limit {
            1 => Consumed(NdKind::Listener),
            _ => Drop(DropReason::NeighbourInvalid),
        };
    }
    // Extension headers are legal, but only used to evade filters (RFC 7113). A fragment header is
    // forbidden (RFC 6980).
    if message.hop_limit != 255 || message.body[1] != 0 || !message.plain {
        return Drop(DropReason::NeighbourInvalid);
    }
    let verdict = match message.kind {
        ROUTER_SOLICITATION => router_solicitation(&message, &claims),
        ROUTER_ADVERTISEMENT => options(&message, 16).map(|_| Consumed(NdKind::Router)),
        REDIRECT => options(&message, 40).map(|_| Consumed(NdKind::Router)),
        NEIGHBOUR_SOLICITATION => solicitation(&message, &claims),
        NEIGHBOUR_ADVERTISEMENT => advertisement(&message, &claims),
        _ => Err(DropReason::NeighbourInvalid),
    };
    verdict.unwrap_or_else(Drop)
}

impl<'a> Message<'a> {
    /// Reads a message and verifies its checksum. `None` if it is not ICMPv6, truncated, a fragment, or
    /// the checksum is wrong.
    fn read(packet: &'a Packet, parsed: &Parsed) -> Option<(Self, Mac)> {
        let frame = packet.bytes();
        let (src_mac, dst_mac) = macs(frame)?;
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (parsed.key.src_addr(), parsed.key.dst_addr())
        else {
            return None;
        };
        let is_icmp = parsed.network == Network::Ipv6
            && parsed.key.proto == proto::ICMPV6
            && parsed.fragment == Fragment::Whole;
        let body = frame.get(usize::from(parsed.l4)..parsed.end as usize)?;
        if !is_icmp || body.len() < 8 {
            return None;
        }
        // A partial checksum cannot be verified: the packet was never on a wire. A checksum that the
        // device has verified is not verified again.
        let verified = packet.offload.csum_partial || packet.offload.csum_valid;
        if !verified && !Icmpv6Packet::new_unchecked(body).verify_checksum(&src, &dst) {
            return None;
        }
        let plain = !parsed.options;
        let hop_limit = parsed.ttl;
        Some((Self { src, dst, src_mac, kind: body[0], hop_limit, plain, body }, dst_mac))
    }

    /// The target of a neighbour solicitation or advertisement. An error if the message is too short,
    /// or the target is not the address of a host.
    fn target(&self) -> Result<Ipv6Addr, DropReason> {
        let bytes = self.body.get(8..24).and_then(|t| t.first_chunk::<16>());
        let target = bytes.map(|bytes| Ipv6Addr::from(*bytes));
        match target.filter(|target| is_one_host(IpAddr::V6(*target))) {
            Some(target) => Ok(target),
            None => Err(DropReason::NeighbourInvalid),
        }
    }
}

/// The addresses that the neighbour may claim.
struct Claims<'a, F> {
    binding: &'a Binding<'a>,
    answers: F,
}

impl<F: Fn(Ipv6Addr) -> bool> Claims<'_, F> {
    /// Whether the switch answers for an address.
    fn ours(&self, address: Ipv6Addr) -> bool {
        address == self.binding.gateway.ipv6
            || (!is_link_local(address)
                && !self.binding.ipv6.contains(&address)
                && (self.answers)(address))
    }

    /// Whether the neighbour may claim an address. Any link-local address is allowed: it is bound only
    /// to the MAC address, which was checked before.
    fn may_claim(&self, address: Ipv6Addr) -> bool {
        let own = match self.binding.trust {
            Trust::Bound => is_link_local(address) || self.binding.ipv6.contains(&address),
            Trust::Node => is_one_host(IpAddr::V6(address)) && !self.ours(address),
        };
        own && address != self.binding.gateway.ipv6
    }

    /// Checks the source address: the neighbour's own or, for some types, unspecified.
    fn sender(&self, message: &Message<'_>) -> Result<(), DropReason> {
        let may_be_none = matches!(
            message.kind,
            ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | MLD_REPORT | MLD_DONE | MLD2_REPORT
        );
        if message.src.is_unspecified() && may_be_none {
            return Ok(());
        }
        if self.may_claim(message.src) { Ok(()) } else { Err(DropReason::SpoofedNeighbour) }
    }

    /// Checks a link-layer address option about the neighbour itself.
    fn link_layer(&self, mac: Option<Mac>) -> Result<(), DropReason> {
        match mac {
            Some(mac) if mac != self.binding.mac => Err(DropReason::SpoofedNeighbour),
            _ => Ok(()),
        }
    }
}

/// The link-layer address options of a message.
#[derive(Default)]
struct Options {
    source: Option<Mac>,
    target: Option<Mac>,
}

/// Parses all options after the first `fixed` bytes. An option of length zero or beyond the message is
/// an error (RFC 4861 §4.6), and so is a link-layer address that is not of Ethernet (RFC 2464 §6) or
/// occurs twice.
fn options(message: &Message<'_>, fixed: usize) -> Result<Options, DropReason> {
    const INVALID: DropReason = DropReason::NeighbourInvalid;
    let mut found = Options::default();
    let mut rest = message.body.get(fixed..).ok_or(INVALID)?;
    while let [kind, units, ..] = *rest {
        let len = usize::from(units) * 8;
        let option = rest.get(..len).filter(|_| len > 0).ok_or(INVALID)?;
        rest = &rest[len..];
        let slot = match kind {
            SOURCE_LINK_LAYER => &mut found.source,
            TARGET_LINK_LAYER => &mut found.target,
            _ => continue,
        };
        let [_, _, a, b, c, d, e, f] = *option else { return Err(INVALID) };
        if slot.replace(Mac([a, b, c, d, e, f])).is_some() {
            return Err(INVALID);
        }
    }
    if rest.is_empty() { Ok(found) } else { Err(INVALID) }
}

fn router_solicitation<F: Fn(Ipv6Addr) -> bool>(
    message: &Message<'_>,
    claims: &Claims<'_, F>,
) -> Result<NdVerdict, DropReason> {
    let options = options(message, 8)?;
    if message.src.is_unspecified() && options.source.is_some() {
        return Err(DropReason::NeighbourInvalid);
    }
    claims.link_layer(options.source)?;
    Ok(NdVerdict::Consumed(NdKind::RouterSolicitation))
}

fn solicitation<F: Fn(Ipv6Addr) -> bool>(
    message: &Message<'_>,
    claims: &Claims<'_, F>,
) -> Result<NdVerdict, DropReason> {
    let target = message.target()?;
    let options = options(message, 24)?;
    let answer = |sender_ip| {
        NdVerdict::Answer(Solicitation { sender_mac: message.src_mac, sender_ip, target })
    };
    if message.src.is_unspecified() {
        // Duplicate address detection claims its target (RFC 4862 §5.4). For the neighbour's own
        // address it gets no answer, or the neighbour would give the address up. The gateway defends
        // its address.
        if message.dst != solicited_node(target) || options.source.is_some() {
            return Err(DropReason::NeighbourInvalid);
        }
        return match target {
            _ if target == claims.binding.gateway.ipv6 => Ok(answer(None)),
            _ if claims.may_claim(target) => Ok(NdVerdict::Consumed(NdKind::OwnAddress)),
            _ => Err(DropReason::SpoofedNeighbour),
        };
    }
    claims.link_layer(options.source)?;
    match claims.ours(target) {
        true => Ok(answer(Some(message.src))),
        false => Ok(NdVerdict::Consumed(NdKind::NotOurs)),
    }
}

fn advertisement<F: Fn(Ipv6Addr) -> bool>(
    message: &Message<'_>,
    claims: &Claims<'_, F>,
) -> Result<NdVerdict, DropReason> {
    const SOLICITED: u8 = 0x40;
    let target = message.target()?;
    let options = options(message, 24)?;
    if message.dst.is_multicast() && message.body[4] & SOLICITED != 0 {
        return Err(DropReason::NeighbourInvalid);
    }
    claims.link_layer(options.target)?;
    match claims.may_claim(target) {
        true => Ok(NdVerdict::Consumed(NdKind::Advertisement)),
        false => Err(DropReason::SpoofedNeighbour),
    }
}

/// The solicited-node multicast address of an address (RFC 4291 §2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

/// Builds the advertisement for a solicitation: its target has the gateway's MAC address (RFC 4861
/// §7.2.4). Sent to the solicitor, or to all nodes for duplicate address detection. `None` if the pool
/// is empty.
pub fn advertise(
    solicitation: &Solicitation,
    gateway: &Gateway,
    pool: &mut Pool,
) -> Option<Packet> {
    let (dst_mac, dst) = match solicitation.sender_ip {
        Some(ip) => (solicitation.sender_mac, ip),
        None => (ALL_NODES_MAC, ALL_NODES),
    };
    let addressing = Addressing {
        src_mac: gateway.mac,
        dst_mac,
        src: IpAddr::V6(gateway.ipv6),
        dst: IpAddr::V6(dst),
    };
    let (mut packet, start) = addressing.packet(pool, IpProtocol::Icmpv6, 0, ADVERTISEMENT)?;
    Ipv6Packet::new_unchecked(&mut packet.bytes_mut()[ETHERNET..]).set_hop_limit(255);
    let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
    flags.set(NdiscNeighborFlags::SOLICITED, solicitation.sender_ip.is_some());
    let repr = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: solicitation.target,
        lladdr: Some(RawHardwareAddress::from(EthernetAddress(gateway.mac.0))),
    });
    let mut icmp = Icmpv6Packet::new_unchecked(&mut packet.bytes_mut()[start..]);
    repr.emit(&gateway.ipv6, &dst, &mut icmp, &ChecksumCapabilities::default());
    Some(packet)
}

#[cfg(test)]
mod tests;
