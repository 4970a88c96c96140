//! One TCP stream at full speed: gigabits of payload a second that the reader receives.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::{Sample, TIMEOUT, WARM_UP};
use crate::Outcome;
use crate::paths::services::Protocol;
use crate::paths::{Family, Path};
use crate::usage::{Usage, monotonic};

/// Maximum number of bytes that one call writes or reads.
const BLOCK: usize = 128 << 10;

pub(super) fn run(path: &Path, family: Family, time: Duration) -> Outcome<Sample> {
    let ends = path.ends(Protocol::Tcp, family);
    let listener = path.server.open(|| TcpListener::bind(ends.listen))?;
    let target = ends.target(listener.local_addr().map_err(|e| e.to_string())?, 0);
    let client = path.client.open(|| TcpStream::connect_timeout(&target, TIMEOUT))?;
    let (server, _) = listener.accept().map_err(|e| format!("accept: {e}"))?;
    let limits = client
        .set_write_timeout(Some(TIMEOUT))
        .and_then(|()| server.set_read_timeout(Some(TIMEOUT)));
    limits.map_err(|e| e.to_string())?;
    thread::scope(|scope| {
        let writer = || write(client);
        thread::Builder::new()
            .name("writer".into())
            .spawn_scoped(scope, writer)
            .map_err(|e| e.to_string())?;
        // Moved into this function, so that it is closed at the end; then the writer ends.
        let mut server = server;
        read(&mut server, WARM_UP)?;
        let start = Usage::now();
        let bytes = read(&mut server, time)?;
        let usage = Usage::since(&start);
        let values = vec![bytes as f64 * 8.0 / usage.wall.as_secs_f64() / 1e9];
        Ok(Sample { values, work: bytes as f64 / 1024.0, usage })
    })
}

/// Writes until the other end has closed.
fn write(mut stream: TcpStream) {
    let block = vec![0x5a; BLOCK];
    while stream.write_all(&block).is_ok() {}
}

/// Reads for this time; returns the number of bytes.
fn read(stream: &mut TcpStream, time: Duration) -> Outcome<u64> {
    let start = monotonic();
    let (mut buffer, mut bytes) = (vec![0; BLOCK], 0);
    while monotonic().saturating_sub(start) < time {
        match stream.read(&mut buffer) {
            Ok(0) => return Err("the stream ended early".to_owned()),
            Ok(count) => bytes += count as u64,
            Err(error) => return Err(format!("read: {error}")),
        }
    }
    Ok(bytes)
}
