//! Wire formats: header views, checksums, address types, flow keys, and the bounded parse of every
//! frame.
//!
//! Nothing here allocates, opens sockets, reads clocks, starts threads or uses `unsafe`. After a
//! view's `new_checked` has accepted its bytes, no accessor panics (see [`view`]).
#![forbid(unsafe_code)]
#![no_std]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod arp;
pub mod checksum;
pub mod cidr;
pub mod ethernet;
pub mod flow_key;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod parse;
pub mod sctp;
pub mod tcp;
pub mod udp;
pub mod view;
pub mod vlan;
