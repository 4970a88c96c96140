//! Kernel ports: TAP, AF_PACKET, and the tunnel over UDP sockets.
//!
//! Each is a [`Device`](podswitch_core::port::Device) that control threads create. It opens one
//! [`Port`](podswitch_core::port::Port) for each worker, which only that worker's thread uses.
//! They make no decisions about packets; the engine does.

mod gro;
mod injector;
mod several;
mod underlay_mac;

pub mod af_packet;
pub mod tap;
pub mod udp_tunnel;
pub mod virtio;

#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub use gro::fuzz;
pub use underlay_mac::underlay_mac;
