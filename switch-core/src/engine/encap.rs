//! Into the tunnel: outer headers in front of what leaves for another node.
//!
//! [`wrap`] is on the hit path; the rest is for what the slow path sends on, and for answers that
//! go back the way that the question came.

use podswitch_vxlan::template::{EncapError, InnerFacts, PartialChecksum, SourcePort};
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Parsed, parse};

use super::{Engine, Trace, Turn};
use crate::action::{DropReason, Plan, PlanFlags};
use crate::packet::{Origin, Packet, finish_checksum, segment};
use crate::snapshot::{PortFacts, Tunnel};

/// Puts the outer headers in front of a frame; its offload metadata goes on to be about what is
/// inside. If it cannot be, the frame is as it was.
#[inline]
pub(super) fn wrap(
    tunnel: &Tunnel,
    packet: &mut Packet,
    traffic_class: u8,
    source_port: SourcePort,
) -> Result<(), EncapError> {
    let room = tunnel.template.len();
    if packet.headroom() < room {
        return Err(EncapError::Headroom);
    }
    if !packet.offload.is_unfinished() {
        packet.push_front(room);
        if tunnel.template.encap_ordinary(source_port, traffic_class, packet.bytes_mut()) {
            return Ok(());
        }
        packet.pull_front(room);
    }
    wrap_rare(tunnel, packet, traffic_class, source_port)
}

/// [`wrap`] of what is unfinished, or by a tunnel that asks for more.
#[inline(never)]
fn wrap_rare(
    tunnel: &Tunnel,
    packet: &mut Packet,
    traffic_class: u8,
    source_port: SourcePort,
) -> Result<(), EncapError> {
    let room = tunnel.template.len();
    let offload = packet.offload;
    let unfinished = PartialChecksum { start: offload.csum_start, offset: offload.csum_offset };
    let facts = InnerFacts {
        source_port,
        traffic_class,
        dont_fragment: true,
        tagged: false,
        gso: offload.is_gso(),
        identification: 0,
        partial: offload.csum_partial.then_some(unfinished),
    };
    packet.push_front(room);
    match tunnel.template.encap(&facts, packet.bytes_mut()) {
        Ok(_) => {
            packet.offload.shift(room as i32);
            Ok(())
        }
        Err(error) => {
            packet.pull_front(room);
            Err(error)
        }
    }
}

/// As [`wrap`], of what is not quite ordinary.
pub(super) fn wrap_any(
    tunnel: &Tunnel,
    packet: &mut Packet,
    traffic_class: u8,
    source_port: SourcePort,
) -> Result<(), DropReason> {
    // The outer checksum can be finished before an inner sum, but not before an inner CRC.
    if packet.offload.is_crc32c() {
        finish_checksum(packet)?;
    }
    wrap(tunnel, packet, traffic_class, source_port).map_err(|error| match error {
        EncapError::TooLong => DropReason::FrameTooLong,
        EncapError::InnerVlan => DropReason::TunnelInnerVlan,
        EncapError::Partial => DropReason::OffloadInvalid,
        EncapError::Headroom => DropReason::GsoUnsupported,
    })
}

impl Engine {
    /// The largest network-layer packet that a plan's way takes now.
    #[inline]
    pub(super) fn way_mtu(turn: &Turn<'_>, plan: &Plan) -> u16 {
        if plan.flags.has(PlanFlags::ENCAP)
            && let Some(tunnel) = turn.snapshot.tunnels.get(plan.tunnel)
        {
            return tunnel.inner_mtu(turn.now);
        }
        plan.mtu
    }

    /// Sends on what `apply` has rewritten, through the tunnel if the plan says so.
    pub(super) fn leave(
        &mut self,
        turn: &mut Turn<'_>,
        mut packet: Packet,
        traffic_class: u8,
        plan: &Plan,
    ) {
        if !plan.flags.has(PlanFlags::ENCAP) {
            return self.forward(turn, plan.out, packet);
        }
        let snapshot = turn.snapshot;
        let Some(tunnel) = snapshot.tunnels.get(plan.tunnel) else {
            return self.drop(turn, packet, DropReason::NoRoute, None);
        };
        match wrap_any(tunnel, &mut packet, traffic_class, plan.source_port) {
            Ok(()) => self.forward(turn, plan.out, packet),
            // With the outer headers longer than any packet may be: cut before, not behind.
            Err(DropReason::FrameTooLong) if packet.offload.is_gso() => {
                self.leave_in_segments(turn, packet, traffic_class, plan, tunnel);
            }
            Err(reason) => self.drop(turn, packet, reason, None),
        }
    }

    fn leave_in_segments(
        &mut self,
        turn: &mut Turn<'_>,
        packet: Packet,
        traffic_class: u8,
        plan: &Plan,
        tunnel: &Tunnel,
    ) {
        let trace = Trace::from(&packet);
        let out = &mut *turn.out;
        let mut pieces = 0u64;
        let mut failed = None;
        let cut = segment(packet, turn.pool, &mut |pool, mut piece| match wrap_any(
            tunnel,
            &mut piece,
            traffic_class,
            plan.source_port,
        ) {
            Ok(()) => {
                piece.origin = if pieces == 0 { trace.origin } else { Origin::Copy };
                pieces += 1;
                out.push(plan.out, piece);
            }
            Err(reason) => {
                failed = Some(reason);
                pool.free(piece);
            }
        });
        let failed = failed.or(cut.err().map(|error| error.reason));
        self.sent_in_pieces(turn, trace, pieces, failed);
    }

    /// Counts a frame that left as several, or as none for a reason.
    pub(super) fn sent_in_pieces(
        &mut self,
        turn: &Turn<'_>,
        trace: Trace,
        pieces: u64,
        failed: Option<DropReason>,
    ) {
        match (failed, trace.origin) {
            (Some(reason), _) if pieces == 0 => self.count_drop(turn.now, trace, reason, None),
            (_, Origin::Received) => {
                self.counters.forwarded.add(1);
                self.counters.copies.add(pieces.saturating_sub(1));
            }
            _ => self.counters.copies.add(pieces),
        }
    }

    /// Sends an answer to whoever sent `asked`: by the port that it came in by, and through the
    /// tunnel if that is how it came.
    pub(super) fn answer(&mut self, turn: &mut Turn<'_>, asked: &Packet, mut answer: Packet) {
        let snapshot = turn.snapshot;
        let port = asked.ingress;
        if matches!(snapshot.port(port), PortFacts::Uplink(_))
            && let Some(end) = asked.via()
        {
            let facts = facts_of(&answer, &snapshot.cluster_key);
            let wrapped = match snapshot.tunnels.to(end) {
                Some(tunnel) => wrap_any(tunnel, &mut answer, facts.0, facts.1),
                None => Err(DropReason::NoRoute),
            };
            if wrapped.is_err() {
                self.counters.originated.add(1);
                self.counters.originated_lost.add(1);
                return turn.pool.free(answer);
            }
        }
        self.originate(turn, port, answer);
    }
}

/// Traffic class and source port of the tunnel packet for a frame that the switch made.
fn facts_of(frame: &Packet, cluster_key: &HashKey) -> (u8, SourcePort) {
    let parsed: Parsed = parse(frame.bytes(), cluster_key).unwrap_or_default();
    (parsed.traffic_class, SourcePort::of(&parsed, cluster_key))
}
