//! Forwarding to other servers, without sockets: which server is queried when, and which clients wait for which reply.
//!
//! One query at a time for each question: clients that ask the same wait for the same reply. Everything is bounded: the
//! queries under way, those who wait, and how many of them one client may have.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use domain::base::iana::Rcode;
use hashbrown::HashMap;
use podswitch_core::time::Instant;

use super::cache::Cache;
use super::loops::{self, Loops, Server};
use super::message::{self, Asked, Key, time_to_live};
use super::problems::SharedProblems;
use super::upstreams::{self, Upstreams, Zones};
use crate::metrics::ResolverCounters;

/// Most queries under way.
pub(super) const MAX_FLIGHTS: usize = 512;
/// From so many on, only clients that began none of them may begin one.
const MAX_SHARED: usize = MAX_FLIGHTS - MAX_FLIGHTS / 4;
/// From so many on, a client that began [`MAX_BEGUN`] of them may begin no more.
const MAX_IDLE: usize = MAX_FLIGHTS / 4;
/// Queries under way that one client may begin though others are busy.
const MAX_BEGUN: usize = 32;
/// Most clients that wait for one reply.
const MAX_WAITERS: usize = 256;
/// Most queries of one client that wait for one reply: few clients leave room to others that ask the same.
const MAX_SAME: usize = 16;
/// Most queries of one client that wait.
const MAX_OF_CLIENT: usize = 128;
/// How long a server has to reply. A client gives up after 5 s.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long a query waits that could not be sent to any of its servers, for lack of something of this node's.
const PAUSE: Duration = Duration::from_millis(100);
/// Most queries for one question: two rounds of the usual two servers.
const MAX_TRIES: usize = 4;
/// For how long a server that did not reply is queried last.
const REST: Duration = Duration::from_secs(10);
/// How often files such as `resolv.conf` are read again, and loops are looked for.
const REFRESH: Duration = Duration::from_secs(10);

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// By the UDP socket of that index.
    Udp(usize, SocketAddr),
    /// By a TCP connection.
    Tcp(u64, IpAddr),
}

impl Client {
    fn address(self) -> IpAddr {
        match self {
            Self::Udp(_, peer) => peer.ip(),
            Self::Tcp(_, peer) => peer,
        }
    }
}

/// A client that waits for a reply.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub(super) client: Client,
    /// Its own question.
    pub(super) asked: Asked,
    /// Most bytes of the answer.
    pub(super) limit: usize,
    /// Our own answer, if its aliases lead to the name in the question.
    pub(super) aliases: Option<Vec<u8>>,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    /// Send a query, by a new socket.
    Send { flight: u64, to: SocketAddr, query: Vec<u8>, by_tcp: bool },
    /// The socket of that query is not needed any more.
    Close { flight: u64 },
    /// Send an answer.
    Answer { client: Client, message: Vec<u8> },
}

/// A query under way.
struct Flight {
    asked: Asked,
    key: Key,
    id: u16,
    servers: Vec<SocketAddr>,
    /// Servers that were queried, and failed.
    tries: usize,
    /// How often it could not be sent, for a reason that is not the server's.
    unsent: usize,
    by_tcp: bool,
    /// When its server's time is up, or, if it is paused, when it is sent again.
    until: Instant,
    is_paused: bool,
    /// When it is given up though it could never be sent.
    end: Instant,
    waiters: Vec<Waiter>,
    /// The client that began it; `None`: a probe.
    begun_by: Option<IpAddr>,
}

impl Flight {
    /// The server whose turn it is.
    fn server(&self) -> SocketAddr {
        self.servers[(self.tries + self.unsent) % self.servers.len()]
    }
}

/// See the module's description.
pub(super) struct Forwarder {
    upstreams: Upstreams,
    /// The servers, as last read.
    zones: Zones,
    /// Addresses at which this resolver itself is queried.
    own: Vec<SocketAddr>,
    cache: Cache,
    /// Those of clients, and probes.
    flights: HashMap<u64, Flight>,
    /// Those of clients.
    by_key: HashMap<Key, u64>,
    /// Queries of each client that wait.
    waiting: HashMap<IpAddr, usize>,
    /// Queries under way that each client began.
    begun: HashMap<IpAddr, usize>,
    next: u64,
    resting: HashMap<SocketAddr, Instant>,
    loops: Loops,
    refresh: Instant,
    counters: Arc<ResolverCounters>,
    problems: SharedProblems,
    actions: VecDeque<Action>,
}

/// A number that nobody can predict.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// Counts one less of a client.
fn decrease(counts: &mut HashMap<IpAddr, usize>, client: IpAddr) {
    if let Some(count) = counts.get_mut(&client) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&client);
        }
    }
}

impl Forwarder {
    pub(super) fn new(mut upstreams: Upstreams, counters: Arc<ResolverCounters>) -> Self {
        // Read again by the first tick, which tells what is wrong.
        let (zones, _) = upstreams.read();
        Self {
            zones,
            upstreams,
            own: Vec::new(),
            cache: Cache::default(),
            flights: HashMap::new(),
            by_key: HashMap::new(),
            waiting: HashMap::new(),
            begun: HashMap::new(),
            next: 0,
            resting: HashMap::new(),
            loops: Loops::default(),
            refresh: Instant::ZERO,
            counters,
            problems: SharedProblems::default(),
            actions: VecDeque::new(),
        }
    }

    /// What is wrong with the servers, kept up to date.
    pub(super) fn problems(&self) -> SharedProblems {
        self.problems.clone()
    }

    /// Forwards to these servers from the next [`tick`](Self::tick) on, which is due.
    pub(super) fn set_upstreams(&mut self, now: Instant, upstreams: Upstreams) {
        let before = std::mem::replace(&mut self.upstreams, upstreams);
        self.upstreams.follow(before);
        self.refresh = self.refresh.min(now);
    }

    /// What is to be done next.
    pub(super) fn take(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Looks up or forwards what a client asks for.
    pub(super) fn ask(&mut self, now: Instant, question: Asked, waiter: Waiter) {
        let name = question.lower();
        if let Some(server) = self.loops.probed(&name).cloned() {
            // Our own query came back: the server forwards to us.
            let found = loops::written(&server);
            self.counters.loops.add(u64::from(self.loops.found(now, server)));
            self.problems.note(|problems| problems.loops.extend([found]));
            return self.fail(waiter, Rcode::REFUSED);
        }
        let key = question.key();
        if let Some((reply, age)) = self.cache.get(now, &key) {
            self.counters.cache_hits.add(1);
            let message = waiter.asked.answer(&reply, age, waiter.limit, waiter.aliases.as_deref());
            return self.actions.push_back(Action::Answer { client: waiter.client, message });
        }
        self.counters.cache_misses.add(1);
        let address = waiter.client.address();
        let of_client = self.waiting.get(&address).copied().unwrap_or(0);
        if of_client >= MAX_OF_CLIENT {
            self.counters.refused.add(1);
            return self.fail(waiter, Rcode::SERVFAIL);
        }
        if let Some(flight) = self.by_key.get(&key).and_then(|id| self.flights.get_mut(id)) {
            let of_client = flight.waiters.iter().filter(|it| it.client.address() == address);
            if flight.waiters.len() >= MAX_WAITERS || of_client.count() >= MAX_SAME {
                self.counters.refused.add(1);
                return self.fail(waiter, Rcode::SERVFAIL);
            }
            flight.waiters.push(waiter);
            *self.waiting.entry(address).or_default() += 1;
            return;
        }
        let servers = self.servers(now, &name);
        if servers.is_empty() || !self.may_begin(address) {
            self.counters.refused.add(u64::from(!servers.is_empty()));
            return self.fail(waiter, Rcode::SERVFAIL);
        }
        *self.waiting.entry(address).or_default() += 1;
        *self.begun.entry(address).or_default() += 1;
        self.begin(now, question, servers, vec![waiter]);
    }

    /// Whether a client may begin one more query. The more it has begun, the more room it leaves to others.
    fn may_begin(&self, client: IpAddr) -> bool {
        let most = match self.begun.get(&client) {
            None => MAX_FLIGHTS,
            Some(&count) if count < MAX_BEGUN => MAX_SHARED,
            Some(_) => MAX_IDLE,
        };
        self.by_key.len() < most
    }

    /// Begins a query; without waiters it is a probe, which has no key of its own.
    fn begin(
        &mut self,
        now: Instant,
        asked: Asked,
        servers: Vec<SocketAddr>,
        waiters: Vec<Waiter>,
    ) {
        let (flight, id, key) = (self.next, random() as u16, asked.key());
        self.next += 1;
        if !waiters.is_empty() {
            self.by_key.insert(key.clone(), flight);
        }
        let begun_by = waiters.first().map(|waiter| waiter.client.address());
        let it = Flight {
            asked,
            key,
            id,
            servers,
            tries: 0,
            unsent: 0,
            by_tcp: false,
            until: now,
            is_paused: false,
            end: now + PATIENCE * MAX_TRIES as u32,
            waiters,
            begun_by,
        };
        self.flights.insert(flight, it);
        self.send(now, flight);
    }

    /// Servers of a name, those first that are known to reply; in random order, so that load is shared.
    fn servers(&self, now: Instant, name: &[u8]) -> Vec<SocketAddr> {
        let (zone, all) = upstreams::of(&self.zones, name);
        let usable = |it: &&SocketAddr| {
            !self.own.contains(it) && !self.loops.contains(&(zone.to_vec(), **it))
        };
        let mut servers: Vec<SocketAddr> = all.iter().filter(usable).copied().collect();
        if !servers.is_empty() {
            let by = random() as usize % servers.len();
            servers.rotate_left(by);
        }
        servers.sort_by_key(|server| self.resting.get(server).is_some_and(|until| now < *until));
        servers
    }

    /// Sends a query to the server whose turn it is.
    fn send(&mut self, now: Instant, id: u64) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        (flight.until, flight.is_paused) = (now + PATIENCE, false);
        let to = flight.server();
        let (query, by_tcp) = (flight.asked.forwarded(flight.id), flight.by_tcp);
        self.actions.push_back(Action::Send { flight: id, to, query, by_tcp });
    }

    /// A message came to a query's socket.
    pub(super) fn reply(&mut self, now: Instant, id: u64, reply: &[u8]) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        // What is no answer to this query is from somebody else: the real one may still come.
        let Some((is_truncated, rcode)) = flight.asked.is_answered_by(flight.id, reply) else {
            self.counters.mismatched.add(1);
            return;
        };
        if is_truncated && !flight.by_tcp {
            flight.by_tcp = true;
            self.counters.by_tcp.add(1);
            self.actions.push_back(Action::Close { flight: id });
            return self.send(now, id);
        }
        let is_bad = rcode != Rcode::NOERROR && rcode != Rcode::NXDOMAIN;
        if is_bad && flight.tries + 1 < flight.servers.len().min(MAX_TRIES) {
            return self.next_server(now, id);
        }
        let server = flight.server();
        self.resting.remove(&server);
        let Some(flight) = self.end(id) else { return };
        if let Some(probed) = self.loops.probed(&flight.asked.lower())
            && !self.loops.contains(probed)
        {
            // The server has replied, and has not asked us.
            let found = loops::written(probed);
            self.problems.note(|problems| problems.loops.retain(|it| *it != found));
        }
        if !flight.waiters.is_empty() {
            self.cache.keep(now, flight.key, reply, time_to_live(reply));
        }
        for Waiter { client, asked, limit, aliases } in flight.waiters {
            let message = asked.answer(reply, 0, limit, aliases.as_deref());
            self.actions.push_back(Action::Answer { client, message });
        }
    }

    /// A query's socket failed, or its time is up.
    pub(super) fn failed(&mut self, now: Instant, id: u64) {
        let Some(flight) = self.flights.get(&id) else { return };
        let server = flight.server();
        self.counters.failed.add(1);
        if self.resting.len() < MAX_FLIGHTS {
            self.resting.insert(server, now + REST);
        }
        if flight.tries + 1 < MAX_TRIES && !flight.waiters.is_empty() {
            return self.next_server(now, id);
        }
        self.give_up(id);
    }

    /// A query could not be sent, for lack of something of this node's: file descriptors, memory, addresses or ports.
    ///
    /// That is no fault of the server, which neither rests nor has had its try. The next one is queried, which may be of
    /// the other family; after all of them, there is a pause.
    pub(super) fn not_sent(&mut self, now: Instant, id: u64) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        self.counters.open_errors.add(1);
        flight.unsent += 1;
        if flight.unsent % flight.servers.len() != 0 {
            return self.send(now, id);
        }
        (flight.until, flight.is_paused) = (now + PAUSE, true);
        if flight.until >= flight.end {
            self.give_up(id);
        }
    }

    fn give_up(&mut self, id: u64) {
        let Some(flight) = self.end(id) else { return };
        for waiter in flight.waiters {
            self.fail(waiter, Rcode::SERVFAIL);
        }
    }

    fn next_server(&mut self, now: Instant, id: u64) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.tries += 1;
            flight.by_tcp = false;
        }
        self.actions.push_back(Action::Close { flight: id });
        self.send(now, id);
    }

    fn end(&mut self, id: u64) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        if self.by_key.get(&flight.key) == Some(&id) {
            self.by_key.remove(&flight.key);
        }
        for waiter in &flight.waiters {
            decrease(&mut self.waiting, waiter.client.address());
        }
        if let Some(client) = flight.begun_by {
            decrease(&mut self.begun, client);
        }
        self.actions.push_back(Action::Close { flight: id });
        Some(flight)
    }

    fn fail(&mut self, waiter: Waiter, rcode: Rcode) {
        self.counters.errors.add(1);
        let message = waiter.asked.failed(rcode);
        self.actions.push_back(Action::Answer { client: waiter.client, message });
    }

    /// What is due: queries whose time is up, files of servers, probes. `own`: the addresses of this resolver.
    pub(super) fn tick(&mut self, now: Instant, own: impl FnOnce() -> Vec<SocketAddr>) {
        let due: Vec<u64> =
            self.flights.iter().filter(|(_, it)| it.until <= now).map(|(id, _)| *id).collect();
        for id in due {
            match self.flights.get(&id).is_some_and(|it| it.is_paused) {
                true => self.send(now, id),
                false => self.failed(now, id),
            }
        }
        if now < self.refresh {
            return;
        }
        self.refresh = now + REFRESH;
        self.own = own();
        let (zones, unreadable) = self.upstreams.read();
        self.problems.note(|problems| problems.unreadable = unreadable);
        if zones != self.zones {
            self.zones = zones;
            self.loops.clear();
            self.cache.clear();
            self.problems.note(|problems| problems.loops.clear());
        }
        self.resting.retain(|_, until| now < *until);
        self.probe(now);
        self.counters.cached.set(self.cache.len() as u64);
    }

    /// Probes servers for loops, by a name within the zone: a server may well forward other names back, which it is not
    /// asked for.
    fn probe(&mut self, now: Instant) {
        let zones = self.zones.iter();
        let of_zone = |(zone, list): &(Vec<u8>, Vec<SocketAddr>)| {
            list.iter().map(|it| (zone.clone(), *it)).collect::<Vec<_>>()
        };
        let mut servers: Vec<Server> = zones.flat_map(of_zone).collect();
        servers.retain(|(_, server)| !self.own.contains(server));
        let (_, of_others) = upstreams::of(&self.zones, upstreams::ROOT);
        let has_no_server = of_others.iter().all(|server| self.own.contains(server));
        self.problems.note(|problems| problems.has_no_server = has_no_server);
        for at in self.loops.next(now, servers) {
            if let Some(asked) = message::probe(random(), &at.0) {
                let server = at.1;
                self.loops.sent(asked.lower(), at);
                self.begin(now, asked, vec![server], Vec::new());
            }
        }
    }

    /// When [`tick`](Self::tick) is due.
    pub(super) fn due(&self) -> Instant {
        self.flights
            .values()
            .map(|flight| flight.until)
            .min()
            .unwrap_or(self.refresh)
            .min(self.refresh)
    }
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
