//! ARP (RFC 826, RFC 5227): checks of a neighbour's claims, and proxy replies.
//!
//! Pods have /32 addresses, and the switch is their gateway. So the reply to a pod's request is
//! always the gateway's MAC address.

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

/// The result of checking an ARP frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArpVerdict {
    /// Consumed, and answered with [`reply`] on the port that it was received on.
    Answer(ArpRequest),
    /// Consumed: an announcement, probe or reply about the neighbour itself, or a request for an
    /// address that the switch does not answer for.
    Consumed,
    /// Dropped.
    Drop(DropReason),
}

/// A request that is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArpRequest {
    /// The requester's MAC address.
    pub sender_mac: Mac,
    /// The requester's IPv4 address; 0.0.0.0 in a probe for the gateway's address.
    pub sender_ip: Ipv4Addr,
    /// The requested address.
    pub target_ip: Ipv4Addr,
}

struct Fields {
    request: bool,
    sender_mac: Mac,
    sender_ip: Ipv4Addr,
    target_ip: Ipv4Addr,
}

/// Checks an ARP frame from the neighbour `binding` (threat T-S1). `answers`: whether the switch
/// answers for an address other than the neighbour's own. It always answers for the gateway's.
pub fn check(
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
    // A probe claims its target (RFC 5227 §2.1.1). A probe for the neighbour's own address gets no
    // reply, or the neighbour would give the address up. The gateway defends its address.
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
    // smoltcp's `Repr::parse` makes the same checks (Ethernet, IPv4, 6, 4) but accepts other hardware
    // types.
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

/// Builds the reply to `request`: its target has the MAC address `mac`. `None` if the pool is empty.
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
