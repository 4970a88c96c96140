//! The machine around the switch: network namespaces, interfaces, addresses, routes, packet
//! filter rules, and the ways in which pods and the node itself are attached.
//!
//! Called by the programs built on the switch while they set up and tear down, on ordinary
//! threads; by a worker only to ask for the way to a tunnel end, once a second. Everything here speaks to the kernel directly:
//! no `ip`, `nft` or `sysctl` program is needed. Errors say the object and the operation
//! ([`HostError`]).

mod error;
pub mod health;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod pod;
pub mod reserve;
pub mod steer;
pub mod sysctl;
pub mod userns;
pub(crate) mod xfrm;

pub use error::HostError;
pub use netlink::Netlink;
pub use netns::NetNs;

pub(crate) use error::Context;
