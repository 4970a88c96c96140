//! ICMP errors: let through where they quote a packet of a connection that we know (N5, T-N2), and
//! translated with it, outside and inside (RFC 5508 §4).

use podswitch_wire::parse::{Parsed, Quoted, parse_quoted};

use super::{Engine, Turn};
use crate::action::{DropReason, Plan, translate_error};
use crate::flow::connection::Known;
use crate::packet::Packet;
use crate::resolve::{Query, check_source, outgoing, way};
use crate::snapshot::Snapshot;

impl Engine {
    pub(super) fn related(&mut self, turn: &mut Turn<'_>, packet: Packet, parsed: &Parsed) {
        let query = Query::of(&parsed.key, &packet);
        if let Err(reason) = check_source(turn.snapshot, &query) {
            return self.drop(turn, packet, reason, None);
        }
        let Some((known, quoted)) = self.quoted_connection(turn.snapshot, &packet, parsed) else {
            // About what the gateway itself said. Else its address hides a client (S8).
            if turn.snapshot.is_gateway(parsed.key.dst_addr()) {
                return self.gateway(turn, packet, parsed);
            }
            return self.drop(turn, packet, DropReason::IcmpUnrelated, None);
        };
        let direction = known.connection.direction();
        let mut packet = packet;
        let outgoing = outgoing(&known.pinned, direction);
        let hop = match way(turn.snapshot, &query, &known.pinned, direction, None) {
            Ok(hop) => hop,
            Err(denial) => {
                return self.drop(turn, packet, denial.reason, denial.object.as_ref());
            }
        };
        let mut plan = Plan::default();
        if !hop.plan(turn.snapshot, || outgoing, &mut plan) {
            return self.gateway(turn, packet, parsed);
        }
        if known.pinned.is_translated() {
            let answer = quoted.key.reversed();
            translate_error(&mut packet, parsed, &quoted, &answer, &outgoing);
        }
        self.transmit(turn, packet, parsed, &plan);
    }

    /// The connection of the quoted packet, seen from the side that the error comes from: the
    /// error travels the way of that packet's answers, and comes from where they would.
    fn quoted_connection(
        &self,
        snapshot: &Snapshot,
        packet: &Packet,
        parsed: &Parsed,
    ) -> Option<(Known, Quoted)> {
        let quote = packet.bytes().get(usize::from(parsed.payload)..parsed.end as usize)?;
        let quoted = parse_quoted(quote, parsed.network, &self.shared.hash_key)?;
        // The error goes to whoever sent what it quotes.
        if quoted.key.src != parsed.key.dst {
            return None;
        }
        let answer = quoted.key.reversed();
        // Whoever could not answer the packet never saw it, or made it up (T-N2): a pod is no
        // router for others, and behind the node's port stands none of this node's pods.
        check_source(snapshot, &Query::of(&answer, packet)).ok()?;
        let tracker = &self.shared.tracker;
        let place = tracker.place(&answer, answer.hash(&self.shared.hash_key));
        let known = tracker.find(place, &answer)?;
        Some((known, quoted))
    }
}
