//! The tunnel over UDP sockets against the kernel's own VXLAN devices.

mod bursts;
mod frames;
mod pmtu;
mod tcp;
mod throughput;
mod tunnel_gso;
mod world;
