//! ARP (RFC 826, RFC 5227): who may claim what, and proxy answers.
//!
//! Pods have /32 addresses and a gateway that is the switch itself, so every address that a pod
//! asks for is behind the gateway's MAC.

use std::net::{IpAddr, Ipv4Addr};

use podswitch_wire::addr::Mac;
use podswitch_wire::parse::{Network, Parsed};
use smoltcp::wire::{
    ArpHardware, ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol,
};

use super::{Binding, Trust, ethernet, is_one_host, macs};
use crate::action::DropReason;
use crate::packet::{Packet, Pool};

/// Bytes of an ARP packet for IPv4 over Ethernet.
const LEN: usize = 28;

/// What becomes of an ARP frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArpVerdict {
    /// Consumed, and answered with [`reply`] on the port that it came in by.
    Answer(ArpRequest),
    /// Consumed: the neighbour spoke about itself (announcement, probe, reply), or asked for an
    /// address that the switch does not answer for.
    Consumed,
    /// Dropped.
    Drop(DropReason),
}

/// A request that is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArpRequest {
    /// The MAC address of who asks.
    pub sender_mac: Mac,
    /// The IPv4 address of who asks; 0.0.0.0 in a probe for an address that is the gateway's.
    pub sender_ip: Ipv4Addr,
    /// The address asked for.
    pub target_ip: Ipv4Addr,
}

struct Fields {
    request: bool,
    sender_mac: Mac,
    sender_ip: Ipv4Addr,
    target_ip: Ipv4Addr,
}

/// Judges one ARP frame from the neighbour of `binding` (threat T-S1). `answers` says for which
/// addresses other than the neighbour's own the switch answers: for pods all, for the node its
/// pods'. The gateway's own address is always answered.
pub fn judge(
    packet: &Packet,
    parsed: &Parsed,
    binding: &Binding<'_>,
    answers: impl Fn(Ipv4Addr) -> bool,
) -> ArpVerdict {
    use ArpVerdict::{Answer, Consumed, Drop};

    let frame = packet.bytes();
    let Some((src_mac, dst_mac)) = macs(frame) else { return Drop(DropReason::ArpInvalid) };
    let Some(arp) = fields(frame, parsed) else { return Drop(DropReason::ArpInvalid) };
    if src_mac != binding.mac {
        return Drop(DropReason::SpoofedMac);
    }
    if dst_mac != Mac::BROADCAST && dst_mac != binding.gateway.mac {
        return Drop(DropReason::NotForUs);
    }

    let gateway = binding.gateway.ipv4;
    let ours = |ip: Ipv4Addr| ip == gateway || (!binding.ipv4.contains(&ip) && answers(ip));
    let may_have = |ip: Ipv4Addr| match binding.trust {
        Trust::Bound => ip != gateway && binding.ipv4.contains(&ip),
        Trust::Node => is_one_host(IpAddr::V4(ip)) && !ours(ip),
    };
    let probe = arp.request && arp.sender_ip.is_unspecified();
    if arp.sender_mac != binding.mac || !(probe || may_have(arp.sender_ip)) {
        return Drop(DropReason::SpoofedArp);
    }
    if !arp.request {
        return Consumed;
    }
    if !is_one_host(IpAddr::V4(arp.target_ip)) {
        return Drop(DropReason::ArpInvalid);
    }
    let request = ArpRequest {
        sender_mac: arp.sender_mac,
        sender_ip: arp.sender_ip,
        target_ip: arp.target_ip,
    };
    // A probe claims its target (RFC 5227 §2.1.1). One for the neighbour's own address must stay
    // unanswered, or the neighbour would give the address up; the gateway defends its address.
    match probe {
        true if arp.target_ip == gateway => Answer(request),
        true if may_have(arp.target_ip) => Consumed,
        true => Drop(DropReason::SpoofedArp),
        false if ours(arp.target_ip) => Answer(request),
        false => Consumed,
    }
}

fn fields(frame: &[u8], parsed: &Parsed) -> Option<Fields> {
    if parsed.network != Network::Arp {
        return None;
    }
    let arp = frame.get(usize::from(parsed.l3)..)?;
    let arp = ArpPacket::new_checked(arp.get(..LEN)?).ok()?;
    // smoltcp's `Repr::parse` asks for what we ask for (Ethernet, IPv4, 6, 4) but takes any
    // hardware type that it can name.
    if arp.hardware_type() != ArpHardware::Ethernet {
        return None;
    }
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = ArpRepr::parse(&arp).ok()?
    else {
        return None;
    };
    let request = match operation {
        ArpOperation::Request => true,
        ArpOperation::Reply => false,
        ArpOperation::Unknown(_) => return None,
    };
    Some(Fields {
        request,
        sender_mac: Mac(source_hardware_addr.0),
        sender_ip: source_protocol_addr,
        target_ip: target_protocol_addr,
    })
}

/// The answer to `request`: its target is at `mac`. `None` when the pool has no buffer.
pub fn reply(request: &ArpRequest, mac: Mac, pool: &mut Pool) -> Option<Packet> {
    let mut packet = ethernet(pool, mac, request.sender_mac, EthernetProtocol::Arp, LEN)?;
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: request.target_ip,
        target_hardware_addr: EthernetAddress(request.sender_mac.0),
        target_protocol_addr: request.sender_ip,
    };
    repr.emit(&mut ArpPacket::new_unchecked(&mut packet.bytes_mut()[super::ETHERNET..]));
    Some(packet)
}

#[cfg(test)]
mod tests;
