//! Gateway API: GatewayClass, Gateway and HTTPRoute become listeners with rules, and a status.

mod attach;
mod common;
mod filters;
mod grants;
mod listeners;
mod rules;

use super::backend::Backends;
use super::records::{Records, Subject};
use crate::gateway_api::GatewayClassSpec;
use crate::objects::{Name, Objects, Stored};
use crate::options::Options;
use crate::routes::Routes;
use crate::status::{ClassStatus, GatewayStatus};
use common::{by_age, condition};
use grants::Grants;

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

/// The classes with our controller.
fn classes(objects: &Objects, options: &Options, records: &mut Records) -> Vec<ClassStatus> {
    let ours = objects
        .gateway_classes
        .iter()
        .filter(|(_, class)| class.it.controller_name.as_deref() == Some(&options.controller));
    let status = |(name, class): (&Name, &Stored<GatewayClassSpec>)| {
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
