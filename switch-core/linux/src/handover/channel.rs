//! A Unix socket that keeps messages apart and carries descriptors (unix(7), SOCK_SEQPACKET, SCM_RIGHTS).

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::sys;

/// Most descriptors of a message (SCM_MAX_FD).
pub const MAX_FILES: usize = 253;
/// Longest message, in bytes.
const LONGEST: usize = 128 << 10;
/// How long a sender waits for the other end to make room.
const SEND_TIMEOUT: Duration = Duration::from_millis(500);

/// A message.
#[derive(Debug)]
pub struct Received {
    /// What it says.
    pub text: Vec<u8>,
    /// The descriptors that came with it.
    pub files: Vec<OwnedFd>,
}

/// One end of a connection between two processes.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

/// The process at the other end.
#[derive(Debug)]
pub struct Peer {
    /// Its user id.
    pub user: u32,
    /// Another process, if this one can see it.
    process: Option<OwnedFd>,
    /// This process itself.
    is_self: bool,
}

impl Peer {
    /// Whether this process can see it, and so end it. False for a process outside this one's PID namespace.
    pub fn is_visible(&self) -> bool {
        self.is_self || self.process.is_some()
    }

    /// Ends the process with SIGKILL. Its end of the connection is closed when all its threads have ended.
    ///
    /// # Errors
    /// It cannot be seen from here, or is gone.
    pub fn kill(&self) -> io::Result<()> {
        let process = self.process.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(pidfd_send_signal(process, Signal::KILL)?)
    }

    /// Whether the process has ended. False for one that cannot be seen from here.
    pub fn has_ended(&self) -> bool {
        // A descriptor of a process is readable once it has ended (pidfd_open(2)).
        self.process.as_ref().is_some_and(|process| {
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        })
    }
}

impl Channel {
    /// Connects to the process that listens at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        // A process that does not accept connections must not keep this one waiting.
        let socket = open(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { socket })
    }

    /// Both ends: one for a process that this one starts.
    ///
    /// # Errors
    /// The system gives no sockets.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (unix, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (one, other) = rustix::net::socketpair(unix, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// The process at the other end.
    ///
    /// # Errors
    /// The kernel refuses to say.
    pub fn peer(&self) -> io::Result<Peer> {
        let (user, pid) = sys::peer::user_and_process(self.socket.as_fd())?;
        let pid = Pid::from_raw(pid);
        let is_self = pid == Some(rustix::process::getpid());
        let other = pid.filter(|_| !is_self);
        let process = other.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        Ok(Peer { user, process, is_self })
    }

    /// Sends a message, with at most [`MAX_FILES`] descriptors.
    ///
    /// # Errors
    /// The other end is closed, or does not read for half a second; too many descriptors.
    pub fn send(&self, text: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let parts = [IoSlice::new(text)];
        match rustix::net::sendmsg(&self.socket, &parts, &mut ancillary, flags) {
            // The other end is late.
            Err(Errno::AGAIN) if self.is_ready(PollFlags::OUT, SEND_TIMEOUT)? => {
                rustix::net::sendmsg(&self.socket, &parts, &mut ancillary, flags)?;
            }
            result => _ = result?,
        }
        Ok(())
    }

    /// Waits for the next message. `None`: the other end is closed.
    ///
    /// # Errors
    /// `TimedOut`: there is none. `InvalidData`: a message is too long, or its descriptors are not complete.
    pub fn receive(&self, timeout: Duration) -> io::Result<Option<Received>> {
        if !self.is_ready(PollFlags::IN, timeout)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut text = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let parts = &mut [IoSliceMut::new(&mut text)];
        let result = rustix::net::recvmsg(&self.socket, parts, &mut ancillary, flags);
        let message = match result {
            Err(Errno::CONNRESET) => return Ok(None),
            result => result?,
        };
        let mut files = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                files.extend(received);
            }
        }
        if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if message.bytes == 0 && files.is_empty() {
            return Ok(None);
        }
        text.truncate(message.bytes);
        Ok(Some(Received { text, files }))
    }

    /// Waits until there is a message or room for one, or the other end is closed.
    fn is_ready(&self, wanted: PollFlags, timeout: Duration) -> io::Result<bool> {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        loop {
            let mut sockets = [PollFd::new(&self.socket, wanted)];
            match poll(&mut sockets, Some(&timeout)) {
                Err(Errno::INTR) => {}
                result => return Ok(result? > 0),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// For a process that got its end as a descriptor.
impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

/// A socket that other processes of the same user connect to. Its file is removed when this is dropped, unless another
/// process has put its own there.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of its file.
    file: (u64, u64),
}

impl Listener {
    /// Listens at `path`, in place of any process that did.
    ///
    /// # Errors
    /// The file cannot be made; the path is longer than 107 bytes.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = open(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        rustix::net::listen(&socket, 4)?;
        Ok(Self { socket, path: path.to_owned(), file: id(path)? })
    }

    /// The next connection, if there is one.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn accept(&self) -> io::Result<Option<Channel>> {
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => Ok(Some(Channel { socket })),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if id(&self.path).is_ok_and(|id| id == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let status = rustix::fs::lstat(path)?;
    Ok((status.st_dev as u64, status.st_ino as u64))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn descriptors_go_along_with_messages() {
        let path = std::env::temp_dir().join(format!("podswitch-channel-{}", std::process::id()));
        let listener = Listener::bind(&path).unwrap();
        assert!(listener.accept().unwrap().is_none());
        let one = Channel::connect(&path).unwrap();
        let other = listener.accept().unwrap().expect("it has connected");
        assert_eq!(other.peer().unwrap().user, rustix::process::geteuid().as_raw());
        // Nobody ends itself.
        assert!(other.peer().unwrap().kill().is_err());
        let (mut kept, given) = UnixStream::pair().unwrap();
        one.send(b"two of it", &[given.as_fd(), given.as_fd()]).unwrap();
        one.send(b"none", &[]).unwrap();
        drop(given);
        let Received { text, files } = other.receive(PATIENCE).unwrap().unwrap();
        assert_eq!((&*text, files.len()), (&b"two of it"[..], 2));
        for file in files {
            let mut given = UnixStream::from(file);
            given.write_all(b"x").unwrap();
            let mut byte = [0];
            kept.read_exact(&mut byte).unwrap();
            assert_eq!(byte, *b"x");
        }
        let Received { text, files } = other.receive(PATIENCE).unwrap().unwrap();
        assert_eq!((&*text, files.len()), (&b"none"[..], 0));
        let error = other.receive(Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(one);
        assert!(other.receive(PATIENCE).unwrap().is_none());
        // Another one is there now, which keeps its file.
        let next = Listener::bind(&path).unwrap();
        drop(listener);
        assert!(Channel::connect(&path).is_ok());
        drop(next);
        assert!(Channel::connect(&path).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (one, _other) = Channel::pair().unwrap();
        let many = vec![one.socket.as_fd(); MAX_FILES + 1];
        assert_eq!(one.send(b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
