//! Connect, request, response, close, repeatedly on several threads: TCP connections a second.
//!
//! Each client has one connection at a time. All clients connect to one listener, from which as many threads of
//! the server accept connections. Through Services, each connection goes to another Service than the last, all of
//! them in turn, so that none stays in the cache.
//!
//! Close by FIN: the server closes after its response, and the client when it has read it. The server's ports are the
//! ones in TIME_WAIT, so a client can use its port again at once. Close by RST: the client resets the connection when it
//! has the response, and the server waits for that.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};

use super::{STOP_CHECK_INTERVAL, Sample, Stop, StopOnDrop, TIMEOUT, count_for};
use crate::Outcome;
use crate::paths::services::Protocol;
use crate::paths::{Ends, Family, Path, Pod};

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    Fin,
    Rst,
}

pub(super) const REQUEST: [u8; 64] = [0x3f; 64];
pub(super) const ANSWER: [u8; 128] = [0x21; 128];

pub(super) fn run(
    path: &Path,
    family: Family,
    in_flight: usize,
    close: Close,
    time: Duration,
) -> Outcome<Sample> {
    let ends = path.ends(Protocol::Tcp, family);
    let listener = listen(&path.server, ends.listen)?;
    let bound = listener.local_addr().map_err(|e| e.to_string())?;
    let (stop, closed, done) = (Stop::default(), Stop::default(), AtomicU64::new(0));
    thread::scope(|scope| {
        let _end = [StopOnDrop(&stop), StopOnDrop(&closed)];
        let mut clients = Vec::new();
        for number in 0..in_flight {
            let (stop, closed, done, pod) = (&stop, &closed, &done, &path.client);
            let listener = listener.try_clone().map_err(|e| e.to_string())?;
            scope.spawn(move || serve(&listener, close, closed));
            let targets = Targets { ends, bound, number, step: in_flight };
            let run = move || client(pod, targets, close, done, stop);
            clients.push(scope.spawn(run));
        }
        let counted = count_for(time, || Ok(done.load(Relaxed)));
        stop.set();
        // Servers end last, because a client may be waiting for one.
        for client in clients {
            client.join().map_err(|_| "a client panicked")??;
        }
        let (count, usage) = counted?;
        let values = vec![count as f64 / usage.wall.as_secs_f64()];
        Ok(Sample { values, work: count as f64, usage })
    })
}

/// The addresses to which a client connects, one after the other.
pub(super) struct Targets<'a> {
    ends: Ends<'a>,
    bound: SocketAddr,
    number: usize,
    /// Number of clients.
    step: usize,
}

impl<'a> Targets<'a> {
    /// The targets of the only client.
    pub(super) fn new(ends: Ends<'a>, bound: SocketAddr) -> Self {
        Self { ends, bound, number: 0, step: 1 }
    }
}

impl Iterator for Targets<'_> {
    type Item = SocketAddr;

    fn next(&mut self) -> Option<SocketAddr> {
        /// A prime that divides neither the number of clients nor the number of Services. So
        /// successive connections go to distant Services, and all Services are used.
        const STEP: usize = 7_919;
        let target = self.ends.target(self.bound, self.number.wrapping_mul(STEP));
        self.number = self.number.wrapping_add(self.step);
        Some(target)
    }
}

/// A listener whose accept call times out periodically.
pub(super) fn listen(pod: &Pod, at: SocketAddr) -> Outcome<TcpListener> {
    let listener = pod.open(|| TcpListener::bind(at))?;
    sockopt::set_socket_timeout(&listener, Timeout::Recv, Some(STOP_CHECK_INTERVAL))
        .map_err(|e| e.to_string())?;
    Ok(listener)
}

pub(super) fn serve(listener: &TcpListener, close: Close, closed: &Stop) {
    let mut request = REQUEST;
    while !closed.is_set() {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        // The client notices the result of an error.
        let _ = stream
            .set_read_timeout(Some(TIMEOUT))
            .and_then(|()| stream.read_exact(&mut request))
            .and_then(|()| stream.write_all(&ANSWER));
        if close == Close::Rst {
            // Returns when the client has reset the connection.
            let _ = stream.read(&mut request);
        }
    }
}

/// Sends requests until it is stopped or a request fails.
fn client(
    pod: &Pod,
    mut targets: Targets<'_>,
    close: Close,
    done: &AtomicU64,
    stop: &Stop,
) -> Outcome<()> {
    // Each connection's socket is opened here, so the whole loop runs in the namespace.
    pod.open(|| {
        while let Some(target) = targets.next()
            && !stop.is_set()
        {
            ask(target, close)?;
            done.fetch_add(1, Relaxed);
        }
        Ok(())
    })
}

fn ask(target: SocketAddr, close: Close) -> io::Result<()> {
    let mut answer = [0; 2 * ANSWER.len()];
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&REQUEST)?;
    let mut count = 0;
    loop {
        match stream.read(&mut answer[count..])? {
            0 if answer[..count] == ANSWER => return Ok(()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => count += more,
        }
        if close == Close::Rst && answer[..count] == ANSWER {
            return Ok(sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?);
        }
    }
}
