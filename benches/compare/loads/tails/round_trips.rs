//! Datagrams of 18 bytes that a server returns, over several flows.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{PATIENCE, Pace, Run, Sample, Tail, measure};
use crate::Outcome;
use crate::loads::{STOP_CHECK_INTERVAL, Stop, StopOnDrop, round_trip};
use crate::paths::services::Protocol;
use crate::paths::{Family, Path};
use crate::usage::monotonic;

const FLOWS: usize = 16;

pub(in crate::loads) fn run(
    path: &Path,
    family: Family,
    tail: Tail,
    time: Duration,
) -> Outcome<Sample> {
    let ends = path.ends(Protocol::Udp, family);
    let server = path.server.open(|| UdpSocket::bind(ends.listen))?;
    let bound = server.local_addr().map_err(|e| e.to_string())?;
    server.set_read_timeout(Some(STOP_CHECK_INTERVAL)).map_err(|e| e.to_string())?;
    let open = |number| {
        path.client.open(|| {
            let socket = UdpSocket::bind((family.unspecified(), 0))?;
            socket.connect(ends.target(bound, number))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
    };
    let clients = (0..FLOWS).map(open).collect::<Outcome<Vec<_>>>()?;
    let (stop, unchanging) = (Stop::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _end = StopOnDrop(&stop);
        scope.spawn(|| round_trip::echo(&server, &stop));
        let changes = path.change_policies(scope, &unchanging, tail.publishes);
        let sample = measure(tail, time, |run| exchange(&clients, run).map_err(|e| e.to_string()))?;
        changes.end()?;
        Ok(sample)
    })
}

fn exchange(clients: &[UdpSocket], mut run: Run) -> io::Result<Run> {
    // Requests that are taken as on their way, and when the last response came.
    let (mut waiting, mut heard) = (0_usize, monotonic());
    loop {
        let mut now = monotonic();
        while let Some(begin) = run.due(now, waiting) {
            let mut request = [0; 18];
            request[..16].copy_from_slice(&begin.as_nanos().to_ne_bytes());
            match clients[run.started % clients.len()].send(&request) {
                Ok(_) => waiting += 1,
                // Counts as lost.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            now = monotonic();
        }
        let Some(wait) = run.wait(now, waiting) else { return Ok(run) };
        let mut ready: Vec<_> = clients.iter().map(|c| PollFd::new(c, PollFlags::IN)).collect();
        poll(&mut ready, Some(&Timespec::try_from(wait).map_err(io::Error::other)?))?;
        for (client, at) in clients.iter().zip(&ready) {
            if at.revents().is_empty() {
                continue;
            }
            while let Some(begin) = receive(client)? {
                heard = monotonic();
                waiting = waiting.saturating_sub(1);
                // The response of an earlier run counts for none.
                if begin >= run.begin {
                    run.finished(begin, heard);
                }
            }
        }
        // A window that was lost must not stop a run.
        if matches!(run.pace, Pace::Window) && monotonic().saturating_sub(heard) > PATIENCE / 4 {
            (waiting, heard) = (0, monotonic());
        }
    }
}

/// The time in a response, if there is one.
fn receive(client: &UdpSocket) -> io::Result<Option<Duration>> {
    let mut response = [0; 18];
    match client.recv(&mut response) {
        Ok(_) => {
            let nanos = u128::from_ne_bytes(response[..16].try_into().expect("16 bytes"));
            Ok(Some(Duration::from_nanos(nanos as u64)))
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}
