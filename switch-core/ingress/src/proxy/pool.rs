//! Connections to endpoints that a worker keeps.

use std::cell::RefCell;
use std::net::SocketAddr;
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

type Idle = Vec<(http1::SendRequest<RequestBody>, Instant)>;

/// The connections of one worker.
#[derive(Debug)]
pub(super) struct Pool {
    idle: RefCell<HashMap<Key, Idle>>,
    /// HTTP/2: shared by requests.
    shared: RefCell<HashMap<Key, http2::SendRequest<RequestBody>>>,
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

    /// The connection of HTTP/2.
    pub(super) fn stream(&self, key: Key) -> Option<http2::SendRequest<RequestBody>> {
        let shared = self.shared.borrow();
        shared.get(&key).filter(|sender| !sender.is_closed()).cloned()
    }

    pub(super) fn share(&self, key: Key, sender: http2::SendRequest<RequestBody>) {
        self.shared.borrow_mut().insert(key, sender);
    }

    /// Lets go of connections that were idle for too long or were closed.
    pub(super) fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, list| {
            list.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < self.longest);
            !list.is_empty()
        });
        self.shared.borrow_mut().retain(|_, sender| !sender.is_closed());
    }

    /// Lets go of connections to endpoints that no route leads to.
    pub(super) fn retain(&self, is_there: impl Fn(SocketAddr) -> bool) {
        self.idle.borrow_mut().retain(|key, _| is_there(key.endpoint));
        self.shared.borrow_mut().retain(|key, _| is_there(key.endpoint));
    }
}
