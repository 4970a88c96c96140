//! The old interface of iptables (linux/netfilter_ipv4/ip_tables.h), read only, because the rules of iptables-legacy
//! are not in nf_tables.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

const IPT_SO_GET_INFO: libc::c_int = 64;
const IPT_SO_GET_ENTRIES: libc::c_int = 65;
/// XT_TABLE_MAXNAMELEN.
const NAME: usize = 32;
/// Maximum size of a table in bytes; a larger one is refused.
const MAX_SIZE: u32 = 256 << 20;

/// `struct ipt_getinfo`.
#[repr(C)]
struct Info {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// The entries of `table` as the kernel lays them out, in the namespace of a raw IPv4 `socket`. They contain the names
/// of chains and targets as text.
///
/// # Errors
/// There is no such table; missing privilege.
pub(crate) fn entries(socket: BorrowedFd<'_>, table: &str) -> io::Result<Vec<u8>> {
    let mut info = Info {
        name: [0; NAME],
        valid_hooks: 0,
        hook_entry: [0; 5],
        underflow: [0; 5],
        entries: 0,
        size: 0,
    };
    if table.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    info.name[..table.len()].copy_from_slice(table.as_bytes());
    let name = info.name;
    let mut len = size_of::<Info>() as libc::socklen_t;
    // SAFETY: the kernel reads and writes at most `len` bytes, which `info` has, all of them integers.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            IPT_SO_GET_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    })?;
    if info.size > MAX_SIZE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // struct ipt_get_entries: the name, the size, 4 bytes of padding before the entries.
    const HEAD: usize = NAME + 8;
    let mut buffer = vec![0u8; HEAD + info.size as usize];
    buffer[..NAME].copy_from_slice(&name);
    buffer[NAME..NAME + 4].copy_from_slice(&info.size.to_ne_bytes());
    let mut len = buffer.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which `buffer` has.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            IPT_SO_GET_ENTRIES,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    buffer.drain(..HEAD);
    Ok(buffer)
}
