//! Traffic on the uplink that the switch handles. It is dropped in the node's stack, which would
//! answer or forward it as well; everything else stays with the node.

use podswitch_core::config::{NAT_PORTS, NextHop, Routing, TunnelConfig};
use podswitch_core::snapshot::Snapshot;
use podswitch_linux::netlink::Link;
use podswitch_linux::nft::{Ingress, IngressDrop, L4Address};
use podswitch_linux::{HostError, NetNs};
use podswitch_wire::cidr::Cidr;

use crate::events::{Failure, Reporter};
use crate::host_side::sources;
use crate::ranges::Lists;
use crate::view::View;

/// Name of the nftables table.
const TABLE: &str = "podswitch-uplink";

/// What is in force.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    in_force: Option<InForce>,
    /// The last reported failure.
    reported: Option<String>,
}

#[derive(Debug)]
struct InForce {
    link: Link,
    drops: Ingress,
    installed: IngressDrop,
}

/// What the switch handles: tunnel packets; packets to Services; packets from behind its routers to
/// pods of this node; without a tunnel, packets from other nodes' pods and to pods of this one; and
/// answers to packets that the switch sent from an address of the node.
pub(super) fn of(
    view: View<'_>,
    ranges: &Lists,
    snapshot: &Snapshot,
    tunnel: Option<&TunnelConfig>,
    carries_tunnel: bool,
) -> Ingress {
    let mut claimed = Ingress { first_port: *NAT_PORTS.start(), ..Ingress::default() };
    if let Some(tunnel) = tunnel {
        if carries_tunnel {
            claimed.udp_to.push(tunnel.port);
        }
        if tunnel.routing == Routing::HostGw {
            claimed.to = ranges.local.clone();
            claimed.from = ranges.remote.clone();
            let nodes = view.nodes().flat_map(|node| &node.addresses);
            claimed.answers.from.extend(nodes.map(|address| Cidr::host(*address)));
        }
    }
    let is_by_uplink = |hop: &NextHop| matches!(hop, NextHop::Via(_));
    let beyond = view.routes().filter(|route| route.next_hops.iter().any(is_by_uplink));
    claimed.between.from.extend(beyond.map(|route| route.destination));
    claimed.between.to = ranges.local.clone();
    claimed.answers.from.extend(&claimed.between.from);
    claimed.answers.to = sources(snapshot).map(Cidr::host).collect();
    claimed.service_addresses.extend(snapshot.services.frontends().map(|front| L4Address {
        address: front.address,
        protocol: front.protocol.number(),
        port: front.port,
    }));
    claimed.service_addresses.sort_unstable();
    claimed.service_addresses.dedup();
    claimed
}

/// Removes what an earlier run left.
pub(super) fn forget(namespace: &NetNs) {
    // Usually there is none, and without nf_tables never.
    let _ = IngressDrop::remove(namespace, TABLE);
}

impl Claimed {
    /// Puts it in force on an interface.
    pub(super) fn follow(
        &mut self,
        namespace: &NetNs,
        link: &Link,
        drops: Ingress,
        reporter: &Reporter,
    ) {
        let is_same = |now: &InForce| now.link.index == link.index && now.drops == drops;
        if self.in_force.as_ref().is_some_and(is_same) {
            return;
        }
        match IngressDrop::install(namespace, TABLE, &link.name, &drops) {
            Ok(installed) => {
                self.in_force = Some(InForce { link: link.clone(), drops, installed });
                self.reported = None;
            }
            Err(error) => {
                let text = error.to_string();
                if self.reported.as_ref() != Some(&text) {
                    let interface = link.name.clone();
                    reporter.failure(Failure::UplinkFilter { interface, error });
                }
                self.reported = Some(text);
            }
        }
    }

    /// Puts it back if somebody changed or removed the table.
    ///
    /// # Errors
    /// Missing privilege; the interface is gone.
    pub(super) fn repair(
        &mut self,
        namespace: &NetNs,
        reporter: &Reporter,
    ) -> Result<(), HostError> {
        let Some(InForce { link, drops, installed }) = &mut self.in_force else { return Ok(()) };
        if !installed.is_intact()? {
            *installed = IngressDrop::install(namespace, TABLE, &link.name, drops)?;
            reporter.repaired("node", vec![format!("nftables table {TABLE}")]);
        }
        Ok(())
    }

    /// Ends it.
    pub(super) fn remove(&mut self, namespace: &NetNs, reporter: &Reporter) {
        if let Some(InForce { link, .. }) = self.in_force.take()
            && let Err(error) = IngressDrop::remove(namespace, TABLE)
        {
            let interface = link.name;
            reporter.failure(Failure::UplinkFilter { interface, error });
        }
    }
}
