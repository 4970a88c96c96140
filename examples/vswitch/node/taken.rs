//! What the switch takes from the uplink, and so is kept from the node's stack, which would answer
//! or forward it as well: exactly that, since everything else is the node's.

use kubernetes::Compiled;
use switch_core::config::{NextHop, Routing, TunnelConfig};
use switch_core::host::NetNs;
use switch_core::host::netlink::Link;
use switch_core::host::nft::{Front, Ingress, IngressDrop};
use switch_core::snapshot::Snapshot;
use wire::cidr::Cidr;

use super::host::{local_ranges, remote_ranges};
use crate::print;

/// Name of the nftables table.
const TABLE: &str = "podswitch-uplink";

/// What is in force.
#[derive(Debug, Default)]
pub(super) struct Taken {
    in_force: Option<(u32, Vec<Ingress>)>,
    /// What was told of not being able to.
    told: Option<String>,
}

/// What the switch takes: tunnel packets; what is for Services; what comes from behind its routers
/// for pods of this node; and without a tunnel, what other nodes' pods send and what is sent to pods
/// of this one.
pub(super) fn of(
    state: &Compiled,
    snapshot: &Snapshot,
    tunnel: Option<&TunnelConfig>,
    carries_tunnel: bool,
) -> Vec<Ingress> {
    let mut taken = Vec::new();
    if let Some(tunnel) = tunnel {
        if carries_tunnel {
            taken.push(Ingress::UdpTo(tunnel.port));
        }
        if tunnel.routing == Routing::HostGw {
            taken.extend(local_ranges(state).into_iter().map(Ingress::To));
            taken.extend(remote_ranges(state).into_iter().map(Ingress::From));
        }
    }
    let beyond = state
        .config
        .routes
        .iter()
        .filter(|route| route.next_hops.iter().any(|hop| matches!(hop, NextHop::Via(_))));
    for from in beyond.map(|route| route.destination) {
        let is_ipv4 = |range: &Cidr| range.address().is_ipv4();
        let pods = local_ranges(state).into_iter().filter(|to| is_ipv4(to) == is_ipv4(&from));
        taken.extend(pods.map(|to| Ingress::Between(from, to)));
    }
    let mut fronts: Vec<Front> = snapshot
        .services
        .frontends()
        .map(|front| Front {
            address: front.address,
            protocol: front.protocol.number(),
            port: front.port,
        })
        .collect();
    fronts.sort_unstable();
    fronts.dedup();
    taken.extend(fronts.into_iter().map(Ingress::Front));
    taken
}

/// Ends what an earlier run left that was killed.
pub(super) fn forget(namespace: &NetNs) {
    // Usually there is none, and where there is no nf_tables either.
    let _ = IngressDrop::remove(namespace, TABLE);
}

impl Taken {
    /// Puts it in force on an interface.
    pub(super) fn follow(&mut self, namespace: &NetNs, link: &Link, drops: Vec<Ingress>) {
        let wanted = (link.index, drops);
        if self.in_force.as_ref() == Some(&wanted) {
            return;
        }
        match IngressDrop::install(namespace, TABLE, &link.name, &wanted.1) {
            Ok(()) => (self.in_force, self.told) = (Some(wanted), None),
            Err(error) => {
                let text = error.to_string();
                if self.told.as_ref() != Some(&text) {
                    print::note(format_args!(
                        "--uplink {}: the node's stack sees what the switch takes: {text}",
                        link.name
                    ));
                }
                self.told = Some(text);
            }
        }
    }

    /// Ends it.
    pub(super) fn remove(&mut self, namespace: &NetNs) {
        if self.in_force.take().is_some()
            && let Err(error) = IngressDrop::remove(namespace, TABLE)
        {
            print::note(error);
        }
    }
}
