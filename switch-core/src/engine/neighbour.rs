//! ARP and neighbour discovery on routed ports: checked against the known facts about the port's
//! neighbour, and answered by the switch.

use std::net::IpAddr;

use podswitch_wire::parse::Parsed;

use super::frame::source_mac;
use super::{BurstContext, Engine};
use crate::action::DropReason;
use crate::answer::{Binding, Trust, arp, nd};
use crate::id::PortId;
use crate::packet::Packet;
use crate::snapshot::{PortFacts, Snapshot};

/// The neighbour on a routed port. The node may use any MAC address.
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
            mac: source_mac(packet.bytes()),
            ipv4: &[],
            ipv6: &[],
            gateway,
            trust: Trust::Node,
        }),
        // Another node may use any address except this node's. Nothing is learned from it.
        PortFacts::Uplink(_) => Some(Binding {
            mac: source_mac(packet.bytes()),
            ipv4: &[],
            ipv6: &[],
            gateway: snapshot.tunnels.gateway(packet.via()?),
            trust: Trust::Node,
        }),
        PortFacts::Unused | PortFacts::Bridge(_) => None,
    }
}

/// Whether the switch answers for an address: to a pod for every address, to the node for pods, and
/// through the tunnel for this node's pods.
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
        cx: &mut BurstContext<'_>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
    ) {
        let snapshot = cx.snapshot;
        let Some(binding) = binding(snapshot, ingress, &packet) else {
            return self.drop(cx, packet, DropReason::EndpointNotReady, None);
        };
        let ours = |a| answers(snapshot, &binding, &packet, IpAddr::V4(a));
        match arp::check(&packet, parsed, &binding, ours) {
            arp::ArpVerdict::Answer(request) => {
                if let Some(answer) = arp::reply(&request, binding.gateway.mac, cx.pool) {
                    self.send_answer(cx, &packet, answer);
                }
                self.consume(cx, packet);
            }
            arp::ArpVerdict::Consumed => self.consume(cx, packet),
            arp::ArpVerdict::Drop(reason) => self.drop(cx, packet, reason, None),
        }
    }

    pub(super) fn nd(
        &mut self,
        cx: &mut BurstContext<'_>,
        ingress: PortId,
        packet: Packet,
        parsed: &Parsed,
    ) {
        let snapshot = cx.snapshot;
        let Some(binding) = binding(snapshot, ingress, &packet) else {
            return self.drop(cx, packet, DropReason::EndpointNotReady, None);
        };
        let ours = |a| answers(snapshot, &binding, &packet, IpAddr::V6(a));
        match nd::check(&packet, parsed, &binding, ours) {
            nd::NdVerdict::Answer(solicitation) => {
                if let Some(answer) = nd::advertise(&solicitation, binding.gateway, cx.pool) {
                    self.send_answer(cx, &packet, answer);
                }
                self.consume(cx, packet);
            }
            nd::NdVerdict::Consumed(_) => self.consume(cx, packet),
            nd::NdVerdict::Drop(reason) => self.drop(cx, packet, reason, None),
        }
    }
}
