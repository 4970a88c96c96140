//! Switches that are killed while a holder keeps their devices: pods keep their link, what they send meanwhile waits, and
//! connections go on.

mod devices;
mod ends;
mod policy;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use podswitch_linux::handover::{Channel, Peer};
use podswitch_linux::{NetNs, Netlink};
use podswitch_node::hold::HOLD_SOCKET;
use podswitch_vswitch_testkit::RunDir;
use podswitch_vswitch_testkit::cluster::{Limit, PATIENCE};

/// Whether another process has the other end of an interface open.
fn has_carrier(ns: &NetNs, name: &str) -> bool {
    Netlink::open(ns).unwrap().link(name).unwrap().is_running
}

/// Waits until nobody has.
#[track_caller]
fn loses_carrier(ns: &NetNs, name: &str) {
    let limit = Limit::new(PATIENCE);
    while has_carrier(ns, name) {
        limit.left().expect("it is closed");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The holder's process, if one listens.
fn holder(run_dir: &RunDir) -> Option<Peer> {
    let channel = Channel::connect(&std::path::Path::new(&run_dir.0).join(HOLD_SOCKET)).ok()?;
    Some(channel.peer().expect("a Unix socket"))
}

/// Waits until none listens.
#[track_caller]
fn holder_ends(run_dir: &RunDir) {
    let limit = Limit::new(PATIENCE);
    while holder(run_dir).is_some() {
        limit.left().expect("it ends");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until one listens.
#[track_caller]
fn holder_begins(run_dir: &RunDir) {
    let limit = Limit::new(PATIENCE);
    while holder(run_dir).is_none() {
        limit.left().expect("it begins");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A TCP connection with both ends in hand.
struct Open {
    what: String,
    client: TcpStream,
    server: TcpStream,
}

impl Open {
    #[track_caller]
    fn new(from: &NetNs, to: &NetNs, address: IpAddr, port: u16) -> Self {
        let at = SocketAddr::new(address, port);
        let listener = to.enter(|| TcpListener::bind(at)).unwrap().expect("bound");
        let client = from.enter(|| TcpStream::connect_timeout(&at, PATIENCE)).unwrap();
        let client = client.unwrap_or_else(|error| panic!("{at}: {error}"));
        let (server, _) = listener.accept().expect("accepted");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            stream.set_nodelay(true).expect("set");
        }
        Self { what: at.to_string(), client, server }
    }

    #[track_caller]
    fn client_sends(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }

    #[track_caller]
    fn server_sends(&mut self, bytes: &[u8]) {
        self.server.write_all(bytes).unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }

    /// What was sent arrives.
    #[track_caller]
    fn server_gets(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        self.server.read_exact(&mut got).unwrap_or_else(|e| panic!("{}: {e}", self.what));
        assert_eq!(got, bytes, "{}", self.what);
    }

    #[track_caller]
    fn client_gets(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        self.client.read_exact(&mut got).unwrap_or_else(|e| panic!("{}: {e}", self.what));
        assert_eq!(got, bytes, "{}", self.what);
    }
}

/// Sockets of datagrams that are counted one by one.
struct Datagrams {
    from: UdpSocket,
    to: UdpSocket,
    next: u8,
}

impl Datagrams {
    fn new(from: &NetNs, to: &NetNs, address: IpAddr, port: u16) -> Self {
        let receiver = to.enter(|| UdpSocket::bind((address, port))).unwrap().expect("bound");
        receiver.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let sender = from.enter(|| UdpSocket::bind(any)).unwrap().expect("bound");
        sender.connect((address, port)).expect("a route");
        Self { from: sender, to: receiver, next: 0 }
    }

    fn send(&mut self, count: u8) {
        for _ in 0..count {
            self.from.send(&[self.next]).expect("sent");
            self.next = self.next.wrapping_add(1);
        }
    }

    /// The next `count` datagrams, or as many as come.
    fn receive(&self, count: usize) -> Vec<u8> {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        let limit = Limit::new(PATIENCE);
        while seen.len() < count && limit.left().is_some() {
            if self.to.recv(&mut byte).is_ok() {
                seen.push(byte[0]);
            }
        }
        seen
    }

    /// Whether nothing comes.
    fn is_silent(&self) -> bool {
        self.to.recv(&mut [0]).is_err()
    }
}
