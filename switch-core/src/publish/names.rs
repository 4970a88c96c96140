//! Cluster DNS: the zone arrives compiled; here the addresses to which clients send queries are added.

use std::net::SocketAddr;
use std::sync::Arc;

use podswitch_policy::rule::Protocol;
use podswitch_policy::service::model::{Service, ServiceName};

use super::diff::{Desired, Diff};
use crate::snapshot::{Names, Snapshot};

/// The names of the new snapshot. Shared with the one before if neither they nor the name server's Service changed.
pub(super) fn compile(desired: &Desired, diff: &Diff, before: &Snapshot) -> Option<Arc<Names>> {
    let zone = desired.zone.as_ref()?;
    let (namespace, name) = &zone.settings().name_server;
    let is_it =
        |service: &Arc<Service>| (&service.name.namespace, &service.name.name) == (namespace, name);
    let last = before.names.as_ref().filter(|names| {
        names.zone.settings().name_server == zone.settings().name_server
            && !diff.services.all().any(is_it)
    });
    if let Some(last) = last {
        if Arc::ptr_eq(&last.zone, zone) {
            return Some(last.clone());
        }
        let frontends = last.frontends.clone();
        return Some(Arc::new(Names { zone: zone.clone(), frontends }));
    }
    let key = ServiceName { namespace: namespace.clone(), name: name.clone() };
    let service = desired.services.get(&key).filter(|service| service.is_balanced());
    let frontends = service.map_or_else(Box::default, |service| frontends(service));
    Some(Arc::new(Names { zone: zone.clone(), frontends }))
}

fn frontends(service: &Service) -> Box<[SocketAddr]> {
    let ports = service.ports.iter().filter(|port| port.protocol == Protocol::Udp);
    let of_port = |port: u16| service.cluster_ips.iter().map(move |ip| SocketAddr::new(*ip, port));
    ports.flat_map(|port| of_port(port.port)).collect()
}
