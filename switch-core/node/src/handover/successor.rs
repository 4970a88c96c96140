//! A process that is to go on with the node, as the running switch sees it.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use podswitch_core::port::DeviceFiles;
use podswitch_core::time::{Clock, Instant};
use podswitch_linux::handover::{Channel, Peer};

use super::{
    CHECK, FORMAT, HandoverError, Message, PREPARATION, SAYS_STOPPING, SETTLES, SHARES, SILENCE,
    features, is_shared, receive, send, send_with, unexpected,
};
use crate::boot::boot_id;
use crate::device_files;

/// Longest time for the kernel to end a process.
const END_OF_PROCESS: Duration = Duration::from_secs(5);

/// How long a process may take to end after it has closed the connection.
const OWN_END: Duration = Duration::from_secs(1);
/// Time between two looks at whether it has ended.
const LOOK: Duration = Duration::from_millis(1);

/// What has become of a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuccessorState {
    /// It runs.
    Runs,
    /// It was replaced, or stopped for good.
    Stopped,
    /// It ended otherwise.
    Ended,
}

/// A process that connected to be the successor of this one: [`accept`](Self::accept), [`prepare`](Self::prepare) with
/// [`Node::device_files`](crate::Node::device_files), then [`Node::hand_over`](crate::Node::hand_over), and once the node
/// has been stopped [`gone`](Self::gone).
#[derive(Debug)]
pub struct Successor {
    channel: Channel,
    peer: Peer,
    version: String,
    format: u32,
    features: Vec<String>,
}

impl Successor {
    /// Hears who connected. `node`: the name of this switch's node.
    ///
    /// # Errors
    /// It is another user than this process, or cannot be seen from here; it comes from before a reboot or is for another node; it says nothing.
    pub fn accept(channel: Channel, node: &str) -> Result<Self, HandoverError> {
        let peer = channel.peer()?;
        let refuse = |reason: String| {
            // Whether it hears so or not.
            let _ = send(&channel, &Message::Refused { reason: reason.clone() });
            Err(HandoverError::Refused(reason))
        };
        if peer.user != rustix::process::geteuid().as_raw() {
            return refuse(format!("user {} may not take the node over", peer.user));
        }
        // It could not be ended if it took the token and then did nothing.
        if !peer.is_visible() {
            return refuse("its process cannot be seen: it is in another PID namespace".to_owned());
        }
        let (hello, _) = receive(&channel, SILENCE)?;
        let Message::Hello { format, boot, version, node: name, features } = hello else {
            return unexpected(&hello);
        };
        if boot != boot_id() {
            return refuse("it is of another boot".to_owned());
        }
        if name != node {
            return refuse(format!("this is the switch of node {node}, not of {name}"));
        }
        Ok(Self { channel, peer, version, format, features })
    }

    #[cfg(test)]
    pub(super) fn for_tests(channel: Channel, features: Vec<String>) -> Self {
        let peer = channel.peer().expect("it says who it is");
        Self { channel, peer, version: String::new(), format: FORMAT, features }
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it takes [files that are not a device's](super::shared_file).
    pub fn takes_shared_files(&self) -> bool {
        self.features.iter().any(|feature| feature == SHARES)
    }

    /// Whether it says when nobody is to take the node back, so that this is to be done after any other end.
    pub fn says_stopping(&self) -> bool {
        self.features.iter().any(|feature| feature == SAYS_STOPPING)
    }

    /// Whether it says from when on no pods are to be attached or detached. For others, that is from the beginning.
    pub fn settles(&self) -> bool {
        self.features.iter().any(|feature| feature == SETTLES)
    }

    /// Waits for its end, at most this long. A process that closes the connection and does not end is ended.
    pub fn wait_for_end(&self, timeout: Duration) -> SuccessorState {
        match receive(&self.channel, timeout) {
            Ok((Message::Stopping, _)) => SuccessorState::Stopped,
            Ok(_) | Err(HandoverError::Silent) if !self.has_ended() => SuccessorState::Runs,
            _ => {
                // What it had open is closed when it has ended.
                let clock = Clock::start();
                let passed = || clock.now().since(Instant::ZERO);
                let mut is_patient = true;
                while !self.has_ended() && passed() < END_OF_PROCESS {
                    if is_patient && passed() >= OWN_END {
                        is_patient = false;
                        let _ = self.peer.kill();
                    }
                    std::thread::sleep(LOOK);
                }
                if self.has_ended() { SuccessorState::Ended } else { SuccessorState::Runs }
            }
        }
    }

    /// Its format, if it is another one: it gets devices and connections only.
    pub fn other_format(&self) -> Option<u32> {
        Some(self.format).filter(|format| *format != FORMAT)
    }

    /// Gives it files, the devices' and others, and waits until it is ready to go on with them, as long as `keep_waiting`
    /// says. `settle` attaches and detaches no pods any more, and returns all of these files as they are then.
    ///
    /// # Errors
    /// It ended, takes more than a minute, or is not wanted any more.
    pub fn prepare(
        &self,
        files: &[DeviceFiles],
        mut keep_waiting: impl FnMut() -> bool,
        mut settle: impl FnMut() -> Result<Vec<DeviceFiles>, HandoverError>,
    ) -> Result<(), HandoverError> {
        self.send_files(files.iter())?;
        let clock = Clock::start();
        loop {
            match receive(&self.channel, CHECK) {
                Ok((Message::Freeze, _)) => return Ok(()),
                Ok((Message::Settle, _)) => {
                    let is_known = |new: &&DeviceFiles| files.iter().any(|of| of.is_same(new));
                    self.send_files(settle()?.iter().filter(|new| !is_known(new)))?;
                }
                Ok((other, _)) => return unexpected(&other),
                Err(HandoverError::Silent) if !keep_waiting() => {
                    return Err(HandoverError::Stopped);
                }
                Err(HandoverError::Silent) if clock.now().since(Instant::ZERO) < PREPARATION => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send_files<'a>(
        &self,
        files: impl Iterator<Item = &'a DeviceFiles>,
    ) -> Result<(), HandoverError> {
        let wanted = files.filter(|of| self.takes_shared_files() || !is_shared(&of.key));
        // The last message is empty: it ends the list.
        let parts = device_files::messages(device_files::named(wanted));
        for (names, files) in parts.into_iter().chain([Default::default()]) {
            let (more, features) = (!names.is_empty(), features());
            let message = Message::Files { format: FORMAT, files: names, more, features };
            send_with(&self.channel, &message, &files)?;
        }
        Ok(())
    }

    /// Lets the successor forward, and waits until it does. After an error it does not, and will not.
    pub(crate) fn commit(&self, patience: Duration) -> Result<(), HandoverError> {
        let (mut own, mut giver) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        giver.write_all(b"t")?;
        send_with(&self.channel, &Message::Frozen, &[own.as_fd()])?;
        let error = match receive(&self.channel, patience) {
            Ok((Message::Forwarding, _)) => return Ok(()),
            Ok((other, _)) => HandoverError::Unexpected(format!("{other:?}")),
            Err(error) => error,
        };
        if matches!(own.read(&mut [0]), Ok(1)) {
            return Err(error);
        }
        // It has the token: it forwards already, or has died or hangs just before.
        if matches!(error, HandoverError::Silent)
            && let Ok((Message::Forwarding, _)) = receive(&self.channel, SILENCE)
        {
            return Ok(());
        }
        self.end();
        Err(error)
    }

    /// Ends the process, if it still runs and can be seen: this one goes on, and needs its sockets' names.
    pub fn end(&self) {
        if self.peer.kill().is_err() {
            return;
        }
        // Its end of the connection is closed when all its threads have ended.
        let clock = Clock::start();
        while clock.now().since(Instant::ZERO) < END_OF_PROCESS {
            if let Err(HandoverError::Ended | HandoverError::Io(_)) = receive(&self.channel, CHECK)
            {
                return;
            }
        }
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        self.peer.has_ended()
    }

    /// Says that this process has let go of the node's kernel.
    pub fn gone(&self) {
        // If it does not hear so, it waits for the end of this process.
        let _ = send(&self.channel, &Message::Gone);
    }
}
