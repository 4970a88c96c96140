//! The holder: a process that keeps duplicates of the devices' open files while the switch lives, and after it has died,
//! until the next one starts. Carrier, queues and neighbour entries of pods survive the switch then.
//!
//! Messages on a Unix socket (`hold.sock` in the run directory, SOCK_SEQPACKET):
//!
//! ```text
//! switch → hello     its format, its boot; where to listen, if the switch has just started the holder
//!        ← files     everything that is held, in as many messages as are needed
//! switch → files     these are held from now on, in place of those with the same names
//! switch → close     these are not held any more
//! switch → end       the switch ends by plan: nothing is held any more
//! ```
//!
//! Whoever says hello last is the switch; it must run as the same user. A holder does not look into what it holds, uses none
//! of it, and never forwards. If the connection closes without `end`, the holder waits for the next switch, at most for a
//! [bound](HoldOptions::bound), then it closes everything: the devices are as without a holder.

mod holder;
mod link;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use podswitch_linux::handover::{Channel, Received};
use serde::{Deserialize, Serialize};

use crate::device_files::Names;

pub use holder::{HoldEnd, HoldOptions, Holder};
pub use link::{HolderLink, end_holder};

/// Name of the socket in the run directory.
pub const HOLD_SOCKET: &str = "hold.sock";
/// Name of the file that a holder locks in the run directory: there is one holder at a time.
const LOCK: &str = "hold.lock";
/// Raised with every change of what the messages mean.
const FORMAT: u32 = 1;
/// How long either process waits for a message that the other one sends at once.
const SILENCE: Duration = Duration::from_millis(500);

/// Why devices are not held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// The holder has ended.
    #[error("the holder has ended")]
    Ended,
    /// It does not answer.
    #[error("the holder is silent")]
    Silent,
    /// It does not work for this process.
    #[error("the holder refuses: {0}")]
    Refused(String),
    /// It said something that does not belong here.
    #[error("unexpected message: {0}")]
    Unexpected(String),
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
        /// The run directory, for a holder that does not listen yet.
        #[serde(default)]
        listen: Option<PathBuf>,
    },
    Refused {
        reason: String,
    },
    Files {
        files: Names,
        more: bool,
    },
    Close {
        keys: Vec<String>,
    },
    End,
}

fn send(channel: &Channel, message: &Message, files: &[BorrowedFd<'_>]) -> Result<(), HoldError> {
    let text = serde_json::to_vec(message).map_err(io::Error::from)?;
    channel.send(&text, files).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => HoldError::Ended,
        io::ErrorKind::WouldBlock => HoldError::Silent,
        _ => HoldError::Io(error),
    })
}

fn receive(channel: &Channel, timeout: Duration) -> Result<(Message, Vec<OwnedFd>), HoldError> {
    let received = channel.receive(timeout).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => HoldError::Silent,
        _ => HoldError::Io(error),
    })?;
    let Received { text, files } = received.ok_or(HoldError::Ended)?;
    match serde_json::from_slice(&text) {
        Ok(Message::Refused { reason }) => Err(HoldError::Refused(reason)),
        Ok(message) => Ok((message, files)),
        Err(error) => Err(HoldError::Unexpected(error.to_string())),
    }
}
