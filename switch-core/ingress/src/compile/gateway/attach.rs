//! Which listeners a route is attached to.

use std::collections::HashSet;

use super::super::records::{Records, Subject};
use super::super::rules::valid_host;
use super::common::{Fault, condition};
use super::listeners::Gateway;
use super::rules::Made;
use crate::gateway::{Rank, intersection};
use crate::gateway_api::{GROUP, HttpRouteSpec, ParentRef};
use crate::objects::{Name, Objects, Stored};
use crate::routes::Routes;
use crate::status::{ParentStatus, RouteStatus};

/// Attaches a route to the listeners of its parents. Returns its status, if a parent is ours.
pub(super) fn route(
    routes: &mut Routes,
    objects: &Objects,
    name: &Name,
    stored: &Stored<HttpRouteSpec>,
    made: Made,
    gateways: &mut [Gateway<'_>],
    records: &mut Records,
) -> Option<RouteStatus> {
    let of = Subject::new("HTTPRoute", name, stored);
    let refs = stored.it.parent_refs.as_deref().unwrap_or_default();
    let mut parents = Vec::new();
    let mut found = None;
    // Two references may name the same listener.
    let mut attached = HashSet::new();
    for (number, parent) in refs.iter().enumerate() {
        let namespace = parent.namespace.as_deref().unwrap_or(&name.0);
        let group = parent.group.as_deref().unwrap_or(GROUP);
        if group != GROUP || parent.kind.as_deref().unwrap_or("Gateway") != "Gateway" {
            continue;
        }
        let at = gateways.iter().position(|it| it.name.0 == namespace && it.name.1 == parent.name);
        let Some(at) = at else { continue };
        let hosts = found.get_or_insert_with(|| hosts(&stored.it, &of, records));
        let chosen = match &made.refused {
            Some(fault) => Err(fault.clone()),
            None => listeners(objects, &name.0, parent, hosts, &gateways[at]),
        };
        let fault = match chosen {
            Ok(chosen) => {
                for (listener, common) in chosen {
                    if !attached.insert((at, listener)) {
                        continue;
                    }
                    gateways[at].listeners[listener].attached += 1;
                    for (host, rank) in common {
                        add(routes, &gateways[at], listener, &host, rank, &made);
                    }
                }
                None
            }
            Err(fault) => {
                records.field(&of, &format!("spec.parentRefs[{number}]"), fault.1.clone());
                Some(fault)
            }
        };
        let mut conditions = vec![
            condition("Accepted", "Accepted", fault.as_ref()),
            condition("ResolvedRefs", "ResolvedRefs", made.unresolved.as_ref()),
        ];
        if let (None, Some((reason, message))) = (&fault, &made.partial) {
            conditions.push(crate::status::Condition {
                kind: "PartiallyInvalid",
                holds: true,
                reason,
                message: message.clone(),
            });
        }
        parents.push(ParentStatus { parent: parent.clone(), conditions });
    }
    if parents.is_empty() {
        return None;
    }
    records.list.extend(made.records);
    Some(RouteStatus {
        namespace: name.0.clone(),
        name: name.1.clone(),
        generation: stored.meta.generation.unwrap_or_default(),
        parents,
    })
}

/// Hosts in common with a listener, each with the rank of the route's own host.
type Common = Vec<(String, Rank)>;

/// The listeners of a parent that a route is attached to, or why it is attached to none.
fn listeners(
    objects: &Objects,
    namespace: &str,
    parent: &ParentRef,
    hosts: &[String],
    gateway: &Gateway<'_>,
) -> Result<Vec<(usize, Common)>, Fault> {
    let all = gateway.listeners.iter().enumerate();
    let mut named = all
        .filter(|(_, it)| parent.section_name.as_ref().is_none_or(|name| *name == it.spec.name))
        .filter(|(_, it)| parent.port.is_none_or(|port| port == it.spec.port))
        .peekable();
    if named.peek().is_none() {
        let text = "no listener of the Gateway has this sectionName and port".to_owned();
        return Err(("NoMatchingParent", text));
    }
    let mut allowed =
        named.filter(|(_, it)| it.allows(objects, &gateway.name.0, namespace)).peekable();
    if allowed.peek().is_none() {
        let text = "the listeners do not allow HTTPRoutes of this namespace".to_owned();
        return Err(("NotAllowedByListeners", text));
    }
    let chosen: Vec<_> = allowed
        .map(|(number, listener)| {
            let common = |host: &String| {
                Some((intersection(listener.host(), host)?.to_owned(), Rank::of(host)))
            };
            (number, hosts.iter().filter_map(common).collect::<Vec<_>>())
        })
        .filter(|(_, common)| !common.is_empty())
        .collect();
    if chosen.is_empty() {
        let text = "no hostname is one of a listener".to_owned();
        return Err(("NoMatchingListenerHostname", text));
    }
    Ok(chosen)
}

/// The hosts of a route; an empty one is every host.
fn hosts(spec: &HttpRouteSpec, of: &Subject, records: &mut Records) -> Vec<String> {
    let written = spec.hostnames.as_deref().unwrap_or_default();
    if written.is_empty() {
        return vec![String::new()];
    }
    let mut hosts = Vec::new();
    for (number, host) in written.iter().enumerate() {
        match valid_host(host) {
            Ok(()) if host.is_empty() => {
                let text = "is empty".to_owned();
                records.field(of, &format!("spec.hostnames[{number}]"), text);
            }
            Ok(()) => hosts.push(host.clone()),
            Err(reason) => records.field(of, &format!("spec.hostnames[{number}]"), reason),
        }
    }
    hosts
}

/// Adds the rules of a route to a listener, if that one is served.
fn add(
    routes: &mut Routes,
    gateway: &Gateway<'_>,
    listener: usize,
    host: &str,
    rank: Rank,
    made: &Made,
) {
    if !gateway.is_open(listener) {
        return;
    }
    let it = &gateway.listeners[listener];
    for place in gateway.places() {
        let doors = routes.gateways.doors(place);
        let list = if it.is_tls { &mut doors.https } else { &mut doors.http };
        let rules = list.entry(it.host()).rules(host, rank);
        for rule in &made.rules {
            rules.add(rule.path.clone(), rule.when.clone(), rule.shares.clone());
        }
    }
}
