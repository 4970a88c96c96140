//! Pods by address: the previous table and the changes. The cost does not depend on the number of
//! pods.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_policy::affected::AffectedAddresses;
use podswitch_policy::cow::CowMap;

use super::diff::{Desired, Diff};
use super::settings::Settings;
use crate::config::Endpoint;
use crate::snapshot::{EndpointFacts, Location, Snapshot};

/// The pods by address after the publish.
pub(super) fn compile(
    desired: &Desired,
    diff: &Diff,
    was: &Settings,
    before: &Snapshot,
) -> CowMap<IpAddr, EndpointFacts> {
    let here = &desired.settings.node.name;
    if was.node.name != *here {
        // The location of all pods depends on the node's name.
        let mut map = CowMap::new();
        desired.endpoints.iter().for_each(|pod| enter(&mut map, pod, here));
        return map;
    }
    let mut map = before.endpoints.clone();
    for pod in diff.endpoints.before().filter(|pod| !pod.workload.host_network) {
        for address in &pod.workload.addresses {
            map.remove(address);
        }
    }
    diff.endpoints.after().for_each(|pod| enter(&mut map, pod, here));
    map
}

fn enter(map: &mut CowMap<IpAddr, EndpointFacts>, pod: &Arc<Endpoint>, here: &Arc<str>) {
    if pod.workload.host_network {
        return;
    }
    let location = match pod.attachment {
        Some(at) => Location::Attached { port: at.port, mac: at.mac, mtu: at.mtu },
        None if pod.node == *here => Location::Unattached,
        None => Location::Remote,
    };
    for &address in &pod.workload.addresses {
        let facts = EndpointFacts { location: location.clone(), endpoint: pod.clone() };
        map.insert(address, facts);
    }
}

/// The addresses of pods that changed, before and after.
pub(super) fn affected(diff: &Diff) -> AffectedAddresses {
    let mut affected = AffectedAddresses::default();
    affected.extend(diff.endpoints.all().flat_map(|pod| pod.workload.addresses.iter().copied()));
    affected
}
