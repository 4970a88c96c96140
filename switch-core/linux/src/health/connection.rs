//! One connection of a health check: a request is read to its end, answered, and that is all.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use podswitch_core::time::Instant;

use super::HealthCheck;

/// Bytes of a request, at most.
const LONGEST: usize = 4096;
/// A connection's time, from beginning to end.
const TIME: Duration = Duration::from_secs(5);

/// Whether a connection goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// For more of the request.
    Waiting,
    /// It has ended.
    Over,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    port: u16,
    request: Vec<u8>,
    deadline: Instant,
    /// Answered: what the client still says is read and forgotten, so that the kernel has no
    /// reason to reset the connection before the answer was read (RFC 9112 §9.6).
    answered: bool,
}

impl Connection {
    /// A connection that was accepted at `port`; `None` if it is broken already.
    pub(super) fn new(stream: TcpStream, port: u16, now: Instant) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        Some(Self { stream, port, request: Vec::new(), deadline: now + TIME, answered: false })
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads what is there, and answers when the request is complete.
    pub(super) fn go_on(&mut self, answers: &BTreeMap<u16, HealthCheck>, now: Instant) -> Progress {
        if now >= self.deadline {
            return Progress::Over;
        }
        let mut buffer = [0; 1024];
        // A client that never stops sending takes its turns with the others.
        for _ in 0..8 {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Progress::Over,
                Ok(_) if self.answered => {}
                Ok(len) => {
                    self.request.extend_from_slice(&buffer[..len]);
                    if let Some(response) = respond(&self.request, answers.get(&self.port)) {
                        // Into an empty send buffer, which has room for it.
                        let written = self.stream.write_all(response.as_bytes());
                        if written.and_then(|()| self.stream.shutdown(Shutdown::Write)).is_err() {
                            return Progress::Over;
                        }
                        self.answered = true;
                        self.request = Vec::new();
                    }
                }
                Err(error) if is_temporary(&error) => break,
                Err(_) => return Progress::Over,
            }
        }
        Progress::Waiting
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// The response to a request, once it is all there.
fn respond(request: &[u8], check: Option<&HealthCheck>) -> Option<String> {
    let complete = request.windows(4).any(|four| four == b"\r\n\r\n")
        || request.windows(2).any(|two| two == b"\n\n");
    if !complete {
        return (request.len() >= LONGEST).then(|| plain("431 Request Header Fields Too Large"));
    }
    let line = request.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let words: Vec<&[u8]> =
        line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    let [method, _, version] = words[..] else { return Some(plain("400 Bad Request")) };
    if !version.starts_with(b"HTTP/1.") {
        return Some(plain("400 Bad Request"));
    }
    let with_body = match method {
        b"GET" => true,
        b"HEAD" => false,
        _ => return Some(plain("405 Method Not Allowed")),
    };
    Some(match check {
        // The port was closed a moment ago.
        None => plain("404 Not Found"),
        Some(check) => answer(check, with_body),
    })
}

fn plain(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

/// As kube-proxy answers: status, body and headers.
fn answer(check: &HealthCheck, with_body: bool) -> String {
    let status = if check.local_endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    // Names are DNS labels: nothing in them needs escaping.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\
         \t\"localEndpoints\": {},\n\t\"serviceProxyHealthy\": true\n}}",
        check.namespace, check.name, check.local_endpoints
    );
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
         X-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {}\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        check.local_endpoints,
        body.len()
    );
    if with_body { head + &body } else { head }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check() -> HealthCheck {
        HealthCheck { port: 1, namespace: "ns".into(), name: "web".into(), local_endpoints: 2 }
    }

    fn status(request: &[u8]) -> Option<String> {
        let response = respond(request, Some(&check()))?;
        Some(response.split(' ').nth(1).unwrap().to_owned())
    }

    #[test]
    fn requests_of_all_kinds() {
        let of = |request: &str| status(request.as_bytes());
        let is = |status: &str| Some(status.to_owned());
        assert_eq!(of("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), is("200"));
        assert_eq!(of("HEAD /healthz HTTP/1.0\r\n\r\n"), is("200"));
        assert_eq!(of("GET / HTTP/1.1\n\n"), is("200"));
        assert_eq!(of("POST / HTTP/1.1\r\n\r\n"), is("405"));
        assert_eq!(of("GET /\r\n\r\n"), is("400"));
        assert_eq!(of("PRI * HTTP/2.0\r\n\r\n"), is("400"));
        assert_eq!(of("\r\n\r\n"), is("400"));
        assert_eq!(of("GET / HTTP/1.1\r\nHost: x\r\n"), None, "there is more to come");
        assert_eq!(status(&[b'x'; LONGEST]), is("431"));
    }

    proptest! {
        #[test]
        fn nothing_panics(request in prop::collection::vec(any::<u8>(), 0..300)) {
            respond(&request, Some(&check()));
        }
    }
}
