//! The packets that are accepted from an uplink, and those that must not leave by one (T-O1 to T-O6).

use std::net::IpAddr;

use podswitch_vxlan::vtep::VtepIndex;
use podswitch_wire::flow_key::proto;

use super::martian::is_martian;
use super::query::Query;
use crate::action::DropReason;
use crate::pinned::{Direction, Pinned};
use crate::snapshot::{FibEntry, PortFacts, Reach, Snapshot, UplinkPort};

/// The source addresses that are accepted on an uplink. From the tunnel: the pods and the address of the node at its
/// other end (T-O3). Outside the tunnel: neighbours and their pods if they are reached without a tunnel, and any
/// address outside the cluster.
pub(super) fn check_uplink_source(
    snapshot: &Snapshot,
    uplink: &UplinkPort,
    via: Option<VtepIndex>,
    source: IpAddr,
) -> Result<(), DropReason> {
    if let Some(end) = via {
        let reach = snapshot.reach(source);
        let behind = reach.is_some_and(|reach| snapshot.tunnels.may_send_from(end, reach));
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
        // The node itself. Its pods send through the tunnel only.
        Some(_) if snapshot.tunnels.is_node_address(source) => Ok(()),
        Some(_) => Err(DropReason::SpoofedIp),
    }
}

/// Only tunnel packets between VTEPs may go to the tunnel's port in the cluster: none may come from pods (T-O1) or out
/// of the tunnel (T-O6), whether their destination is a node or a pod, on this node or another. Replies to a pod that
/// itself uses the tunnel's port number are not tunnel packets.
pub(super) fn check_nested_tunnel(
    snapshot: &Snapshot,
    query: &Query<'_>,
) -> Result<(), DropReason> {
    let key = query.key;
    if key.proto != proto::UDP || key.dst_port != snapshot.tunnels.rules.port {
        return Ok(());
    }
    let is_reply = matches!(query.known, Some((_, Direction::Reply)));
    if query.via.is_some() {
        return if is_reply { Ok(()) } else { Err(DropReason::TunnelNested) };
    }
    let from_pod = matches!(snapshot.port(query.ingress), PortFacts::Pod(_));
    if from_pod && is_tunnel_packet(snapshot, key.dst_addr(), is_reply) {
        return Err(DropReason::TunnelFromPod);
    }
    Ok(())
}

/// Whether UDP to the tunnel's port of `destination` is a tunnel packet.
fn is_tunnel_packet(snapshot: &Snapshot, destination: IpAddr, is_reply: bool) -> bool {
    let tunnels = &snapshot.tunnels;
    tunnels.enabled
        && (tunnels.is_node_address(destination)
            || !is_reply && snapshot.endpoints.contains_key(&destination))
}

/// Checks after translation. A pod's packet must not have become a tunnel packet. A packet from an uplink, outside the
/// tunnel, is accepted if it goes to a Service, is a reply, comes from a neighbour, or goes to a local pod from a
/// source that is routed out of the uplink.
pub(super) fn check_uplink(
    snapshot: &Snapshot,
    query: &Query<'_>,
    pinned: &Pinned,
    direction: Direction,
) -> Result<(), DropReason> {
    match snapshot.port(query.ingress) {
        PortFacts::Pod(_) if direction == Direction::Original => {
            let is_tunnel_port = pinned.reply.proto == proto::UDP
                && pinned.reply.src_port == snapshot.tunnels.rules.port;
            if is_tunnel_port && is_tunnel_packet(snapshot, pinned.reply.src_addr(), false) {
                return Err(DropReason::TunnelFromPod);
            }
            Ok(())
        }
        PortFacts::Uplink(_) if query.via.is_none() => {
            let accepted = match direction {
                Direction::Original => {
                    pinned.is_via_service()
                        || is_from_neighbour(snapshot, pinned)
                        || snapshot.is_local_pod(pinned.original.dst_addr())
                            && is_behind_uplink(snapshot, pinned.original.src_addr())
                }
                Direction::Reply => is_behind_uplink(snapshot, pinned.reply.src_addr()),
            };
            if accepted { Ok(()) } else { Err(DropReason::NotForUs) }
        }
        _ => Ok(()),
    }
}

/// Whether a connection comes from a neighbour node or one of its pods. Connections between the two
/// nodes' own addresses are left to their own stacks.
fn is_from_neighbour(snapshot: &Snapshot, pinned: &Pinned) -> bool {
    let (source, destination) = (pinned.original.src_addr(), pinned.original.dst_addr());
    let to_this_node = matches!(snapshot.fib.get(destination), Some(FibEntry::Local));
    matches!(snapshot.reach(source), Some(Reach::Neighbour(_)))
        && !(to_this_node && snapshot.tunnels.is_node_address(source))
}

/// Whether packets to `address` leave by the uplink, so that their replies are received there. If packets left by the
/// node's own stack, that stack receives and forwards the replies.
fn is_behind_uplink(snapshot: &Snapshot, address: IpAddr) -> bool {
    match (snapshot.reach(address), snapshot.fib.get(address)) {
        (Some(reach), _) => matches!(reach, Reach::Neighbour(_)),
        (None, Some(FibEntry::NextHops(next))) => {
            next.hops.iter().any(|hop| matches!(hop, Some(Reach::Neighbour(_))))
        }
        (None, _) => false,
    }
}
