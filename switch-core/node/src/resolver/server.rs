//! The resolver's sockets: one thread that waits for all of them.
//!
//! Clients are served by sockets in the resolver's own namespace; other servers are asked by sockets of the node's, each
//! query by one of its own, whose port the kernel chooses at random.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use hashbrown::HashMap;
use podswitch_core::control::Snapshots;
use podswitch_core::time::{Clock, Instant};
use podswitch_dns::{MAX_SIZE, MAX_TCP, Outcome, Transport, answer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};

use super::forward::{Action, Client, Forwarder, Waiter};
use super::message::{self, Read};
use super::problems::SharedProblems;
use super::stream::Stream;
use super::upstreams::Upstreams;
use crate::metrics::ResolverCounters;

/// Most connections of clients, and of one of them.
const MAX_CONNECTIONS: usize = 256;
const MAX_OF_CLIENT: usize = 16;
/// How long a client's connection may be silent (RFC 7766 section 6.2.3: seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Most queries of a connection that wait.
const MAX_PIPELINED: usize = 32;
/// Datagrams that are read from a socket before the others get their turn.
const BURST: usize = 64;
/// The longest wait, so that the end is noticed.
const MAX_WAIT: Duration = Duration::from_millis(200);
/// How long no connections are accepted after an error, such as no file descriptor being left: the listener stays
/// readable, so the thread would turn without a pause.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Largest datagram that is read: an answer of a server that disregards what it was told may be longer than that.
const BUFFER: usize = 4096;

/// The sockets that clients use.
pub(super) struct Listeners {
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: Vec<TcpListener>,
}

impl Listeners {
    /// Opens them at port 53 of these addresses, in the namespace of the calling thread.
    pub(super) fn open(addresses: &[IpAddr]) -> io::Result<Self> {
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for address in addresses {
            let socket = UdpSocket::bind((*address, 53))?;
            socket.set_nonblocking(true)?;
            udp.push(socket);
            let listener = TcpListener::bind((*address, 53))?;
            listener.set_nonblocking(true)?;
            tcp.push(listener);
        }
        Ok(Self { udp, tcp })
    }
}

/// A client's connection.
struct Connection {
    stream: Stream,
    peer: IpAddr,
    active: Instant,
    /// Its queries that wait.
    waiting: usize,
}

impl Connection {
    /// Whether more of its queries may be answered.
    fn has_room(&self) -> bool {
        self.waiting < MAX_PIPELINED && !self.stream.is_crowded() && !self.stream.has_ended
    }

    /// Counts that the resolver ends it, and what waits to be written, which is lost.
    fn count_end(&self, counters: &ResolverCounters) {
        counters.unsent.add(self.stream.unsent());
        // The others were counted when too much waited, or ended by the client.
        counters.connections_ended.add(u64::from(!self.stream.has_ended));
    }

    /// Whether a query that has been read already may be answered.
    fn is_ready(&self) -> bool {
        self.has_room() && self.stream.has_message()
    }
}

/// The socket of a query to another server.
enum Upstream {
    Udp(UdpSocket),
    Tcp(Stream),
}

/// See the module's description.
pub(super) struct Server {
    listeners: Listeners,
    /// The addresses of those.
    own: Vec<SocketAddr>,
    snapshots: Snapshots,
    forwarder: Forwarder,
    /// Other servers than those of the start.
    changes: Receiver<Upstreams>,
    counters: Arc<ResolverCounters>,
    connections: HashMap<u64, Connection>,
    next: u64,
    /// When connections are accepted again.
    accept_from: Instant,
    upstreams: HashMap<u64, Upstream>,
    clock: Clock,
    rotation: u32,
    buffer: Box<[u8]>,
    out: Box<[u8]>,
}

impl Server {
    pub(super) fn new(
        listeners: Listeners,
        addresses: &[IpAddr],
        snapshots: Snapshots,
        upstreams: Upstreams,
        changes: Receiver<Upstreams>,
        counters: Arc<ResolverCounters>,
    ) -> Self {
        Self {
            listeners,
            own: addresses.iter().map(|address| SocketAddr::new(*address, 53)).collect(),
            snapshots,
            forwarder: Forwarder::new(upstreams, counters.clone()),
            changes,
            counters,
            connections: HashMap::new(),
            next: 0,
            accept_from: Instant::ZERO,
            upstreams: HashMap::new(),
            clock: Clock::start(),
            rotation: 0,
            buffer: vec![0; BUFFER].into(),
            out: vec![0; MAX_TCP].into(),
        }
    }

    /// What is wrong with the servers of other zones, kept up to date.
    pub(super) fn problems(&self) -> SharedProblems {
        self.forwarder.problems()
    }

    /// Serves until `stop`.
    pub(super) fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Relaxed) {
            self.turn();
        }
    }

    /// Waits once, and does what there is to do.
    fn turn(&mut self) {
        let Ready { udp, tcp, connections, broken, upstreams } = self.wait();
        let now = self.clock.now();
        for id in broken {
            // Nobody reads the answers that wait.
            let ended = self.connections.remove(&id);
            self.counters.unsent.add(ended.map_or(0, |it| it.stream.unsent()));
        }
        udp.into_iter().for_each(|at| self.datagrams(now, at));
        tcp.into_iter().for_each(|at| self.accept(now, at));
        connections.into_iter().for_each(|id| self.connection(now, id));
        upstreams.into_iter().for_each(|id| self.upstream(now, id));
        if let Some(upstreams) = self.changes.try_iter().last() {
            self.forwarder.set_upstreams(now, upstreams);
        }
        let (snapshots, own) = (&self.snapshots, &self.own);
        self.forwarder.tick(now, || {
            let names = snapshots.names();
            let frontends = names.iter().flat_map(|names| names.frontends.iter().copied());
            frontends.chain(own.iter().copied()).collect()
        });
        self.act(now);
        self.end_connections(now);
    }

    /// Ends the connections that are silent, with those that the client has closed, that failed, or for which too much
    /// waits. What is waiting to be written is lost.
    fn end_connections(&mut self, now: Instant) {
        self.connections.retain(|_, it| {
            let is_busy = it.waiting > 0 || it.stream.has_output();
            let silence = now.since(it.active);
            let is_silent = silence >= if is_busy { 3 * IDLE } else { IDLE };
            let is_kept = !is_silent && !it.stream.has_ended;
            if !is_kept {
                it.count_end(&self.counters);
            }
            is_kept
        });
    }

    /// Waits until a socket is ready or something is due.
    fn wait(&self) -> Ready {
        let (input, output) = (PollFlags::IN, PollFlags::OUT);
        let now = self.clock.now();
        // Left out, not waited for with no flags: errors are reported even then.
        let is_paused = now < self.accept_from;
        let accepting = if is_paused { &[][..] } else { &self.listeners.tcp[..] };
        let mut fds = Vec::new();
        for socket in &self.listeners.udp {
            fds.push(PollFd::new(socket, input));
        }
        for listener in accepting {
            fds.push(PollFd::new(listener, input));
        }
        let connections: Vec<u64> = self.connections.keys().copied().collect();
        for id in &connections {
            let it = &self.connections[id];
            let mut flags = PollFlags::empty();
            flags.set(input, it.has_room() && !it.stream.has_message());
            flags.set(output, it.stream.has_output());
            fds.push(PollFd::from_borrowed_fd(it.stream.socket.as_fd(), flags));
        }
        let upstreams: Vec<u64> = self.upstreams.keys().copied().collect();
        for id in &upstreams {
            match &self.upstreams[id] {
                Upstream::Udp(socket) => fds.push(PollFd::new(socket, input)),
                Upstream::Tcp(stream) => {
                    let flags = if stream.has_output() { input | output } else { input };
                    fds.push(PollFd::from_borrowed_fd(stream.socket.as_fd(), flags));
                }
            }
        }
        let is_left = self.connections.values().any(Connection::is_ready);
        let pause = match is_left {
            true => Duration::ZERO,
            false => {
                let due = self.forwarder.due();
                let due = if is_paused { due.min(self.accept_from) } else { due };
                due.since(now).min(MAX_WAIT)
            }
        };
        let pause = Timespec { tv_sec: 0, tv_nsec: pause.as_nanos() as _ };
        // Interrupted: nothing is ready.
        let _ = poll(&mut fds, Some(&pause));
        let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let (udp, rest) = events.split_at(self.listeners.udp.len());
        let (tcp, rest) = rest.split_at(accepting.len());
        let (of_clients, of_servers) = rest.split_at(connections.len());
        let indexes =
            |list: &[PollFlags]| (0..list.len()).filter(|at| !list[*at].is_empty()).collect();
        let mut ready = Ready {
            udp: indexes(udp),
            tcp: indexes(tcp),
            connections: Vec::new(),
            broken: Vec::new(),
            upstreams: Vec::new(),
        };
        for (id, events) in connections.into_iter().zip(of_clients) {
            // These are reported whether they are waited for or not.
            if events.intersects(PollFlags::ERR | PollFlags::HUP) {
                ready.broken.push(id);
            } else if !events.is_empty() || self.connections[&id].is_ready() {
                ready.connections.push(id);
            }
        }
        let of_servers = upstreams.into_iter().zip(of_servers);
        ready.upstreams =
            of_servers.filter(|(_, events)| !events.is_empty()).map(|(id, _)| id).collect();
        ready
    }

    /// Reads clients' datagrams.
    fn datagrams(&mut self, now: Instant, at: usize) {
        for _ in 0..BURST {
            let mut buffer = std::mem::take(&mut self.buffer);
            let received = self.listeners.udp[at].recv_from(&mut buffer);
            if let Ok((len, peer)) = received {
                self.query(now, &buffer[..len], Client::Udp(at, peer));
            }
            self.buffer = buffer;
            match received {
                Ok(_) => {}
                // An ICMP error about an earlier answer is reported here.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }

    /// Answers a query from the zone, or has it forwarded.
    fn query(&mut self, now: Instant, query: &[u8], client: Client) {
        let (transport, at) = match client {
            Client::Udp(..) => (Transport::Udp, 0),
            Client::Tcp(..) => (Transport::Tcp, 1),
        };
        self.counters.queries[at].add(1);
        let asked = match message::read(query) {
            Read::Query(asked) => asked,
            // The zone may know better what is wrong with it.
            Read::Refused(message) => {
                let of_zone = self.of_zone(query, transport).map(|(message, _)| message);
                let count =
                    if of_zone.is_some() { &self.counters.zone } else { &self.counters.errors };
                count.add(1);
                return self.send(now, client, &of_zone.unwrap_or(message));
            }
            Read::Ignored => return self.counters.ignored.add(1),
        };
        let limit = match client {
            Client::Udp(..) => asked.udp_limit(),
            Client::Tcp(..) => MAX_TCP,
        };
        let mut of_zone = self.of_zone(query, transport);
        if of_zone.is_none() {
            // Compressed, or with other records: again as the engine reads it.
            let plain = asked.plain(asked.id);
            if plain != query {
                of_zone = self.of_zone(&plain, transport);
            }
        }
        let (question, aliases) = match of_zone {
            Some((message, false)) => {
                self.counters.zone.add(1);
                return self.send(now, client, &message);
            }
            Some((message, true)) => match message::last_alias(&message) {
                Some(name) if asked.qtype != domain::base::iana::Rtype::CNAME => {
                    (asked.about(name), Some(message))
                }
                _ => {
                    self.counters.zone.add(1);
                    return self.send(now, client, &message);
                }
            },
            None => (asked.clone(), None),
        };
        if let Client::Tcp(id, _) = client
            && let Some(connection) = self.connections.get_mut(&id)
        {
            connection.waiting += 1;
        }
        self.forwarder.ask(now, question, Waiter { client, asked, limit, aliases });
    }

    /// The answer of the zone, and whether its last alias leads elsewhere. `None`: it is for other servers.
    fn of_zone(&mut self, query: &[u8], transport: Transport) -> Option<(Vec<u8>, bool)> {
        let names = self.snapshots.names()?;
        self.rotation = self.rotation.wrapping_add(1);
        let size = if transport == Transport::Udp { MAX_SIZE } else { MAX_TCP };
        let out = &mut self.out[..size];
        match answer(&names.zone, query, transport, self.rotation, out) {
            Outcome::Answered(it) => Some((out[..it.len].to_vec(), it.is_partial)),
            Outcome::NotOurs(_) | Outcome::Ignored(_) => None,
        }
    }

    /// Sends a client its answer.
    fn send(&mut self, now: Instant, client: Client, message: &[u8]) {
        let is_sent = match client {
            // A client that does not take it asks again.
            Client::Udp(at, peer) => self.listeners.udp[at].send_to(message, peer).is_ok(),
            Client::Tcp(id, _) => match self.connections.get_mut(&id) {
                Some(connection) if !connection.stream.has_ended => {
                    connection.active = now;
                    let has_room = connection.stream.push(message);
                    self.counters.connections_ended.add(u64::from(!has_room));
                    connection.stream.flush();
                    has_room
                }
                _ => false,
            },
        };
        self.counters.unsent.add(u64::from(!is_sent));
    }

    fn accept(&mut self, now: Instant, at: usize) {
        for _ in 0..BURST {
            let (socket, peer) = match self.listeners.tcp[at].accept() {
                Ok((socket, peer)) => (socket, peer.ip()),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    // The client has given up.
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    _ => {
                        self.counters.accept_errors.add(1);
                        self.accept_from = now + ACCEPT_PAUSE;
                        return;
                    }
                },
            };
            let of_client = self.connections.values().filter(|it| it.peer == peer).count();
            if of_client >= MAX_OF_CLIENT || socket.set_nonblocking(true).is_err() {
                self.counters.connections_refused.add(1);
                continue;
            }
            if self.connections.len() >= MAX_CONNECTIONS {
                self.make_room(peer);
            }
            let connection =
                Connection { stream: Stream::new(socket), peer, active: now, waiting: 0 };
            self.connections.insert(self.next, connection);
            self.next += 1;
        }
    }

    /// Ends a connection in favor of a new one of this client: the one that has been silent longest, of the address that
    /// has most with the new one. Few clients that keep all connections busy so lock out nobody.
    fn make_room(&mut self, newcomer: IpAddr) {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        counts.insert(newcomer, 1);
        for connection in self.connections.values() {
            *counts.entry(connection.peer).or_default() += 1;
        }
        let most = counts.values().copied().max();
        let of_most =
            self.connections.iter().filter(|(_, it)| counts.get(&it.peer).copied() == most);
        let Some(id) = of_most.min_by_key(|(id, it)| (it.active, **id)).map(|(id, _)| *id) else {
            return;
        };
        if let Some(ended) = self.connections.remove(&id) {
            ended.count_end(&self.counters);
        }
    }

    /// Reads and writes a client's connection.
    fn connection(&mut self, now: Instant, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.stream.flush();
        if connection.has_room() && !connection.stream.has_message() {
            connection.stream.fill();
        }
        let peer = connection.peer;
        // A client that reads nothing is answered until its connection is crowded. The rest of its queries waits.
        while let Some(connection) = self.connections.get_mut(&id)
            && connection.has_room()
            && let Some(query) = connection.stream.next()
        {
            connection.active = now;
            self.query(now, &query, Client::Tcp(id, peer));
            // Answers that were kept are there at once.
            self.act(now);
        }
    }

    /// Reads what another server replied.
    fn upstream(&mut self, now: Instant, id: u64) {
        let Some(upstream) = self.upstreams.get_mut(&id) else { return };
        let (mut replies, mut has_failed) = (Vec::new(), false);
        match upstream {
            Upstream::Udp(socket) => loop {
                match socket.recv(&mut self.buffer) {
                    Ok(len) => replies.push(self.buffer[..len].to_vec()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => {
                        // After a reply, this may be the socket of a try that is over.
                        has_failed = replies.is_empty();
                        break;
                    }
                }
                if replies.len() >= BURST {
                    break;
                }
            },
            Upstream::Tcp(stream) => {
                stream.flush();
                stream.fill();
                replies.extend(std::iter::from_fn(|| stream.next()));
                has_failed = stream.has_ended && replies.is_empty();
            }
        }
        for reply in replies {
            self.forwarder.reply(now, id, &reply);
        }
        if has_failed {
            self.upstreams.remove(&id);
            self.forwarder.failed(now, id);
        }
    }

    /// A query was sent by a new socket, or could not be.
    fn opened(&mut self, now: Instant, flight: u64, result: io::Result<Upstream>) {
        match result {
            Err(error) if is_local(&error) => return self.forwarder.not_sent(now, flight),
            Err(_) => self.forwarder.failed(now, flight),
            Ok(upstream) => drop(self.upstreams.insert(flight, upstream)),
        }
        self.counters.forwarded.add(1);
    }

    /// Does what the forwarder decided.
    fn act(&mut self, now: Instant) {
        while let Some(action) = self.forwarder.take() {
            match action {
                Action::Send { flight, to, query, by_tcp } => {
                    self.opened(now, flight, open(to, &query, by_tcp));
                }
                Action::Close { flight } => drop(self.upstreams.remove(&flight)),
                Action::Answer { client, message } => {
                    if let Client::Tcp(id, _) = client
                        && let Some(connection) = self.connections.get_mut(&id)
                    {
                        connection.waiting = connection.waiting.saturating_sub(1);
                    }
                    self.send(now, client, &message);
                }
            }
        }
    }
}

/// The sockets that are ready.
struct Ready {
    udp: Vec<usize>,
    tcp: Vec<usize>,
    connections: Vec<u64>,
    /// Connections that failed.
    broken: Vec<u64>,
    upstreams: Vec<u64>,
}

/// Whether no socket could be opened for lack of file descriptors, memory, addresses or ports of this node, which says
/// nothing about the server.
fn is_local(error: &io::Error) -> bool {
    let Some(error) = Errno::from_io_error(error) else { return false };
    // The last one: no port is left to bind to.
    let local = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    local.contains(&error) || [Errno::ADDRNOTAVAIL, Errno::ADDRINUSE].contains(&error)
}

/// Sends a query to another server by a new socket, without waiting.
fn open(to: SocketAddr, query: &[u8], by_tcp: bool) -> io::Result<Upstream> {
    if !by_tcp {
        let any: SocketAddr =
            if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        // Datagrams of others are not received.
        socket.connect(to)?;
        socket.send(query)?;
        return Ok(Upstream::Udp(socket));
    }
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let mut stream = Stream::new(TcpStream::from(socket));
    stream.push(query);
    Ok(Upstream::Tcp(stream))
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
