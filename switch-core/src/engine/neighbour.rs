//! ARP and neighbour discovery on routed ports: judged against who stands behind the port, and
//! answered here.

use std::net::IpAddr;

use podswitch_wire::parse::Parsed;

use super::slow::source;
use super::{Engine, Turn};
use crate::action::DropReason;
use crate::answer::{Binding, Trust, arp, nd};
use crate::id::PortId;
use crate::packet::Packet;
use crate::snapshot::{PortFacts, Snapshot};

/// Who stands behind a routed port. The node is whoever speaks there.
fn binding<'a>(snapshot: &'a Snapshot, ingress: PortId, packet: &Packet) -> Option<Binding<'a>> {
    let gateway = &snapshot.gateway;
    match snapshot.port(ingress) {
        PortFacts::Pod(pod) => Some(Binding {
            mac: pod.mac,
            ipv4: &pod.ipv4,
            ipv6: &pod.ipv6,
            gateway,
            trust: Trust::Bound,
        }),
        PortFacts::Host(_) => Some(Binding {
            mac: source(packet.bytes()),
            ipv4: &[],
            ipv6: &[],
            gateway,
            trust: Trust::Node,
        }),
        // Another node may have any address but ours, and nothing that it says is remembered.
        PortFacts::Uplink(_) => Some(Binding {
            mac: source(packet.bytes()),
            ipv4: &[],
            ipv6: &[],
            gateway: snapshot.tunnels.gateway(packet.via()?),
            trust: Trust::Node,
        }),
        PortFacts::Unused | PortFacts::Bridge(_) => None,
    }
}

/// For which addresses the switch answers: to a pod for all, to the node for pods, through the
/// tunnel for this node's pods.
fn answers(snapshot: &Snapshot, binding: &Binding<'_>, packet: &Packet, address: IpAddr) -> bool {
    match binding.trust {
        Trust::Bound => true,
        Trust::Node if packet.via().is_some() => snapshot.is_local_pod(address),
        Trust::Node => snapshot.endpoints.contains_key(&address),
    }
}

impl Engine {
    pub(super) fn arp(
        &mut self,
        turn: &mut Turn<'_>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
    ) {
        let snapshot = turn.snapshot;
        let Some(binding) = binding(snapshot, ingress, &packet) else {
            return self.drop(turn, packet, DropReason::EndpointNotReady, None);
        };
        let ours = |a| answers(snapshot, &binding, &packet, IpAddr::V4(a));
        match arp::judge(&packet, parsed, &binding, ours) {
            arp::ArpVerdict::Answer(request) => {
                if let Some(answer) = arp::reply(&request, binding.gateway.mac, turn.pool) {
                    self.answer(turn, &packet, answer);
                }
                self.consume(turn, packet);
            }
            arp::ArpVerdict::Consumed => self.consume(turn, packet),
            arp::ArpVerdict::Drop(reason) => self.drop(turn, packet, reason, None),
        }
    }

    pub(super) fn nd(
        &mut self,
        turn: &mut Turn<'_>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
    ) {
        let snapshot = turn.snapshot;
        let Some(binding) = binding(snapshot, ingress, &packet) else {
            return self.drop(turn, packet, DropReason::EndpointNotReady, None);
        };
        let ours = |a| answers(snapshot, &binding, &packet, IpAddr::V6(a));
        match nd::judge(&packet, parsed, &binding, ours) {
            nd::NdVerdict::Answer(solicitation) => {
                if let Some(answer) = nd::advertise(&solicitation, binding.gateway, turn.pool) {
                    self.answer(turn, &packet, answer);
                }
                self.consume(turn, packet);
            }
            nd::NdVerdict::Consumed(_) => self.consume(turn, packet),
            nd::NdVerdict::Drop(reason) => self.drop(turn, packet, reason, None),
        }
    }
}
