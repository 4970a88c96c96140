//! Traffic from the client's pod to the server's, through the Service.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Outcome;
use crate::world::{CLIENT, SERVICES, World};

/// The server's port.
const SERVER: &str = "0.0.0.0:8080";
const OTHER_SERVER: &str = "0.0.0.0:8081";
/// Timeout for everything that a restart may delay, including TCP's retransmissions.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two bursts of datagrams.
const TICK: Duration = Duration::from_millis(1);
/// More datagrams than arrive at once after a pause.
const BUFFER: usize = 16 << 20;

pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn service() -> SocketAddr {
    format!("{}:80", SERVICES[0]).parse().expect("a valid address")
}

/// What the receiver has received since it was reset.
#[derive(Default)]
struct Seen {
    received: AtomicU64,
    /// One more than the highest number received.
    next: AtomicU64,
    /// The time of the last datagram, and the longest time between two, in nanoseconds.
    last: AtomicU64,
    longest: AtomicU64,
}

/// Numbered datagrams at a steady rate.
pub(crate) struct Datagrams {
    seen: Arc<Seen>,
    clock: Clock,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// The number of datagrams received, and the next expected number, at the reset.
    base: (AtomicU64, AtomicU64),
}

impl Datagrams {
    pub(crate) fn start(world: &World, rate: u32) -> Outcome<Self> {
        // Datagrams that an earlier sender left in queues are not counted.
        static SERIES: AtomicU64 = AtomicU64::new(0);
        let series = SERIES.fetch_add(1, Relaxed);
        let receiver = world.server.enter(|| UdpSocket::bind(SERVER))??;
        set_socket_recv_buffer_size_force(&receiver, BUFFER)?;
        receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
        let sender = world.client.enter(|| UdpSocket::bind("0.0.0.0:0"))??;
        sender.connect(service())?;
        let (seen, ends) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
        let clock = Clock::start();
        let receiving = {
            let (seen, ends) = (seen.clone(), ends.clone());
            thread::spawn(move || receive(&receiver, series, &seen, &ends, clock))
        };
        let sending = {
            let ends = ends.clone();
            thread::spawn(move || send(&sender, series, rate, &ends))
        };
        let datagrams = Self {
            seen,
            clock,
            ends,
            threads: vec![receiving, sending],
            base: (AtomicU64::new(0), AtomicU64::new(0)),
        };
        datagrams.wait_until_flowing()?;
        Ok(datagrams)
    }

    /// Waits until one arrives.
    pub(crate) fn wait_until_flowing(&self) -> Outcome<()> {
        let (before, began) = (self.seen.received.load(Relaxed), self.clock.now());
        while self.seen.received.load(Relaxed) == before {
            if self.clock.now().since(began) > TIMEOUT {
                return Err("no datagram arrives".into());
            }
            thread::sleep(TICK);
        }
        Ok(())
    }

    /// Resets the counts.
    pub(crate) fn reset(&self) {
        self.base.0.store(self.seen.received.load(Relaxed), Relaxed);
        self.base.1.store(self.seen.next.load(Relaxed), Relaxed);
        self.seen.longest.store(0, Relaxed);
    }

    /// The longest time without a datagram, and the number of lost ones.
    pub(crate) fn read(&self) -> (Duration, u64) {
        let received = self.seen.received.load(Relaxed) - self.base.0.load(Relaxed);
        let sent = self.seen.next.load(Relaxed) - self.base.1.load(Relaxed);
        let longest = Duration::from_nanos(self.seen.longest.load(Relaxed));
        (longest, sent.saturating_sub(received))
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn receive(socket: &UdpSocket, series: u64, seen: &Seen, ends: &AtomicBool, clock: Clock) {
    let mut datagram = [0; 16];
    while !ends.load(Relaxed) {
        let length = socket.recv(&mut datagram);
        let [from, number] = [0, 8].map(|at| {
            datagram[at..].first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
        });
        if length.is_ok_and(|length| length == 16) && from == series {
            let now = clock.now().as_nanos();
            let last = seen.last.swap(now, Relaxed);
            if last > 0 {
                seen.longest.fetch_max(now - last, Relaxed);
            }
            seen.received.fetch_add(1, Relaxed);
            seen.next.fetch_max(number + 1, Relaxed);
        }
    }
}

fn send(socket: &UdpSocket, series: u64, rate: u32, ends: &AtomicBool) {
    let clock = Clock::start();
    let mut number = 0u64;
    while !ends.load(Relaxed) {
        let due = clock.now().as_nanos() as u128 * u128::from(rate) / 1_000_000_000;
        while u128::from(number) < due {
            // Without a switch the interface has no carrier: the datagram is lost, and counted.
            let datagram = [series.to_le_bytes(), number.to_le_bytes()].concat();
            let _ = socket.send(&datagram);
            number += 1;
        }
        thread::sleep(TICK);
    }
}

/// TCP connections, of which this process holds both ends.
pub(crate) struct Connections {
    open: Vec<[TcpStream; 2]>,
    /// Bytes that each end has sent and the other has not read yet.
    sent: u8,
}

impl Connections {
    pub(crate) fn open(world: &World, count: u32) -> Outcome<Self> {
        let listener = world.server.enter(|| TcpListener::bind(SERVER))??;
        let (sender, servers) = channel();
        let accepting = thread::spawn(move || {
            for stream in listener.incoming().take(count as usize) {
                let Ok(mut stream) = stream else { return };
                let mut number = [0; 4];
                let told = stream.read_exact(&mut number);
                if told.is_err() || sender.send((u32::from_le_bytes(number), stream)).is_err() {
                    return;
                }
            }
        });
        let mut open = Vec::new();
        for number in 0..count {
            let connect = || TcpStream::connect_timeout(&service(), TIMEOUT);
            let mut client = world.client.enter(connect)??;
            client.write_all(&number.to_le_bytes())?;
            let (told, server) = servers.recv_timeout(TIMEOUT)?;
            if told != number {
                return Err("connections are confused".into());
            }
            for end in [&client, &server] {
                end.set_nodelay(true)?;
            }
            open.push([client, server]);
        }
        let _ = accepting.join();
        Ok(Self { open, sent: 0 })
    }

    /// Each end sends a byte.
    pub(crate) fn send_all(&mut self) {
        self.sent += 1;
        for end in self.open.iter_mut().flatten() {
            // A lost connection is noticed when it is read.
            let _ = end.write_all(&[self.sent]);
        }
    }

    /// Reads the bytes that were sent. Returns the number of connections that do not deliver them,
    /// which are closed.
    pub(crate) fn check(&mut self) -> usize {
        let (before, clock) = (self.open.len(), Clock::start());
        let expected: Vec<u8> = (1..=std::mem::take(&mut self.sent)).collect();
        self.open.retain_mut(|ends| {
            ends.iter_mut().all(|end| {
                let left = TIMEOUT.saturating_sub(clock.now().since(Instant::ZERO));
                let mut got = vec![0; expected.len()];
                let wait = left.max(Duration::from_millis(1));
                end.set_read_timeout(Some(wait)).is_ok()
                    && end.read_exact(&mut got).is_ok()
                    && got == expected
            })
        });
        before - self.open.len()
    }
}

/// Requests and answers over one TCP connection through a ClusterIP, one after the other.
pub(crate) struct Requests {
    /// The longest time from a request to its answer since the last reset, in nanoseconds.
    longest: Arc<AtomicU64>,
    answers: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Requests {
    pub(crate) fn start(world: &World) -> Outcome<Self> {
        let listener = world.server.enter(|| TcpListener::bind(OTHER_SERVER))??;
        let address: SocketAddr = format!("{}:80", SERVICES[1]).parse()?;
        let connect = || TcpStream::connect_timeout(&address, TIMEOUT);
        let mut client = world.client.enter(connect)??;
        let (mut server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(TIMEOUT))?;
        }
        thread::spawn(move || {
            let mut byte = [0];
            while server.read_exact(&mut byte).and_then(|()| server.write_all(&byte)).is_ok() {}
        });
        let (longest, answers) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let ends = Arc::new(AtomicBool::new(false));
        let thread = {
            let (longest, answers, ends) = (longest.clone(), answers.clone(), ends.clone());
            thread::spawn(move || {
                let clock = Clock::start();
                while !ends.load(Relaxed) {
                    let began = clock.now();
                    client.write_all(b"?")?;
                    client.read_exact(&mut [0])?;
                    longest.fetch_max(clock.now().since(began).as_nanos() as u64, Relaxed);
                    answers.fetch_add(1, Relaxed);
                    thread::sleep(TICK);
                }
                Ok(())
            })
        };
        Ok(Self { longest, answers, ends, thread: Some(thread) })
    }

    /// Begins anew.
    pub(crate) fn reset(&self) {
        self.longest.store(0, Relaxed);
    }

    /// The longest time without an answer, once the last request has one.
    pub(crate) fn longest(&self) -> Outcome<Duration> {
        let clock = Clock::start();
        let before = self.answers.load(Relaxed);
        // One may be on its way since before the reset.
        while self.answers.load(Relaxed) < before + 2 {
            if clock.now().since(Instant::ZERO) > TIMEOUT
                || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
            {
                return Err("no answer arrives".into());
            }
            thread::sleep(TICK);
        }
        Ok(Duration::from_nanos(self.longest.load(Relaxed)))
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens this number of connections with one datagram each, and sends again if one was lost.
/// Returns the servers, so that their ports stay open.
pub(crate) fn open_many(world: &World, count: u32) -> Outcome<[UdpSocket; 2]> {
    let bind = |address| world.server.enter(|| UdpSocket::bind(address));
    let servers = [bind(SERVER)??, bind(OTHER_SERVER)??];
    let clock = Clock::start();
    while count > 0 && world.connections_now()? < u64::from(count) {
        if clock.now().since(Instant::ZERO) > TIMEOUT {
            return Err(format!("only {} connections open", world.connections_now()?).into());
        }
        send_to_all(world, count)?;
    }
    Ok(servers)
}

/// Sends one datagram on each of these connections.
pub(crate) fn send_to_all(world: &World, count: u32) -> Outcome<()> {
    const FIRST: u32 = 2_000;
    let each = count.div_ceil(SERVICES.len() as u32);
    world.client.enter(|| -> io::Result<()> {
        let mut left = count;
        for port in FIRST..FIRST + each {
            let socket = UdpSocket::bind((CLIENT, port as u16))?;
            for service in SERVICES.iter().take(left.min(2) as usize) {
                socket.send_to(b"x", (*service, 80))?;
                left -= 1;
            }
            // The queue of the pod's interface holds a thousand packets.
            if port % 100 == 0 {
                thread::sleep(TICK);
            }
        }
        Ok(())
    })??;
    Ok(())
}
