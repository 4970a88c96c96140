//! The forwarding engine of podswitch: packets, ports, flows, NAT, workers, control plane.
//!
//! # A frame between two memory ports
//!
//! ```
//! use std::sync::Arc;
//! use podswitch_core::config::{Attachment, Config, Endpoint, PortConfig, PortRole};
//! use podswitch_core::control::{ControlPlane, Options};
//! use podswitch_core::id::Cookie;
//! use podswitch_core::port::{Offloads, memory};
//! use podswitch_core::time::Instant;
//! use podswitch_policy::rule::{Labels, Workload};
//! use podswitch_wire::addr::Mac;
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
//! // Pod 1 sends a datagram to pod 2, through its gateway.
//! let frame = [
//!     0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 2, 0, 0, 0, 0, 1, 8, 0, // Ethernet
//!     0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0x26, 0xcd, 10, 1, 0, 1, 10, 1, 0, 2, // IPv4
//!     0x03, 0xe8, 0, 53, 0, 8, 0, 0, // UDP
//! ];
//! ends[0].send_frame(&frame)?;
//! worker.poll(Instant::from_secs(1));
//!
//! let received = ends[1].recv_frame().expect("it was forwarded");
//! assert_eq!(received[..6], [2, 0, 0, 0, 0, 2], "to the pod's MAC address");
//! assert_eq!(received[22], 63, "TTL decremented");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How the parts fit
//!
//! [`control::ControlPlane`] takes a [`config::Config`], compiles it into a [`snapshot::Snapshot`] and publishes that.
//! Each [`worker::Worker`] polls its queues of the [`port`]s and passes bursts to its
//! [`engine::Engine`]. The engine looks flows up and applies their [`action::Plan`]. For unknown
//! flows it calls [`resolve`], and opens a connection in [`flow::connection`]. Address translation
//! is in [`nat`].
//!
//! Dependencies inside this crate run one way: [`pinned`], [`action`], [`packet`] and [`snapshot`]
//! are below [`nat`], which is below [`flow`], then [`resolve`], then [`engine`]. [`records`]
//! observes the engine. None of these depends on [`port`], [`worker`] or [`control`]. The fast path
//! does not allocate, lock, log or read the system time.
#![deny(unsafe_code)]

pub mod action;
pub mod answer;
pub mod capture;
pub mod config;
pub mod control;
pub mod engine;
pub mod flow;
pub mod id;
pub mod invalidation;
pub mod limit;
pub mod nat;
pub mod packet;
pub mod pinned;
pub mod port;
mod prefetch;
mod publish;
pub mod records;
pub mod resolve;
pub mod route;
pub mod snapshot;
pub mod stats;
pub mod time;
pub mod worker;
