//! The process at the other end of a Unix socket (unix(7), SO_PEERCRED).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// The user id of the process that connected. Its process id is 0 if it is in no PID namespace of this process, as a
/// container runtime is for a container, so the process id is not used.
pub(crate) fn user(socket: BorrowedFd<'_>) -> io::Result<u32> {
    user_and_process(socket).map(|(user, _)| user)
}

/// As [`user`], and the process id: 0 if it cannot be seen from here.
pub(crate) fn user_and_process(socket: BorrowedFd<'_>) -> io::Result<(u32, i32)> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `peer`, which are three integers.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    })?;
    Ok((peer.uid, peer.pid))
}
