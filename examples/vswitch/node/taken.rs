//! What the switch takes from the uplink, and so is kept from the node's stack, which would answer
//! or forward it as well: exactly that, since everything else is the node's.

use podswitch_core::config::{NAT_PORTS, NextHop, Routing, TunnelConfig};
use podswitch_core::snapshot::Snapshot;
use podswitch_kubernetes::Compiled;
use podswitch_linux::NetNs;
use podswitch_linux::netlink::Link;
use podswitch_linux::nft::{Front, Ingress, IngressDrop};
use podswitch_wire::cidr::Cidr;

use super::host::{local_ranges, remote_ranges};
use super::services;
use crate::print;

/// Name of the nftables table.
const TABLE: &str = "podswitch-uplink";

/// What is in force.
#[derive(Debug, Default)]
pub(super) struct Taken {
    in_force: Option<(u32, Ingress)>,
    /// What was told of not being able to.
    told: Option<String>,
}

/// What the switch takes: tunnel packets; what is for Services; what comes from behind its routers
/// for pods of this node; without a tunnel, what other nodes' pods send and what is sent to pods
/// of this one; and answers from there to what the switch sent with an address of the node.
pub(super) fn of(
    state: &Compiled,
    snapshot: &Snapshot,
    tunnel: Option<&TunnelConfig>,
    carries_tunnel: bool,
) -> Ingress {
    let config = &state.config;
    let mut taken = Ingress { first_port: *NAT_PORTS.start(), ..Ingress::default() };
    if let Some(tunnel) = tunnel {
        if carries_tunnel {
            taken.udp_to.push(tunnel.port);
        }
        if tunnel.routing == Routing::HostGw {
            taken.to = local_ranges(state);
            taken.from = remote_ranges(state);
            let nodes = config.nodes.iter().flat_map(|node| &node.addresses);
            taken.answers.from.extend(nodes.map(|address| Cidr::host(*address)));
        }
    }
    let is_by_uplink = |hop: &NextHop| matches!(hop, NextHop::Via(_));
    let beyond = config.routes.iter().filter(|route| route.next_hops.iter().any(is_by_uplink));
    taken.between.from.extend(beyond.map(|route| route.destination));
    taken.between.to = local_ranges(state);
    taken.answers.from.extend(&taken.between.from);
    taken.answers.to = services::sources(snapshot).map(Cidr::host).collect();
    taken.fronts.extend(snapshot.services.frontends().map(|front| Front {
        address: front.address,
        protocol: front.protocol.number(),
        port: front.port,
    }));
    taken.fronts.sort_unstable();
    taken.fronts.dedup();
    taken
}

/// Ends what an earlier run left that was killed.
pub(super) fn forget(namespace: &NetNs) {
    // Usually there is none, and where there is no nf_tables either.
    let _ = IngressDrop::remove(namespace, TABLE);
}

impl Taken {
    /// Puts it in force on an interface.
    pub(super) fn follow(&mut self, namespace: &NetNs, link: &Link, drops: Ingress) {
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
