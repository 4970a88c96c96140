//! Compiles objects into routes.

mod backend;
mod class;
mod gateway;
mod records;
mod rules;
mod tls;

use podswitch_kubernetes::Record;

use crate::objects::Objects;
use crate::options::Options;
use crate::routes::Routes;
use crate::status::GatewayStatus;
use backend::Backends;
use class::Class;
use records::{Records, Subject};

/// The result of a compilation.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The routes.
    pub routes: Routes,
    /// What is left out or not honoured, and notes.
    pub records: Vec<Record>,
    /// Namespace and name of each Ingress that is served, for its status.
    pub served: Vec<(String, String)>,
    /// What the status of Gateway API's objects is to say.
    pub status: GatewayStatus,
}

/// Compiles the objects. Objects with errors are left out; the others are not affected.
pub fn compile(objects: &Objects, options: &Options) -> Compiled {
    let mut records = Records { list: objects.refused.values().cloned().collect() };
    let class = Class::new(objects, options);
    let mut ours = Vec::new();
    for (name, ingress) in &objects.ingresses {
        match class.of(ingress) {
            Ok(true) => ours.push((name, ingress)),
            Ok(false) => {}
            Err((field, reason)) => {
                records.left_out(&Subject::ingress(name, ingress), &field, reason, false)
            }
        }
    }
    // The oldest wins a conflict, then the first by namespace and name.
    ours.sort_by_key(|(name, ingress)| {
        let created = ingress.meta.creation_timestamp.as_deref();
        (created.is_none(), created, *name)
    });
    let mut backends = Backends::new(objects, options);
    let mut builder = rules::Builder::default();
    let mut served = Vec::new();
    for (name, ingress) in ours {
        builder.add(name, ingress, &mut backends, &mut records);
        served.push(name.clone());
    }
    let mut routes = builder.build(&mut records);
    let status = gateway::add(&mut routes, objects, options, &mut backends, &mut records);
    backends.report(&mut records);
    tls::add(&mut routes, objects, &served, options, &mut records);
    served.sort();
    Compiled { routes, records: records.list, served, status }
}
