//! The home of `unsafe` system calls: what neither the standard library nor `rustix` offers
//! safely (tun and packet socket options, the mapped receive ring, `unshare`, `pre_exec`).
//!
//! Called by `port::{tap, af_packet}` on worker threads and by `host` at set-up. Every function
//! here is safe to call with any arguments; each block says why. Nothing here decides anything.
#![allow(unsafe_code, reason = "system calls without a safe wrapper; kept to this module")]

pub(crate) mod mmsg;
pub(crate) mod ns;
pub(crate) mod packet;
pub(crate) mod ring;
pub(crate) mod tun;

use std::io;

/// Turns the result of a C call that says -1 for an error into an `io::Result`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
