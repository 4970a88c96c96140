//! The slow path: first packets of flows, packets after an epoch change, and everything that is
//! never cached: ARP, ND, fragments, ICMP errors, packets to the gateway.

use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::{Fragment as Part, Icmp, Network, Parsed};

use super::admit::Admission;
use super::ahead::Ahead;
use super::encap::wrap_any;
use super::uplink::is_to_node;
use super::{Engine, Trace, Turn};
use crate::action::{DropReason, Plan, PlanFlags, apply};
use crate::answer::icmp::Error;
use crate::answer::{icmp, tcp as reset};
use crate::id::PortId;
use crate::packet::{Origin, Packet, fragment_v4, largest_l3};
use crate::resolve::{Answer, Denial};
use crate::snapshot::{PortFacts, Reach, Snapshot};

impl Engine {
    /// Everything that did not hit.
    #[inline(never)]
    pub(super) fn slow<'s>(
        &mut self,
        turn: &mut Turn<'s>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
        ahead: Ahead<'_, 's>,
    ) {
        if let Err(reason) = link_checks(turn.snapshot, ingress, &packet, parsed) {
            return self.drop(turn, packet, reason, None);
        }
        match parsed.network {
            Network::Other => self.drop(turn, packet, DropReason::EtherTypeUnsupported, None),
            Network::Arp => self.arp(turn, ingress, packet, parsed),
            _ if parsed.icmp == Icmp::Neighbour => self.nd(turn, ingress, packet, parsed),
            _ => self.routed(turn, ingress, packet, parsed, ahead),
        }
    }

    fn routed<'s>(
        &mut self,
        turn: &mut Turn<'s>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
        ahead: Ahead<'_, 's>,
    ) {
        if !is_to_switch(turn.snapshot, &packet) {
            let to = destination(packet.bytes());
            let reason = if to.is_bridge_reserved() {
                DropReason::BridgeReserved
            } else if to.is_multicast() {
                DropReason::MulticastUnsupported
            } else if packet.via().is_some() {
                DropReason::TunnelInnerDestination
            } else {
                DropReason::NotForUs
            };
            return self.drop(turn, packet, reason, None);
        }
        if parsed.fragment != Part::Whole {
            return self.fragment(turn, ingress, packet, parsed);
        }
        if parsed.icmp == Icmp::Error {
            return self.related(turn, packet, parsed);
        }
        let payload = parsed.end - u32::from(parsed.payload);
        match self.admit(turn, &packet, parsed, payload, ahead) {
            Admission::Pass(plan) => self.transmit(turn, packet, parsed, &plan),
            Admission::Gateway => self.gateway(turn, packet, parsed),
            Admission::Deny(denial) => self.deny(turn, packet, parsed, &denial),
        }
    }

    /// Sends an admitted packet on, if TTL and MTU let it.
    pub(super) fn transmit(
        &mut self,
        turn: &mut Turn<'_>,
        mut packet: Packet,
        parsed: &Parsed,
        plan: &Plan,
    ) {
        if parsed.ttl <= 1 {
            self.tell(turn, &packet, parsed, Error::TimeExceeded);
            return self.drop(turn, packet, DropReason::TtlExceeded, None);
        }
        let length = parsed.end - u32::from(parsed.l3);
        let mtu = Self::way_mtu(turn, plan);
        if length <= u32::from(mtu) || segments_fit(&packet, parsed, mtu) {
            apply(&mut packet, parsed, plan);
            return self.leave(turn, packet, parsed.traffic_class, plan);
        }
        if parsed.dont_fragment || parsed.network == Network::Ipv6 {
            self.tell(turn, &packet, parsed, Error::TooBig { mtu: u32::from(mtu) });
            return self.drop(turn, packet, DropReason::MtuExceeded, None);
        }
        apply(&mut packet, parsed, plan);
        self.send_fragments(turn, packet, parsed.traffic_class, plan, mtu);
    }

    /// Cuts a packet that may be cut (RFC 1812 §5.2.7).
    fn send_fragments(
        &mut self,
        turn: &mut Turn<'_>,
        packet: Packet,
        traffic_class: u8,
        plan: &Plan,
        mtu: u16,
    ) {
        let trace = Trace::from(&packet);
        let tunnel = turn.snapshot.tunnels.get(plan.tunnel);
        let tunnel = tunnel.filter(|_| plan.flags.has(PlanFlags::ENCAP));
        let (mut pieces, mut failed) = (0u64, None);
        let out = &mut *turn.out;
        let cut = fragment_v4(packet, usize::from(mtu), turn.pool, &mut |pool, mut piece| {
            if let Some(tunnel) = tunnel
                && let Err(reason) = wrap_any(tunnel, &mut piece, traffic_class, plan.source_port)
            {
                failed = Some(reason);
                return pool.free(piece);
            }
            piece.ingress = trace.ingress;
            piece.mark = trace.mark;
            piece.origin = if pieces == 0 { trace.origin } else { Origin::Copy };
            pieces += 1;
            out.push(plan.out, piece);
        });
        let failed = failed.or(cut.err().map(|error| error.reason));
        self.sent_in_pieces(turn, trace, pieces, failed);
    }

    /// Tells the sender and drops.
    pub(super) fn deny(
        &mut self,
        turn: &mut Turn<'_>,
        packet: Packet,
        parsed: &Parsed,
        denial: &Denial,
    ) {
        match denial.answer {
            Answer::Silent => {}
            Answer::NetUnreachable => self.tell(turn, &packet, parsed, Error::NoRoute),
            Answer::HostUnreachable => self.tell(turn, &packet, parsed, Error::AddressUnreachable),
            Answer::Prohibited => self.tell(turn, &packet, parsed, Error::AdminProhibited),
            Answer::PortUnreachable => self.refuse(turn, &packet, parsed),
        }
        self.drop(turn, packet, denial.reason, denial.object.as_ref());
    }

    /// A closed port's answer: a reset to TCP, port unreachable to the rest.
    pub(super) fn refuse(&mut self, turn: &mut Turn<'_>, packet: &Packet, parsed: &Parsed) {
        if parsed.key.proto != proto::TCP {
            return self.tell(turn, packet, parsed, Error::PortUnreachable);
        }
        if let Ok(answer) = reset::reset(packet, parsed, turn.now, &mut self.errors, turn.pool) {
            self.answer(turn, packet, answer);
        }
    }

    /// Sends an ICMP error back to the port that the packet came from, if rules and limits allow.
    pub(super) fn tell(
        &mut self,
        turn: &mut Turn<'_>,
        packet: &Packet,
        parsed: &Parsed,
        error: Error,
    ) {
        let from = match error {
            // A closed port is told of by the address that it was looked for at.
            Error::PortUnreachable => parsed.key.dst_addr(),
            _ => {
                let (snapshot, to) = (turn.snapshot, parsed.key.src_addr());
                // No other node forwards what comes from a link-local address.
                let node = snapshot.own_address(to);
                let known = packet.via().filter(|_| snapshot.is_gateway(node));
                known.and_then(|_| snapshot.tunnels.own_gateway(to.is_ipv6())).unwrap_or(node)
            }
        };
        let limiter = &mut self.errors;
        if let Ok(answer) = icmp::error(error, packet, parsed, from, turn.now, limiter, turn.pool) {
            self.answer(turn, packet, answer);
        }
    }
}

/// Whether a frame's link-layer destination is the switch.
fn is_to_switch(snapshot: &Snapshot, packet: &Packet) -> bool {
    match snapshot.port(packet.ingress) {
        PortFacts::Uplink(uplink) => is_to_node(snapshot, uplink, packet),
        _ => destination(packet.bytes()) == snapshot.gateway.mac,
    }
}

pub(super) fn destination(frame: &[u8]) -> Mac {
    Mac(frame.first_chunk::<6>().copied().unwrap_or_default())
}

pub(super) fn source(frame: &[u8]) -> Mac {
    Mac(frame.get(6..12).and_then(|m| m.first_chunk::<6>()).copied().unwrap_or_default())
}

/// Who may put what on the wire of a routed port (threats T-S1, T-S2, T-S3).
fn link_checks(
    snapshot: &Snapshot,
    ingress: PortId,
    packet: &Packet,
    parsed: &Parsed,
) -> Result<(), DropReason> {
    let frame = packet.bytes();
    let source = source(frame);
    // A pod has one address; the node's stack may bridge others on to us, and is trusted to.
    let (own, is_pod) = match snapshot.port(ingress) {
        PortFacts::Pod(pod) => (pod.mac, true),
        PortFacts::Host(_) => (source, false),
        PortFacts::Uplink(_) if packet.via().is_some() => (source, false),
        // Without a tunnel a neighbour's pods are believed of its link-layer address alone.
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
    // A DHCP server speaks from 67 (IPv4) or 547 (IPv6) to 68 or 546.
    let ports = (parsed.key.src_port, parsed.key.dst_port);
    if is_pod && parsed.key.proto == proto::UDP && matches!(ports, (67, 68) | (547, 546)) {
        return Err(DropReason::RogueDhcp);
    }
    // ICMPv4 redirects (5) and router advertisements (9); those of IPv6 are neighbour discovery.
    let is_other_v4 = parsed.icmp == Icmp::Other && parsed.network == Network::Ipv4;
    if is_pod && is_other_v4 && matches!(frame.get(usize::from(parsed.l4)), Some(5 | 9)) {
        return Err(DropReason::RogueRouter);
    }
    Ok(())
}

/// Whether a super-frame's segments, or a held frame's own packet, fit the way out.
#[inline(never)]
pub(super) fn segments_fit(packet: &Packet, parsed: &Parsed, mtu: u16) -> bool {
    packet.offload.is_gso() && largest_l3(packet, parsed) <= usize::from(mtu)
}
