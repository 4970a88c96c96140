//! The home of `unsafe` system calls: what neither the standard library nor `rustix` offers safely
//! (tun and packet socket options, the mapped receive ring, `unshare`, `pre_exec`).
//!
//! Called by `port::{tap, af_packet}` on worker threads and by the rest of the crate at set-up.
//! Every function here is safe to call with any arguments; each block says why. Nothing here makes
//! decisions.
#![allow(unsafe_code, reason = "system calls without a safe wrapper; kept to this module")]

pub(crate) mod datagram;
pub(crate) mod ethtool;
pub(crate) mod interface;
pub(crate) mod iptables;
pub(crate) mod mmsg;
pub(crate) mod ns;
pub(crate) mod packet;
pub(crate) mod ring;
pub(crate) mod tun;
pub(crate) mod udp;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Turns the result of a C call that says -1 for an error into an `io::Result`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets a socket option whose value is `T` as C lays it out.
fn set<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes from `value`. Where those hold a pointer
    // (`set_deaf`) it is to memory that lives through the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
    .map(drop)
}
