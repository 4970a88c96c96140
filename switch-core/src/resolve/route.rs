//! Where to: pods by exact address, everything else by longest prefix, the rest to the node.

use std::net::IpAddr;

use podswitch_vxlan::template::SourcePort;
use podswitch_vxlan::vtep::EndIndex;
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::FlowKey;

use super::source::is_loopback_v4;
use super::{Answer, Denial, Query, outgoing};
use crate::action::{DropReason, Plan};
use crate::flow::connection::{Direction, Pinned, SourceNat};
use crate::id::PortId;
use crate::snapshot::{
    EndpointFacts, FibEntry, HostPort, Location, NextHops, PortFacts, Reach, Snapshot, UplinkPort,
};

/// A way on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hop {
    /// Out by a port.
    Out {
        /// The port.
        port: PortId,
        /// Largest network-layer packet there.
        mtu: u16,
        /// Link-layer destination.
        to: Mac,
        /// Link-layer source.
        from: Mac,
    },
    /// Through the tunnel to another node.
    Tunnel(EndIndex),
    /// To the gateway itself.
    Gateway,
}

impl Hop {
    /// Writes what is done with packets that go this way, with the key `outgoing`. False: the gateway
    /// takes them.
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

/// The way of a connection's packets of one direction, to whom `to` is.
pub(super) fn lookup(
    snapshot: &Snapshot,
    query: &Query<'_>,
    pinned: &Pinned,
    direction: Direction,
    to: Option<&EndpointFacts>,
) -> Result<Hop, Denial> {
    let (source, destination) = match direction {
        Direction::Original => (pinned.reply.dst_addr(), pinned.reply.src_addr()),
        Direction::Reply => (pinned.original.dst_addr(), pinned.original.src_addr()),
    };
    if snapshot.is_gateway(destination) {
        return Ok(Hop::Gateway);
    }
    if let Some(reason) = unroutable(destination) {
        // What a process of the node asked of a host port at 127.0.0.1 is answered there.
        let is_answer = direction == Direction::Reply && is_loopback_v4(destination);
        return match snapshot.host {
            Some(host) if is_answer && host.port == pinned.origin => to_host(snapshot),
            _ => Err(reason.into()),
        };
    }
    // What comes through the tunnel goes no further, unless a Service sends it on.
    let ends_here = query.via.is_some() && !pinned.is_translated();
    if ends_here && snapshot.tunnels.is_own_gateway(destination) {
        return Ok(Hop::Gateway);
    }
    let mut remote = false;
    if let Some(facts) = to {
        match facts.location {
            // Back to the sender is a pod that speaks to itself through the switch: N12.
            Location::Attached { port, mac, mtu } => {
                return Ok(Hop::Out { port, mtu, to: mac, from: snapshot.gateway.mac });
            }
            Location::Unattached => {
                return Err(unreachable(DropReason::UnknownPod, Answer::HostUnreachable));
            }
            Location::Remote => remote = true,
            Location::Host => {}
        }
    }
    let entry = snapshot.fib.get(destination);
    if ends_here && !matches!(entry, Some(FibEntry::LocalPods | FibEntry::Local)) {
        return Err(DropReason::TunnelInnerDestination.into());
    }
    // Answers come past the tunnel: the node's own stack has to know of what it sends them to.
    if snapshot.node_addresses.contains(&source) && snapshot.tunnels.is_node_address(destination) {
        return host(snapshot, query, pinned);
    }
    let reach = snapshot.reach(destination);
    // A neighbour's address that is configured goes before the one that was asked from.
    if !matches!(reach, Some(Reach::Neighbour(_)))
        && let Some(hop) = back(snapshot, pinned, direction)
    {
        return Ok(hop);
    }
    if let Some(reach) = reach {
        return by(snapshot, query, pinned, reach);
    }
    if remote && snapshot.tunnels.enabled {
        // On a node that nobody knows.
        return Err(unreachable(DropReason::NoRoute, Answer::HostUnreachable));
    }
    match entry {
        Some(FibEntry::LocalPods) => {
            Err(unreachable(DropReason::UnknownPod, Answer::HostUnreachable))
        }
        Some(FibEntry::NextHops(next)) => {
            let NextHops { hops, choice } = &**next;
            let outgoing = outgoing(pinned, direction);
            let hop = choice.pick(outgoing.hash(&snapshot.cluster_key));
            match hop.and_then(|hop| *hops.get(usize::from(hop))?) {
                Some(reach) => by(snapshot, query, pinned, reach),
                None => Err(unreachable(DropReason::NoRoute, Answer::NetUnreachable)),
            }
        }
        Some(FibEntry::Local | FibEntry::Node(_)) | None => host(snapshot, query, pinned),
    }
}

/// Answers to whoever came in by an uplink without a tunnel leave by it, to the same neighbour.
fn back(snapshot: &Snapshot, pinned: &Pinned, direction: Direction) -> Option<Hop> {
    let PortFacts::Uplink(uplink) = snapshot.port(pinned.origin) else { return None };
    let is_answer = direction == Direction::Reply && pinned.origin_mac.is_unicast();
    is_answer.then_some(out(uplink, pinned.origin_mac))
}

fn out(uplink: &UplinkPort, to: Mac) -> Hop {
    Hop::Out { port: uplink.port, mtu: uplink.mtu, to, from: uplink.mac }
}

fn by(
    snapshot: &Snapshot,
    query: &Query<'_>,
    pinned: &Pinned,
    reach: Reach,
) -> Result<Hop, Denial> {
    match reach {
        Reach::Tunnel(end) => Ok(Hop::Tunnel(end)),
        Reach::Neighbour(mac) => match &snapshot.uplinks.direct {
            Some(uplink) => Ok(out(uplink, mac)),
            None => host(snapshot, query, pinned),
        },
        Reach::Host => host(snapshot, query, pinned),
        Reach::NoUplink => Err(unreachable(DropReason::PortDown, Answer::HostUnreachable)),
        Reach::NoSource => Err(unreachable(DropReason::TunnelNoSource, Answer::HostUnreachable)),
        // It is looked for. To be told so would end a TCP connection that the next SYN may open.
        Reach::NoNeighbour => Err(unreachable(DropReason::NoNeighbour, Answer::Silent)),
    }
}

/// Whether a new connection of the node's own stack would go back to it: only the node reaches its
/// backend, and would hand the answers to the client past the switch.
pub(super) fn is_back_to_host(snapshot: &Snapshot, query: &Query<'_>, pinned: &Pinned) -> bool {
    let backend = snapshot.endpoints.get(&pinned.reply.src_addr());
    let hop = lookup(snapshot, query, pinned, Direction::Original, backend);
    matches!(hop, Err(Denial { reason: DropReason::Hairpin, .. }))
}

/// Out by the node's own stack, which has routes to everything that is no pod. What came from
/// there goes back only for a Service, and then from an address of ours, so that its answers
/// come back here and it is seen if it comes a second time.
fn host(snapshot: &Snapshot, query: &Query<'_>, pinned: &Pinned) -> Result<Hop, Denial> {
    let comes_back = || {
        // From a server of the node itself its stack sends the answers here, see `nft::steer`.
        pinned.source_nat == SourceNat::Connection
            || pinned.is_via_service() && snapshot.node_addresses.contains(&pinned.reply.src_addr())
    };
    match snapshot.host {
        Some(host) if host.port == query.ingress && !comes_back() => {
            Err(unreachable(DropReason::Hairpin, Answer::HostUnreachable))
        }
        _ => to_host(snapshot),
    }
}

fn to_host(snapshot: &Snapshot) -> Result<Hop, Denial> {
    match snapshot.host {
        None => Err(unreachable(DropReason::NoRoute, Answer::NetUnreachable)),
        Some(HostPort { port, mac, mtu }) => {
            Ok(Hop::Out { port, mtu, to: mac, from: snapshot.gateway.mac })
        }
    }
}

fn unreachable(reason: DropReason, answer: Answer) -> Denial {
    Denial { reason, object: None, answer }
}

/// Destinations that no router forwards to (RFC 1812 §5.3.7, RFC 4291 §2.5.6). IPv4 link-local
/// passes: nodes answer there for metadata and DNS.
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
