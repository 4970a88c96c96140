//! Namespaces: leaving the current ones, and starting programs in others.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use super::check;

/// Moves the calling thread into a new, empty network namespace.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: no memory is involved; CLONE_NEWNET concerns the calling thread only and shares
    // nothing that Rust relies on (unlike CLONE_FILES, which would make descriptors dangle).
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Makes `command` start its program inside the network namespace behind `ns`.
pub(crate) fn enter_before_exec(command: &mut Command, ns: Arc<OwnedFd>) {
    let enter = move || {
        // SAFETY: a plain system call on a descriptor that the closure keeps open.
        check(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
    };
    // SAFETY: between fork and exec the closure makes one system call; it neither allocates nor
    // takes a lock.
    unsafe { command.pre_exec(enter) };
}

/// Makes `command` start its program as root of a new user, network and mount namespace, in which
/// `uid` and `gid`, those of the caller, are mapped to root's. With [`CommandExt::exec`] this
/// happens to the calling process, which must have only one thread.
pub(crate) fn new_user_namespace_before_exec(command: &mut Command, uid: u32, gid: u32) {
    let uid_map = format!("0 {uid} 1");
    let gid_map = format!("0 {gid} 1");
    let unshare = move || {
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWNS;
        // SAFETY: a plain system call; the kernel refuses it (EINVAL) in a process with several
        // threads, so none of them can see half of the change.
        check(unsafe { libc::unshare(flags) })?;
        // The kernel requires that group changes are given up before an unprivileged user may map
        // groups (user_namespaces(7)).
        write_file("/proc/self/setgroups", b"deny")?;
        write_file("/proc/self/uid_map", uid_map.as_bytes())?;
        write_file("/proc/self/gid_map", gid_map.as_bytes())
    };
    // SAFETY: between fork and exec the closure opens, writes and closes three files and takes no
    // lock; paths and contents were laid out before. (`File::open` turns a short path into a C
    // string on the stack, without allocating.)
    unsafe { command.pre_exec(unshare) };
}

fn write_file(path: &str, content: &[u8]) -> io::Result<()> {
    File::options().write(true).open(path)?.write_all(content)
}

/// The cookie of the network namespace that a socket belongs to.
pub(crate) fn cookie(socket: std::os::fd::BorrowedFd<'_>) -> io::Result<u64> {
    /// asm-generic/socket.h, Linux 5.14.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`, and `len`.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    })?;
    Ok(cookie)
}

/// The kind of namespace behind a descriptor (`CLONE_NEW*`); `ENOTTY` if it is not a namespace.
pub(crate) fn kind(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<libc::c_int> {
    /// linux/nsfs.h
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) })
}
