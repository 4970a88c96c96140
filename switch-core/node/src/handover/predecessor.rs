//! The running switch, as its successor sees it.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use podswitch_linux::handover::{Channel, Inherited, Peer};

use super::{
    FORMAT, HandoverError, Message, SETTLES, SETTLING, SILENCE, features, receive, send, unexpected,
};
use crate::boot::boot_id;
use crate::device_files;

/// A running switch, which hands its node over to this process: [`receive_devices`](Self::receive_devices), then start a node with
/// [`NodeOptions::take_over`](crate::NodeOptions::take_over), then [`Node::take_over`](crate::Node::take_over),
/// [`wait_until_gone`](Self::wait_until_gone) and [`Node::adopt`](crate::Node::adopt).
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    peer: Peer,
    format: u32,
    features: Vec<String>,
}

/// What a process must have to forward.
#[derive(Debug)]
pub(crate) struct Token(UnixStream);

#[cfg(test)]
impl From<OwnedFd> for Token {
    fn from(file: OwnedFd) -> Self {
        Self(file.into())
    }
}

impl Token {
    /// Takes it. From now on this process forwards.
    pub(crate) fn take(mut self) -> Result<(), HandoverError> {
        match self.0.read(&mut [0]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(HandoverError::TooLate),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(HandoverError::TooLate),
            Err(error) => Err(error.into()),
        }
    }
}

impl Predecessor {
    /// Connects to the switch that listens at `path` ([`HANDOVER_SOCKET`](super::HANDOVER_SOCKET)).
    ///
    /// # Errors
    /// None does.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::over(Channel::connect(path)?)
    }

    pub(super) fn over(channel: Channel) -> io::Result<Self> {
        let peer = channel.peer()?;
        Ok(Self { channel, peer, format: FORMAT, features: Vec::new() })
    }

    #[cfg(test)]
    pub(super) fn channel_for_tests(&self) -> &Channel {
        &self.channel
    }

    /// Introduces this process, the switch of `node`, and receives the devices' files.
    ///
    /// # Errors
    /// The predecessor refuses, or does not answer within half a second after it has noticed the connection.
    pub fn receive_devices(&mut self, node: &str) -> Result<Inherited, HandoverError> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (node, boot) = (node.into(), boot_id());
        let hello = Message::Hello { format: FORMAT, boot, version, node, features: features() };
        send(&self.channel, &hello)?;
        // It looks for connections twice a second.
        Ok(Inherited::new(self.receive_files(SILENCE * 10)?))
    }

    /// Makes the predecessor attach and detach no pods any more, and receives the files of those that were attached since
    /// [`receive_devices`](Self::receive_devices) in addition. One without that feature has done so before.
    ///
    /// # Errors
    /// It has ended, or does not answer.
    pub fn settle(&mut self, files: &Inherited) -> Result<(), HandoverError> {
        if self.features.iter().any(|feature| feature == SETTLES) {
            send(&self.channel, &Message::Settle)?;
            // Calls that it answers are completed first.
            files.add(self.receive_files(SETTLING)?);
        }
        Ok(())
    }

    fn receive_files(
        &mut self,
        timeout: Duration,
    ) -> Result<BTreeMap<String, Vec<OwnedFd>>, HandoverError> {
        let mut all: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
        loop {
            match receive(&self.channel, timeout)? {
                (Message::Files { format, files, more, features }, received) => {
                    (self.format, self.features) = (format, features);
                    device_files::collect(&mut all, files, received);
                    if !more {
                        return Ok(all);
                    }
                }
                (other, _) => return unexpected(&other),
            }
        }
    }

    /// The predecessor's format, if it is another one: connections and devices are handed over only.
    pub fn other_format(&self) -> Option<u32> {
        Some(self.format).filter(|format| *format != FORMAT)
    }

    /// Makes the predecessor leave frames in the devices, and write down what it knows.
    pub(crate) fn freeze(&self) -> Result<Token, HandoverError> {
        send(&self.channel, &Message::Freeze)?;
        // It waits for its workers as long.
        match receive(&self.channel, SILENCE * 4)? {
            (Message::Frozen, files) => {
                let token = files.into_iter().next();
                let token = token.ok_or_else(|| HandoverError::Unexpected("no token".into()))?;
                Ok(Token(token.into()))
            }
            (other, _) => unexpected(&other),
        }
    }

    /// Says that this process forwards. A predecessor that has died meanwhile need not know.
    pub(crate) fn forwarding(&self) {
        let _ = send(&self.channel, &Message::Forwarding);
    }

    /// Says that this process was replaced, or is stopped for good: a predecessor that stands by is not to take the node
    /// back.
    pub fn stopping(&self) {
        let _ = send(&self.channel, &Message::Stopping);
    }

    /// Waits until the predecessor has let go of the node's kernel, or has ended; it forwards nothing any more. If it does
    /// not, it is ended. False: it still runs.
    pub fn wait_until_gone(&self, timeout: Duration) -> bool {
        let is_gone = || {
            let heard = receive(&self.channel, timeout);
            matches!(heard, Ok((Message::Gone, _)) | Err(HandoverError::Ended))
        };
        is_gone() || (self.peer.kill().is_ok() && is_gone())
    }
}
