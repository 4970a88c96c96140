//! Routing: pods by exact address, everything else by longest prefix. Packets without a route go to
//! the node's own stack.

use std::net::IpAddr;

use podswitch_vxlan::template::SourcePort;
use podswitch_vxlan::vtep::VtepIndex;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::FlowKey;

use super::decision::{Answer, Denial};
use super::query::Query;
use crate::action::{DropReason, Plan};
use crate::id::PortId;
use crate::nat::select::is_loopback;
use crate::pinned::{Direction, Pinned, SourceNat};
use crate::snapshot::{
    EndpointFacts, FibEntry, HostPort, Location, NextHops, PortFacts, Reach, Snapshot, UplinkPort,
};

/// A next hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hop {
    /// Out of a port.
    Out {
        /// The port.
        port: PortId,
        /// Largest network-layer packet there, in bytes.
        mtu: u16,
        /// Destination MAC address.
        to: Mac,
        /// Source MAC address.
        from: Mac,
    },
    /// Through the tunnel to another node.
    Tunnel(VtepIndex),
    /// The gateway's own address.
    Gateway,
}

impl Hop {
    /// Writes the plan for packets to this next hop, which leave with the key `outgoing`. False if
    /// they are for the gateway.
    #[inline]
    pub fn plan(
        self,
        snapshot: &Snapshot,
        outgoing: impl FnOnce() -> FlowKey,
        plan: &mut Plan,
    ) -> bool {
        *plan = match self {
            Self::Out { port, mtu, to, from } => Plan::route(port, mtu, to, from),
            Self::Tunnel(end) => {
                let tunnels = &snapshot.tunnels;
                let (Some(through), Some(to)) = (tunnels.ends.get(end), tunnels.to(end)) else {
                    return false;
                };
                let source_port = SourcePort::from_hash(outgoing().hash(&snapshot.cluster_key));
                let from = tunnels.gateway(end).mac;
                let plan = Plan::route(tunnels.port, to.mtu, through.mac(), from);
                plan.encap(end.0 as u16, source_port)
            }
            Self::Gateway => return false,
        };
        true
    }
}

/// A destination to which packets cannot be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Unreachable {
    reason: DropReason,
    answer: Answer,
}

impl Unreachable {
    fn new(reason: DropReason, answer: Answer) -> Self {
        Self { reason, answer }
    }
}

impl From<Unreachable> for Denial<'_> {
    fn from(Unreachable { reason, answer }: Unreachable) -> Self {
        Self { answer, ..reason.into() }
    }
}

/// The next hop of a connection's packets of one direction. `to`: the receiver of the packets.
pub(super) fn lookup(
    snapshot: &Snapshot,
    query: &Query<'_>,
    pinned: &Pinned,
    direction: Direction,
    to: Option<&EndpointFacts>,
) -> Result<Hop, Unreachable> {
    let (source, destination) = match direction {
        Direction::Original => (pinned.reply.dst_addr(), pinned.reply.src_addr()),
        Direction::Reply => (pinned.original.dst_addr(), pinned.original.src_addr()),
    };
    if snapshot.is_gateway(destination) {
        return Ok(Hop::Gateway);
    }
    if let Some(reason) = unroutable(destination) {
        // If a process of the node used 127.0.0.1 or ::1 towards a host port, it gets its replies at that
        // address.
        let is_reply = direction == Direction::Reply && is_loopback(destination);
        return match snapshot.host {
            Some(host) if is_reply && host.port == pinned.origin => to_host(snapshot),
            _ => Err(Unreachable::new(reason, Answer::Silent)),
        };
    }
    // A packet from the tunnel ends at this node, unless a Service forwards it.
    let ends_here = query.via.is_some() && !pinned.is_translated();
    if ends_here && snapshot.tunnels.is_own_gateway(destination) {
        return Ok(Hop::Gateway);
    }
    let mut remote = false;
    if let Some(facts) = to {
        match facts.location {
            // The receiver may be the sender: a pod that reaches itself through a Service (N12).
            Location::Attached { port, mac, mtu } => {
                return Ok(Hop::Out { port, mtu, to: mac, from: snapshot.gateway.mac });
            }
            Location::Unattached => {
                return Err(Unreachable::new(DropReason::UnknownPod, Answer::HostUnreachable));
            }
            Location::Remote => remote = true,
            Location::Host => {}
        }
    }
    let entry = snapshot.fib.get(destination);
    if ends_here && !matches!(entry, Some(FibEntry::LocalPods | FibEntry::Local)) {
        return Err(Unreachable::new(DropReason::TunnelInnerDestination, Answer::Silent));
    }
    // Between two nodes' own addresses, replies do not use the tunnel: the node's own stack must
    // see the packets of a connection whose replies it will receive.
    if snapshot.node_addresses.contains(&source) && snapshot.tunnels.is_node_address(destination) {
        return host(snapshot, query, pinned);
    }
    let reach = snapshot.reach(destination);
    // A neighbour's configured MAC address has precedence over the source address of the request.
    if !matches!(reach, Some(Reach::Neighbour(_)))
        && let Some(hop) = back_to_neighbour(snapshot, pinned, direction)
    {
        return Ok(hop);
    }
    if let Some(reach) = reach {
        return by_reach(snapshot, query, pinned, reach);
    }
    if remote && snapshot.tunnels.enabled {
        // The pod's node is unknown.
        return Err(Unreachable::new(DropReason::NoRoute, Answer::HostUnreachable));
    }
    match entry {
        Some(FibEntry::LocalPods) => {
            Err(Unreachable::new(DropReason::UnknownPod, Answer::HostUnreachable))
        }
        Some(FibEntry::NextHops(next)) => {
            let NextHops { hops, choice } = &**next;
            let outgoing = pinned.outgoing(direction);
            let hop = choice.pick(outgoing.hash(&snapshot.cluster_key));
            match hop.and_then(|hop| *hops.get(usize::from(hop))?) {
                Some(reach) => by_reach(snapshot, query, pinned, reach),
                None => Err(Unreachable::new(DropReason::NoRoute, Answer::NetUnreachable)),
            }
        }
        Some(FibEntry::Local | FibEntry::Node(_)) | None => host(snapshot, query, pinned),
    }
}

/// Replies to a client that came in on an uplink, outside the tunnel, go back to the neighbour that
/// sent the request.
fn back_to_neighbour(snapshot: &Snapshot, pinned: &Pinned, direction: Direction) -> Option<Hop> {
    let PortFacts::Uplink(uplink) = snapshot.port(pinned.origin) else { return None };
    let is_reply = direction == Direction::Reply && pinned.origin_mac.is_unicast();
    is_reply.then_some(out_of_uplink(uplink, pinned.origin_mac))
}

fn out_of_uplink(uplink: &UplinkPort, to: Mac) -> Hop {
    Hop::Out { port: uplink.port, mtu: uplink.mtu, to, from: uplink.mac }
}

fn by_reach(
    snapshot: &Snapshot,
    query: &Query<'_>,
    pinned: &Pinned,
    reach: Reach,
) -> Result<Hop, Unreachable> {
    match reach {
        Reach::Tunnel(end) => Ok(Hop::Tunnel(end)),
        Reach::Neighbour(mac) => match &snapshot.uplinks.direct {
            Some(uplink) => Ok(out_of_uplink(uplink, mac)),
            None => host(snapshot, query, pinned),
        },
        Reach::Host => host(snapshot, query, pinned),
        Reach::NoUplink => Err(Unreachable::new(DropReason::PortDown, Answer::HostUnreachable)),
        Reach::NoSource => {
            Err(Unreachable::new(DropReason::TunnelNoSource, Answer::HostUnreachable))
        }
        // The neighbour's address is being resolved. An ICMP error would end a TCP connection that
        // the next SYN could open.
        Reach::NoNeighbour => Err(Unreachable::new(DropReason::NoNeighbour, Answer::Silent)),
    }
}

/// Whether a new connection from the node's own stack would be routed back to the stack. Then only
/// the node can reach the backend, and replies would go to the client without passing the switch.
pub(super) fn returns_to_host(snapshot: &Snapshot, query: &Query<'_>, pinned: &Pinned) -> bool {
    let backend = snapshot.endpoints.get(&pinned.reply.src_addr());
    let hop = lookup(snapshot, query, pinned, Direction::Original, backend);
    matches!(hop, Err(Unreachable { reason: DropReason::Hairpin, .. }))
}

/// The plan for packets to the node's own stack, which has routes to everything that is not a pod.
/// A packet that came from the stack goes back only if a Service sends it there and its replies
/// pass the switch, because its source is translated to an address of this node or its backend is
/// the node itself. All other such packets are recognised as a routing loop.
fn host(snapshot: &Snapshot, query: &Query<'_>, pinned: &Pinned) -> Result<Hop, Unreachable> {
    let replies_pass_here = || {
        pinned.source_nat == SourceNat::Connection
            || pinned.is_via_service() && snapshot.node_addresses.contains(&pinned.reply.src_addr())
    };
    match snapshot.host {
        Some(host) if host.port == query.ingress && !replies_pass_here() => {
            Err(Unreachable::new(DropReason::Hairpin, Answer::HostUnreachable))
        }
        _ => to_host(snapshot),
    }
}

fn to_host(snapshot: &Snapshot) -> Result<Hop, Unreachable> {
    match snapshot.host {
        None => Err(Unreachable::new(DropReason::NoRoute, Answer::NetUnreachable)),
        Some(HostPort { port, mac, mtu }) => {
            Ok(Hop::Out { port, mtu, to: mac, from: snapshot.gateway.mac })
        }
    }
}

/// Destinations that no router forwards to (RFC 1812 §5.3.7, RFC 4291 §2.5.6). IPv4 link-local
/// addresses are forwarded: nodes serve metadata and DNS there.
fn unroutable(address: IpAddr) -> Option<DropReason> {
    let (multicast, martian) = match address {
        IpAddr::V4(a) => {
            let first = a.octets()[0];
            (a.is_multicast() || a.is_broadcast(), first == 0 || first == 127 || first >= 240)
        }
        IpAddr::V6(a) => (
            a.is_multicast(),
            a.is_unspecified()
                || a.is_loopback()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some(),
        ),
    };
    if multicast {
        Some(DropReason::MulticastUnsupported)
    } else if martian {
        Some(DropReason::MartianDestination)
    } else {
        None
    }
}
