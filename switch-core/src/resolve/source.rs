//! The source addresses that a sender may use: anti-spoofing (P5, threats T-S1, T-S4).

use podswitch_wire::flow_key::FlowKey;
use podswitch_wire::parse::Fragment;

use super::martian::{is_link_local_v4, is_link_local_v6, is_martian};
use super::query::Query;
use super::uplink;
use crate::action::DropReason;
use crate::nat::select::is_loopback;
use crate::snapshot::{Location, PortFacts, Snapshot};

/// Checks a packet's source address against the port that it was received on.
///
/// # Errors
/// The address is not the sender's own, or is one that no host may use.
pub fn check_source(snapshot: &Snapshot, query: &Query<'_>) -> Result<(), DropReason> {
    check(snapshot, query, |key| snapshot.services.is_frontend(key))
}

/// As [`check_source`], for a fragment that is held. A later fragment has no ports, so whether its destination is a host
/// port is known only when the datagram is complete; the datagram is then checked as a whole.
///
/// # Errors
/// As [`check_source`].
pub fn check_fragment(
    snapshot: &Snapshot,
    query: &Query<'_>,
    fragment: Fragment,
) -> Result<(), DropReason> {
    let is_later = fragment == Fragment::Later;
    check(snapshot, query, |key| is_later || snapshot.services.is_frontend(key))
}

fn check(
    snapshot: &Snapshot,
    query: &Query<'_>,
    may_be_host_port: impl Fn(&FlowKey) -> bool,
) -> Result<(), DropReason> {
    let source = query.key.src_addr();
    match snapshot.port(query.ingress) {
        PortFacts::Pod(pod) => {
            if pod.owns(source) {
                return Ok(());
            }
            // A pod may use its IPv6 link-local address towards its gateway only.
            if is_link_local_v6(source) && snapshot.is_gateway(query.key.dst_addr()) {
                return Ok(());
            }
            Err(if is_martian(source) { DropReason::MartianSource } else { DropReason::SpoofedIp })
        }
        PortFacts::Host(_) => {
            // The same holds for the node's own stack.
            let to_gateway =
                || is_link_local_v6(source) && snapshot.is_gateway(query.key.dst_addr());
            // Its processes may use 127.0.0.1 or ::1 towards a host port there.
            let to_host_port = || is_loopback(source) && may_be_host_port(query.key);
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
        PortFacts::Uplink(uplink) => {
            uplink::check_uplink_source(snapshot, uplink, query.via, source)
        }
        PortFacts::Unused | PortFacts::Bridge(_) => Err(DropReason::EndpointNotReady),
    }
}
