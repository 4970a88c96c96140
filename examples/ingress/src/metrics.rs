//! `/metrics` and `/healthz`, on a thread of its own.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use podswitch_ingress::proxy::MetricsReader;

/// Time for a request and its answer; one client at a time is served.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Longest head of a request, in bytes.
const MAX_HEAD: usize = 8 << 10;

/// Listens at `address`. Returns the address with its port.
pub(crate) fn serve(address: SocketAddr, metrics: MetricsReader) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        for stream in listener.incoming().flatten() {
            _ = answer(stream, &metrics);
        }
    })?;
    Ok(address)
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, far from any packet")]
fn answer(mut stream: TcpStream, metrics: &MetricsReader) -> io::Result<()> {
    let end = Instant::now() + TIMEOUT;
    let left = || {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(Some(left)) }
    };
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        stream.set_read_timeout(left()?)?;
        let length = stream.read(&mut buffer)?;
        if length == 0 || head.len() > MAX_HEAD {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..length]);
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (status, text) = match (words.next(), words.next()) {
        (Some(b"GET"), Some(b"/metrics")) => ("200 OK", metrics.text()),
        (Some(b"GET"), Some(b"/healthz")) => ("200 OK", "ok\n".to_owned()),
        (Some(b"GET"), _) => ("404 Not Found", "not found\n".to_owned()),
        _ => ("405 Method Not Allowed", "GET only\n".to_owned()),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    let mut rest = answer.as_bytes();
    while !rest.is_empty() {
        stream.set_write_timeout(left()?)?;
        match stream.write(rest)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            length => rest = &rest[length..],
        }
    }
    Ok(())
}
