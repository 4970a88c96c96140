//! Where to: pods by exact address, everything else by longest prefix, the rest to the node.

use std::net::IpAddr;

use wire::addr::Mac;

use super::{Answer, Denial};
use crate::action::DropReason;
use crate::config::NextHop;
use crate::id::PortId;
use crate::snapshot::{FibEntry, Location, Snapshot};

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
    },
    /// To the gateway itself.
    Gateway,
}

/// The way to `destination` for a packet that came in by `ingress`.
pub(super) fn lookup(
    snapshot: &Snapshot,
    destination: IpAddr,
    ingress: PortId,
) -> Result<Hop, Denial> {
    if snapshot.is_gateway(destination) {
        return Ok(Hop::Gateway);
    }
    if let Some(reason) = unroutable(destination) {
        return Err(reason.into());
    }
    if let Some(facts) = snapshot.endpoints.get(&destination) {
        match facts.location {
            // Back to the sender is a pod that speaks to itself through the switch: N12.
            Location::Attached { port, mac, mtu } => return Ok(Hop::Out { port, mtu, to: mac }),
            Location::Unattached => {
                return Err(unreachable(DropReason::UnknownPod, Answer::HostUnreachable));
            }
            Location::Remote | Location::Host => {}
        }
    }
    match snapshot.fib.get(destination) {
        Some(FibEntry::LocalPods) => {
            Err(unreachable(DropReason::UnknownPod, Answer::HostUnreachable))
        }
        Some(FibEntry::NextHops(hops)) => match hops.first() {
            Some(NextHop::Host) => host(snapshot, ingress),
            Some(NextHop::Blackhole) | None => {
                Err(unreachable(DropReason::NoRoute, Answer::NetUnreachable))
            }
        },
        Some(FibEntry::Local) | None => host(snapshot, ingress),
    }
}

/// Out by the node's own stack, which has routes to everything that is no pod.
fn host(snapshot: &Snapshot, ingress: PortId) -> Result<Hop, Denial> {
    match snapshot.host {
        None => Err(unreachable(DropReason::NoRoute, Answer::NetUnreachable)),
        Some(host) if host.port == ingress => {
            Err(unreachable(DropReason::Hairpin, Answer::HostUnreachable))
        }
        Some(host) => Ok(Hop::Out { port: host.port, mtu: host.mtu, to: host.mac }),
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
