//! ICMP errors: forwarded if they quote a packet of a known connection (N5, T-N2), and translated
//! with it, the quoted packet included (RFC 5508 §4).

use podswitch_wire::parse::{Parsed, Quoted, parse_quoted};

use super::{BurstContext, Engine};
use crate::action::{DropReason, Plan};
use crate::flow::connection::Known;
use crate::nat::icmp::translate_error;
use crate::packet::Packet;
use crate::resolve::{AllowedBy, Query, check_source, forwarding};
use crate::snapshot::Snapshot;

impl Engine {
    pub(super) fn icmp_error(
        &mut self,
        cx: &mut BurstContext<'_>,
        mut packet: Packet,
        parsed: &Parsed,
    ) {
        let query = Query::of(&parsed.key, &packet);
        if let Err(reason) = check_source(cx.snapshot, &query) {
            return self.drop(cx, packet, reason, None);
        }
        let Some((known, quoted)) = self.quoted_connection(cx.snapshot, &packet, parsed) else {
            // About a packet that the gateway itself sent. An error about a connection whose client
            // was masqueraded with the gateway's address (S8) was found above.
            if cx.snapshot.is_gateway(parsed.key.dst_addr()) {
                return self.gateway(cx, packet, parsed);
            }
            return self.drop(cx, packet, DropReason::IcmpUnrelated, None);
        };
        let direction = known.connection.direction();
        let outgoing = known.pinned.outgoing(direction);
        // The connection was counted when it was opened.
        let mut allowed_by = AllowedBy::default();
        let hop = forwarding(cx.snapshot, &query, &known.pinned, direction, None, &mut allowed_by);
        let hop = match hop {
            Ok(hop) => hop,
            Err(denial) => {
                return self.drop(cx, packet, denial.reason, denial.object.as_ref());
            }
        };
        let mut plan = Plan::default();
        if !hop.plan(cx.snapshot, || outgoing, &mut plan) {
            return self.gateway(cx, packet, parsed);
        }
        if known.pinned.is_translated() {
            let reply = quoted.key.reversed();
            translate_error(&mut packet, parsed, &quoted, &reply, &outgoing);
        }
        self.transmit(cx, packet, parsed, &plan);
    }

    /// The connection of the quoted packet, seen from the sender of the error: the error travels in
    /// the direction of replies to the quoted packet, and is accepted where those are.
    fn quoted_connection(
        &self,
        snapshot: &Snapshot,
        packet: &Packet,
        parsed: &Parsed,
    ) -> Option<(Known, Quoted)> {
        let quote = packet.bytes().get(usize::from(parsed.payload)..parsed.end as usize)?;
        let quoted = parse_quoted(quote, parsed.network, &self.shared.hash_key)?;
        // An error goes to the sender of the packet that it quotes.
        if quoted.key.src != parsed.key.dst {
            return None;
        }
        let reply = quoted.key.reversed();
        // A sender that could not send the replies has not seen the packet, or has forged the quote
        // (T-N2): a pod is not a router for others, and none of this node's pods is behind the
        // node's port.
        check_source(snapshot, &Query::of(&reply, packet)).ok()?;
        let tracker = &self.shared.tracker;
        let hash = reply.hash(&self.shared.hash_key);
        let known = tracker.find(tracker.index_hash(&reply, hash), &reply)?;
        Some((known, quoted))
    }
}
