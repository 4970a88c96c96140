//! Loads between two ends, each with its socket in a namespace of its own.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use podswitch_core::time::Clock;
use podswitch_linux::NetNs;

use crate::demo::sockets::{self, Connection, Outcome};

/// Duration of a stream, and the maximum duration of all round trips.
const STREAM: Duration = Duration::from_millis(1000);
const ROUNDS: Duration = Duration::from_millis(1000);
const ROUND_TRIPS: usize = 5000;
const WARM_UP: usize = 500;
/// A smaller number is not significant.
const MIN_SAMPLES: usize = 100;
/// Longest wait for a datagram to come back.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// Sender and receiver.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub(super) from: &'a NetNs,
    pub(super) to: &'a NetNs,
    pub(super) address: IpAddr,
}

/// Throughput of one TCP stream in Gbit/s, as received.
pub(super) fn stream(ends: Ends<'_>) -> Outcome<f64> {
    let connection = sockets::connect(ends.from, ends.to, ends.address)?;
    let Connection { client, server, .. } = connection;
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let block = vec![0x5a; 1 << 18];
            loop {
                let written = (&client).write_all(&block);
                if written.is_err() || enough.load(Relaxed) {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Write);
        });
        let (clock, mut received) = (Clock::start(), 0u64);
        let mut buffer = vec![0; 1 << 18];
        let mut elapsed = Duration::ZERO;
        let mut result = Ok(());
        while elapsed < STREAM && result.is_ok() {
            match (&server).read(&mut buffer) {
                Ok(count @ 1..) => received += count as u64,
                Ok(_) => result = Err("it ended early".to_owned()),
                Err(error) => result = Err(format!("read: {error}")),
            }
            elapsed = Duration::from_nanos(clock.now().as_nanos());
        }
        enough.store(true, Relaxed);
        // The writer may be blocked on a full socket buffer.
        while matches!((&server).read(&mut buffer), Ok(1..)) {}
        result.map(|()| received as f64 * 8.0 / elapsed.as_secs_f64() / 1e9)
    })
}

/// Round-trip times of a small datagram in µs, sorted.
pub(super) fn round_trips(ends: Ends<'_>) -> Outcome<Vec<f64>> {
    let address = ends.address;
    let server = sockets::open(ends.to, || UdpSocket::bind((address, 0)))?;
    let target = server.local_addr().map_err(|e| e.to_string())?;
    let client = sockets::open(ends.from, || UdpSocket::bind((sockets::unspecified(address), 0)))?;
    client.connect(target).map_err(|e| e.to_string())?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(LOST_AFTER)).map_err(|e| e.to_string())?;
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 256];
            // An empty datagram ends it; so does a timeout.
            while let Ok((count @ 1.., who)) = server.recv_from(&mut buffer) {
                if server.send_to(&buffer[..count], who).is_err() {
                    return;
                }
            }
        });
        let (clock, mut buffer) = (Clock::start(), [0; 256]);
        let mut times = Vec::with_capacity(ROUND_TRIPS);
        let start = clock.now();
        for round in 0..ROUND_TRIPS + WARM_UP {
            let sent = clock.now();
            if sent.since(start) > ROUNDS && times.len() > MIN_SAMPLES {
                break;
            }
            client.send(&[0x5a; 18]).map_err(|e| format!("send: {e}"))?;
            client.recv(&mut buffer).map_err(|e| format!("nothing came back: {e}"))?;
            if round >= WARM_UP {
                times.push(clock.now().since(sent).as_secs_f64() * 1e6);
            }
        }
        let _ = client.send(&[]);
        times.sort_unstable_by(f64::total_cmp);
        Ok(times)
    })
}
