//! podswitch: a user-space packet switch for Kubernetes pod networks.
//!
//! This crate is a facade. The parts: [`wire`] (headers, checksums, one parse), [`vxlan`], [`policy`] (NetworkPolicy
//! and Service tables), [`core`](podswitch_core) (engine, ports, workers, control plane), [`linux`] (namespaces,
//! netlink, nf_tables, kernel ports), [`node`] (the switch of a node), [`kubernetes`] (Kubernetes objects to
//! configuration). The bundled switch is `examples/vswitch`.
//!
//! # A frame between two memory ports
//!
//! ```
//! use std::sync::Arc;
//! use podswitch::core::config::{Attachment, Config, Endpoint, PortConfig, PortRole};
//! use podswitch::core::control::{ControlPlane, Options};
//! use podswitch::core::id::Cookie;
//! use podswitch::core::port::{Offloads, memory};
//! use podswitch::core::time::Instant;
//! use podswitch::policy::rule::{Labels, Workload};
//! use podswitch::wire::addr::Mac;
//!
//! let mut control = ControlPlane::new(Options::default());
//! let mut worker = control.add_worker()?; // or control.set_workers(2)? for threads
//! let mut config = Config::default();
//! let mut ends = Vec::new();
//! for n in 1..=2u8 {
//!     let (device, end) = memory::pair(format!("pod{n}"), 64, Offloads::ALL);
//!     let port = control.attach(Box::new(device))?;
//!     config.ports.push(PortConfig { port, role: PortRole::Pod });
//!     config.endpoints.push(Arc::new(Endpoint {
//!         cookie: Cookie::new(format!("Pod/default/pod{n}")),
//!         workload: Workload {
//!             namespace: "default".into(),
//!             name: format!("pod{n}").into(),
//!             labels: Labels::default(),
//!             addresses: vec![[10, 1, 0, n].into()],
//!             ports: Vec::new(),
//!             host_network: false,
//!         },
//!         node: "node".into(),
//!         attachment: Some(Attachment { port, mac: Mac([2, 0, 0, 0, 0, n]), mtu: 1500 }),
//!         precedence: Default::default(),
//!     }));
//!     ends.push(end);
//! }
//! control.apply(&config)?; // compiled, published with one swap
//!
//! // Pod 1 sends a datagram to pod 2, by way of its gateway.
//! let frame = [
//!     0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 2, 0, 0, 0, 0, 1, 8, 0, // Ethernet
//!     0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0x26, 0xcd, 10, 1, 0, 1, 10, 1, 0, 2, // IPv4
//!     0x03, 0xe8, 0, 53, 0, 8, 0, 0, // UDP
//! ];
//! ends[0].send_frame(&frame)?;
//! worker.poll(Instant::from_secs(1));
//!
//! let received = ends[1].recv_frame().expect("it went through");
//! assert_eq!(received[..6], [2, 0, 0, 0, 0, 2], "to the pod's MAC address");
//! assert_eq!(received[22], 63, "one router hop");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use podswitch_core as core;
pub use podswitch_kubernetes as kubernetes;
pub use podswitch_linux as linux;
pub use podswitch_node as node;
pub use podswitch_policy as policy;
pub use podswitch_vxlan as vxlan;
pub use podswitch_wire as wire;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
