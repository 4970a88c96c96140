//! Connections to endpoints that a worker keeps.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hashbrown::HashMap;
use hyper::client::conn::{http1, http2};
use tokio::time::Instant;

use super::body::RequestBody;
use crate::settings::Protocol;

/// Where a connection leads, and what is spoken on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) endpoint: SocketAddr,
    pub(super) protocol: Protocol,
}

/// Streams of a connection to an endpoint; there is another connection for more. As many as servers
/// should permit at least (RFC 9113 section 6.5.2): no request waits for the end of other clients'.
pub(super) const MOST_STREAMS: usize = 100;

/// A stream of a shared connection, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Slot(#[expect(dead_code, reason = "counted")] Rc<()>);

/// A connection that requests share.
#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    /// One reference more than there are streams.
    streams: Rc<()>,
}

impl Shared {
    fn streams(&self) -> usize {
        Rc::strong_count(&self.streams) - 1
    }

    fn slot(&self) -> Slot {
        Slot(self.streams.clone())
    }
}

type Idle = Vec<(http1::SendRequest<RequestBody>, Instant)>;

/// The connections of one worker.
#[derive(Debug)]
pub(super) struct Pool {
    idle: RefCell<HashMap<Key, Idle>>,
    /// HTTP/2: shared by requests.
    shared: RefCell<HashMap<Key, Vec<Shared>>>,
    most: usize,
    longest: Duration,
}

impl Pool {
    pub(super) fn new(most: usize, longest: Duration) -> Self {
        Self { idle: RefCell::default(), shared: RefCell::default(), most, longest }
    }

    /// An idle connection: the last one that was used.
    pub(super) fn take(&self, key: Key) -> Option<http1::SendRequest<RequestBody>> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&key)?;
        while let Some((sender, since)) = list.pop() {
            if !sender.is_closed() && since.elapsed() < self.longest {
                return Some(sender);
            }
        }
        None
    }

    pub(super) fn put(&self, key: Key, sender: http1::SendRequest<RequestBody>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(key).or_default();
        if list.len() < self.most {
            list.push((sender, Instant::now()));
        }
    }

    /// A stream of a connection of HTTP/2 that has room for it.
    pub(super) fn stream(&self, key: Key) -> Option<(http2::SendRequest<RequestBody>, Slot)> {
        let shared = self.shared.borrow();
        let has_room = |it: &&Shared| !it.sender.is_closed() && it.streams() < MOST_STREAMS;
        let it = shared.get(&key)?.iter().find(has_room)?;
        Some((it.sender.clone(), it.slot()))
    }

    /// Keeps a connection of HTTP/2. Returns its first stream.
    pub(super) fn share(&self, key: Key, sender: http2::SendRequest<RequestBody>) -> Slot {
        let it = Shared { sender, streams: Rc::new(()) };
        let slot = it.slot();
        self.shared.borrow_mut().entry(key).or_default().push(it);
        slot
    }

    /// Lets go of connections that were idle for too long or were closed, and of shared ones without
    /// streams beyond the first.
    pub(super) fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < self.longest);
            !list.is_empty()
        });
        self.shared.borrow_mut().retain(|_, list| {
            list.retain(|it| !it.sender.is_closed());
            let mut is_first = true;
            list.retain(|it| std::mem::take(&mut is_first) || it.streams() > 0);
            !list.is_empty()
        });
    }

    /// Lets go of connections to endpoints that no route leads to.
    pub(super) fn retain(&self, is_there: impl Fn(SocketAddr) -> bool) {
        self.idle.borrow_mut().retain(|key, _| is_there(key.endpoint));
        self.shared.borrow_mut().retain(|key, _| is_there(key.endpoint));
    }
}
