//! Counters of the node's own resolver: written by its thread, read by any.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What the node's own resolver counts.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ResolverCounters {
    /// Queries by UDP and by TCP.
    pub queries: [Count; 2],
    /// Queries answered from the zone.
    pub zone: Count,
    /// Queries answered with an earlier reply, and those without one.
    pub cache_hits: Count,
    /// See [`cache_hits`](Self::cache_hits).
    pub cache_misses: Count,
    /// Replies kept now.
    pub cached: Count,
    /// Queries sent to other servers.
    pub forwarded: Count,
    /// Those of them that were sent again by TCP.
    pub by_tcp: Count,
    /// Those that got no reply.
    pub failed: Count,
    /// Queries refused at a limit, which [`errors`](Self::errors) has, too.
    pub refused: Count,
    /// Messages that got no answer: shorter than a header, or answers themselves.
    pub ignored: Count,
    /// Queries answered with an error of the resolver's own.
    pub errors: Count,
    /// Servers that forward to this resolver, and are asked no more.
    pub loops: Count,
    /// Messages of other servers that are no answer to what they were asked.
    pub mismatched: Count,
    /// Answers that could not be sent, or that waited when their connection ended.
    pub unsent: Count,
    /// Sockets to other servers that could not be opened for lack of file descriptors, memory, addresses or ports of this
    /// node.
    pub open_errors: Count,
    /// Connections that could not be accepted, mostly for lack of file descriptors. No more are accepted for 100 ms.
    pub accept_errors: Count,
    /// Connections refused at a limit of their client.
    pub connections_refused: Count,
    /// Connections ended because they were silent, because too many answers were not read, or to make room for another
    /// client's; not those that clients ended.
    pub connections_ended: Count,
}
