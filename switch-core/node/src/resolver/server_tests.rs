//! Clients' connections, with real sockets of the loopback interface.

use std::io::{Read as _, Write as _};
use std::sync::mpsc::{Sender, channel};

use podswitch_core::control::ControlPlane;
use podswitch_dns::{Name, query};

use super::super::stream::MAX_OUTPUT;
use super::super::upstreams::Stub;
use super::*;

/// When a test gives up. It takes far less.
const LIMIT: Duration = Duration::from_secs(30);

/// Has the server go on until something is so.
#[track_caller]
fn turn_until(server: &mut Server, what: &str, is_so: impl Fn(&Server) -> bool) {
    let clock = Clock::start();
    let begun = clock.now();
    while !is_so(server) {
        assert!(clock.now().since(begun) < LIMIT, "not within {LIMIT:?}: {what}");
        server.turn();
    }
}

/// That server for all names.
fn upstreams(at: &UdpSocket) -> Upstreams {
    let mut upstreams = Upstreams::default();
    upstreams.set(Stub::new(Name::parse(".").unwrap(), [at.local_addr().unwrap()]));
    upstreams
}

/// A server with one connection, and the client's end of it. Its only upstream is one where nobody replies.
fn server() -> (Server, TcpStream, UdpSocket) {
    let (server, client, silent, _) = server_with_changes();
    (server, client, silent)
}

/// The same, and where other upstreams are set.
fn server_with_changes() -> (Server, TcpStream, UdpSocket, Sender<Upstreams>) {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (changed, changes) = channel();
    let listeners =
        Listeners { udp: Vec::new(), tcp: vec![TcpListener::bind("127.0.0.1:0").unwrap()] };
    listeners.tcp[0].set_nonblocking(true).unwrap();
    let client = TcpStream::connect(listeners.tcp[0].local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.set_write_timeout(Some(LIMIT)).unwrap();
    let snapshots = ControlPlane::new(Default::default()).snapshots();
    let upstreams = upstreams(&silent);
    let mut server = Server::new(listeners, &[], snapshots, upstreams, changes, Arc::default());
    turn_until(&mut server, "a connection", |server| !server.connections.is_empty());
    (server, client, silent, changed)
}

fn framed(name: &str) -> Vec<u8> {
    let query = query(1, &Name::parse(name).unwrap(), 16, None);
    [&(query.len() as u16).to_be_bytes()[..], &query].concat()
}

/// A reply with a TXT record of almost the largest size.
fn large(query: &[u8]) -> Vec<u8> {
    let question = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let mut bytes = query[..question].to_vec();
    bytes[2] |= 0x80;
    bytes[3] = 0x80;
    bytes[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    bytes.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 30]);
    let strings = 250;
    bytes.extend((256_u16 * strings).to_be_bytes());
    for _ in 0..strings {
        bytes.push(255);
        bytes.extend([b'x'; 255]);
    }
    bytes
}

/// Has a large reply kept for the name.
fn keep(server: &mut Server, name: &str) {
    let message = framed(name);
    let Read::Query(asked) = message::read(&message[2..]) else { panic!() };
    let client = Client::Tcp(u64::MAX, [127, 0, 0, 1].into());
    let waiter = Waiter { client, asked: asked.clone(), limit: MAX_TCP, aliases: None };
    let now = server.clock.now();
    server.forwarder.ask(now, asked, waiter);
    while let Some(action) = server.forwarder.take() {
        if let Action::Send { flight, query, .. } = action {
            server.forwarder.reply(now, flight, &large(&query));
        }
    }
}

#[test]
fn a_client_that_reads_nothing_is_answered_until_its_connection_is_crowded() {
    let (mut server, mut client, _silent) = server();
    keep(&mut server, "large.example.com");
    let query = framed("large.example.com");
    let count = 200;
    client.write_all(&query.repeat(count)).unwrap();
    let queued = |server: &Server| -> usize {
        server.connections.values().map(|it| it.stream.queued()).sum()
    };
    let is_crowded = |server: &Server| server.connections.values().any(|it| it.stream.is_crowded());
    let mut turns = 0;
    while !is_crowded(&server) {
        server.turn();
        turns += 1;
        assert!(turns < 1000);
    }
    for _ in 0..100 {
        let now = server.clock.now();
        server.connection(now, 0);
        let queued = queued(&server);
        assert!(queued <= MAX_OUTPUT + 2 + MAX_TCP, "{queued}");
    }
    // Whatever it reads later is all there.
    let reader = std::thread::spawn(move || {
        for _ in 0..count {
            let mut len = [0; 2];
            client.read_exact(&mut len).unwrap();
            let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
            client.read_exact(&mut answer).unwrap();
            assert!(answer.len() > 60_000);
        }
    });
    turn_until(&mut server, "all answers are read", |_| reader.is_finished());
    reader.join().unwrap();
}

#[test]
fn a_connection_that_is_reset_ends_though_its_queries_wait() {
    let (mut server, mut client, _silent) = server();
    server.connections.get_mut(&0).unwrap().waiting = MAX_PIPELINED;
    // One more, which is not read.
    client.write_all(&framed("more.example.com")).unwrap();
    server.send(server.clock.now(), Client::Tcp(0, [127, 0, 0, 1].into()), b"unread");
    client.peek(&mut [0]).unwrap();
    // Not all is read: the kernel resets the connection.
    drop(client);
    let mut turns = 0;
    while !server.connections.is_empty() {
        server.turn();
        turns += 1;
        assert!(turns < 100, "turns do nothing");
    }
}

#[test]
fn a_connection_ends_when_too_much_waits() {
    let (mut server, _client, _silent) = server();
    let answer = vec![0; MAX_TCP];
    let now = server.clock.now();
    let mut sent = 0;
    while !server.connections[&0].stream.has_ended {
        server.send(now, Client::Tcp(0, [127, 0, 0, 1].into()), &answer);
        sent += 1;
        assert!(sent < 10_000);
    }
    assert_eq!(counts(&server), (1, 1));
    let queued = server.connections[&0].stream.unsent();
    assert!((10..sent).contains(&queued), "{queued} of {sent}");
    server.end_connections(now);
    assert!(server.connections.is_empty());
    assert_eq!(counts(&server), (1, 1 + queued));
    // Its queries that waited are answered in vain.
    server.send(now, Client::Tcp(0, [127, 0, 0, 1].into()), &answer);
    assert_eq!(counts(&server), (1, 2 + queued));
}

/// Connections ended, and answers that were not sent.
fn counts(server: &Server) -> (u64, u64) {
    (server.counters.connections_ended.get(), server.counters.unsent.get())
}

/// Sends answers until some have to wait, and returns how many.
fn fill(server: &mut Server) -> u64 {
    let answer = vec![0; MAX_TCP];
    let now = server.clock.now();
    while server.connections[&0].stream.unsent() < 3 {
        server.send(now, Client::Tcp(0, [127, 0, 0, 1].into()), &answer);
    }
    server.connections[&0].stream.unsent()
}

#[test]
fn a_silent_connection_ends_and_is_counted_with_the_answers_that_wait() {
    let (mut server, mut client, _silent) = server();
    let answer = [7; 100];
    let now = server.clock.now();
    server.send(now, Client::Tcp(0, [127, 0, 0, 1].into()), &answer);
    let mut got = [0; 102];
    client.read_exact(&mut got).unwrap();
    assert_eq!(server.connections[&0].stream.unsent(), 0);
    let queued = fill(&mut server);
    // One that is busy has longer.
    let now = server.clock.now();
    server.end_connections(now + 2 * IDLE);
    assert_eq!((server.connections.len(), counts(&server)), (1, (0, 0)));
    server.end_connections(now + 3 * IDLE);
    assert_eq!((server.connections.len(), counts(&server)), (0, (1, queued)));
    server.end_connections(now + 4 * IDLE);
    assert_eq!(counts(&server), (1, queued));
    // Nothing waits.
    let address = server.listeners.tcp[0].local_addr().unwrap();
    let _client = TcpStream::connect(address).unwrap();
    turn_until(&mut server, "another one", |server| !server.connections.is_empty());
    let now = server.clock.now();
    server.end_connections(now + IDLE);
    assert_eq!((server.connections.len(), counts(&server)), (0, (2, queued)));
}

#[test]
fn a_connection_that_the_client_ends_is_counted_for_the_answers_that_wait_alone() {
    let (mut server, client, _silent) = server();
    let queued = fill(&mut server);
    // What it has not read makes the kernel reset it.
    client.peek(&mut [0]).unwrap();
    drop(client);
    turn_until(&mut server, "a reset", |server| server.connections.is_empty());
    assert_eq!(counts(&server), (0, queued));
    // Closed in order, with all read.
    let address = server.listeners.tcp[0].local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    turn_until(&mut server, "another one", |server| !server.connections.is_empty());
    drop(client);
    turn_until(&mut server, "the end", |server| server.connections.is_empty());
    assert_eq!(counts(&server), (0, queued));
}

#[test]
fn what_gets_no_answer_or_an_error_is_counted() {
    let (mut server, _client, _silent) = server();
    let client = Client::Tcp(0, [127, 0, 0, 1].into());
    let now = server.clock.now();
    let good = &framed("www.example.com")[2..];
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = byte;
        bytes
    };
    // An answer, and less than a header; another opcode, two questions, another class.
    for message in [&changed(2, 0x81)[..], &good[..11]] {
        server.query(now, message, client);
    }
    for message in [changed(2, 0x21), changed(5, 2), changed(good.len() - 1, 3)] {
        server.query(now, &message, client);
    }
    assert_eq!(server.counters.ignored.get(), 2);
    assert_eq!(server.counters.errors.get(), 3);
    // One that is forwarded.
    server.query(now, good, client);
    assert_eq!(server.counters.cache_misses.get(), 1);
    let others = server.counters.zone.get() + server.counters.cache_hits.get();
    assert_eq!((server.counters.queries[1].get(), others), (2 + 3 + 1, 0));
    assert_eq!(server.counters.unsent.get(), 0);
}

#[test]
fn connections_beyond_the_limit_of_a_client_are_refused_and_counted() {
    let (mut server, _client, _silent) = server();
    let address = server.listeners.tcp[0].local_addr().unwrap();
    let _more: Vec<_> = (0..MAX_OF_CLIENT).map(|_| TcpStream::connect(address).unwrap()).collect();
    let refused = |server: &Server| server.counters.connections_refused.get();
    turn_until(&mut server, "one is refused", |server| refused(server) > 0);
    assert_eq!((refused(&server), server.connections.len()), (1, MAX_OF_CLIENT));
}

#[test]
fn other_upstreams_are_used_when_they_are_set() {
    let (mut server, mut client, _silent, changed) = server_with_changes();
    keep(&mut server, "kept.example.com");
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other.set_nonblocking(true).unwrap();
    for at in [&UdpSocket::bind("127.0.0.1:0").unwrap(), &other] {
        changed.send(upstreams(at)).unwrap();
    }
    server.turn();
    // What the earlier ones replied is not kept.
    client.write_all(&framed("kept.example.com")).unwrap();
    let is_asked = |_: &Server| {
        let mut query = [0; 512];
        // There are probes, too.
        std::iter::from_fn(|| other.recv(&mut query).ok().map(|len| query[..len].to_vec()))
            .any(|query| query[12..].starts_with(b"\x04kept\x07example\x03com\0"))
    };
    turn_until(&mut server, "the last server is queried", is_asked);
}

/// Connections of these clients, each silent for one millisecond less than the one before. They share a socket.
fn connect(server: &mut Server, socket: &TcpStream, peers: impl Iterator<Item = [u8; 4]>) {
    // None is silent for too long while the test runs.
    let base = server.clock.now() + Duration::from_secs(3600);
    for (at, peer) in peers.enumerate() {
        let stream = Stream::new(socket.try_clone().unwrap());
        let active = base + Duration::from_millis(at as u64);
        let it = Connection { stream, peer: peer.into(), active, waiting: 0 };
        server.connections.insert(server.next, it);
        server.next += 1;
    }
}

/// A server with these connections and no others.
fn full(peers: impl Iterator<Item = [u8; 4]>) -> (Server, TcpStream, UdpSocket) {
    let (mut server, client, silent) = server();
    let first = server.connections.remove(&0).unwrap();
    connect(&mut server, &first.stream.socket, peers);
    assert_eq!(server.connections.len(), MAX_CONNECTIONS);
    (server, client, silent)
}

#[test]
fn a_new_client_gets_in_when_few_hold_all_connections() {
    // 16 clients with all that they may have.
    let peers = (0..MAX_CONNECTIONS).map(|at| [10, 1, 0, (at % 16) as u8]);
    let (mut server, _client, _silent) = full(peers);
    let address = server.listeners.tcp[0].local_addr().unwrap();
    let localhost = IpAddr::from([127, 0, 0, 1]);
    let of =
        |server: &Server, peer| server.connections.values().filter(|it| it.peer == peer).count();
    let mut clients = Vec::new();
    for count in 1..=2 {
        let mut new = TcpStream::connect(address).unwrap();
        turn_until(&mut server, "it gets in", |server| of(server, localhost) == count);
        assert_eq!(server.connections.len(), MAX_CONNECTIONS);
        assert_eq!(counts(&server), (count as u64, 0));
        // Those that have been silent longest: 1 and 2.
        let is_left = |id| server.connections.contains_key(&id);
        assert_eq!([1, 2, 3].map(is_left), [false, count < 2, true]);
        // It is served.
        keep(&mut server, "kept.example.com");
        new.write_all(&framed("kept.example.com")).unwrap();
        let answers = |server: &Server| server.counters.cache_hits.get();
        turn_until(&mut server, "it is served", |server| answers(server) == count as u64);
        clients.push(new);
    }
    assert_eq!(server.counters.connections_refused.get(), 0);
}

#[test]
fn who_has_most_connections_makes_room() {
    // The first client has 15, all silent for longer than any of the second, which has 16.
    let first = std::iter::repeat_n([10, 1, 0, 1], 15);
    let second = std::iter::repeat_n([10, 1, 0, 2], 16);
    let others = (0..225).map(|at| [10, 1, 1, (at % 15) as u8]);
    let (mut server, _client, _silent) = full(first.chain(second).chain(others));
    let of = |server: &Server, peer: [u8; 4]| {
        server.connections.values().filter(|it| it.peer == IpAddr::from(peer)).count()
    };
    server.make_room([10, 1, 2, 1].into());
    assert_eq!((of(&server, [10, 1, 0, 1]), of(&server, [10, 1, 0, 2])), (15, 15));
    // The one of it that was silent longest.
    assert!(!server.connections.contains_key(&16) && server.connections.contains_key(&17));
    // A client that would have most with the new one ends one of its own.
    server.make_room([10, 1, 1, 3].into());
    assert_eq!((of(&server, [10, 1, 0, 1]), of(&server, [10, 1, 1, 3])), (15, 14));
    assert_eq!(counts(&server).0, 2);
}

#[test]
fn after_an_error_no_connections_are_accepted_for_a_while() {
    let (mut server, _client, _silent) = server();
    // Does not listen, so that each attempt fails; `poll` reports it without being asked for it.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    let good = std::mem::replace(&mut server.listeners.tcp[0], socket.into());
    let errors = |server: &Server| server.counters.accept_errors.get();
    turn_until(&mut server, "an error", |server| errors(server) == 1);
    assert!(server.accept_from > Instant::ZERO);
    // However long the test takes.
    server.accept_from = server.clock.now() + Duration::from_secs(3600);
    for _ in 0..3 {
        assert!(server.wait().tcp.is_empty());
        server.turn();
    }
    assert_eq!(errors(&server), 1);
    // Afterwards it is tried again, and works.
    server.accept_from = Instant::ZERO;
    server.turn();
    assert_eq!(errors(&server), 2);
    let address = good.local_addr().unwrap();
    server.listeners.tcp[0] = good;
    let _other = TcpStream::connect(address).unwrap();
    turn_until(&mut server, "a connection", |server| server.connections.len() == 2);
    assert_eq!(errors(&server), 2);
}

#[test]
fn a_socket_that_the_node_cannot_open_is_no_failure_of_the_server() {
    let (mut server, _client, silent) = server();
    let counted = |server: &Server| {
        let it = &server.counters;
        (it.open_errors.get(), it.failed.get(), it.forwarded.get())
    };
    let asked = |server: &mut Server, name: &str| {
        let message = framed(name);
        let Read::Query(asked) = message::read(&message[2..]) else { panic!() };
        let client = Client::Tcp(0, [127, 0, 0, 1].into());
        let waiter = Waiter { client, asked: asked.clone(), limit: MAX_TCP, aliases: None };
        server.forwarder.ask(server.clock.now(), asked, waiter);
        match server.forwarder.take() {
            Some(Action::Send { flight, .. }) => flight,
            other => panic!("{other:?}"),
        }
    };
    let before = counted(&server);
    let flight = asked(&mut server, "www.example.com");
    let local = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    let local = [&local[..], &[Errno::ADDRNOTAVAIL, Errno::ADDRINUSE]].concat();
    for error in &local {
        let now = server.clock.now();
        server.opened(now, flight, Err((*error).into()));
    }
    assert_eq!(counted(&server), (before.0 + 6, before.1, before.2));
    // Others are the server's.
    let other = asked(&mut server, "other.example.com");
    let now = server.clock.now();
    server.opened(now, other, Err(Errno::NETUNREACH.into()));
    assert_eq!(counted(&server), (before.0 + 6, before.1 + 1, before.2 + 1));
    // The first one is sent after a pause.
    silent.set_nonblocking(true).unwrap();
    let is_asked = |_: &Server| {
        let mut query = [0; 512];
        std::iter::from_fn(|| silent.recv(&mut query).ok().map(|len| query[..len].to_vec()))
            .any(|query| query[12..].starts_with(b"\x03www\x07example\x03com\0"))
    };
    turn_until(&mut server, "it is sent", is_asked);
}
