//! Routes of the node's kernel to other nodes' pods, via those nodes' addresses. Used if packets
//! take neither the tunnel nor an uplink of the switch (`host-gw` without an uplink).

use std::collections::HashSet;
use std::net::IpAddr;

use podswitch_linux::netlink::Route;
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_wire::cidr::Cidr;

use crate::events::{Failure, Reporter};
use crate::view::View;

/// How the node's own processes reach other nodes' pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RemotePods {
    /// According to the node's routes.
    NotOurs,
    /// Through the switch.
    BySwitch,
    /// Via the other nodes' addresses, which are on the same segment.
    ByKernel,
}

/// Routes that exist while this value lives. Those of a killed run stay; the next run adopts the
/// ones that it needs.
#[derive(Debug)]
pub(super) struct KernelRoutes {
    namespace: NetNs,
    in_force: HashSet<(Cidr, IpAddr)>,
    reporter: Reporter,
}

impl KernelRoutes {
    pub(super) fn new(namespace: &NetNs, reporter: &Reporter) -> Self {
        let (namespace, reporter) = (namespace.clone(), reporter.clone());
        Self { namespace, in_force: HashSet::new(), reporter }
    }

    /// Leaves the routes in force when this is dropped: another process has them too.
    pub(super) fn leave_in_force(&mut self) {
        self.in_force.clear();
    }

    /// Updates the routes for a configuration. Failures are reported.
    pub(super) fn follow(&mut self, view: View<'_>, remote: RemotePods) {
        let mut wanted = HashSet::new();
        for node in view.nodes().filter(|_| remote == RemotePods::ByKernel) {
            for range in &node.pod_cidrs {
                let is_same = |a: &&IpAddr| a.is_ipv4() == range.address().is_ipv4();
                let address = node.addresses.iter().find(is_same);
                wanted.extend(address.map(|address| (*range, *address)));
            }
        }
        if wanted == self.in_force {
            return;
        }
        if let Err(error) = self.replace(&wanted) {
            self.reporter.failure(Failure::NodeRoutes(error));
        }
        self.in_force = wanted;
    }

    /// Adds missing routes, including those that could not be set before. Returns a description of
    /// each.
    pub(super) fn reconcile(&self) -> Result<Vec<String>, HostError> {
        if self.in_force.is_empty() {
            return Ok(Vec::new());
        }
        let mut netlink = Netlink::open(&self.namespace)?;
        let found = netlink.routes()?;
        let mut done = Vec::new();
        for (range, address) in &self.in_force {
            let is_there = |r: &Route| {
                (r.destination, r.gateway, r.table) == (*range, Some(*address), Route::MAIN)
            };
            if !found.iter().any(is_there) {
                let route = Route::to(*range).via(*address);
                netlink.add_route(&route)?;
                done.push(format!("route {route}"));
            }
        }
        Ok(done)
    }

    fn replace(&self, wanted: &HashSet<(Cidr, IpAddr)>) -> Result<(), HostError> {
        let mut netlink = Netlink::open(&self.namespace)?;
        let stay: HashSet<Cidr> = wanted.iter().map(|(range, _)| *range).collect();
        for (range, address) in self.in_force.iter().filter(|(range, _)| !stay.contains(range)) {
            match netlink.delete_route(&Route::to(*range).via(*address)) {
                Err(error) if error.is_not_found() => {}
                result => result?,
            }
        }
        // Replaces the route to the same range via an earlier address.
        wanted
            .difference(&self.in_force)
            .try_for_each(|(range, address)| netlink.add_route(&Route::to(*range).via(*address)))
    }
}

impl Drop for KernelRoutes {
    fn drop(&mut self) {
        // Best effort: the namespace may be gone, and there is no caller to report to.
        let _ = self.replace(&HashSet::new());
    }
}
