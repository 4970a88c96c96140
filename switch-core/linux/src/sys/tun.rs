//! The tun device's `ioctl`s (linux/if_tun.h), and those that bring an interface up or return its
//! address without netlink.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

pub(crate) const IFF_TAP: i16 = 0x0002;
pub(crate) const IFF_MULTI_QUEUE: i16 = 0x0100;
pub(crate) const IFF_NO_PI: i16 = 0x1000;
pub(crate) const IFF_VNET_HDR: i16 = 0x4000;

pub(crate) const TUN_F_CSUM: u32 = 0x01;
pub(crate) const TUN_F_TSO4: u32 = 0x02;
pub(crate) const TUN_F_TSO6: u32 = 0x04;
pub(crate) const TUN_F_TSO_ECN: u32 = 0x08;
pub(crate) const TUN_F_USO4: u32 = 0x20;
pub(crate) const TUN_F_USO6: u32 = 0x40;
/// GSO packets inside UDP tunnels (Linux 6.17), and with an outer checksum.
pub(crate) const TUN_F_UDP_TUNNEL_GSO: u32 = 0x80;
pub(crate) const TUN_F_UDP_TUNNEL_GSO_CSUM: u32 = 0x100;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// `struct ifreq` as `TUNSETIFF` reads it: the name and the flags.
#[repr(C)]
struct IfReqFlags {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<IfReqFlags>() == size_of::<libc::ifreq>());

/// Makes the open tun file a queue of the device `name` in the calling thread's network
/// namespace, which is created if there is none.
pub(crate) fn set_interface(tun: BorrowedFd<'_>, name: &str, flags: i16) -> io::Result<()> {
    let mut request = IfReqFlags { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "an interface name has 1 to 15 bytes",
        ));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `request` is as long as.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, &raw mut request) }).map(drop)
}

/// The name of the interface that an open tun file is a queue of, and its flags.
pub(crate) fn interface(tun: BorrowedFd<'_>) -> io::Result<(String, i16)> {
    let mut request = IfReqFlags { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    // SAFETY: TUNGETIFF writes one `struct ifreq`, which `request` is as long as.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNGETIFF as _, &raw mut request) })?;
    let name = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((String::from_utf8_lossy(name).into_owned(), request.flags))
}

/// Sets whether the device outlives its last descriptor.
pub(crate) fn set_persistent(tun: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: the argument is a plain number, no pointer.
    check(unsafe {
        libc::ioctl(tun.as_raw_fd(), TUNSETPERSIST as _, libc::c_ulong::from(persistent))
    })
    .map(drop)
}

/// Sets the offloads that the reader of the device accepts (`TUN_F_*`).
pub(crate) fn set_offloads(tun: BorrowedFd<'_>, offloads: u32) -> io::Result<()> {
    // SAFETY: the argument is a plain number, no pointer.
    check(unsafe {
        libc::ioctl(tun.as_raw_fd(), TUNSETOFFLOAD as _, libc::c_ulong::from(offloads))
    })
    .map(drop)
}

/// Sets the length of the virtio-net header in front of each frame.
pub(crate) fn set_header_len(tun: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, which `bytes` is and outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETVNETHDRSZ as _, &raw const bytes) }).map(drop)
}
