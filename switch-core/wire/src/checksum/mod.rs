//! Checksums: the Internet checksum (RFC 1071) and its incremental update (RFC 1624), and SCTP's
//! CRC32c (RFC 9260 §6.8, appendix A).
//!
//! Ports complete and verify checksums with these, NAT updates them. The control plane computes a
//! [`Delta`] once, and the packet path applies it to every packet of a flow.

mod crc32c;
mod layer4;
mod update;

pub use crate::sum::{Sum, ipv4_header_holds, pseudo_v4, pseudo_v6, sum};
pub use crc32c::{crc32c, sctp_checksum, sctp_update};
pub use layer4::{fill_l4, finish_partial, is_partial, l4_checksum_offset, pseudo_l4, verify_l4};
pub use update::{Delta, update_addr16, update_u16, update_u32};

#[cfg(test)]
mod tests;
