//! The health check responder (S12): reports to load balancers whether this node has an endpoint of a
//! Service whose external traffic policy is Local.
//!
//! One thread listens on every health check port at the node's addresses, inside the node's
//! namespace, and answers HTTP as kube-proxy does: 200 if a local endpoint is ready and not
//! terminating, otherwise 503. Connections are bounded in number, size and time, so that clients
//! cannot exhaust it. The caller of [`update`](HealthResponder::update) opens and closes the
//! sockets and gets the errors.

mod check;
mod connection;
mod places;
mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use podswitch_core::time::Clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

pub use self::check::HealthCheck;
use self::places::Places;
use super::{Context, HostError, NetNs};

/// Commands to the thread.
enum Order {
    Listen(SocketAddr, TcpListener),
    Close(SocketAddr),
    /// Answers, by port.
    Answers(BTreeMap<u16, HealthCheck>),
}

/// See the module's description. Ends when dropped.
#[derive(Debug)]
pub struct HealthResponder {
    ns: NetNs,
    /// `None`: there are no health checks and no thread.
    thread: Option<Thread>,
    /// Duplicates of the thread's sockets, for a successor.
    listening: BTreeMap<SocketAddr, TcpListener>,
    /// Sockets of a predecessor that are not used yet.
    inherited: BTreeMap<SocketAddr, TcpListener>,
    checks: BTreeMap<u16, HealthCheck>,
}

#[derive(Debug)]
struct Thread {
    orders: Sender<Order>,
    /// Closed to end the thread.
    wake: UnixStream,
    handle: JoinHandle<Result<(), HostError>>,
}

impl HealthResponder {
    /// A responder in `ns` that has no health checks yet.
    pub fn new(ns: &NetNs) -> Self {
        let (listening, inherited, checks) = Default::default();
        Self { ns: ns.clone(), thread: None, listening, inherited, checks }
    }

    /// Uses sockets of a predecessor instead of opening them. The next [`update`](Self::update) closes those that are not
    /// needed.
    pub fn inherit(&mut self, sockets: impl IntoIterator<Item = OwnedFd>) {
        let listeners = sockets.into_iter().map(TcpListener::from);
        let each = listeners.filter_map(|socket| Some((socket.local_addr().ok()?, socket)));
        self.inherited.extend(each);
    }

    /// Duplicates of the sockets, for a successor. Both answer until this is dropped.
    pub fn sockets(&self) -> impl Iterator<Item = OwnedFd> {
        let copy = |socket: &TcpListener| socket.as_fd().try_clone_to_owned().ok();
        self.listening.values().filter_map(copy)
    }

    /// Sets the Services and addresses of the health checks from now on. Costs little if nothing
    /// changed. Returns the errors of sockets that could not be opened; the next call tries again.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn update(
        &mut self,
        addresses: &[IpAddr],
        checks: impl IntoIterator<Item = HealthCheck>,
    ) -> Result<Vec<HostError>, HostError> {
        let mut wanted: BTreeMap<u16, HealthCheck> = BTreeMap::new();
        for check in checks {
            // If two Services claim the same port, the first one gets it.
            wanted.entry(check.port).or_insert(check);
        }
        let sockets: BTreeSet<SocketAddr> = wanted
            .keys()
            .flat_map(|port| addresses.iter().map(|address| SocketAddr::new(*address, *port)))
            .collect();
        if sockets.is_empty() {
            self.end();
            return Ok(Vec::new());
        }
        if wanted == self.checks && sockets.iter().eq(self.listening.keys()) {
            return Ok(Vec::new());
        }
        if self.thread.is_none() {
            self.thread = Some(Thread::start(&self.ns)?);
        }
        let Some(thread) = &self.thread else { return Ok(Vec::new()) };
        // This comes first, so that no new socket is queried before there is an answer.
        thread.order(Order::Answers(wanted.clone()));
        for gone in self.listening.keys().filter(|address| !sockets.contains(address)) {
            thread.order(Order::Close(*gone));
        }
        self.listening.retain(|socket, _| sockets.contains(socket));
        self.checks = wanted;
        let is_missing = |address: &&SocketAddr| !self.listening.contains_key(address);
        let missing: Vec<SocketAddr> = sockets.iter().filter(is_missing).copied().collect();
        let mut inherited = std::mem::take(&mut self.inherited);
        let mut open = |at: &SocketAddr| inherited.remove(at).map_or_else(|| listen(*at), Ok);
        let opened = self.ns.enter(|| missing.iter().map(&mut open).collect::<Vec<_>>())?;
        let mut failed = Vec::new();
        for (address, listener) in missing.into_iter().zip(opened) {
            let both = listener.and_then(|listener| Ok((listener.try_clone()?, listener)));
            match both.context(|| format!("listen for health checks at {address}")) {
                Ok((copy, listener)) => {
                    thread.order(Order::Listen(address, listener));
                    self.listening.insert(address, copy);
                }
                Err(error) => failed.push(error),
            }
        }
        Ok(failed)
    }

    fn end(&mut self) {
        self.listening.clear();
        self.inherited.clear();
        self.checks.clear();
        if let Some(Thread { wake, handle, .. }) = self.thread.take() {
            drop(wake);
            // A panic has been reported already.
            let _ = handle.join();
        }
    }
}

impl Drop for HealthResponder {
    fn drop(&mut self) {
        self.end();
    }
}

/// Number of connections that the kernel queues for each socket while the thread is busy.
const BACKLOG: i32 = 4096;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // Called again, with a longer backlog than the standard library's.
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Thread {
    fn start(ns: &NetNs) -> Result<Self, HostError> {
        let what = || "make a pair of sockets".to_owned();
        let (wake, woken) = UnixStream::pair().context(what)?;
        wake.set_nonblocking(true).context(what)?;
        woken.set_nonblocking(true).context(what)?;
        let (orders, received) = channel();
        let handle = ns.spawn("health-checks", move || serve(&received, &woken))?;
        Ok(Self { orders, wake, handle })
    }

    fn order(&self, order: Order) {
        // A thread that has ended needs no commands, and a full pipe wakes it anyway.
        let _ = self.orders.send(order);
        let _ = (&self.wake).write(&[1]);
    }
}

/// The thread, until the other end of `woken` is closed.
fn serve(orders: &Receiver<Order>, mut woken: &UnixStream) {
    let clock = Clock::start();
    let mut listeners: BTreeMap<SocketAddr, TcpListener> = BTreeMap::new();
    let mut answers = BTreeMap::new();
    let mut places = Places::default();
    loop {
        wait(woken, &listeners, &places, &clock);
        let mut noted = [0; 64];
        loop {
            match woken.read(&mut noted) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        for order in orders.try_iter() {
            match order {
                Order::Listen(address, listener) => {
                    listeners.insert(address, listener);
                }
                Order::Close(address) => {
                    listeners.remove(&address);
                }
                Order::Answers(new) => answers = new,
            }
        }
        let now = clock.now();
        places.go_on(&answers, now);
        for (address, listener) in &listeners {
            places.accept(*address, listener, now);
        }
        // A request that arrived with the handshake is answered at once.
        places.go_on(&answers, now);
    }
}

/// Waits for events.
fn wait(
    woken: &UnixStream,
    listeners: &BTreeMap<SocketAddr, TcpListener>,
    places: &Places,
    clock: &Clock,
) {
    let now = clock.now();
    let mut fds = vec![PollFd::new(woken, PollFlags::IN)];
    let open = listeners.iter().filter(|(address, _)| places.has_room(address.port(), now));
    fds.extend(open.map(|(_, listener)| PollFd::new(listener, PollFlags::IN)));
    fds.extend(places.iter().map(|one| PollFd::new(one.stream(), PollFlags::IN)));
    let deadlines = places.iter().map(|one| one.deadline());
    let next = deadlines.chain(places.room_at().filter(|at| *at > now)).min();
    let timeout = next.map(|next| {
        // After the deadline, not just before it.
        let left = next.since(now) + Duration::from_millis(1);
        Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
    });
    if poll(&mut fds, timeout.as_ref()).is_err() {
        // Interrupted, or out of memory: do not loop busily in either case.
        std::thread::sleep(Duration::from_millis(1));
    }
}
