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
        (Some(b"GET"), Some(b"/healthz")) if metrics.is_healthy() => ("200 OK", "ok\n".to_owned()),
        (Some(b"GET"), Some(b"/healthz")) => {
            ("503 Service Unavailable", "a worker has ended\n".to_owned())
        }
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

#[cfg(test)]
mod tests {
    use podswitch_ingress::proxy::{Options, Proxy};

    use super::*;

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: m\r\n\r\n").expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    }

    #[test]
    fn the_health_is_that_of_the_workers() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let options = Options { http: Some(any), workers: 2, ..Options::default() };
        let proxy = Proxy::start(options, None).expect("started");
        let address = serve(any, proxy.metrics()).expect("served");
        let healthy = get(address, "/healthz");
        assert!(healthy.starts_with("HTTP/1.1 200 ") && healthy.ends_with("ok\n"), "{healthy}");
        assert!(get(address, "/metrics").contains("\npodswitch_ingress_workers 2\n"));
        assert!(get(address, "/metrics").contains("\npodswitch_ingress_workers_ended_total 0\n"));
        proxy.stop(Duration::ZERO);
        let ended = get(address, "/healthz");
        assert!(ended.starts_with("HTTP/1.1 503 "), "{ended}");
        assert!(get(address, "/metrics").contains("\npodswitch_ingress_workers_ended_total 2\n"));
    }
}
