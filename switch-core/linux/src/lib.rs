//! The Linux side of podswitch: network namespaces, interfaces, addresses, routes, packet filter
//! rules, attachment of pods and the node to the switch, and the kernel's [`port`]s.
//!
//! Everything here talks to the kernel directly: no `ip`, `nft` or `sysctl` program is needed.
//! [`sysctl`], [`netlink`], [`nft`] and [`attach`] are called while a node is set up and torn down,
//! on ordinary threads; only [`port`] is used by the switch's workers while packets pass. Errors
//! name the object and the operation ([`HostError`]). The crate knows nothing of Kubernetes or
//! policy.
//!
//! # Two namespaces and a veth pair between them
//!
//! Runs as root, or in a user namespace ([`userns`]); skipped where neither is possible.
//!
//! ```
//! use podswitch_linux::netlink::LinkSpec;
//! use podswitch_linux::{NetNs, Netlink};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # if NetNs::anonymous().is_err() { eprintln!("SKIPPED: namespaces need privilege"); return Ok(()); }
//! let (left, right) = (NetNs::anonymous()?, NetNs::anonymous()?);
//! let mut netlink = Netlink::open(&left)?;
//! let eth0 = LinkSpec::new("eth0").up();
//! let index = netlink.add_veth(&eth0, &eth0, &right)?;
//! netlink.add_address(index, "10.0.0.1/24".parse()?)?;
//! assert_eq!(netlink.link("eth0")?.index, index);
//! assert_eq!(Netlink::open(&right)?.link("eth0")?.mtu, 1500);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod attach;
pub mod confine;
mod error;
pub mod handover;
pub mod health;
pub mod kept_connections;
mod kube_proxy;
pub mod netlink;
pub mod netns;
pub mod nft;
mod peer;
pub mod port;
pub mod preflight;
pub mod reserve;
mod send;
pub mod settings;
pub mod steer;
mod sys;
pub mod sysctl;
pub mod userns;
pub mod writers;
pub(crate) mod xfrm;

pub use error::HostError;
pub use kube_proxy::KubeProxy;
pub use netlink::Netlink;
pub use netns::NetNs;
pub use peer::peer_user;
pub use send::send_frame;

pub(crate) use error::Context;
