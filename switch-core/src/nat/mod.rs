//! Network address translation, except the decision when it is applied.
//!
//! * [`select`]: which backend a new connection to a Service gets (DNAT), and whether its source is
//!   translated (SNAT, masquerade).
//! * [`affinity`]: which backend a client keeps (session affinity).
//! * [`ports`]: the source ports for SNAT, shared by all workers.
//! * [`rewrite`]: addresses, ports and checksums of a packet, in place.
//! * [`icmp`]: ICMP errors about a translated connection, and the packets that they quote.
//!
//! `resolve` calls [`select`] for the first packet of a connection and puts the result into the
//! connection's [`Pinned`](crate::pinned::Pinned) facts and its [`Plan`](crate::action::Plan); the
//! connection table holds the [`ports`]; the engine applies [`rewrite`] and [`icmp`].

pub mod affinity;
pub mod icmp;
pub mod ports;
pub mod rewrite;
pub mod select;
