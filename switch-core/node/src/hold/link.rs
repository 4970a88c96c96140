//! The holder, as the switch sees it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use podswitch_core::control::ControlPlane;
use podswitch_core::port::DeviceFiles;
use podswitch_core::time::{Clock, Instant};
use podswitch_linux::handover::{Channel, Inherited, Peer};

use super::{FORMAT, HOLD_SOCKET, HoldError, Message, SILENCE, receive, send};
use crate::boot::boot_id;
use crate::device_files;

/// How long a holder may take to close everything.
const END: Duration = Duration::from_secs(2);
/// Most names of one message.
const MOST_NAMES: usize = 250;

/// The switch's connection to its holder: [`connect`](Self::connect) or [`start`](Self::start), then start a node with
/// [`NodeOptions::held`](crate::NodeOptions::held), and once its pods are attached [`Node::hold`](crate::Node::hold).
#[derive(Debug)]
pub struct HolderLink {
    channel: Channel,
    /// What the holder has. Files that are known by nothing here are of a switch before.
    held: BTreeMap<String, Vec<Weak<OwnedFd>>>,
    /// The devices that were last told ([`ControlPlane::device_changes`]).
    told: Option<u64>,
}

impl HolderLink {
    /// Connects to the holder that serves this run directory, and receives what it holds.
    ///
    /// # Errors
    /// None runs. It refuses or is silent: then it was ended, if this process can see it, and holds nothing.
    pub fn connect(run_dir: &Path) -> Result<(Self, Inherited), HoldError> {
        let channel = Channel::connect(&run_dir.join(HOLD_SOCKET))?;
        let peer = channel.peer()?;
        Self::receive_devices(channel, None).inspect_err(|_| end(&peer))
    }

    /// As [`connect`](Self::connect), with a holder that this process has started, which has the other end of `channel` and
    /// is to listen in this run directory.
    ///
    /// # Errors
    /// It cannot.
    pub fn start(channel: Channel, run_dir: &Path) -> Result<(Self, Inherited), HoldError> {
        Self::receive_devices(channel, Some(run_dir))
    }

    fn receive_devices(
        channel: Channel,
        listen: Option<&Path>,
    ) -> Result<(Self, Inherited), HoldError> {
        let listen = listen.map(Path::to_owned);
        send(&channel, &Message::Hello { format: FORMAT, boot: boot_id(), listen }, &[])?;
        let mut all = BTreeMap::new();
        loop {
            match receive(&channel, SILENCE * 4)? {
                (Message::Files { files, more }, received) => {
                    device_files::collect(&mut all, files, received);
                    if !more {
                        break;
                    }
                }
                (other, _) => return Err(HoldError::Unexpected(format!("{other:?}"))),
            }
        }
        let held = all.keys().map(|key| (key.clone(), Vec::new())).collect();
        Ok((Self { channel, held, told: None }, Inherited::held(all)))
    }

    /// Tells the holder which files it is to hold, if that has changed.
    ///
    /// # Errors
    /// It has ended, or does not read.
    pub(crate) fn follow(&mut self, control: &ControlPlane) -> Result<(), HoldError> {
        match receive(&self.channel, Duration::ZERO) {
            Err(HoldError::Silent) => {}
            Err(error) => return Err(error),
            Ok((other, _)) => return Err(HoldError::Unexpected(format!("{other:?}"))),
        }
        let changes = control.device_changes();
        if self.told != Some(changes) {
            self.tell(&control.device_files())?;
            self.told = Some(changes);
        }
        Ok(())
    }

    /// Tells the holder what changed since the last call.
    pub(super) fn tell(&mut self, files: &[DeviceFiles]) -> Result<(), HoldError> {
        let weak = |of: &DeviceFiles| of.files.iter().map(Arc::downgrade).collect::<Vec<_>>();
        let now: BTreeMap<&str, Vec<Weak<OwnedFd>>> =
            files.iter().map(|of| (of.key.as_str(), weak(of))).collect();
        let gone = self.held.keys().filter(|key| !now.contains_key(key.as_str()));
        let gone: Vec<String> = gone.cloned().collect();
        for keys in gone.chunks(MOST_NAMES) {
            send(&self.channel, &Message::Close { keys: keys.to_vec() }, &[])?;
        }
        let is_same = |of: &&DeviceFiles| {
            let held = self.held.get(&of.key);
            held.is_some_and(|held| {
                held.len() == of.files.len()
                    && held.iter().zip(&of.files).all(|(a, b)| a.ptr_eq(&Arc::downgrade(b)))
            })
        };
        let named = files.iter().filter(|of| !is_same(of));
        let named = named.flat_map(|of| device_files::named(std::slice::from_ref(of)));
        let parts = device_files::messages(named);
        let last = parts.len().saturating_sub(1);
        for (n, (files, fds)) in parts.into_iter().enumerate() {
            send(&self.channel, &Message::Files { files, more: n < last }, &fds)?;
        }
        self.held = now.into_iter().map(|(key, files)| (key.to_owned(), files)).collect();
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Ends the holder, and waits until nothing is held: the switch ends by plan, and none follows.
    pub fn end(self) {
        if send(&self.channel, &Message::End, &[]).is_ok() {
            let _ = self.channel.receive(END);
        }
    }
}

/// Has a holder in this run directory close everything, if one runs: no switch follows.
pub fn end_holder(run_dir: &Path) {
    if let Ok(channel) = Channel::connect(&run_dir.join(HOLD_SOCKET))
        && send(&channel, &Message::End, &[]).is_ok()
    {
        let _ = channel.receive(END);
    }
}

/// Ends a holder that cannot be used: while it has devices open, this process may not be able to open them.
fn end(peer: &Peer) {
    if peer.kill().is_err() {
        return;
    }
    // Until its files are closed.
    let clock = Clock::start();
    while !peer.has_ended() {
        if clock.now().since(Instant::ZERO) > END {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
