//! The tunnel over UDP sockets against the kernel's own VXLAN devices.

#[path = "../common/mod.rs"]
#[macro_use]
mod common;
mod frames;
mod pmtu;
mod tcp;
mod throughput;
mod tunnel_gso;
mod world;
