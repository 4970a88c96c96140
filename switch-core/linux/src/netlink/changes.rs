//! Change notification: interfaces, neighbours, addresses and routes.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols};

use super::HostError;
use crate::{Context, NetNs};

/// RTNLGRP_LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, each a bit.
const GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;

/// Reports whether anything in a namespace changed since the last call, but not what. The kernel
/// queues the notifications; an overflow counts as a change.
#[derive(Debug)]
pub struct Changes {
    socket: Socket,
}

impl Changes {
    /// Listens in `ns` from now on.
    ///
    /// # Errors
    /// The namespace cannot be entered, or no socket can be opened.
    pub fn listen(ns: &NetNs) -> Result<Self, HostError> {
        let open = || {
            let mut socket = Socket::new(protocols::NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            socket.set_non_blocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        let socket = ns.enter(open)?.context(|| format!("listen to changes in {ns}"))?;
        Ok(Self { socket })
    }

    /// Whether anything changed since the last call. Does not block.
    pub fn happened(&mut self) -> bool {
        let mut buffer = Vec::with_capacity(16 * 1024);
        let mut happened = false;
        // Bounded, so that a storm of notifications does not hold up the caller.
        for _ in 0..10_000 {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => happened = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => happened = true,
                Err(_) => break,
            }
        }
        happened
    }
}
