//! Counters. Each worker writes its own with plain stores; any thread may read them.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::utils::CachePadded;
use podswitch_dns::{Answer, Rcode, record_type};

use crate::action::DropReason;
use crate::id::PortId;

/// A counter with a single writer: an addition is a load and a store.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter of zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `n`. May be called by the owning worker only.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The current count.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Frames and bytes of one port at one worker.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Frames received.
    pub rx_frames: Counter,
    /// Bytes received.
    pub rx_bytes: Counter,
    /// Frames that the device accepted.
    pub tx_frames: Counter,
    /// Bytes that the device accepted.
    pub tx_bytes: Counter,
    /// Frames received on this port and dropped, for any reason.
    pub dropped: Counter,
}

/// Name queries (DNS by UDP) at one worker.
#[derive(Debug, Default)]
pub struct NameCounters {
    /// Answered queries over IPv4 and over IPv6, by the type that they asked for: one of [`NameCounters::TYPES`]; the
    /// last one counts all others.
    pub queries: [[Counter; Self::TYPES.len() + 1]; 2],
    /// Their bytes, without headers.
    pub query_bytes: Counter,
    /// Bytes of their answers, without headers.
    pub answer_bytes: Counter,
    /// Answers by response code, in the order of [`Rcode::ALL`].
    pub rcodes: [Counter; Rcode::ALL.len()],
    /// Answers that not all records fitted in.
    pub truncated: Counter,
    /// Datagrams to the name server's Service that were passed on to its backend.
    pub passed: Counter,
}

impl NameCounters {
    /// Types of questions that are counted apart.
    pub const TYPES: [u16; 9] = [
        record_type::A,
        record_type::AAAA,
        record_type::SRV,
        record_type::PTR,
        record_type::CNAME,
        record_type::TXT,
        record_type::NS,
        record_type::SOA,
        record_type::ANY,
    ];

    /// Counts an answer of `len` bytes.
    pub(crate) fn answered(&self, is_ipv6: bool, query_len: usize, answer: &Answer) {
        self.query_bytes.add(query_len as u64);
        self.answer_bytes.add(answer.len as u64);
        if let Some(at) = Rcode::ALL.iter().position(|rcode| *rcode == answer.rcode) {
            self.rcodes[at].add(1);
        }
        let qtype = answer.question.map(|question| question.qtype);
        let known = Self::TYPES.iter().position(|known| Some(*known) == qtype);
        let of_family = &self.queries[usize::from(is_ipv6)];
        of_family[known.unwrap_or(Self::TYPES.len())].add(1);
        self.truncated.add(answer.is_truncated.into());
    }
}

/// Counters of one worker.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Frames received on all ports.
    pub received: Counter,
    /// Received frames that were sent to at least one port.
    pub forwarded: Counter,
    /// Received frames for the switch itself: ARP, ND, pings of the gateway.
    pub consumed: Counter,
    /// Frames that the switch created and sent to a port.
    pub originated: Counter,
    /// Additional copies of forwarded frames: flooding, fragments, segments.
    pub copies: Counter,
    /// Created frames and copies that a port did not accept or that could not be encapsulated.
    pub originated_lost: Counter,
    /// Packets that took the fast path.
    pub hits: Counter,
    /// Packets that went through admission: their flow had no valid entry.
    pub misses: Counter,
    /// Connections opened by this worker.
    pub opened: Counter,
    /// Flows that were re-evaluated because something that they depend on has changed.
    pub rederived: Counter,
    /// Name queries.
    pub names: NameCounters,
    /// Flows that were checked after a configuration change and not affected by it. Their packets
    /// count as hits.
    pub kept: Counter,
    drops: Box<[Counter]>,
    ports: Box<[CachePadded<PortCounters>]>,
}

impl WorkerCounters {
    /// Counters of zero, for `ports` ports.
    pub fn new(ports: usize) -> Self {
        Self {
            received: Counter::default(),
            forwarded: Counter::default(),
            consumed: Counter::default(),
            originated: Counter::default(),
            copies: Counter::default(),
            originated_lost: Counter::default(),
            hits: Counter::default(),
            misses: Counter::default(),
            opened: Counter::default(),
            rederived: Counter::default(),
            kept: Counter::default(),
            names: NameCounters::default(),
            drops: (0..DropReason::COUNT).map(|_| Counter::default()).collect(),
            ports: (0..ports).map(|_| CachePadded::default()).collect(),
        }
    }

    /// Counters of one port.
    #[inline]
    pub fn port(&self, port: PortId) -> Option<&PortCounters> {
        self.ports.get(port.index()).map(|p| &**p)
    }

    /// Counts a dropped frame that was received on `ingress`.
    pub fn count_drop(&self, ingress: PortId, reason: DropReason) {
        self.count_drops(ingress, reason, 1);
    }

    /// As [`count_drop`](Self::count_drop), of `count` frames.
    pub fn count_drops(&self, ingress: PortId, reason: DropReason, count: u64) {
        self.drops[reason as usize].add(count);
        if let Some(port) = self.port(ingress) {
            port.dropped.add(count);
        }
    }

    /// Frames dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// Frames dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.drops.iter().map(Counter::get).sum()
    }
}
