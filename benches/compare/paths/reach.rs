//! Checks that a path forwards its traffic.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::sockopt::{self, Timeout};

use super::services::Protocol;
use super::{Family, Path};
use crate::Outcome;

const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);
/// Number of Services that are tried, spread over all of them.
const TRIED: usize = 5;

/// Checks that a datagram is returned and that connections of each family open, through the last Service as well as
/// through the first.
pub(super) fn check(path: &Path) -> Outcome<()> {
    for family in Family::BOTH {
        datagram(path, family).map_err(|e| format!("{family:?} UDP does not pass: {e}"))?;
        connections(path, family).map_err(|e| format!("{family:?} TCP does not pass: {e}"))?;
    }
    Ok(())
}

fn datagram(path: &Path, family: Family) -> Outcome<()> {
    let ends = path.ends(Protocol::Udp, family);
    let server = path.server.open(|| UdpSocket::bind(ends.listen))?;
    let text = |e: io::Error| e.to_string();
    let target = ends.target(server.local_addr().map_err(text)?, 0);
    let client = path.client.open(|| UdpSocket::bind((family.unspecified(), 0)))?;
    // Connected: a reply from another address than the request's destination is ignored.
    client.connect(target).map_err(text)?;
    server.set_read_timeout(Some(PAUSE)).map_err(text)?;
    client.set_read_timeout(Some(PAUSE)).map_err(text)?;
    let mut outcome = Err("never sent".to_owned());
    for _ in 0..TRIES {
        // The first datagram may be lost while neighbours are being resolved.
        outcome = there_and_back(&client, &server).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => "nothing arrived in time".to_owned(),
            _ => e.to_string(),
        });
        if outcome.is_ok() {
            break;
        }
    }
    outcome.map_err(|e| format!("{target}: {e}"))
}

fn there_and_back(client: &UdpSocket, server: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 16];
    client.send(b"hello")?;
    let (_, from) = server.recv_from(&mut buffer)?;
    server.send_to(b"hello", from)?;
    client.recv(&mut buffer).map(drop)
}

fn connections(path: &Path, family: Family) -> Outcome<()> {
    let ends = path.ends(Protocol::Tcp, family);
    let text = |e: io::Error| e.to_string();
    let server = path.server.open(|| TcpListener::bind(ends.listen))?;
    sockopt::set_socket_timeout(&server, Timeout::Recv, Some(PAUSE * 8))
        .map_err(|e| e.to_string())?;
    let bound = server.local_addr().map_err(text)?;
    let last = path.services.as_ref().map_or(0, |s| s.count - 1);
    for step in 0..TRIED {
        let target = ends.target(bound, last * step / (TRIED - 1));
        let connect = || TcpStream::connect_timeout(&target, PAUSE * 8);
        let _client = path.client.open(connect).map_err(|e| format!("{target}: {e}"))?;
        let (stream, _) = server.accept().map_err(|e| format!("{target}: accept: {e}"))?;
        let at: SocketAddr = stream.local_addr().map_err(text)?;
        if !path.server.addresses().contains(&at.ip()) {
            return Err(format!("a connection to {target} reached {at}"));
        }
    }
    Ok(())
}
