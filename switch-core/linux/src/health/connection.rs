//! One connection of a health check: reads one request and answers it.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use podswitch_core::time::Instant;

use super::check::HealthCheck;
use super::request::{Request, Wants};

/// Time limit of a connection.
const TIME: Duration = Duration::from_secs(5);

/// Whether a connection stays open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// It waits for the rest of the request.
    Waiting,
    /// It has ended.
    Over,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// The local address at which it was accepted.
    local: SocketAddr,
    client: IpAddr,
    request: Request,
    accepted: Instant,
    /// Answered: further input is read and discarded, so that the kernel does not reset the
    /// connection before the client has read the answer (RFC 9112 §9.6).
    answered: bool,
}

impl Connection {
    /// A connection of `client` that was accepted at `local`; `None` if it has already failed.
    pub(super) fn new(
        stream: TcpStream,
        (local, client): (SocketAddr, IpAddr),
        now: Instant,
    ) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        let request = Request::default();
        Some(Self { stream, local, client, request, accepted: now, answered: false })
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn port(&self) -> u16 {
        self.local.port()
    }

    pub(super) fn client(&self) -> IpAddr {
        self.client
    }

    pub(super) fn accepted(&self) -> Instant {
        self.accepted
    }

    pub(super) fn deadline(&self) -> Instant {
        self.accepted + TIME
    }

    /// Reads the received bytes, and answers when the request is complete.
    pub(super) fn go_on(&mut self, answers: &BTreeMap<u16, HealthCheck>, now: Instant) -> Progress {
        if now >= self.deadline() {
            return Progress::Over;
        }
        let mut buffer = [0; 4096];
        // Bounded, so that a client that keeps sending does not starve others.
        for _ in 0..8 {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Progress::Over,
                Ok(_) if self.answered => {}
                Ok(len) => {
                    let Some(wants) = self.request.read(&buffer[..len]) else { continue };
                    let check = answers.get(&self.port());
                    let response = respond(wants, check, self.local.is_ipv6());
                    // The send buffer is empty and has room for it.
                    let written = self.stream.write_all(response.as_bytes());
                    if written.and_then(|()| self.stream.shutdown(Shutdown::Write)).is_err() {
                        return Progress::Over;
                    }
                    self.answered = true;
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

/// The response to a request over IPv6 or IPv4. Method and path are ignored, as in kube-proxy: load
/// balancers send GET, HEAD, OPTIONS or whatever is configured.
fn respond(wants: Wants, check: Option<&HealthCheck>, ipv6: bool) -> String {
    match (wants, check) {
        (Wants::TooLong, _) => plain("431 Request Header Fields Too Large"),
        (Wants::Bad, _) => plain("400 Bad Request"),
        // The port was closed a moment ago.
        (Wants::Answer { .. }, None) => plain("404 Not Found"),
        (Wants::Answer { body }, Some(check)) => answer(check, ipv6, body),
    }
}

fn plain(status: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

/// The same status, body and headers as kube-proxy's.
fn answer(check: &HealthCheck, ipv6: bool, with_body: bool) -> String {
    let endpoints = check.local_endpoints[usize::from(ipv6)];
    let status = if endpoints > 0 { "200 OK" } else { "503 Service Unavailable" };
    // Names are DNS labels: nothing in them needs escaping.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\
         \t\"localEndpoints\": {endpoints},\n\t\"serviceProxyHealthy\": true\n}}",
        check.namespace, check.name
    );
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
         X-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {endpoints}\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    if with_body { head + &body } else { head }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses() {
        let check = HealthCheck {
            port: 1,
            namespace: "ns".into(),
            name: "web".into(),
            local_endpoints: [2, 0],
        };
        let of = |wants, ipv6| respond(wants, Some(&check), ipv6);
        let both = Wants::Answer { body: true };
        assert!(of(both, false).starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(of(both, false).ends_with('}'));
        assert!(of(both, true).starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        assert!(of(Wants::Answer { body: false }, false).ends_with("\r\n\r\n"));
        assert!(of(Wants::Bad, false).starts_with("HTTP/1.1 400 "));
        assert!(of(Wants::TooLong, false).starts_with("HTTP/1.1 431 "));
        assert!(respond(both, None, false).starts_with("HTTP/1.1 404 "));
    }
}
