//! UDP sockets of a tunnel: options that neither the standard library nor `rustix` has, path MTU,
//! and the queue of errors (udp(7), ip(7), ipv6(7)).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::datagram::{Control, Name};
use super::{check, set};

/// An unbound UDP socket.
pub(crate) fn open(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if v6 {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

/// Several sockets may be bound to the same address; the kernel spreads flows over them.
pub(crate) fn set_shared(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, &1i32)
}

/// Datagrams of one flow may be received merged (Linux 5.0).
pub(crate) fn set_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, &1i32)
}

/// Makes the kernel segment the data sent on a socket into datagrams of `bytes` (UDP_SEGMENT, Linux
/// 4.18).
pub(crate) fn set_segment(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, &bytes)
}

/// Adds to received messages the number of datagrams for which the socket had no room.
pub(crate) fn set_overflow(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &1i32)
}

/// Adds the traffic class to received messages.
pub(crate) fn set_receive_class(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    match v6 {
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, &1i32),
        false => set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, &1i32),
    }
}

/// Whether the network may fragment sent datagrams. If not, the kernel refuses those longer than
/// the known path MTU with `EMSGSIZE`.
pub(crate) fn set_fragmentable(socket: BorrowedFd<'_>, v6: bool, on: bool) -> io::Result<()> {
    if v6 {
        let value = if on { libc::IPV6_PMTUDISC_DONT } else { libc::IPV6_PMTUDISC_DO };
        return set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &value);
    }
    let value = if on { libc::IP_PMTUDISC_DONT } else { libc::IP_PMTUDISC_DO };
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &value)
}

/// TTL or hop limit of sent datagrams.
pub(crate) fn set_ttl(socket: BorrowedFd<'_>, v6: bool, ttl: u8) -> io::Result<()> {
    match v6 {
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &i32::from(ttl)),
        false => set(socket, libc::IPPROTO_IP, libc::IP_TTL, &i32::from(ttl)),
    }
}

/// ICMP errors about sent datagrams are queued for [`take_error`]; the next call on the socket
/// fails.
pub(crate) fn set_queue_errors(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    match v6 {
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, &1i32),
        false => set(socket, libc::IPPROTO_IP, libc::IP_RECVERR, &1i32),
    }
}

/// The path MTU towards the connected address.
pub(crate) fn path_mtu(socket: BorrowedFd<'_>, v6: bool) -> io::Result<u32> {
    let (level, option) = match v6 {
        true => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        false => (libc::IPPROTO_IP, libc::IP_MTU),
    };
    let mut mtu = 0i32;
    let mut len = size_of_val(&mtu) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `mtu`, and `len`.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut len)
    })?;
    Ok(mtu.unsigned_abs())
}

/// An ICMP error about a sent datagram.
#[derive(Debug)]
pub(crate) struct SendError {
    /// The datagram's destination.
    pub(crate) to: SocketAddr,
    /// The sender of the ICMP error, if it is another host.
    pub(crate) by: Option<SocketAddr>,
    /// The error number: `EMSGSIZE` for a datagram that was too long.
    pub(crate) errno: i32,
    /// For `EMSGSIZE` the path MTU.
    pub(crate) info: u32,
    /// Bytes of the datagram's payload in the buffer.
    pub(crate) quoted: usize,
}

/// Takes the oldest error off the socket's queue; `None` if there is none, or one in an unknown
/// form. The payload quoted in the error is copied to `quote`.
pub(crate) fn take_error(
    socket: BorrowedFd<'_>,
    quote: &mut [u8],
) -> io::Result<Option<SendError>> {
    let mut name = Name::empty();
    let mut control = Control::empty();
    let mut part = libc::iovec { iov_base: quote.as_mut_ptr().cast(), iov_len: quote.len() };
    let mut message = super::message_header(&raw mut part, 1);
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = Name::LEN as libc::socklen_t;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = Control::LEN as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: every pointer in `message` is to memory of this function or to `quote`, with the
    // length given beside it.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    let quoted = (len as usize).min(quote.len());
    let mut found = None;
    control.each(super::control_len(&message), |level, kind, data| {
        let known = matches!(
            (level, kind),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        );
        // struct sock_extended_err: errno, origin and three more bytes, info, data; then the
        // sender's address.
        let word = |at: usize| Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?));
        let (Some(errno), Some(origin), Some(info)) = (word(0), data.get(4), word(8)) else {
            return;
        };
        if known && matches!(*origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6) {
            found = Some((errno as i32, info, data.get(16..).and_then(Name::read)));
        }
    });
    Ok(found.zip(name.get()).map(|((errno, info, by), to)| SendError {
        to,
        by,
        errno,
        info,
        quoted,
    }))
}
