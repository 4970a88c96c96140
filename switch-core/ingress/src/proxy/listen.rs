//! Listeners of the workers, which share an address.

use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, listen as start, socket_with,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// A listener at `address` that others may share (`SO_REUSEPORT`): the kernel spreads connections.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &address)?;
    start(&socket, BACKLOG)?;
    Ok(socket.into())
}
