//! A datagram of 18 bytes is sent and returned, one after the other, between sockets that wait in
//! the kernel: median and 99th percentile in microseconds.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use super::{STOP_CHECK_INTERVAL, Sample, Stop, StopOnDrop, TIMEOUT, WARM_UP};
use crate::Outcome;
use crate::paths::services::Protocol;
use crate::paths::{Family, Path};
use crate::usage::{Usage, monotonic};

pub(super) fn run(path: &Path, family: Family, time: Duration) -> Outcome<Sample> {
    let ends = path.ends(Protocol::Udp, family);
    let server = path.server.open(|| UdpSocket::bind(ends.listen))?;
    let target = ends.target(server.local_addr().map_err(|e| e.to_string())?, 0);
    let client = path.client.open(|| UdpSocket::bind((family.unspecified(), 0)))?;
    client
        .connect(target)
        .and_then(|()| client.set_read_timeout(Some(TIMEOUT)))
        .and_then(|()| server.set_read_timeout(Some(STOP_CHECK_INTERVAL)))
        .map_err(|e| e.to_string())?;
    let stop = Stop::default();
    thread::scope(|scope| {
        let _end = StopOnDrop(&stop);
        scope.spawn(|| echo(&server, &stop));
        ask(&client, WARM_UP)?;
        let start = Usage::now();
        let mut times = ask(&client, time)?;
        let usage = Usage::since(&start);
        times.sort_unstable();
        let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
        Ok(Sample { values: vec![at(50), at(99)], work: times.len() as f64, usage })
    })
}

pub(super) fn echo(server: &UdpSocket, stop: &Stop) {
    let mut buffer = [0; 64];
    while !stop.is_set() {
        if let Ok((count, from)) = server.recv_from(&mut buffer) {
            // The client waits for the response, and reports if it does not arrive.
            let _ = server.send_to(&buffer[..count], from);
        }
    }
}

/// Sends requests for this time, at least one; returns the duration of each round trip.
fn ask(client: &UdpSocket, time: Duration) -> Outcome<Vec<Duration>> {
    let (mut times, mut buffer) = (Vec::new(), [0; 64]);
    let start = monotonic();
    let mut sent = start;
    while times.is_empty() || sent.saturating_sub(start) < time {
        client.send(&[0x5a; 18]).map_err(|e| format!("send: {e}"))?;
        client.recv(&mut buffer).map_err(|e| format!("no answer: {e}"))?;
        let answered = monotonic();
        times.push(answered.saturating_sub(sent));
        sent = answered;
    }
    Ok(times)
}
