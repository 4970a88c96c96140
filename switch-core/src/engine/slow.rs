//! The slow path: first packets of flows, packets of flows that a configuration change may affect, and all packets
//! without a flow entry: ARP, ND, fragments, ICMP errors, packets to the gateway.
//!
//! Checks the frame's link layer and sends it to the stage that handles it.

use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::{Fragment, Icmp, Network, Parsed};

use super::admission::Admission;
use super::frame::{destination_mac, source_mac};
use super::prefetch::MissInfo;
use super::{BurstContext, Engine};
use crate::action::DropReason;
use crate::id::PortId;
use crate::packet::Packet;
use crate::snapshot::{PortFacts, Reach, Snapshot};

impl Engine {
    /// Processes a packet that the fast path did not forward.
    #[inline(never)]
    pub(super) fn slow_path<'s>(
        &mut self,
        cx: &mut BurstContext<'s>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
        info: MissInfo<'_, 's>,
    ) {
        if let Err(reason) = check_link_layer(cx.snapshot, ingress, &packet, parsed) {
            return self.drop(cx, packet, reason, None);
        }
        if destination_mac(packet.bytes()).is_bridge_reserved() {
            return self.drop(cx, packet, DropReason::BridgeReserved, None);
        }
        match parsed.network {
            Network::Other => self.drop(cx, packet, DropReason::EtherTypeUnsupported, None),
            Network::Arp => self.arp(cx, ingress, packet, parsed),
            _ if parsed.icmp == Icmp::Neighbour => self.nd(cx, ingress, packet, parsed),
            _ => self.route(cx, ingress, packet, parsed, info),
        }
    }

    fn route<'s>(
        &mut self,
        cx: &mut BurstContext<'s>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
        info: MissInfo<'_, 's>,
    ) {
        if !is_to_switch(cx.snapshot, &packet) {
            let to = destination_mac(packet.bytes());
            let reason = if to.is_multicast() {
                DropReason::MulticastUnsupported
            } else if packet.via().is_some() {
                DropReason::TunnelInnerDestination
            } else {
                DropReason::NotForUs
            };
            return self.drop(cx, packet, reason, None);
        }
        if parsed.fragment != Fragment::Whole {
            return self.fragment(cx, ingress, packet, parsed);
        }
        if parsed.icmp == Icmp::Error {
            return self.icmp_error(cx, packet, parsed);
        }
        let payload = parsed.end - u32::from(parsed.payload);
        match self.admit(cx, &packet, parsed, payload, info) {
            Admission::Pass(plan) => self.transmit(cx, packet, parsed, &plan),
            Admission::Gateway => self.gateway(cx, packet, parsed),
            Admission::Answer(answer) => {
                self.send_answer(cx, &packet, answer);
                self.consume(cx, packet);
            }
            Admission::Deny(denial) => self.deny(cx, packet, parsed, &denial),
        }
    }
}

/// Whether a frame's destination MAC address is the switch's on its ingress port.
fn is_to_switch(snapshot: &Snapshot, packet: &Packet) -> bool {
    let to = destination_mac(packet.bytes());
    match (snapshot.port(packet.ingress), packet.via()) {
        (PortFacts::Uplink(_), Some(_)) => snapshot.tunnels.is_own_mac(to),
        (PortFacts::Uplink(uplink), None) => to == uplink.mac,
        _ => to == snapshot.gateway.mac,
    }
}

/// Which sender may send which packets on a routed port (threats T-S1, T-S2, T-S3).
fn check_link_layer(
    snapshot: &Snapshot,
    ingress: PortId,
    packet: &Packet,
    parsed: &Parsed,
) -> Result<(), DropReason> {
    let frame = packet.bytes();
    let source = source_mac(frame);
    // A pod has one MAC address. The node's stack is trusted to use any: it may bridge for others.
    let (own, is_pod) = match snapshot.port(ingress) {
        PortFacts::Pod(pod) => (pod.mac, true),
        PortFacts::Host(_) => (source, false),
        PortFacts::Uplink(_) if packet.via().is_some() => (source, false),
        // Outside the tunnel, a neighbour's pods are accepted from that neighbour's MAC address only.
        PortFacts::Uplink(_) => match snapshot.reach(parsed.key.src_addr()) {
            Some(Reach::Neighbour(mac)) => (mac, false),
            _ => (source, false),
        },
        PortFacts::Unused | PortFacts::Bridge(_) => return Err(DropReason::EndpointNotReady),
    };
    if source.is_multicast() {
        return Err(DropReason::SourceMulticast);
    }
    if source != own {
        return Err(DropReason::SpoofedMac);
    }
    if parsed.tags > 0 {
        return Err(DropReason::VlanFromPod);
    }
    // A DHCP server sends from port 67 (IPv4) or 547 (IPv6) to port 68 or 546.
    let ports = (parsed.key.src_port, parsed.key.dst_port);
    if is_pod && parsed.key.proto == proto::UDP && matches!(ports, (67, 68) | (547, 546)) {
        return Err(DropReason::RogueDhcp);
    }
    // ICMPv4 redirect (5) and router advertisement (9). The ICMPv6 messages are neighbour discovery.
    let is_other_v4 = parsed.icmp == Icmp::Other && parsed.network == Network::Ipv4;
    if is_pod && is_other_v4 && matches!(frame.get(usize::from(parsed.l4)), Some(5 | 9)) {
        return Err(DropReason::RogueRouter);
    }
    Ok(())
}
