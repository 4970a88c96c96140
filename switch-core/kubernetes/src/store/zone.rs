//! Cluster DNS: the zone, kept with the objects, and the backend of last resort of its name server.

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::control::Change;
use podswitch_core::id::Cookie;
use podswitch_dns::facts::Facts;
use podswitch_dns::{NameError, PodNames, Zone};
use podswitch_policy::service::model::{
    Conditions, Endpoint, EndpointSlice, Service, SlicePort, family_of,
};

use super::Store;
use super::derive::Output;
use crate::options::NameOptions;

/// Name of the slices with this node's own resolver.
const RESOLVER: &str = "podswitch-resolver";

/// See the module's description.
#[derive(Debug)]
pub(super) struct NameZone {
    zone: Zone,
    has_changed: bool,
    resolver: Vec<IpAddr>,
    /// The name server's Service.
    server: Cookie,
    /// The slices with the resolver, as last taken.
    slices: Vec<Arc<EndpointSlice>>,
}

impl NameZone {
    /// `None`: there is no such zone, because the name server is not named by labels.
    pub(super) fn new(options: &NameOptions) -> Option<Self> {
        let (namespace, name) = &options.zone.name_server;
        let server = Cookie::new(format!("Service/{namespace}/{name}"));
        let mut zone = Zone::new(options.zone.clone()).ok()?;
        // It leaves the store only with a complete state.
        zone.set_synced(true);
        let resolver = options.resolver.clone();
        Some(Self { zone, has_changed: true, resolver, server, slices: Vec::new() })
    }

    /// Whether an object's facts are of use.
    pub(super) fn wants(&self, facts: &Facts) -> bool {
        match facts {
            Facts::Pod(_) => self.zone.settings().pods == PodNames::Verified,
            _ => true,
        }
    }

    /// Replaces what an object says of names. What cannot be a name has none.
    pub(super) fn change(&mut self, old: Option<&Facts>, new: Option<&Facts>) {
        if old == new {
            return;
        }
        self.has_changed = true;
        if let Some(old) = old {
            let is_replaced = new.is_some_and(|new| has_same_place(old, new));
            if !is_replaced {
                _ = self.delete(old);
            }
        }
        if let Some(new) = new
            && self.zone.upsert(new.clone()).is_err()
        {
            _ = self.delete(new);
        }
    }

    fn delete(&mut self, facts: &Facts) -> Result<(), NameError> {
        match facts {
            Facts::Namespace(name) => self.zone.set_namespace(name, false),
            Facts::Service(it) => self.zone.delete_service(&it.namespace, &it.name),
            Facts::Slice(it) => self.zone.delete_slice(it),
            Facts::Pod(it) => self.zone.delete_pod(&it.namespace, &it.name),
        }
    }

    /// The zone as it is now.
    fn take(&mut self) -> Arc<Zone> {
        if std::mem::take(&mut self.has_changed) {
            self.zone.set_serial(self.zone.serial().wrapping_add(1));
        }
        Arc::new(self.zone.clone())
    }

    /// The slices with the resolver: it serves, but is about to end, so other backends have precedence (S1).
    fn slices(&self, service: &Service, node: Option<&Arc<str>>) -> Vec<Arc<EndpointSlice>> {
        let port = |port: &podswitch_policy::service::model::ServicePort| SlicePort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: Some(53),
        };
        let ports: Vec<_> = service.ports.iter().filter(|it| it.port == 53).map(port).collect();
        let conditions =
            Conditions { ready: Some(false), serving: Some(true), terminating: Some(true) };
        let of_address = |address: &IpAddr| {
            let mut endpoint = Endpoint::ready(*address);
            endpoint.conditions = conditions;
            endpoint.node = node.cloned();
            Arc::new(EndpointSlice {
                namespace: service.name.namespace.clone(),
                name: format!("{RESOLVER}-{}", if address.is_ipv4() { "ipv4" } else { "ipv6" })
                    .into(),
                service: service.name.name.clone(),
                family: family_of(*address),
                ports: ports.clone(),
                endpoints: vec![endpoint],
            })
        };
        self.resolver.iter().map(of_address).collect()
    }
}

/// Whether the second takes the place of the first in the zone.
fn has_same_place(old: &Facts, new: &Facts) -> bool {
    match (old, new) {
        (Facts::Slice(old), Facts::Slice(new)) => {
            (&old.service, &old.cluster) == (&new.service, &new.cluster)
        }
        _ => std::mem::discriminant(old) == std::mem::discriminant(new),
    }
}

impl Store {
    /// The zone, if the switch answers for names.
    pub(super) fn zone(&mut self) -> Option<Arc<Zone>> {
        self.zone.as_mut().map(NameZone::take)
    }

    /// The slices with this node's own resolver.
    pub(super) fn resolver_slices(&self) -> Vec<Arc<EndpointSlice>> {
        let Some(zone) = &self.zone else { return Vec::new() };
        match self.objects.get(&zone.server).map(|entry| &entry.output) {
            Some(Output::Service(service)) => zone.slices(service, self.node.as_ref()),
            _ => Vec::new(),
        }
    }

    /// Adds what changed of names since the last call.
    pub(super) fn take_zone_changes(&mut self) {
        if !self.zone.as_ref().is_some_and(|zone| zone.has_changed) {
            return;
        }
        let slices = self.resolver_slices();
        let Some(zone) = &mut self.zone else { return };
        let before = std::mem::replace(&mut zone.slices, slices.clone());
        let objects = &mut self.changes.objects;
        for old in before.iter().filter(|old| slices.iter().all(|new| new.name != old.name)) {
            objects.push(Change::SliceDeleted(old.namespace.clone(), old.name.clone()));
        }
        let new = slices.into_iter().filter(|new| !before.contains(new));
        objects.extend(new.map(Change::Slice));
        objects.push(Change::Zone(Some(zone.take())));
    }
}
