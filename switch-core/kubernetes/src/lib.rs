//! Kubernetes objects read into podswitch configuration.
//!
//! Manifests are read whole ([`Manifests::load`]), every object is checked as the API server checks
//! it, and what is good becomes a [`Config`](podswitch_core::config::Config) ([`Manifests::compile`]).
//! What is wrong is told all at once: a [`Refusal`] has file, object, field and reason. One refused
//! object refuses the state, so that nothing is ever half applied.
//!
//! Called by whoever embeds the switch, off the packet path. Nothing here opens sockets, starts
//! threads or asks for the time; files are read, and nothing else is done to the system.
//!
//! ```
//! use std::path::Path;
//! use podswitch_kubernetes::{Manifests, Options};
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
//! let mut compiled = manifests.compile(Some("n1"), &Options::default()).expect("valid objects");
//! assert_eq!(compiled.config.policies[0].cookie.as_ref(), "NetworkPolicy/default/shut");
//!
//! // Pods of this node get their ports from whoever makes the devices.
//! assert_eq!(compiled.pods[0].name, "default/web");
//! assert_eq!(compiled.pods[0].interface.as_ref().unwrap().name, "eth0");
//! compiled.attach(0, PortId(1), 1450);
//!
//! let wrong = "{apiVersion: v1, kind: Pod, metadata: {name: web}, status: {podIP: 10.1.0.256}}";
//! let refusals =
//!     Manifests::parse(Path::new("x.yaml"), wrong)?.compile(None, &Options::default()).unwrap_err();
//! assert_eq!(refusals[0].object.as_str(), "Pod/default/web");
//! assert_eq!(refusals[0].field, "status.podIP");
//! # Ok::<(), podswitch_kubernetes::LoadError>(())
//! ```
#![forbid(unsafe_code)]

mod api;
mod compile;
mod load;
mod object;
mod refusal;
mod text;
mod validate;

pub use compile::{Compiled, InterfaceKind, LocalPod, Options, Overlay, PodInterface};
pub use load::{LoadError, Manifests};
pub use refusal::{Note, Refusal, Source};
