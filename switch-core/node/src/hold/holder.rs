//! The process that holds.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};
use podswitch_linux::HostError;
use podswitch_linux::handover::{Channel, Listener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{FORMAT, HOLD_SOCKET, HoldError, LOCK, Message, SILENCE, receive, send};
use crate::boot::boot_id;
use crate::device_files;

/// Most files that are held: 250 pods with 64 workers have 16,000.
const MOST_FILES: usize = 1 << 15;
/// Longest name of a device, in bytes.
const LONGEST_NAME: usize = 256;

/// How a [`Holder`] serves.
#[derive(Clone, Copy, Debug)]
pub struct HoldOptions {
    /// How long devices are held when their switch has died and no other one comes.
    pub bound: Duration,
    /// Serve the next switch when one has ended by plan, or did not come back. Otherwise the holder ends.
    pub stays: bool,
}

/// Why a [`Holder`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldEnd {
    /// The switch ended by plan, or has nothing to hold.
    Planned,
    /// The switch died, and no other one came in time.
    Alone,
    /// It was stopped.
    Stopped,
}

/// Keeps the open files of a switch's devices. See the module's description.
#[derive(Debug)]
pub struct Holder {
    listener: Listener,
    /// Locked as long as this lives.
    _lock: File,
    switch: Option<Channel>,
    held: BTreeMap<String, Vec<OwnedFd>>,
    /// Files of messages that are not complete yet.
    arriving: BTreeMap<String, Vec<OwnedFd>>,
    /// When the connection to the last switch closed.
    alone_since: Option<Instant>,
    clock: Clock,
}

/// What a message leads to.
enum Next {
    Go,
    /// The connection is over.
    Closed,
    End,
}

impl Holder {
    /// Listens in a switch's run directory.
    ///
    /// # Errors
    /// `WouldBlock`: another holder runs there. The directory does not exist or cannot be used.
    pub fn bind(run_dir: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(run_dir.join(LOCK))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            listener: Listener::bind(&run_dir.join(HOLD_SOCKET))?,
            _lock: lock,
            switch: None,
            held: BTreeMap::new(),
            arriving: BTreeMap::new(),
            alone_since: None,
            clock: Clock::start(),
        })
    }

    /// As [`bind`](Self::bind), for a process that a switch has started with one end of `channel`: waits for where to
    /// listen, calls `confine`, and serves that switch first. `None`: the switch does not need it.
    ///
    /// # Errors
    /// The switch said something else; as [`bind`](Self::bind). The switch hears it.
    pub fn started_with(
        channel: Channel,
        confine: impl FnOnce() -> Result<(), HostError>,
    ) -> Result<Option<Self>, HoldError> {
        // A switch may wait a long time for its run directory.
        let hello = loop {
            match receive(&channel, Duration::from_secs(60)) {
                Err(HoldError::Silent) => {}
                Err(HoldError::Ended) => return Ok(None),
                result => break result?.0,
            }
        };
        let Message::Hello { listen: Some(run_dir), .. } = &hello else {
            return Err(HoldError::Unexpected(format!("{hello:?}")));
        };
        let refused = |reason: String| drop(send(&channel, &Message::Refused { reason }, &[]));
        let mut holder = Self::bind(run_dir)
            .inspect_err(|error| refused(format!("{}: {error}", run_dir.display())))?;
        if let Err(error) = confine() {
            refused(error.to_string());
            return Err(HoldError::Refused(error.to_string()));
        }
        holder.begin(channel, &hello)?;
        Ok(Some(holder))
    }

    /// Serves until it is stopped, which is when `stop` is readable, or as `options` say.
    ///
    /// # Errors
    /// The system cannot wait for connections.
    pub fn serve(&mut self, options: HoldOptions, stop: BorrowedFd<'_>) -> io::Result<HoldEnd> {
        loop {
            if let Some(since) = self.alone_since {
                let waited = self.clock.now().since(since);
                if waited >= options.bound || self.held.is_empty() {
                    let end = if self.held.is_empty() { HoldEnd::Planned } else { HoldEnd::Alone };
                    self.let_go();
                    if !options.stays {
                        return Ok(end);
                    }
                }
            }
            let [is_stopped, is_connected, is_told] = self.wait(options.bound, stop)?;
            if is_stopped {
                return Ok(HoldEnd::Stopped);
            }
            if is_told {
                match self.hear() {
                    Next::Go => {}
                    Next::Closed => self.is_alone(),
                    Next::End => {
                        self.let_go();
                        if !options.stays {
                            return Ok(HoldEnd::Planned);
                        }
                    }
                }
            }
            if is_connected && let Some(channel) = self.listener.accept()? {
                // Whoever does not introduce itself changes nothing.
                let _ = self.meet(channel);
            }
        }
    }

    /// How many files are held.
    pub fn files(&self) -> usize {
        self.held.values().map(Vec::len).sum()
    }

    fn wait(&self, bound: Duration, stop: BorrowedFd<'_>) -> io::Result<[bool; 3]> {
        let left =
            self.alone_since.map(|since| bound.saturating_sub(self.clock.now().since(since)));
        // At least a millisecond: the time left is rounded down.
        let timeout = left.map(|left| left + Duration::from_millis(1)).map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let listener = self.listener.as_fd();
        let switch = self.switch.as_ref().map(AsFd::as_fd);
        let fds = [Some(stop), Some(listener), switch];
        let fds = fds.into_iter().flatten();
        let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            // A signal: the caller's descriptor says so, if it is to stop.
            Err(Errno::INTR) => return Ok([false; 3]),
            Err(error) => return Err(error.into()),
        }
        let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        Ok([is_ready(0), is_ready(1), is_ready(2)])
    }

    /// A process has connected.
    fn meet(&mut self, channel: Channel) -> Result<(), HoldError> {
        let user = channel.peer()?.user;
        if user != rustix::process::geteuid().as_raw() {
            return refuse(&channel, format!("user {user} has no devices here"));
        }
        let (hello, _) = receive(&channel, SILENCE / 5)?;
        self.begin(channel, &hello)
    }

    /// Goes on with the switch that said hello, in place of any before.
    fn begin(&mut self, channel: Channel, hello: &Message) -> Result<(), HoldError> {
        match hello {
            Message::Hello { format, boot, .. } => {
                if *format != FORMAT || *boot != boot_id() {
                    // Its devices must not be in use when it opens them itself.
                    self.let_go();
                    let reason = format!("format {FORMAT} of boot {} is held here", boot_id());
                    return refuse(&channel, reason);
                }
            }
            // Without a hello, for programs that remove what a switch left.
            Message::End => {
                self.let_go();
                self.alone_since = Some(self.clock.now());
                return Ok(());
            }
            other => return Err(HoldError::Unexpected(format!("{other:?}"))),
        }
        self.arriving.clear();
        let held = self.held.iter();
        let named = held.flat_map(|(key, files)| files.iter().map(|file| (&**key, file.as_fd())));
        for (names, files) in device_files::messages(named) {
            send(&channel, &Message::Files { files: names, more: true }, &files)?;
        }
        send(&channel, &Message::Files { files: Vec::new(), more: false }, &[])?;
        self.switch = Some(channel);
        self.alone_since = None;
        Ok(())
    }

    /// Reads a message of the switch.
    fn hear(&mut self) -> Next {
        let Some(switch) = &self.switch else { return Next::Go };
        match receive(switch, Duration::ZERO) {
            Ok((Message::Files { files, more }, received)) => {
                device_files::collect(&mut self.arriving, files, received);
                if !more {
                    self.held.append(&mut self.arriving);
                }
                let all = self.held.iter().chain(&self.arriving);
                let count: usize = all.clone().map(|(_, files)| files.len()).sum();
                let is_short = all.clone().all(|(name, _)| name.len() <= LONGEST_NAME);
                if count > MOST_FILES || !is_short {
                    let reason = "too many files, or a name is too long".to_owned();
                    let _ = send(switch, &Message::Refused { reason }, &[]);
                    return Next::Closed;
                }
                Next::Go
            }
            Ok((Message::Close { keys }, _)) => {
                self.held.retain(|key, _| !keys.contains(key));
                Next::Go
            }
            Ok((Message::End, _)) => Next::End,
            Err(HoldError::Silent) => Next::Go,
            // It has died, or does not speak as it should.
            Ok(_) | Err(_) => Next::Closed,
        }
    }

    /// There is no switch any more.
    fn is_alone(&mut self) {
        self.switch = None;
        self.arriving.clear();
        self.alone_since = Some(self.clock.now());
    }

    /// Closes everything.
    fn let_go(&mut self) {
        self.switch = None;
        self.arriving.clear();
        self.held.clear();
        self.alone_since = None;
    }
}

fn refuse(channel: &Channel, reason: String) -> Result<(), HoldError> {
    // Whether it hears so or not.
    let _ = send(channel, &Message::Refused { reason: reason.clone() }, &[]);
    Err(HoldError::Refused(reason))
}
