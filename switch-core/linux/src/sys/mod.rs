//! The home of `unsafe` system calls that neither the standard library nor `rustix` offers safely (tun and packet
//! socket options, the mapped receive ring, `unshare`, `pre_exec`).
//!
//! Called by `port::{tap, af_packet}` on worker threads and by the rest of the crate at set-up.
//! Every function here is safe to call with any arguments; each block says why. Nothing here makes
//! decisions.
#![allow(unsafe_code, reason = "system calls without a safe wrapper; kept to this module")]

pub(crate) mod datagram;
pub(crate) mod ethtool;
pub(crate) mod interface;
pub(crate) mod iptables;
pub(crate) mod mapping;
pub(crate) mod mmsg;
pub(crate) mod ns;
pub(crate) mod packet;
pub(crate) mod peer;
pub(crate) mod ring;
pub(crate) mod tun;
pub(crate) mod udp;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Turns the result of a C call that returns -1 for an error into an `io::Result`.
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

/// The header of a message with this number of `parts`. Its fields have other types in other C libraries, with padding
/// (zero here) where the kernel's types are wider.
fn message_header(parts: *mut libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: all zero is a valid `msghdr`: integers and null pointers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = parts;
    header.msg_iovlen = count as _;
    header
}

/// The number of bytes of control messages that were received.
#[allow(clippy::unnecessary_cast, reason = "the field has another type in musl")]
fn control_len(header: &libc::msghdr) -> usize {
    header.msg_controllen as usize
}

/// sendmmsg(2) without waiting: calls the kernel directly, since musl's function sends one message at a time.
///
/// # Safety
/// Every pointer in `headers` is to memory with the length given beside it, which the kernel only reads.
unsafe fn send_messages(
    socket: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
) -> io::Result<usize> {
    let (fd, count) = (socket.as_raw_fd(), headers.len() as libc::c_uint);
    // SAFETY: the caller sees to what `headers` point to; there are `count` of them.
    let sent = unsafe {
        libc::syscall(libc::SYS_sendmmsg, fd, headers.as_mut_ptr(), count, libc::MSG_DONTWAIT)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// recvmmsg(2) without waiting.
///
/// # Safety
/// Every pointer in `headers` is to memory with the length given beside it, exclusively borrowed.
unsafe fn receive_messages(
    socket: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
) -> io::Result<usize> {
    let (fd, count) = (socket.as_raw_fd(), headers.len() as libc::c_uint);
    let no_timeout = std::ptr::null_mut::<libc::timespec>();
    // SAFETY: the caller sees to what `headers` point to; there are `count` of them.
    let received = unsafe {
        libc::syscall(
            libc::SYS_recvmmsg,
            fd,
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT,
            no_timeout,
        )
    };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}
