//! Who may send with what source address: anti-spoofing (P5, threats T-S1, T-S4).

use std::net::IpAddr;

use super::{Query, uplink};
use crate::action::DropReason;
use crate::snapshot::{Location, PortFacts, Snapshot};

/// Judges the source address of a packet against the port that it came in by.
///
/// # Errors
/// The address is not the sender's own, or none that anybody may send from.
pub fn check_source(snapshot: &Snapshot, query: &Query<'_>) -> Result<(), DropReason> {
    let source = query.key.src_addr();
    match snapshot.port(query.ingress) {
        PortFacts::Pod(pod) => {
            if pod.owns(source) {
                return Ok(());
            }
            // A pod's kernel speaks from its link-local address to its gateway, and to nobody else.
            if is_link_local_v6(source) && snapshot.is_gateway(query.key.dst_addr()) {
                return Ok(());
            }
            Err(if is_martian(source) { DropReason::MartianSource } else { DropReason::SpoofedIp })
        }
        PortFacts::Host(_) => {
            // As a pod's, the node's kernel speaks from there to the gateway.
            let to_gateway =
                || is_link_local_v6(source) && snapshot.is_gateway(query.key.dst_addr());
            // Nor do its own processes leave 127.0.0.1 but for a host port there.
            let to_host_port =
                || is_loopback_v4(source) && snapshot.services.is_frontend(query.key);
            if is_martian(source) && !is_link_local_v4(source) && !to_gateway() && !to_host_port() {
                return Err(DropReason::MartianSource);
            }
            match snapshot.endpoints.get(&source).map(|e| &e.location) {
                Some(Location::Attached { .. } | Location::Unattached) => {
                    Err(DropReason::HostSpoofsPod)
                }
                _ => Ok(()),
            }
        }
        PortFacts::Uplink(uplink) => uplink::check_source(snapshot, uplink, query.via, source),
        PortFacts::Unused | PortFacts::Bridge(_) => Err(DropReason::EndpointNotReady),
    }
}

/// A source address that no host may send from to another network (RFC 1812 §5.3.7, RFC 4291
/// §2.5): unspecified, loopback, link-local, multicast, class E and broadcast; IPv4-mapped.
pub(super) fn is_martian(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let first = a.octets()[0];
            first == 0 || first == 127 || first >= 224 || a.is_link_local()
        }
        IpAddr::V6(a) => {
            a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some()
        }
    }
}

fn is_link_local_v4(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(a) if a.is_link_local())
}

pub(super) fn is_loopback_v4(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(a) if a.is_loopback())
}

fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}
