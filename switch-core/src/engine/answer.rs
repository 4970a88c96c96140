//! Packets that the switch sends as answers: ICMP errors, TCP resets, and the gateway's own
//! replies.

use podswitch_vxlan::template::SourcePort;
use podswitch_wire::flow_key::{HashKey, proto};
use podswitch_wire::parse::{Icmp, Parsed, parse};

use super::egress::encapsulate_any;
use super::{BurstContext, Engine};
use crate::action::DropReason;
use crate::answer::icmp::{self, Error};
use crate::answer::tcp;
use crate::packet::Packet;
use crate::resolve::{Answer, Denial};
use crate::snapshot::PortFacts;

impl Engine {
    /// Drops a packet, and sends an error to its sender if the denial requires one.
    pub(super) fn deny(
        &mut self,
        cx: &mut BurstContext<'_>,
        packet: Packet,
        parsed: &Parsed,
        denial: &Denial<'_>,
    ) {
        let error = match denial.answer {
            Answer::Silent => None,
            Answer::NetUnreachable => Some(Error::NoRoute),
            Answer::HostUnreachable => Some(Error::AddressUnreachable),
            Answer::Prohibited => Some(Error::AdminProhibited),
            Answer::PortUnreachable => {
                self.send_port_closed(cx, &packet, parsed);
                None
            }
        };
        if let Some(error) = error {
            self.send_icmp_error(cx, &packet, parsed, error);
        }
        self.drop(cx, packet, denial.reason, denial.object.as_ref());
    }

    /// Consumes a packet to the gateway itself. It answers pings and has no open port.
    pub(super) fn gateway(&mut self, cx: &mut BurstContext<'_>, packet: Packet, parsed: &Parsed) {
        match parsed.icmp {
            Icmp::Query => {
                if let Ok(answer) = icmp::echo_reply(&packet, parsed, cx.pool) {
                    self.send_answer(cx, &packet, answer);
                }
            }
            Icmp::None => self.send_port_closed(cx, &packet, parsed),
            Icmp::Reply | Icmp::Error | Icmp::Neighbour | Icmp::Other => {}
        }
        self.consume(cx, packet);
    }

    /// Answers as a closed port does: a reset for TCP, port unreachable for everything else.
    fn send_port_closed(&mut self, cx: &mut BurstContext<'_>, packet: &Packet, parsed: &Parsed) {
        if parsed.key.proto != proto::TCP {
            return self.send_icmp_error(cx, packet, parsed, Error::PortUnreachable);
        }
        if let Ok(answer) = tcp::reset(packet, parsed, cx.now, &mut self.errors, cx.pool) {
            self.send_answer(cx, packet, answer);
        }
    }

    /// Sends an ICMP error about a packet to its sender, if the rules and limits for ICMP errors
    /// allow it.
    pub(super) fn send_icmp_error(
        &mut self,
        cx: &mut BurstContext<'_>,
        packet: &Packet,
        parsed: &Parsed,
        error: Error,
    ) {
        let source = match error {
            // Port unreachable comes from the address that the packet was sent to.
            Error::PortUnreachable => parsed.key.dst_addr(),
            _ => {
                let (snapshot, to) = (cx.snapshot, parsed.key.src_addr());
                let own = snapshot.own_address(to);
                // Another node does not forward packets from the link-local gateway address, which
                // `own` is if the node has no address of this family.
                let end = packet.via().filter(|_| snapshot.is_gateway(own));
                end.and_then(|_| snapshot.tunnels.own_gateway(to.is_ipv6())).unwrap_or(own)
            }
        };
        let limiter = &mut self.errors;
        let answer = icmp::error(error, packet, parsed, source, cx.now, limiter, cx.pool);
        if let Ok(answer) = answer {
            self.send_answer(cx, packet, answer);
        }
    }

    /// Sends an answer to the sender of `request`: out of the port that it was received on, and
    /// through the tunnel if it came from there.
    pub(super) fn send_answer(
        &mut self,
        cx: &mut BurstContext<'_>,
        request: &Packet,
        mut answer: Packet,
    ) {
        let snapshot = cx.snapshot;
        let port = request.ingress;
        if matches!(snapshot.port(port), PortFacts::Uplink(_))
            && let Some(end) = request.via()
        {
            let (traffic_class, source_port) = outer_fields(&answer, &snapshot.cluster_key);
            let result = match snapshot.tunnels.to(end) {
                Some(tunnel) => encapsulate_any(tunnel, &mut answer, traffic_class, source_port),
                None => Err(DropReason::NoRoute),
            };
            if result.is_err() {
                self.counters.originated.add(1);
                self.counters.originated_lost.add(1);
                return cx.pool.free(answer);
            }
        }
        self.originate(cx, port, answer);
    }
}

/// Traffic class and source port of the outer headers for a frame that the switch made.
fn outer_fields(frame: &Packet, cluster_key: &HashKey) -> (u8, SourcePort) {
    let parsed: Parsed = parse(frame.bytes(), cluster_key).unwrap_or_default();
    (parsed.traffic_class, SourcePort::of(&parsed, cluster_key))
}
