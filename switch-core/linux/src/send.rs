//! Sends single frames out of an interface, as if its stack did.

use std::os::fd::AsFd;

use crate::sys::packet;
use crate::{Context, HostError, NetNs};

/// Sends `frame` out of the interface with this index in `ns`. The namespace's own filters do not see it.
///
/// # Errors
/// The namespace cannot be entered, privilege is missing (`CAP_NET_RAW`), or the interface is down or gone.
pub fn send_frame(ns: &NetNs, index: u32, frame: &[u8]) -> Result<(), HostError> {
    let sent = ns.enter(|| {
        let socket = packet::open()?;
        packet::bind(socket.as_fd(), index)?;
        rustix::io::write(&socket, frame)?;
        Ok::<_, std::io::Error>(())
    })?;
    sent.context(|| format!("send a frame out of interface {index} in {ns}"))
}
