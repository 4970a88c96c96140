//! Wire formats: header views, checksums, address types, flow keys, and the one bounded parse
//! that every frame goes through.
//!
//! Nothing here allocates, opens sockets, reads clocks or starts threads, and there is no
//! `unsafe`. After a view's `new_checked` has accepted its bytes no accessor panics.
#![forbid(unsafe_code)]
#![no_std]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod checksum;
pub mod cidr;
pub mod flow_key;
pub mod parse;
