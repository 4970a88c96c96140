//! Gateway API: GatewayClass, Gateway and HTTPRoute become listeners with rules, and a status.

mod attach;
mod filters;
mod grants;
mod listeners;
mod rules;

use super::backend::Backends;
use super::records::{Records, Subject};
use crate::objects::{Name, Objects, Stored};
use crate::options::Options;
use crate::routes::Routes;
use crate::status::{ClassStatus, Condition, GatewayStatus};
use grants::Grants;

/// A reason in one word, and one for people.
type Fault = (&'static str, String);

/// Adds the listeners and rules of Gateway API to the routes. Returns the status of its objects.
pub(super) fn add(
    routes: &mut Routes,
    objects: &Objects,
    options: &Options,
    backends: &mut Backends<'_>,
    records: &mut Records,
) -> GatewayStatus {
    let grants = Grants::new(objects);
    let classes = classes(objects, options, records);
    let is_ours = |class: &str| classes.iter().any(|it| it.name == class && it.conditions[0].holds);
    let mut gateways = listeners::read(objects, options, &grants, &is_ours, records);
    for gateway in &gateways {
        gateway.open(routes);
    }
    let mut statuses = Vec::new();
    for (name, route) in by_age(&objects.http_routes) {
        let made = rules::Made::new(objects, &grants, name, route, backends);
        statuses.extend(attach::route(routes, objects, name, route, made, &mut gateways, records));
    }
    routes.gateways.sort();
    let gateways = gateways.iter().map(listeners::Gateway::status).collect();
    GatewayStatus { classes, gateways, routes: statuses }
}

/// The oldest first, then by namespace and name.
fn by_age<T>(
    objects: &std::collections::BTreeMap<Name, Stored<T>>,
) -> impl Iterator<Item = (&Name, &Stored<T>)> {
    let mut all: Vec<_> = objects.iter().collect();
    all.sort_by_key(|(name, object)| {
        let created = object.meta.creation_timestamp.as_deref();
        (created.is_none(), created, *name)
    });
    all.into_iter()
}

fn condition(kind: &'static str, reason: &'static str, fault: Option<&Fault>) -> Condition {
    match fault {
        None => Condition { kind, holds: true, reason, message: String::new() },
        Some((reason, message)) => {
            Condition { kind, holds: false, reason, message: message.clone() }
        }
    }
}

/// The classes with our controller.
fn classes(objects: &Objects, options: &Options, records: &mut Records) -> Vec<ClassStatus> {
    let ours = objects
        .gateway_classes
        .iter()
        .filter(|(_, class)| class.it.controller_name.as_deref() == Some(&options.controller));
    let status = |(name, class): (&Name, &Stored<_>)| {
        let class: &Stored<crate::gateway_api::GatewayClassSpec> = class;
        let fault = class.it.parameters_ref.as_ref().map(|_| {
            let reason = "parameters are not supported".to_owned();
            let of = Subject::new("GatewayClass", name, class);
            records.left_out(&of, "spec.parametersRef", reason.clone(), true);
            ("InvalidParameters", reason)
        });
        ClassStatus {
            name: name.1.clone(),
            generation: class.meta.generation.unwrap_or_default(),
            conditions: vec![condition("Accepted", "Accepted", fault.as_ref())],
        }
    };
    ours.map(status).collect()
}
