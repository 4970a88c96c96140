//! Hand-over of a running node to its successor: another process that starts beside it, compiles the same state, and
//! goes on with the open devices and the connections.
//!
//! Messages on a Unix socket, in this order; `S` is the successor:
//!
//! ```text
//! S → hello        its format, boot, version, node
//!   ← files        the devices' open files, in as many messages as are needed
//!     S attaches the devices and puts its state in force. Its workers leave frames in them; the predecessor forwards.
//! S → settle       the predecessor attaches and detaches no pods any more
//!   ← files        those of pods that were attached meanwhile
//!     S attaches them, and copies the connections.
//! S → freeze
//!   ← frozen       all packets are finished, what was learnt and counted is written; with the token
//!     S restores the connections, takes the token, and forwards.
//! S → forwarding
//!   ← gone         the predecessor has let go of the node's kernel
//!     The predecessor may stand by: if the successor's process ends now, it takes the node back.
//! S → stopping     it was replaced itself, or is stopped for good
//! ```
//!
//! **The token** is one byte in a socket pair that both have open: who reads it forwards. A predecessor that hears nothing
//! takes it back and goes on with its own descriptors; then the successor finds none. If the successor has taken it and
//! dies or hangs, the predecessor ends the process before it goes on. So never both forward.
//!
//! Files that are not a device's, such as sockets that listen, go along with the devices' to a successor whose hello names
//! that feature. Both have them open then: a client waits in the queue of the socket, and nobody is refused.
//!
//! Descriptors have names ([`DeviceFiles::key`](podswitch_core::port::DeviceFiles::key)), connections have a format of
//! their own, and everything else has that of the hello. Where it differs, descriptors and connections are handed over
//! only.

mod predecessor;
mod successor;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use podswitch_core::port::DeviceFiles;
use podswitch_linux::handover::{Channel, Inherited, Received};
use serde::{Deserialize, Serialize};

pub use predecessor::Predecessor;
pub use successor::{Successor, SuccessorState};

/// Name of the socket in the run directory.
pub const HANDOVER_SOCKET: &str = "handover.sock";
/// Beginning of the names of files that are not a device's: sockets that listen, and the run directory's lock.
const SHARED: &str = "shared ";
/// Feature: takes such files. A successor without it opens its own.
const SHARES: &str = "shared files";
/// Feature: says when nobody is to go on in its place. While it has not, the predecessor may take the node back when the
/// process ends.
const SAYS_STOPPING: &str = "stopping";
/// Feature: the successor asks that nothing is attached or detached any more, so that until then this goes on.
const SETTLES: &str = "settle";
/// What this version can, besides what every one of this format can.
const FEATURES: [&str; 3] = [SHARES, SAYS_STOPPING, SETTLES];
/// Raised with every change of what the messages mean, or of what is written for the successor beside connections.
const FORMAT: u32 = 1;
/// How long either process waits for a message that the other one sends at once.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);
/// In addition, for each connection that the successor restores.
pub(crate) const PER_CONNECTION: Duration = Duration::from_micros(5);
/// How long the successor may take to attach the devices. The predecessor forwards meanwhile, but follows no changes.
const PREPARATION: Duration = Duration::from_secs(60);
/// How long the predecessor may take to answer the CNI calls that it has begun.
const SETTLING: Duration = Duration::from_secs(10);
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
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        features: Vec<String>,
    },
    Refused {
        reason: String,
    },
    /// Names of devices, and how many files each has in this message.
    Files {
        format: u32,
        files: Vec<(String, usize)>,
        more: bool,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        features: Vec<String>,
    },
    Settle,
    Freeze,
    Frozen,
    Forwarding,
    Gone,
    Stopping,
}

/// The name of a file that is not a device's, among those that are handed over.
pub(crate) fn shared_key(what: impl std::fmt::Display) -> String {
    format!("{SHARED}{what}")
}

/// Whether a name is not a device's.
pub(crate) fn is_shared(key: &str) -> bool {
    key.starts_with(SHARED)
}

/// A file that is handed over besides those of the devices: a socket that listens, or the run directory's lock. `None`: it
/// cannot be duplicated, and the successor opens its own.
pub fn shared_file(what: &str, file: BorrowedFd<'_>) -> Option<DeviceFiles> {
    let file = Arc::new(file.try_clone_to_owned().ok()?);
    Some(DeviceFiles { key: shared_key(what), files: vec![file] })
}

/// Takes such a file from those that were handed over.
pub fn take_shared(inherited: &Inherited, what: &str) -> Option<OwnedFd> {
    inherited.take(&shared_key(what)).into_iter().next()
}

fn features() -> Vec<String> {
    FEATURES.map(str::to_owned).to_vec()
}

fn send(channel: &Channel, message: &Message) -> Result<(), HandoverError> {
    send_with(channel, message, &[])
}

fn send_with(
    channel: &Channel,
    message: &Message,
    files: &[BorrowedFd<'_>],
) -> Result<(), HandoverError> {
    let text = serde_json::to_vec(message).map_err(io::Error::from)?;
    channel.send(&text, files).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => HandoverError::Ended,
        _ => HandoverError::Io(error),
    })
}

fn receive(channel: &Channel, timeout: Duration) -> Result<(Message, Vec<OwnedFd>), HandoverError> {
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
