//! Kubernetes objects read into podswitch configuration.
//!
//! Objects come from manifests ([`Manifests`], read once, or [`Files`], read again whenever they
//! change) or one by one. Every object is validated as by the API server. Valid objects become a
//! [`Config`](podswitch_core::config::Config), either complete ([`Store::compiled`]) or as the
//! changes since the last one ([`Store::take_changes`]).
//!
//! One bad object never blocks the others. Everything that an API server stores is accepted, even
//! with a stale status or a value of a newer API version. An object that cannot be used is left
//! out; a policy that cannot be used keeps its last good version in force, or else isolates the
//! pods that it selects. A [`Record`] reports this, with object, field, reason and action.
//!
//! Called by the program that embeds the switch, off the packet path, by one thread at a time.
//! Nothing here opens sockets, starts threads or changes the system. Files are read; the clock is
//! read only to detect which of them may have changed.
//!
//! ```
//! use std::path::Path;
//! use podswitch_kubernetes::{Action, Manifests, Options};
//! use podswitch_core::id::PortId;
//!
//! let text = "
//! apiVersion: v1
//! kind: Pod
//! metadata: {name: web, annotations: {podswitch.io/netns: /run/netns/web}}
//! spec: {nodeName: n1}
//! status: {podIPs: [{ip: 10.1.0.7}]}
//! ---
//! apiVersion: networking.k8s.io/v1
//! kind: NetworkPolicy
//! metadata: {name: shut}
//! spec: {podSelector: {}}
//! ";
//! let manifests = Manifests::parse(Path::new("cluster.yaml"), text)?;
//! let mut compiled = manifests.compile(Some("n1"), &Options::default());
//! assert_eq!(compiled.config.policies[0].cookie.as_ref(), "NetworkPolicy/default/shut");
//!
//! // Pods of this node get their ports from the code that creates the devices.
//! assert_eq!(compiled.pods[0].name, "default/web");
//! assert_eq!(compiled.pods[0].interface.as_ref().unwrap().name, "eth0");
//! compiled.attach(0, PortId(1), 1450);
//!
//! let wrong = "{apiVersion: v1, kind: Pod, metadata: {name: web}, status: {podIP: 10.1.0.256}}";
//! let compiled =
//!     Manifests::parse(Path::new("x.yaml"), wrong)?.compile(None, &Options::default());
//! let record = compiled.refused().next().expect("a fault");
//! assert_eq!((record.object.as_str(), &*record.field), ("Pod/default/web", "status.podIP"));
//! assert_eq!(record.action, Action::LeftOut);
//! # Ok::<(), podswitch_kubernetes::LoadError>(())
//! ```
#![forbid(unsafe_code)]

mod api;
mod dns;
mod kind;
mod label_query;
mod object;
mod options;
mod parts;
mod read;
mod report;
mod source;
mod spelling;
mod state;
mod store;
mod text;
mod validate;

pub use kind::Kind;
pub use label_query::label_query;
pub use object::{Object, ObjectError};
pub use options::{NameOptions, Options, PodAnnotations};
pub use parts::ServiceEndpoint;
pub use report::{Action, Counts, Record, Source};
pub use source::{Files, LoadError, Loading, Manifests, ValueObject, Values};
pub use spelling::{distance, nearest};
pub use state::{Compiled, InterfaceKind, LocalPod, Overlay, PodInterface};
pub use store::{Base, Changes, KindChanges, ObjectChanges, PodChange, PodIdentity, Store};
