//! Servers in pods, at the backend port of the Services: each reports its pod and the client's
//! address, over TCP and UDP, and echoes TCP data; or its pod alone, over HTTP. And their clients.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use podswitch_linux::NetNs;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::sockets::{self, Outcome, PATIENCE, RETRY, TRIES};
#[cfg(feature = "ingress")]
use super::world::HTTP_PORT;
use super::world::{DemoPod, TARGET_PORT};

/// How often servers check whether to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// See the module's description. They end when this is dropped.
pub(super) struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Starts the servers of these pods.
    pub(super) fn start<'a>(pods: impl IntoIterator<Item = &'a DemoPod>) -> Outcome<Self> {
        let mut servers = Self { stop: Arc::default(), threads: Vec::new() };
        let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, TARGET_PORT));
        for pod in pods {
            servers.listen(pod, TARGET_PORT, serve)?;
            let socket = sockets::open(&pod.namespace, || UdpSocket::bind(at))?;
            socket.set_read_timeout(Some(STOP_INTERVAL)).map_err(|e| e.to_string())?;
            let (name, stop) = (pod.name, Arc::clone(&servers.stop));
            servers.threads.push(thread::spawn(move || answer(&socket, name, &stop)));
        }
        Ok(servers)
    }

    /// Starts HTTP servers in these pods.
    #[cfg(feature = "ingress")]
    pub(super) fn start_http<'a>(pods: impl IntoIterator<Item = &'a DemoPod>) -> Outcome<Self> {
        let mut servers = Self { stop: Arc::default(), threads: Vec::new() };
        for pod in pods {
            servers.listen(pod, HTTP_PORT, serve_http)?;
        }
        Ok(servers)
    }

    /// Listens in a pod, at its addresses of both families.
    fn listen(&mut self, pod: &DemoPod, port: u16, serve: Serve) -> Outcome<()> {
        let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = sockets::open(&pod.namespace, || TcpListener::bind(at))?;
        set_socket_timeout(&listener, Timeout::Recv, Some(STOP_INTERVAL))
            .map_err(|e| e.to_string())?;
        let (name, stop) = (pod.name, Arc::clone(&self.stop));
        self.threads.push(thread::spawn(move || accept(&listener, name, &stop, serve)));
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has reported it.
            let _ = thread.join();
        }
    }
}

/// Serves a connection: with the pod's name and the client's address.
type Serve = fn(&TcpStream, &str, IpAddr) -> Option<()>;

fn accept(listener: &TcpListener, name: &'static str, stop: &AtomicBool, serve: Serve) {
    while !stop.load(Relaxed) {
        if let Ok((stream, peer)) = listener.accept() {
            // It ends with its client, which has a timeout.
            thread::spawn(move || serve(&stream, name, peer.ip().to_canonical()));
        }
    }
}

fn serve(mut stream: &TcpStream, name: &str, peer: IpAddr) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    writeln!(stream, "{name} {peer}").ok()?;
    sockets::echo(stream);
    Some(())
}

/// One request after the other, until the client ends the connection.
#[cfg(feature = "ingress")]
fn serve_http(mut stream: &TcpStream, name: &str, _: IpAddr) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        while !lines.next()?.ok()?.is_empty() {}
        let length = name.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}").ok()?;
    }
}

fn answer(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Relaxed) {
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let text = format!("{name} {}", peer.ip().to_canonical());
            // The client has a timeout.
            let _ = socket.send_to(text.as_bytes(), peer);
        }
    }
}

/// The server that answered, and the client's address as it saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) pod: String,
    pub(super) seen: IpAddr,
}

impl Answer {
    fn read(text: &str) -> Outcome<Self> {
        let odd = || format!("{text:?} is no answer");
        let (pod, seen) = text.trim().split_once(' ').ok_or_else(odd)?;
        Ok(Self { pod: pod.to_owned(), seen: seen.parse().map_err(|_| odd())? })
    }
}

/// Calls a server over TCP, and sends that many bytes there and back.
pub(super) fn ask_tcp(from: &NetNs, to: SocketAddr, bytes: usize) -> Outcome<Answer> {
    let stream = sockets::open(from, || TcpStream::connect_timeout(&to, PATIENCE))
        .map_err(|e| format!("connect to {to}: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    let (mut reader, mut line) = (BufReader::new(&stream), String::new());
    reader.read_line(&mut line).map_err(|e| format!("read: {e}"))?;
    let answer = Answer::read(&line)?;
    let (message, mut back) = (sockets::pattern(bytes), Vec::with_capacity(bytes));
    thread::scope(|scope| {
        scope.spawn(|| {
            // The reader reports errors.
            let _ = (&stream).write_all(&message).and_then(|()| stream.shutdown(Shutdown::Write));
        });
        reader.read_to_end(&mut back).map_err(|e| format!("read: {e}"))
    })?;
    match back == message {
        true => Ok(answer),
        false => Err(format!("{} of {bytes} bytes came back, or not as they were", back.len())),
    }
}

/// Queries a server over UDP, by a new socket.
pub(super) fn ask_udp(from: &NetNs, to: SocketAddr) -> Outcome<Answer> {
    ask_by(&udp_client(from, to)?)
}

/// A socket for querying `to`.
pub(super) fn udp_client(from: &NetNs, to: SocketAddr) -> Outcome<UdpSocket> {
    let socket = sockets::open(from, || UdpSocket::bind((sockets::unspecified(to.ip()), 0)))?;
    let ready = socket.connect(to).and_then(|()| socket.set_read_timeout(Some(RETRY)));
    ready.map_err(|e| e.to_string())?;
    Ok(socket)
}

/// Queries by a socket until there is an answer.
pub(super) fn ask_by(socket: &UdpSocket) -> Outcome<Answer> {
    let mut outcome = Err("never sent".to_owned());
    for _ in 0..TRIES {
        outcome = ask_once(socket).map_err(|e| format!("no answer: {e}")).and_then(|a| a);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Queries by a socket once.
pub(super) fn ask_once(socket: &UdpSocket) -> io::Result<Outcome<Answer>> {
    let mut buffer = [0; 64];
    socket.send(b"?")?;
    let count = socket.recv(&mut buffer)?;
    Ok(Answer::read(&String::from_utf8_lossy(&buffer[..count])))
}
