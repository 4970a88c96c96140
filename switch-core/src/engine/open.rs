//! Opening of connections: the SNAT port, the entry in the connection table, and the counters of
//! the rules and backends that allowed the connection.

use podswitch_wire::flow_key::{FlowKey, proto};

use super::flow_events::{EndCause, Ending, FlowObserver};
use super::{BurstContext, Engine};
use crate::action::DropReason;
use crate::flow::connection::{Created, IndexHash, OpenedAt, Refused};
use crate::limit::{KeyedLimiter, Rate};
use crate::nat::ports::Lease;
use crate::nat::select::Served;
use crate::pinned::{Pinned, SourceNat};
use crate::resolve::Forward;
use crate::snapshot::PortFacts;

/// Maximum number of searches for a connection to end, for each new connection.
const SEARCHES: usize = 8;
/// Maximum number of source ports that are tried if another connection has the reply key.
const NAT_TRIES: usize = 64;
/// Number of tries after which an unproven connection that was idle for a second ends in favour of
/// a new one, and number after which any unproven connection does.
const CROWDED: usize = 8;
const LAST_TRIES: usize = NAT_TRIES - 8;

/// The rate, for each account, of searches for a connection to end that find none.
pub(super) fn search_limiter() -> KeyedLimiter {
    KeyedLimiter::new(Rate::new(200, 200), 1024)
}

impl Engine {
    /// Opens the connection `pinned`, or finds that another worker or the other direction was
    /// faster. A new connection may get another source port than the client's; `pinned` has it
    /// afterwards.
    pub(super) fn open(
        &mut self,
        cx: &BurstContext<'_>,
        index_hash: IndexHash,
        pinned: &mut Pinned,
        forward: &Forward<'_>,
    ) -> Result<Created, DropReason> {
        let range = &cx.snapshot.nat_ports;
        let ports = u64::from(range.end().saturating_sub(*range.start())) + 1;
        let has_ports = has_ports(pinned.original.proto);
        // Where the search for a port begins. Derived from the secret key, so that nobody outside
        // can predict ports.
        let mut from = None;
        for attempt in 0..NAT_TRIES {
            // Without ports, only the addresses tell connections apart.
            let leases = pinned.source_nat != SourceNat::Kept && has_ports;
            if leases {
                let fair = matches!(cx.snapshot.port(pinned.origin), PortFacts::Pod(_));
                let hash = || pinned.original.hash(&self.shared.hash_key);
                let lease = Lease { range, from: *from.get_or_insert_with(hash), fair };
                let nat = self.shared.tracker.nat();
                if !nat.share(pinned, &lease) {
                    return Err(DropReason::NatPortsExhausted);
                }
                let port = match pinned.source_nat {
                    SourceNat::Endpoint => nat.map(pinned, &lease),
                    _ => Some(range.start() + (lease.from % ports) as u16),
                };
                let Some(port) = port else {
                    // No port is left that could serve all destinations of this client. This
                    // connection gets a port of its own.
                    nat.release_share(pinned);
                    pinned.source_nat = SourceNat::Connection;
                    continue;
                };
                pinned.reply.dst_port = port;
            }
            let created = self.create(cx, index_hash, pinned);
            if leases && !matches!(created, Ok(Created::New(_))) {
                self.shared.tracker.nat().release(pinned);
            }
            match created {
                Ok(created) => {
                    if let Created::New(connection) = created {
                        self.count_opened(cx, pinned, forward);
                        self.notify_opened(cx, connection, pinned);
                    }
                    return Ok(created);
                }
                // Another connection has this reply key: the same client port reaches the same
                // backend by two addresses of a Service, or the port is in use towards this
                // destination. Unless that connection gives way, this one gets another port (S16).
                Err(Refused::Collision) if self.gives_way(cx, &pinned.reply, attempt) => {}
                Err(Refused::Collision) if has_ports => {
                    let at = from.unwrap_or_else(|| pinned.original.hash(&self.shared.hash_key));
                    let next = (at % ports) + stride(ports);
                    from = Some(next);
                    if pinned.source_nat == SourceNat::Endpoint {
                        // The port that all connections of the client share is in use towards this
                        // peer. This connection gets a port of its own.
                        pinned.source_nat = SourceNat::Connection;
                    } else if !leases {
                        pinned.reply.dst_port = range.start() + (next % ports) as u16;
                    }
                }
                Err(refused) => return Err(refused.into()),
            }
        }
        Err(DropReason::NatPortsExhausted)
    }

    /// Whether the connection that has a new one's reply key was ended in favour of the new one. A
    /// connection that is over is always ended. If several ports were in use, the pool is nearly
    /// full: then a connection that is unproven and was idle for a second is ended, and at last any
    /// unproven one.
    fn gives_way(&mut self, cx: &BurstContext<'_>, reply: &FlowKey, attempt: usize) -> bool {
        let patience = match attempt {
            ..CROWDED => None,
            CROWDED..LAST_TRIES => Some(1),
            _ => Some(0),
        };
        let (tracker, seconds) = (&self.shared.tracker, cx.now.as_secs() as u32);
        let Some(old) = tracker.find_key(reply) else { return false };
        let on_end = &mut evicting(&mut self.flow_observer, cx);
        tracker.evict(old.connection, patience, seconds, on_end)
    }

    /// Creates the connection. If a limit is reached, connections of the account or source with
    /// that limit are ended: those that are over, or else unproven ones (T-C5).
    pub(super) fn create(
        &mut self,
        cx: &BurstContext<'_>,
        index_hash: IndexHash,
        pinned: &Pinned,
    ) -> Result<Created, Refused> {
        let seconds = cx.now.as_secs() as u32;
        let tracker = &self.shared.tracker;
        let at = OpenedAt { time: cx.now, epoch: cx.snapshot.epoch };
        let mut created = tracker.create_at(index_hash, pinned, at);
        for _ in 0..SEARCHES {
            let (charge, key) = match &created {
                Err(Refused::Full) => (None, u64::MAX),
                Err(Refused::Limit(charge)) => (Some(charge), charge.key()),
                _ => return created,
            };
            // The rate of searches that find nothing is limited.
            if !self.searches.take(key, cx.now) {
                return created;
            }
            let on_end = &mut evicting(&mut self.flow_observer, cx);
            let (ended, next) = tracker.reclaim(self.eviction_cursor, charge, seconds, on_end);
            self.eviction_cursor = next;
            if ended > 0 {
                self.searches.put_back(key, cx.now);
                created = tracker.create_at(index_hash, pinned, at);
            }
        }
        created
    }

    /// Counts the policy rules and the Service's backend that allowed a new connection. Also stores
    /// the client's session affinity.
    #[inline]
    fn count_opened(&self, cx: &BurstContext<'_>, pinned: &Pinned, forward: &Forward<'_>) {
        let Forward { service, allowed_by } = forward;
        for number in [allowed_by.egress, allowed_by.ingress].into_iter().flatten() {
            cx.snapshot.policy_counters.add(number);
        }
        let Some(Served { chosen, affinity }) = service else { return };
        chosen.entry.count_opened(chosen.index);
        if let Some(timeout) = affinity {
            let client = pinned.original.src_addr();
            let now = cx.now.as_secs() as u32;
            let backend = chosen.backend().socket();
            self.shared.affinity.pin(chosen.entry.id, client, backend, now, *timeout);
        }
    }
}

/// Notifies an observer of connections that end in favour of others.
fn evicting<'a>(
    observer: &'a mut Option<Box<dyn FlowObserver>>,
    cx: &BurstContext<'_>,
) -> Ending<'a> {
    Ending { observer, cause: EndCause::Evicted, time: cx.now, epoch: cx.snapshot.epoch }
}

/// The distance between two source ports that are tried one after the other, in a range of `ports`.
/// It is chosen so that every port is tried once, and neighbouring ports are tried long after each
/// other.
fn stride(ports: u64) -> u64 {
    let is_prime_to = |n: u64| {
        let (mut a, mut b) = (n, ports);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    // The golden section, or the next number that has no divisor in common with `ports`.
    let about = ports * 40_503 / 65_536;
    (about.max(1)..).find(|n| is_prime_to(*n)).unwrap_or(1)
}

impl From<Refused> for DropReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::ConnectionTableFull,
            Refused::Limit(_) => Self::ConnectionLimit,
            Refused::Collision => Self::NatPortsExhausted,
        }
    }
}

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6)
}
