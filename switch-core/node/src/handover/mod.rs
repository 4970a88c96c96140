//! Hand-over of a running node to its successor: another process that starts beside it, compiles the same state, and
//! goes on with the open devices and the connections.
//!
//! Messages on a Unix socket, in this order; `S` is the successor:
//!
//! ```text
//! S → hello        its format, boot, version, node
//!   ← files        the devices' open files, in as many messages as are needed
//!     S attaches the devices and puts its state in force. Its workers leave frames in them; the predecessor forwards.
//! S → freeze
//!   ← frozen       all packets are finished, what was learnt and counted is written; with the token
//!     S restores the connections, takes the token, and forwards.
//! S → forwarding
//!   ← gone         the predecessor has let go of the node's kernel
//! ```
//!
//! **The token** is one byte in a socket pair that both have open: who reads it forwards. A predecessor that hears nothing
//! takes it back and goes on with its own descriptors; then the successor finds none. If the successor has taken it and
//! dies or hangs, the predecessor ends the process before it goes on. So never both forward.
//!
//! Descriptors have names ([`DeviceFiles::key`](podswitch_core::port::DeviceFiles::key)), connections have a format of
//! their own, and everything else has that of the hello. Where it differs, descriptors and connections are handed over
//! only.

mod predecessor;
mod successor;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use podswitch_linux::handover::{Channel, Received};
use serde::{Deserialize, Serialize};

pub use predecessor::Predecessor;
pub use successor::Successor;

/// Name of the socket in the run directory.
pub const HANDOVER_SOCKET: &str = "handover.sock";
/// Raised with every change of what the messages mean, or of what is written for the successor beside connections.
const FORMAT: u32 = 1;
/// How long either process waits for a message that the other one sends at once.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);
/// In addition, for each connection that the successor restores.
pub(crate) const PER_CONNECTION: Duration = Duration::from_micros(5);
/// How long the successor may take to attach the devices. The predecessor forwards meanwhile, but follows no changes.
const PREPARATION: Duration = Duration::from_secs(60);
/// How often the predecessor looks whether it is to stop, during the preparation.
const CHECK: Duration = Duration::from_millis(250);

/// Why the node was not handed over. The predecessor goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// The other process ended, or closed the connection.
    #[error("the other process has ended")]
    Ended,
    /// It did not answer in time.
    #[error("the other process is silent")]
    Silent,
    /// It may not, or cannot, take part.
    #[error("{0}")]
    Refused(String),
    /// It sent something that does not belong here.
    #[error("unexpected message: {0}")]
    Unexpected(String),
    /// The switch is to stop.
    #[error("the switch is to stop")]
    Stopped,
    /// The successor came too late: the predecessor goes on already.
    #[error("it took too long: the predecessor goes on")]
    TooLate,
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A message. Fields may be added; receivers ignore those that they do not know.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
enum Message {
    Hello {
        format: u32,
        boot: String,
        version: String,
        node: String,
    },
    Refused {
        reason: String,
    },
    /// Names of devices, and how many files each has in this message.
    Files {
        format: u32,
        files: Vec<(String, usize)>,
        more: bool,
    },
    Freeze,
    Frozen,
    Forwarding,
    Gone,
}

fn send(channel: &Channel, message: &Message) -> Result<(), HandoverError> {
    send_with(channel, message, &[])
}

fn send_with(
    channel: &Channel,
    message: &Message,
    files: &[std::os::fd::BorrowedFd<'_>],
) -> Result<(), HandoverError> {
    let text = serde_json::to_vec(message).map_err(io::Error::from)?;
    channel.send(&text, files).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => HandoverError::Ended,
        _ => HandoverError::Io(error),
    })
}

fn receive(
    channel: &Channel,
    timeout: Duration,
) -> Result<(Message, Vec<std::os::fd::OwnedFd>), HandoverError> {
    let received = channel.receive(timeout).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => HandoverError::Silent,
        _ => HandoverError::Io(error),
    })?;
    let Received { text, files } = received.ok_or(HandoverError::Ended)?;
    match serde_json::from_slice(&text) {
        Ok(Message::Refused { reason }) => Err(HandoverError::Refused(reason)),
        Ok(message) => Ok((message, files)),
        Err(error) => Err(HandoverError::Unexpected(error.to_string())),
    }
}

fn unexpected<T>(message: &Message) -> Result<T, HandoverError> {
    Err(HandoverError::Unexpected(format!("{message:?}")))
}
