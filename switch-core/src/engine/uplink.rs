//! What comes in by an uplink: tunnel packets are opened, and what is in them takes the same
//! straight line as the frames of any routed port; so does what comes for Services from outside
//! the cluster. Everything else goes nowhere.

use std::net::IpAddr;

use podswitch_vxlan::decap::{ChecksumState, Decap, DecapError, Ordinary, decap, decap_ordinary};
use podswitch_vxlan::ecn::{self, Ecn};
use podswitch_vxlan::header::Vni;
use podswitch_vxlan::vtep::{EndIndex, Refusal};
use podswitch_wire::addr::Mac;
use podswitch_wire::parse::{Icmp, Network, Parsed};

use super::ahead::Ahead;
use super::slow::{destination, source};
use super::{Engine, Trace, Turn, read};
use crate::action::DropReason;
use crate::id::PortId;
use crate::packet::{Batch, GsoType, Offload, Packet, segment};
use crate::snapshot::{Snapshot, Tunnels, UplinkPort};

/// What says who sent a tunnel packet: outer source and destination, network.
type Outside = (IpAddr, IpAddr, Vni);

/// Who sent the last one: many in a row come from one node.
#[derive(Default)]
struct Last {
    end: Option<(Outside, EndIndex)>,
    /// The same of packets of the usual shape.
    ordinary: Option<([u8; 8], Vni, EndIndex)>,
}

/// What an uplink's frame is.
enum Kind {
    /// A tunnel packet, opened: the frame is the inner one, addressed to this node.
    Inner,
    /// The same, addressed to a group or to somebody else.
    Stray,
    /// A super-frame of datagrams, each a tunnel packet.
    Several,
    /// None of the tunnel's.
    Plain,
}

impl Engine {
    /// Opens all, then the straight line for all.
    pub(super) fn uplink_batch(
        &mut self,
        turn: &mut Turn<'_>,
        uplink: &UplinkPort,
        batch: &mut Batch,
    ) {
        let mut routed = Batch::new();
        let mut last = Last::default();
        for mut packet in batch.drain(..) {
            match self.open_outer(turn.snapshot, uplink, &mut packet, &mut last) {
                Ok(Kind::Inner) => routed.push(packet),
                Ok(Kind::Stray) => self.stray(turn, uplink.port, packet),
                Ok(Kind::Several) => self.several(turn, uplink, packet),
                Ok(Kind::Plain) => {
                    if let Some(packet) = self.plain(turn, uplink, packet) {
                        routed.push(packet);
                    }
                }
                Err(reason) => self.drop(turn, packet, reason, None),
            }
        }
        if !routed.is_empty() {
            self.route_batch(turn, uplink.port, None, &mut routed);
        }
    }

    /// Looks at the outer headers, and takes them off if they are the tunnel's. What is found
    /// wrong leaves the frame as it was, or nearly.
    #[inline]
    fn open_outer(
        &mut self,
        snapshot: &Snapshot,
        uplink: &UplinkPort,
        packet: &mut Packet,
        last: &mut Last,
    ) -> Result<Kind, DropReason> {
        let tunnels = &snapshot.tunnels;
        if uplink.tunnel
            && tunnels.enabled
            && !packet.offload.is_unfinished()
            && let Some(opened) = decap_ordinary(packet.bytes(), &tunnels.rules)
        {
            let Ordinary { addresses, vni, end: to, ecn } = opened;
            let end = match last.ordinary {
                Some((a, v, end)) if a == addresses && v == vni => end,
                _ => {
                    let end = tunnels.ends.admit(&opened.decap())?.end;
                    last.ordinary = Some((addresses, vni, end));
                    end
                }
            };
            packet.offload = Offload::default();
            return open(tunnels, packet, (Ordinary::START, to), ecn, end);
        }
        let outer = &mut self.parsed[0];
        read(packet, &self.shared.hash_key, outer)?;
        if !uplink.tunnel || !tunnels.enabled {
            return Ok(Kind::Plain);
        }
        let own = packet.offload.is_of(outer);
        if own
            && packet.offload.gso_type == GsoType::UdpL4
            && outer.key.dst_port == tunnels.rules.port
        {
            return Ok(Kind::Several);
        }
        // What is unfinished inside was not on a wire; the same goes for the outer sum.
        let vouched = packet.offload.csum_partial || packet.offload.csum_valid;
        let checksum = if vouched { ChecksumState::Good } else { ChecksumState::Unknown };
        let opened = match decap(packet.bytes(), outer, checksum, &tunnels.rules) {
            Ok(opened) => opened,
            Err(DecapError::NotVxlan) => return Ok(Kind::Plain),
            Err(error) => return Err(error.into()),
        };
        let Decap { vni, start, end: to, source, destination, ecn } = opened;
        let outside = (source, destination, vni);
        let end = match &last.end {
            Some((of, end)) if *of == outside => *end,
            _ => {
                let end = tunnels.ends.admit(&opened)?.end;
                last.end = Some((outside, end));
                end
            }
        };
        if own || !packet.offload.csum_partial {
            // That was about the outer header.
            packet.offload = Offload::default();
        } else {
            packet.offload.shift(-(start as i32));
        }
        open(tunnels, packet, (start, to), ecn, end)
    }

    /// What came through the tunnel for a group or for nobody here: ARP and ND are looked at.
    fn stray(&mut self, turn: &mut Turn<'_>, ingress: PortId, packet: Packet) {
        let mut parsed = Parsed::default();
        match read(&packet, &self.shared.hash_key, &mut parsed) {
            Ok(()) => self.slow(turn, ingress, packet, &parsed, Ahead::default()),
            Err(reason) => self.drop(turn, packet, reason, None),
        }
    }

    /// Cuts a super-frame of the underlay into tunnel packets.
    fn several(&mut self, turn: &mut Turn<'_>, uplink: &UplinkPort, packet: Packet) {
        let trace = Trace::from(&packet);
        let mut pieces = Vec::new();
        let cut = segment(packet, turn.pool, &mut |_, piece| pieces.push(piece));
        if let (Err(error), true) = (cut, pieces.is_empty()) {
            return self.count_drop(turn.now, trace, error.reason, None);
        }
        // Each is received for itself.
        self.counters.received.add(pieces.len() as u64 - 1);
        let mut batch = Batch::new();
        for mut piece in pieces {
            piece.origin = trace.origin;
            batch.push(piece);
            if batch.is_full() {
                self.uplink_batch(turn, uplink, &mut batch);
            }
        }
        self.uplink_batch(turn, uplink, &mut batch);
    }

    /// What is no tunnel packet: the packet itself, if it is one to be routed.
    fn plain(
        &mut self,
        turn: &mut Turn<'_>,
        uplink: &UplinkPort,
        packet: Packet,
    ) -> Option<Packet> {
        let outer = self.parsed[0];
        if outer.icmp == Icmp::Error && uplink.tunnel && self.path_error(turn, &packet, &outer) {
            self.consume(turn, packet);
            return None;
        }
        let is_ip = matches!(outer.network, Network::Ipv4 | Network::Ipv6);
        let routed = uplink.direct
            && is_ip
            && outer.tags == 0
            && outer.icmp != Icmp::Neighbour
            && destination(packet.bytes()) == uplink.mac;
        if routed {
            return Some(packet);
        }
        self.drop(turn, packet, DropReason::NotForUs, None);
        None
    }
}

/// Takes the outer headers off a tunnel packet from `end`: what is left are the bytes from `range.0`
/// to `range.1`.
#[inline(always)]
fn open(
    tunnels: &Tunnels,
    packet: &mut Packet,
    range: (u32, u32),
    ecn: Ecn,
    end: EndIndex,
) -> Result<Kind, DropReason> {
    packet.truncate(range.1 as usize);
    packet.pull_front(range.0 as usize);
    packet.set_via(Some(end));
    let frame = packet.bytes_mut();
    if let Some(network) = frame.get_mut(14..) {
        ecn::apply(ecn, network).map_err(|_| DropReason::TunnelEcn)?;
    }
    // A flow is known by the tunnel end: what its frames say of themselves is not looked at later.
    if source(frame).is_multicast() {
        return Err(DropReason::SourceMulticast);
    }
    let to = destination(frame);
    Ok(if tunnels.is_own_mac(to) { Kind::Inner } else { Kind::Stray })
}

/// Whether a frame by an uplink is addressed to this node.
pub(super) fn is_to_node(snapshot: &Snapshot, uplink: &UplinkPort, packet: &Packet) -> bool {
    let to: Mac = destination(packet.bytes());
    match packet.via() {
        Some(_) => snapshot.tunnels.is_own_mac(to),
        None => to == uplink.mac,
    }
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
