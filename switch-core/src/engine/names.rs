//! Cluster DNS: answers datagrams to the name server's Service that ask for names of the zone.
//!
//! Called by admission, after the packet was evaluated as any other to the Service: its backend was selected, and
//! policy allowed the connection to that backend. What is not answered here goes to the backend. An answered query
//! opens no connection: nothing is kept about it.

use podswitch_dns::{Outcome, Transport, answer};
use podswitch_wire::flow_key::Family;
use podswitch_wire::parse::Parsed;

use super::{AnsweredQuery, BurstContext, Engine, FlowEvent};
use crate::answer::udp;
use crate::packet::Packet;
use crate::pinned::{OpenedAt, Pinned};
use crate::resolve::Forward;
use crate::snapshot::{Names, PortFacts};

impl Engine {
    /// The frame with the answer to a datagram to the name server's Service. `None`: it is for the backend: it asks for
    /// another zone, or for what a server must know more of DNS for, or cannot be answered.
    pub(super) fn answer_name(
        &mut self,
        cx: &mut BurstContext<'_>,
        names: &Names,
        packet: &Packet,
        parsed: &Parsed,
        (pinned, forward): (&Pinned, &Forward<'_>),
    ) -> Option<Packet> {
        let mtu = match cx.snapshot.port(packet.ingress) {
            PortFacts::Pod(pod) => pod.mtu,
            PortFacts::Host(host) => host.mtu,
            // Pods of other nodes ask there.
            PortFacts::Uplink(_) | PortFacts::Bridge(_) | PortFacts::Unused => return None,
        };
        if !names.zone.is_synced() {
            return None;
        }
        let query = udp::content(packet, parsed).ok()?;
        let room = udp::room(parsed, mtu).min(self.name_answer.len());
        let out = &mut self.name_answer[..room];
        self.rotation = self.rotation.wrapping_add(1);
        let outcome = answer(&names.zone, query, Transport::Udp, self.rotation, out);
        let answered = match outcome {
            // The last alias leads to another zone: the backend knows the records there.
            Outcome::Answered(answered) if !answered.is_partial => answered,
            _ => return None,
        };
        let frame = udp::reply(packet, parsed, &out[..answered.len], cx.pool).ok()?;
        for number in [forward.allowed_by.egress, forward.allowed_by.ingress].into_iter().flatten()
        {
            cx.snapshot.policy_counters.add(number);
        }
        let is_ipv6 = parsed.key.family == Family::V6;
        self.counters.names.answered(is_ipv6, query.len(), &answered);
        if let Some(observer) = &mut self.flow_observer {
            let question = answered.question;
            observer.event(FlowEvent::Answered(AnsweredQuery {
                pinned,
                at: OpenedAt { time: cx.now, epoch: cx.snapshot.epoch },
                name: question.map_or(&[], |question| question.name(query)),
                qtype: question.map_or(0, |question| question.qtype),
                rcode: answered.rcode,
                bytes: [packet.len() as u64, frame.len() as u64],
            }));
        }
        Some(frame)
    }
}
