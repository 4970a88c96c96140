//! The decisions of a snapshot for packets, independent of the numbers of its parts.

use std::net::IpAddr;

use podswitch_core::id::PortId;
use podswitch_core::snapshot::{FibEntry, PortFacts, Reach, Snapshot};
use podswitch_policy::service::table::{Lookup, Origin};
use podswitch_policy::verdict::Traffic;
use podswitch_wire::flow_key::FlowKey;

use super::mix::{NODE_PORTS, PORTS, nodes, pod_addresses, vips};

/// See the module's description.
pub(crate) fn look(snapshot: &Snapshot) -> Vec<String> {
    let mut seen: Vec<String> = snapshot
        .endpoints
        .iter()
        .map(|(address, facts)| format!("{address} {} {:?}", facts.endpoint.cookie, facts.location))
        .chain(snapshot.fib.iter().map(|(range, entry)| {
            let entry = match entry {
                FibEntry::Node(way) => reach(snapshot, *way),
                other => format!("{other:?}"),
            };
            format!("{range} {entry}")
        }))
        .collect();
    seen.sort();
    seen.extend((0..PORTS).map(|n| format!("port {n}: {}", port(snapshot, PortId(n)))));
    seen.push(format!("{:?} {:?}", snapshot.host, snapshot.uplinks));
    seen.push(format!("{} VTEPs", snapshot.tunnels.ends.len()));
    for node in nodes() {
        for v6 in [false, true] {
            let way = snapshot.tunnels.reach(&node, v6).map(|way| reach(snapshot, way));
            seen.push(format!("{node} {v6}: {way:?}"));
        }
    }
    for last in 0..8u8 {
        let address = IpAddr::from([192, 168, 0, last]);
        seen.push(format!("{address}: {}", snapshot.tunnels.is_node_address(address)));
    }
    services(snapshot, &mut seen);
    policy(snapshot, &mut seen);
    seen
}

fn reach(snapshot: &Snapshot, reach: Reach) -> String {
    match reach {
        Reach::Tunnel(end) => {
            let outer = snapshot.tunnels.ends.get(end).map(|end| (end.outer(), end.mac()));
            let template = snapshot.tunnels.to(end).map(|tunnel| tunnel.template);
            let right = template == snapshot.tunnels.ends.get(end).map(|end| *end.template());
            format!("{:?} {outer:?} {right}", snapshot.tunnels.node(end))
        }
        other => format!("{other:?}"),
    }
}

fn port(snapshot: &Snapshot, port: PortId) -> String {
    match snapshot.port(port) {
        PortFacts::Pod(pod) => {
            format!("{} {} {:?} {:?}", pod.endpoint.cookie, pod.mtu, pod.ipv4, pod.ipv6)
        }
        PortFacts::Bridge(bridge) => {
            let members = |at: &u16| &snapshot.domains[usize::from(*at)].members;
            let untagged = bridge.untagged.as_ref().map(members);
            let tagged: Vec<_> = bridge.tagged.iter().map(|(vid, at)| (vid, members(at))).collect();
            format!("{untagged:?} {tagged:?}")
        }
        other => format!("{other:?}"),
    }
}

fn services(snapshot: &Snapshot, seen: &mut Vec<String>) {
    let from = IpAddr::from([10, 1, 0, 10]);
    let node = IpAddr::from([192, 168, 0, 1]);
    let fronts = vips().map(|vip| (vip, 80)).into_iter().chain(NODE_PORTS.map(|port| (node, port)));
    for (to, port) in fronts {
        let key = FlowKey::new(from, to, 6, 4000, port).unwrap();
        let found = match snapshot.services.lookup(&key, Origin::InCluster) {
            Lookup::Backend(chosen) => chosen.backend().to_string(),
            Lookup::Reject(reason, _) => format!("{reason:?}"),
            Lookup::Drop(..) => "dropped".into(),
            Lookup::NotAService => "-".into(),
        };
        seen.push(format!("{to} {port}: {found}"));
    }
}

fn policy(snapshot: &Snapshot, seen: &mut Vec<String>) {
    for from in pod_addresses() {
        for to in pod_addresses().filter(|to| *to != from && to.is_ipv4() == from.is_ipv4()) {
            let (a, b) = (snapshot.policy.party(from), snapshot.policy.party(to));
            for port in [53, 80] {
                let key = FlowKey::new(from, to, 6, 4000, port).unwrap();
                let traffic = Traffic::of_flow(&key, false);
                let ingress = snapshot.policy.evaluate_ingress(&a, &b, traffic).allow;
                let egress = snapshot.policy.evaluate_egress(&a, &b, traffic).allow;
                seen.push(format!("{from} {to} {port}: {egress} {ingress}"));
            }
        }
    }
}
