//! Kubernetes Services, compiled: which backend a connection to a Service's address gets, or why it
//! gets none (rules S1–S9, S12–S14, S18, P4).
//!
//! The control plane keeps one [`compile::Compiler`], gives it changed Services, slices and host
//! ports, and puts a clone of its [`table::ServiceTable`] in every snapshot. Workers read that when
//! a connection is opened, never for later packets. Nothing here opens sockets, reads clocks or
//! a connection is opened, never for later packets. Nothing here opens sockets, reads clocks or
//!
//! ```
//! use std::sync::Arc;
//! use podswitch_policy::service::compile::{Compiler, Settings};
//! use podswitch_policy::service::model::{Endpoint, EndpointSlice, Service, ServicePort, SlicePort};
//! use podswitch_policy::service::table::{Lookup, Origin};
//! use podswitch_wire::flow_key::{Family, FlowKey};
//!
//! let mut compiler = Compiler::new(Settings::default());
//! let mut web = Service::cluster_ip("shop", "web", ["10.96.0.10".parse()?]);
//! web.ports = vec![ServicePort::tcp("http", 80)];
//! compiler.set_service(Arc::new(web))?;
//! compiler.set_slice(Arc::new(EndpointSlice {
//!     namespace: "shop".into(),
//!     name: "web-1".into(),
//!     service: "web".into(),
//!     family: Family::V4,
//!     ports: vec![SlicePort::tcp("http", 8080)],
//!     endpoints: vec![Endpoint::ready("10.0.1.7".parse()?)],
//! }));
//! let table = compiler.publish();
//!
//! let key = FlowKey::new("10.0.2.9".parse()?, "10.96.0.10".parse()?, 6, 40_000, 80).expect("one family");
//! let Lookup::Backend(chosen) = table.lookup(&key, Origin::InCluster) else { panic!() };
//! assert_eq!(chosen.backend().to_string(), "10.0.1.7:8080");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod build;
pub mod compile;
mod counts;
pub mod endpoints;
pub mod entry;
pub mod explain;
pub mod model;
pub mod reference;
mod settings;
pub mod table;
mod validate;

#[cfg(test)]
mod tests;
