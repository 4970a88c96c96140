//! Egress: TTL and MTU checks, the rewrite, tunnel headers and fragmentation of the packets that
//! the slow path forwards.
//!
//! [`encapsulate`] and [`segments_fit`] are also used by the fast path.

use podswitch_vxlan::template::{EncapError, InnerFacts, PartialChecksum, SourcePort};
use podswitch_wire::parse::{Network, Parsed};

use super::apply::apply;
use super::{BurstContext, Engine, Trace};
use crate::action::{DropReason, Plan, PlanFlags};
use crate::answer::icmp::Error;
use crate::packet::{
    Origin, Packet, Pool, SegmentError, finish_checksum, fragment_v4, largest_l3, segment,
};
use crate::snapshot::Tunnel;

/// Writes the outer headers before a frame. Offload metadata continues to describe the inner frame.
/// On an error the frame is unchanged.
#[inline]
pub(super) fn encapsulate(
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
        if tunnel.template.encap_fast(source_port, traffic_class, packet.bytes_mut()) {
            return Ok(());
        }
        packet.pull_front(room);
    }
    encapsulate_offloaded(tunnel, packet, traffic_class, source_port)
}

/// [`encapsulate`] for a frame with offload metadata, or a tunnel whose template the short form does
/// not support.
#[inline(never)]
fn encapsulate_offloaded(
    tunnel: &Tunnel,
    packet: &mut Packet,
    traffic_class: u8,
    source_port: SourcePort,
) -> Result<(), EncapError> {
    let room = tunnel.template.len();
    let offload = packet.offload;
    let partial = PartialChecksum { start: offload.csum_start, offset: offload.csum_offset };
    let facts = InnerFacts {
        source_port,
        traffic_class,
        dont_fragment: true,
        tagged: false,
        gso: offload.is_gso(),
        identification: 0,
        partial: offload.csum_partial.then_some(partial),
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

/// [`encapsulate`] for any frame: a partial inner CRC32c is computed first.
pub(super) fn encapsulate_any(
    tunnel: &Tunnel,
    packet: &mut Packet,
    traffic_class: u8,
    source_port: SourcePort,
) -> Result<(), DropReason> {
    // The outer checksum can be computed while an inner Internet checksum is partial, but not while
    // an inner CRC is.
    if packet.offload.is_crc32c() {
        finish_checksum(packet)?;
    }
    encapsulate(tunnel, packet, traffic_class, source_port).map_err(|error| match error {
        EncapError::TooLong => DropReason::FrameTooLong,
        EncapError::InnerVlan => DropReason::TunnelInnerVlan,
        EncapError::Partial => DropReason::OffloadInvalid,
        EncapError::Headroom => DropReason::GsoUnsupported,
    })
}

/// Whether a packet that is longer than the MTU consists of packets that fit: the segments of a GSO
/// packet.
#[inline(never)]
pub(super) fn segments_fit(packet: &Packet, parsed: &Parsed, mtu: u16) -> bool {
    packet.offload.is_gso() && largest_l3(packet, parsed) <= usize::from(mtu)
}

/// The largest network-layer packet, in bytes, that a plan's next hop accepts now.
#[inline]
fn egress_mtu(cx: &BurstContext<'_>, plan: &Plan) -> u16 {
    if plan.flags.has(PlanFlags::ENCAP)
        && let Some(tunnel) = cx.snapshot.tunnels.get(plan.tunnel)
    {
        return tunnel.inner_mtu(cx.now);
    }
    plan.mtu
}

impl Engine {
    /// Forwards an admitted packet if its TTL and the MTU allow it. Otherwise it is fragmented, or
    /// dropped with an ICMP error to its sender.
    pub(super) fn transmit(
        &mut self,
        cx: &mut BurstContext<'_>,
        mut packet: Packet,
        parsed: &Parsed,
        plan: &Plan,
    ) {
        if parsed.ttl <= 1 {
            self.send_icmp_error(cx, &packet, parsed, Error::TimeExceeded);
            return self.drop(cx, packet, DropReason::TtlExceeded, None);
        }
        let length = parsed.end - u32::from(parsed.l3);
        let mtu = egress_mtu(cx, plan);
        if length <= u32::from(mtu) || segments_fit(&packet, parsed, mtu) {
            apply(&mut packet, parsed, plan);
            return self.send(cx, packet, parsed.traffic_class, plan);
        }
        if parsed.dont_fragment || parsed.network == Network::Ipv6 {
            self.send_icmp_error(cx, &packet, parsed, Error::TooBig { mtu: u32::from(mtu) });
            return self.drop(cx, packet, DropReason::MtuExceeded, None);
        }
        apply(&mut packet, parsed, plan);
        // A router may fragment it (RFC 1812 §5.2.7).
        self.send_in_pieces(cx, packet, parsed.traffic_class, plan, |packet, pool, mut out| {
            fragment_v4(packet, usize::from(mtu), pool, &mut out)
        });
    }

    /// Sends a rewritten packet, through the tunnel if its plan says so.
    pub(super) fn send(
        &mut self,
        cx: &mut BurstContext<'_>,
        mut packet: Packet,
        traffic_class: u8,
        plan: &Plan,
    ) {
        if !plan.flags.has(PlanFlags::ENCAP) {
            return self.forward(cx, plan.out, packet);
        }
        let Some(tunnel) = cx.snapshot.tunnels.get(plan.tunnel) else {
            return self.drop(cx, packet, DropReason::NoRoute, None);
        };
        match encapsulate_any(tunnel, &mut packet, traffic_class, plan.source_port) {
            Ok(()) => self.forward(cx, plan.out, packet),
            // With outer headers the GSO packet would exceed 64 KiB: it is segmented before
            // encapsulation, not after.
            Err(DropReason::FrameTooLong) if packet.offload.is_gso() => {
                self.send_in_pieces(cx, packet, traffic_class, plan, |packet, pool, mut out| {
                    segment(packet, pool, &mut out)
                });
            }
            Err(reason) => self.drop(cx, packet, reason, None),
        }
    }

    /// Cuts a packet with `cut` and sends the pieces, through the tunnel if the plan says so.
    /// Counts one forwarded frame and its copies, or one drop if nothing was sent.
    fn send_in_pieces(
        &mut self,
        cx: &mut BurstContext<'_>,
        packet: Packet,
        traffic_class: u8,
        plan: &Plan,
        cut: impl FnOnce(
            Packet,
            &mut Pool,
            &mut dyn FnMut(&mut Pool, Packet),
        ) -> Result<usize, SegmentError>,
    ) {
        let trace = Trace::from(&packet);
        let tunnel = cx.snapshot.tunnels.get(plan.tunnel);
        let tunnel = tunnel.filter(|_| plan.flags.has(PlanFlags::ENCAP));
        let (mut pieces, mut failed) = (0u64, None);
        let out = &mut *cx.out;
        let result = cut(packet, cx.pool, &mut |pool, mut piece| {
            if let Some(tunnel) = tunnel
                && let Err(reason) =
                    encapsulate_any(tunnel, &mut piece, traffic_class, plan.source_port)
            {
                failed = Some(reason);
                return pool.free(piece);
            }
            piece.ingress = trace.ingress;
            piece.mark = trace.mark;
            piece.tag = trace.tag;
            piece.origin = if pieces == 0 { trace.origin } else { Origin::Copy };
            pieces += 1;
            out.push(plan.out, piece);
        });
        let failed = failed.or(result.err().map(|error| error.reason));
        match (failed, trace.origin) {
            (Some(reason), _) if pieces == 0 => {
                self.drop_traced(cx.now, cx.snapshot.epoch, trace, reason)
            }
            (_, Origin::Received) => {
                self.counters.forwarded.add(1);
                self.counters.copies.add(pieces.saturating_sub(1));
            }
            _ => self.counters.copies.add(pieces),
        }
    }
}
