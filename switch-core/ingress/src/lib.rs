//! Kubernetes Ingress: objects compiled into immutable routes, and a reverse proxy that follows
//! them.
//!
//! [`Objects`] holds Ingress, IngressClass, Secret, Service and EndpointSlice objects as an API
//! server or manifests give them. [`compile`] makes [`Routes`] of them, without I/O: hosts, paths,
//! backends, certificates and settings from annotations. An object that cannot be used is left out
//! with a [`Record`](podswitch_kubernetes::Record) that names object, field and reason; it never
//! affects the routes of others.
//!
//! The proxy (feature `proxy`) serves them: one runtime a worker thread, listeners with
//! `SO_REUSEPORT`, and one atomic swap for a reload. Connections that are open keep the route that
//! they began with.
//!
//! ```
//! use podswitch_ingress::{Objects, Options, Target, compile};
//!
//! let mut objects = Objects::default();
//! objects.upsert(None, serde_json::json!({
//!     "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
//!     "metadata": {"name": "podswitch"}, "spec": {"controller": "podswitch.io/ingress"},
//! }));
//! objects.upsert(None, serde_json::json!({
//!     "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
//!     "metadata": {"name": "web", "namespace": "shop"},
//!     "spec": {"ingressClassName": "podswitch", "rules": [{"host": "shop.test", "http": {"paths": [
//!         {"path": "/", "pathType": "Prefix",
//!          "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]},
//! }));
//! let compiled = compile(&objects, &Options::default());
//! let Target::Route(route) = compiled.routes.find("shop.test", "/cart") else { panic!() };
//! assert_eq!(route.ingress.as_str(), "Ingress/shop/web");
//! assert!(route.backend.endpoints.is_empty(), "the Service is missing: status 503");
//! assert!(matches!(compiled.routes.find("other.test", "/"), Target::None), "status 404");
//! ```
#![forbid(unsafe_code)]

mod annotations;
mod compile;
mod filters;
mod gateway;
mod gateway_api;
mod objects;
mod options;
mod path;
#[cfg(feature = "proxy")]
pub mod proxy;
mod routes;
mod settings;
mod status;

pub use compile::{Compiled, compile};
pub use filters::{FieldChanges, Filters, PathChange, RedirectTo};
pub use gateway::Ask;
pub use objects::Objects;
pub use options::Options;
pub use path::{PathError, normalise};
pub use routes::{Backend, Certificate, PathKind, Route, Routes, Target};
pub use settings::{Affinity, Canary, Cors, Protocol, Redirect, Rewrite, SameSite, Settings};
pub use status::{
    ClassStatus, Condition, GatewayStatus, ListenerStatus, OneGatewayStatus, ParentRef,
    ParentStatus, RouteStatus,
};
