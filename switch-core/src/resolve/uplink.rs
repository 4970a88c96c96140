//! What comes in by an uplink, and what may not leave by one: whom to believe (T-O1 to T-O6).

use std::net::IpAddr;

use podswitch_vxlan::vtep::EndIndex;
use podswitch_wire::flow_key::proto;

use super::Query;
use super::source::is_martian;
use crate::action::DropReason;
use crate::flow::connection::{Direction, Pinned};
use crate::snapshot::{FibEntry, Location, PortFacts, Reach, Snapshot, UplinkPort};

/// Who may send with what source address by an uplink. Through the tunnel: pods and the address
/// of the node at its other end (T-O3). Without: neighbours and their pods where there is no
/// tunnel, and whoever is not of the cluster.
pub(super) fn check_source(
    snapshot: &Snapshot,
    uplink: &UplinkPort,
    via: Option<EndIndex>,
    source: IpAddr,
) -> Result<(), DropReason> {
    if let Some(end) = via {
        let reach = snapshot.reach(source);
        let behind = reach.is_some_and(|reach| snapshot.tunnels.speaks_by(end, reach));
        return behind.then_some(()).ok_or(DropReason::TunnelInnerSource);
    }
    if !uplink.direct {
        return Err(DropReason::NotForUs);
    }
    if is_martian(source) {
        return Err(DropReason::MartianSource);
    }
    let is_ours = snapshot.is_local_pod(source)
        || matches!(snapshot.fib.get(source), Some(FibEntry::LocalPods | FibEntry::Local));
    match snapshot.reach(source) {
        _ if is_ours => Err(DropReason::SpoofedIp),
        None | Some(Reach::Neighbour(_) | Reach::Host) => Ok(()),
        // A pod of such a node speaks through the tunnel only.
        Some(_) if snapshot.tunnels.is_node_address(source) => Ok(()),
        Some(_) => Err(DropReason::SpoofedIp),
    }
}

/// No pod sends tunnel packets to a node (T-O1), and none come through the tunnel (T-O6) but as
/// answers to a pod that chose the tunnel's port for its own.
pub(super) fn check_tunnelled(snapshot: &Snapshot, query: &Query<'_>) -> Result<(), DropReason> {
    let key = query.key;
    if key.proto != proto::UDP || key.dst_port != snapshot.tunnels.rules.port {
        return Ok(());
    }
    if query.via.is_some() {
        let is_answer = matches!(query.known, Some((_, Direction::Reply)));
        return if is_answer { Ok(()) } else { Err(DropReason::TunnelNested) };
    }
    let from_pod = matches!(snapshot.port(query.ingress), PortFacts::Pod(_));
    if from_pod && snapshot.tunnels.is_tunnel_packet(key.proto, key.dst_addr(), key.dst_port) {
        return Err(DropReason::TunnelFromPod);
    }
    Ok(())
}

/// What became of a connection's packet by translation: still no tunnel packet; and what came by
/// an uplink without a tunnel is taken only for a Service, as an answer, from a neighbour, or for a
/// pod from where answers would go by the uplink.
pub(super) fn check_taken(
    snapshot: &Snapshot,
    query: &Query<'_>,
    pinned: &Pinned,
    direction: Direction,
) -> Result<(), DropReason> {
    match snapshot.port(query.ingress) {
        PortFacts::Pod(_) if direction == Direction::Original => {
            let (backend, port) = (pinned.reply.src_addr(), pinned.reply.src_port);
            if snapshot.tunnels.is_tunnel_packet(pinned.reply.proto, backend, port) {
                return Err(DropReason::TunnelFromPod);
            }
            Ok(())
        }
        PortFacts::Uplink(_) if query.via.is_none() => {
            let taken = match direction {
                Direction::Original => {
                    pinned.is_via_service()
                        || is_from_neighbour(snapshot, pinned)
                        || snapshot.is_local_pod(pinned.original.dst_addr())
                            && is_behind_uplink(snapshot, pinned.original.src_addr())
                }
                Direction::Reply => is_behind_uplink(snapshot, pinned.reply.src_addr()),
            };
            if taken { Ok(()) } else { Err(DropReason::NotForUs) }
        }
        _ => Ok(()),
    }
}

/// Whether a connection is another node's or its pod's, and not just the two nodes': what they
/// have to tell each other is their own stacks'.
fn is_from_neighbour(snapshot: &Snapshot, pinned: &Pinned) -> bool {
    let (source, destination) = (pinned.original.src_addr(), pinned.original.dst_addr());
    let to_this_node = matches!(snapshot.fib.get(destination), Some(FibEntry::Local));
    matches!(snapshot.reach(source), Some(Reach::Neighbour(_)))
        && !(to_this_node && snapshot.tunnels.is_node_address(source))
}

/// Whether what is sent to `address` leaves by the uplink, so that answers come by it. Answers to
/// what left by the node's own stack are for that: it sends them on.
fn is_behind_uplink(snapshot: &Snapshot, address: IpAddr) -> bool {
    match (snapshot.reach(address), snapshot.fib.get(address)) {
        (Some(reach), _) => matches!(reach, Reach::Neighbour(_)),
        (None, Some(FibEntry::NextHops(next))) => {
            next.hops.iter().any(|hop| matches!(hop, Some(Reach::Neighbour(_))))
        }
        (None, _) => false,
    }
}

impl Snapshot {
    /// How an address of another node or one of its pods is reached; `None` for all others.
    pub fn reach(&self, address: IpAddr) -> Option<Reach> {
        if let Some(facts) = self.endpoints.get(&address) {
            return match facts.location {
                // A pod is where it was said to be, whether or not its node's ranges hold it.
                Location::Remote => self.tunnels.reach(&facts.endpoint.node, address.is_ipv6()),
                Location::Attached { .. } | Location::Unattached | Location::Host => None,
            };
        }
        match self.fib.get(address) {
            Some(FibEntry::Node(reach)) => Some(*reach),
            _ => None,
        }
    }
}
