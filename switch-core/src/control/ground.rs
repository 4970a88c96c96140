//! What holds for all flows at once, whatever their addresses.

use std::sync::Arc;

use crate::config::Config;

/// Whether two configurations differ at most in pods, namespaces, policies, Services, slices and host
/// ports: what these change is known by address. Other nodes are ground, since routes and tunnels
/// are made of them.
pub(super) fn is_same(old: &Config, new: &Config) -> bool {
    // All fields by name, so that none that is added is forgotten here.
    let Config {
        node,
        ports,
        endpoints: _,
        namespaces: _,
        policies: _,
        cluster_policies: _,
        services: _,
        slices: _,
        host_ports: _,
        service_cidrs,
        allowed_external_ips,
        cluster_key,
        masquerade,
        nodes,
        tunnel,
        neighbours,
        routes,
        bridges,
    } = new;
    *node == old.node
        && *ports == old.ports
        && *service_cidrs == old.service_cidrs
        && *allowed_external_ips == old.allowed_external_ips
        && cluster_key.is_same(&old.cluster_key)
        && *masquerade == old.masquerade
        && same_objects(nodes, &old.nodes)
        && *tunnel == old.tunnel
        && *neighbours == old.neighbours
        && same_objects(routes, &old.routes)
        && same_objects(bridges, &old.bridges)
}

fn same_objects<T: PartialEq>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
    let same = |(a, b): (&Arc<T>, &Arc<T>)| Arc::ptr_eq(a, b) || **a == **b;
    a.len() == b.len() && a.iter().zip(b).all(same)
}
