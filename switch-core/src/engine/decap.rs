//! Decapsulation: frames from an uplink. Outer headers of tunnel packets are removed, and the inner
//! frames take the same path as frames of any routed port. Packets from outside the cluster to
//! Services take that path, too. Everything else is dropped.

use std::net::IpAddr;

use podswitch_vxlan::decap::{ChecksumState, Decap, DecapError, FastDecap, decap, decap_fast};
use podswitch_vxlan::ecn::{self, Ecn};
use podswitch_vxlan::header::Vni;
use podswitch_vxlan::vtep::{Refusal, VtepIndex};
use podswitch_wire::parse::{Icmp, Network, Parsed};

use super::frame::{destination_mac, source_mac};
use super::ingress::parse_checked;
use super::prefetch::MissInfo;
use super::{BurstContext, Engine, Trace};
use crate::action::DropReason;
use crate::id::PortId;
use crate::packet::{Batch, GsoType, Offload, Packet, segment};
use crate::snapshot::{Snapshot, Tunnels, UplinkPort};

/// The fields that identify the sender of a tunnel packet: outer source, outer destination, VNI.
type Sender = (IpAddr, IpAddr, Vni);

/// The VTEP of the last tunnel packet: consecutive packets often come from one node.
#[derive(Default)]
struct LastSender {
    any: Option<(Sender, VtepIndex)>,
    /// The same for packets that [`decap_fast`] accepts, by their raw addresses.
    fast: Option<([u8; 8], Vni, VtepIndex)>,
}

/// The result of examining a frame from an uplink.
enum Kind {
    /// A tunnel packet to this node; the frame is now the inner one.
    Inner,
    /// The same, but the inner destination MAC address is a group address or not the switch's.
    InnerToOthers,
    /// A GRO packet of UDP datagrams, each a tunnel packet.
    Coalesced,
    /// Not a tunnel packet.
    NotTunnel,
}

impl Engine {
    /// Decapsulates a burst, and routes the resulting frames as a burst.
    pub(super) fn uplink_burst(
        &mut self,
        cx: &mut BurstContext<'_>,
        uplink: &UplinkPort,
        batch: &mut Batch,
    ) {
        let mut routed = Batch::new();
        let mut last = LastSender::default();
        for mut packet in batch.drain(..) {
            match self.decapsulate(cx.snapshot, uplink, &mut packet, &mut last) {
                Ok(Kind::Inner) => routed.push(packet),
                Ok(Kind::InnerToOthers) => self.inner_to_others(cx, uplink.port, packet),
                Ok(Kind::Coalesced) => self.split_coalesced(cx, uplink, packet),
                Ok(Kind::NotTunnel) => {
                    if let Some(packet) = self.not_tunnel(cx, uplink, packet) {
                        routed.push(packet);
                    }
                }
                Err(reason) => self.drop(cx, packet, reason, None),
            }
        }
        if !routed.is_empty() {
            self.route_burst(cx, uplink.port, None, &mut routed);
        }
    }

    /// Examines the outer headers, and removes them if they are the tunnel's.
    #[inline]
    fn decapsulate(
        &mut self,
        snapshot: &Snapshot,
        uplink: &UplinkPort,
        packet: &mut Packet,
        last: &mut LastSender,
    ) -> Result<Kind, DropReason> {
        let tunnels = &snapshot.tunnels;
        if uplink.tunnel
            && tunnels.enabled
            && !packet.offload.is_unfinished()
            && let Some(opened) = decap_fast(packet.bytes(), &tunnels.rules)
        {
            let FastDecap { addresses, vni, end: to, ecn } = opened;
            let end = match last.fast {
                Some((a, v, end)) if a == addresses && v == vni => end,
                _ => {
                    let end = tunnels.ends.admit(&opened.decap())?.end;
                    last.fast = Some((addresses, vni, end));
                    end
                }
            };
            packet.offload = Offload::default();
            return remove_outer(tunnels, packet, (FastDecap::START, to), ecn, end);
        }
        let outer = &mut self.parsed[0];
        parse_checked(packet, &self.shared.hash_key, outer)?;
        if !uplink.tunnel || !tunnels.enabled {
            return Ok(Kind::NotTunnel);
        }
        let is_outer_checksum = packet.offload.is_of(outer);
        if is_outer_checksum
            && packet.offload.gso_type == GsoType::UdpL4
            && outer.key.dst_port == tunnels.rules.port
        {
            return Ok(Kind::Coalesced);
        }
        // A partial inner checksum means that the packet was never on a wire, so its outer checksum
        // needs no verification either.
        let verified = packet.offload.csum_partial || packet.offload.csum_valid;
        let checksum = if verified { ChecksumState::Good } else { ChecksumState::Unknown };
        let opened = match decap(packet.bytes(), outer, checksum, &tunnels.rules) {
            Ok(opened) => opened,
            Err(DecapError::NotVxlan) => return Ok(Kind::NotTunnel),
            Err(error) => return Err(error.into()),
        };
        let Decap { vni, start, end: to, source, destination, ecn } = opened;
        let sender = (source, destination, vni);
        let end = match &last.any {
            Some((of, end)) if *of == sender => *end,
            _ => {
                let end = tunnels.ends.admit(&opened)?.end;
                last.any = Some((sender, end));
                end
            }
        };
        if is_outer_checksum || !packet.offload.csum_partial {
            // The offload metadata described the outer header.
            packet.offload = Offload::default();
        } else {
            packet.offload.shift(-(start as i32));
        }
        remove_outer(tunnels, packet, (start, to), ecn, end)
    }

    /// An inner frame to a group address or to another station. It may be ARP or ND.
    fn inner_to_others(&mut self, cx: &mut BurstContext<'_>, ingress: PortId, packet: Packet) {
        let mut parsed = Parsed::default();
        match parse_checked(&packet, &self.shared.hash_key, &mut parsed) {
            Ok(()) => self.slow_path(cx, ingress, packet, &parsed, MissInfo::default()),
            Err(reason) => self.drop(cx, packet, reason, None),
        }
    }

    /// Splits a GRO packet of the underlay into tunnel packets.
    fn split_coalesced(&mut self, cx: &mut BurstContext<'_>, uplink: &UplinkPort, packet: Packet) {
        let trace = Trace::from(&packet);
        let mut pieces = Vec::new();
        let result = segment(packet, cx.pool, &mut |_, piece| pieces.push(piece));
        if let (Err(error), true) = (result, pieces.is_empty()) {
            return self.drop_traced(cx.now, cx.snapshot.epoch, trace, error.reason);
        }
        // Each piece counts as a received frame.
        self.counters.received.add(pieces.len() as u64 - 1);
        let mut batch = Batch::new();
        for mut piece in pieces {
            piece.origin = trace.origin;
            batch.push(piece);
            if batch.is_full() {
                self.uplink_burst(cx, uplink, &mut batch);
            }
        }
        self.uplink_burst(cx, uplink, &mut batch);
    }

    /// A packet outside the tunnel. Returns it if it is to be routed.
    fn not_tunnel(
        &mut self,
        cx: &mut BurstContext<'_>,
        uplink: &UplinkPort,
        packet: Packet,
    ) -> Option<Packet> {
        let outer = self.parsed[0];
        let is_error = outer.icmp == Icmp::Error && uplink.tunnel;
        if is_error && self.learn_path_mtu(cx, &packet, &outer) {
            self.consume(cx, packet);
            return None;
        }
        let is_ip = matches!(outer.network, Network::Ipv4 | Network::Ipv6);
        let is_routed = uplink.direct
            && is_ip
            && outer.tags == 0
            && outer.icmp != Icmp::Neighbour
            && destination_mac(packet.bytes()) == uplink.mac;
        if is_routed {
            return Some(packet);
        }
        self.drop(cx, packet, DropReason::NotForUs, None);
        None
    }
}

/// Removes the outer headers of a tunnel packet from the VTEP `end`. The inner frame consists of
/// the bytes from `range.0` to `range.1`.
#[inline(always)]
fn remove_outer(
    tunnels: &Tunnels,
    packet: &mut Packet,
    range: (u32, u32),
    ecn: Ecn,
    end: VtepIndex,
) -> Result<Kind, DropReason> {
    packet.truncate(range.1 as usize);
    packet.pull_front(range.0 as usize);
    packet.set_via(Some(end));
    let frame = packet.bytes_mut();
    if let Some(network) = frame.get_mut(14..) {
        ecn::apply(ecn, network).map_err(|_| DropReason::TunnelEcn)?;
    }
    // Flow entries store the VTEP, not the inner source MAC address, so this is the only check of it.
    if source_mac(frame).is_multicast() {
        return Err(DropReason::SourceMulticast);
    }
    let to = destination_mac(frame);
    Ok(if tunnels.is_own_mac(to) { Kind::Inner } else { Kind::InnerToOthers })
}

impl From<DecapError> for DropReason {
    fn from(error: DecapError) -> Self {
        match error {
            DecapError::NotVxlan => Self::NotForUs,
            DecapError::Fragment => Self::TunnelFragment,
            DecapError::Checksum | DecapError::ZeroChecksum => Self::TunnelChecksum,
            DecapError::HeaderTruncated | DecapError::NoVni | DecapError::InnerTruncated => {
                Self::TunnelHeader
            }
            DecapError::InnerVlan => Self::TunnelInnerVlan,
        }
    }
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotLocal => Self::NotForUs,
            Refusal::UnknownVni => Self::TunnelUnknownVni,
            Refusal::UnknownVtep => Self::TunnelUnknownVtep,
            Refusal::InnerSource => Self::TunnelInnerSource,
        }
    }
}
