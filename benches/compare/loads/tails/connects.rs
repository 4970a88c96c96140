//! TCP connections, each with a request and a response, closed by the server: the time until the client's connect is
//! complete.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use super::{Run, Sample, Tail, measure};
use crate::Outcome;
use crate::loads::connections::{ANSWER, Close, REQUEST, Targets, listen, serve};
use crate::loads::{Stop, StopOnDrop};
use crate::paths::services::Protocol;
use crate::paths::{Family, Path};
use crate::usage::monotonic;

/// Threads that accept connections.
const SERVERS: usize = 4;

pub(in crate::loads) fn run(
    path: &Path,
    family: Family,
    tail: Tail,
    time: Duration,
) -> Outcome<Sample> {
    let ends = path.ends(Protocol::Tcp, family);
    let listener = listen(&path.server, ends.listen)?;
    let bound = listener.local_addr().map_err(|e| e.to_string())?;
    let (stop, unchanging) = (Stop::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _end = StopOnDrop(&stop);
        for _ in 0..SERVERS {
            let (listener, stop) = (listener.try_clone().map_err(|e| e.to_string())?, &stop);
            scope.spawn(move || serve(&listener, Close::Fin, stop));
        }
        let changes = path.change_policies(scope, &unchanging, tail.publishes);
        let mut targets = Targets::new(ends, bound);
        let sample = measure(tail, time, |run| path.client.open(|| exchange(&mut targets, run)))?;
        changes.end()?;
        Ok(sample)
    })
}

/// A connection on its way.
struct Connection {
    stream: TcpStream,
    begin: Duration,
    is_connected: bool,
    received: usize,
}

impl Connection {
    fn open(target: SocketAddr, begin: Duration) -> io::Result<Self> {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        match connect(&socket, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(Self { stream: socket.into(), begin, is_connected: false, received: 0 })
    }

    fn awaits(&self) -> PollFlags {
        if self.is_connected { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Goes on as far as possible. True if the server has closed after its response.
    fn proceed(&mut self, run: &mut Run) -> io::Result<bool> {
        if !self.is_connected {
            sockopt::socket_error(&self.stream)??;
            run.finished(self.begin, monotonic());
            self.is_connected = true;
            self.stream.write_all(&REQUEST)?;
            return Ok(false);
        }
        let mut response = [0; 2 * ANSWER.len()];
        match self.stream.read(&mut response) {
            Ok(0) if self.received == ANSWER.len() => Ok(true),
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => {
                self.received += more;
                Ok(false)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }
}

fn exchange(targets: &mut Targets<'_>, mut run: Run) -> io::Result<Run> {
    let mut open: Vec<Connection> = Vec::new();
    loop {
        let mut now = monotonic();
        while let Some(begin) = run.due(now, open.len()) {
            let target = targets.next().expect("targets never end");
            open.push(Connection::open(target, begin)?);
            now = monotonic();
        }
        let Some(wait) = run.wait(now, open.len()) else { return Ok(run) };
        let mut ready: Vec<_> = open.iter().map(|c| PollFd::new(&c.stream, c.awaits())).collect();
        poll(&mut ready, Some(&Timespec::try_from(wait).map_err(io::Error::other)?))?;
        let is_ready: Vec<bool> = ready.iter().map(|at| !at.revents().is_empty()).collect();
        // From the end, so that a removal moves only connections that were looked at.
        for at in (0..is_ready.len()).rev() {
            if is_ready[at] && open[at].proceed(&mut run)? {
                open.swap_remove(at);
            }
        }
    }
}
