//! Services: passes a publish to the Service compiler.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashSet;
use podswitch_policy::service::compile::{Clash, Compiler, Settings as ServiceSettings};
use podswitch_policy::service::endpoints::Viewpoint;
use podswitch_policy::service::table::ServiceTable;

use super::diff::Diff;
use super::fault;
use super::left_out::Published;
use super::settings::Settings;
use crate::config::LocalNode;
use crate::id::Cookie;

/// A compiler without Services.
pub(super) fn compiler() -> Compiler {
    Compiler::new(settings(&Settings::default()))
}

/// Passes the changes of a publish to the compiler, and returns the new table.
pub(super) fn compile(compiler: &mut Compiler, diff: &Diff, now: &Settings) -> ServiceTable {
    compiler.set_settings(settings(now));
    for service in &diff.services.removed {
        compiler.remove_service(&service.name);
    }
    for slice in &diff.slices.removed {
        compiler.remove_slice(&slice.namespace, &slice.name);
    }
    for service in diff.services.after() {
        let taken = compiler.set_service(Arc::clone(service));
        debug_assert!(taken.is_ok(), "checked before");
    }
    for slice in diff.slices.after() {
        compiler.set_slice(Arc::clone(slice));
    }
    for (pod, _) in &diff.host_ports.removed {
        compiler.set_host_ports(pod.text(), Arc::new([]));
    }
    for (pod, ports) in diff.host_ports.after() {
        compiler.set_host_ports(pod.text(), ports.clone());
    }
    compiler.publish()
}

/// Adds the frontends that became contested with this publish, and those that no longer are.
pub(super) fn news(before: &[Clash], now: &[Clash], published: &mut Published) {
    let (known, present): (HashSet<&Clash>, HashSet<&Clash>) =
        (before.iter().collect(), now.iter().collect());
    published.left_out.extend(now.iter().filter(|c| !known.contains(c)).map(fault::clash));
    let won = before.iter().filter(|c| !present.contains(c));
    let mut won: Vec<Cookie> = won.map(|c| Cookie::new(c.loser.clone())).collect();
    won.dedup();
    published.taken.extend(won);
}

/// Further addresses of the node, where host ports are reachable.
fn local_addresses(node: &LocalNode) -> Vec<IpAddr> {
    let mut addresses = node.local_addresses.clone();
    addresses.extend([IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]);
    addresses.retain(|address| !node.addresses.contains(address));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn settings(settings: &Settings) -> ServiceSettings {
    let node = &settings.node;
    ServiceSettings {
        view: Viewpoint { node: node.name.clone(), zone: node.zone().map(Into::into) },
        node_addresses: node.addresses.clone(),
        local_addresses: local_addresses(node),
        service_cidrs: settings.service_cidrs.clone(),
        allowed_external_ips: settings.allowed_external_ips.clone(),
        cluster_key: settings.cluster_key.0,
    }
}
