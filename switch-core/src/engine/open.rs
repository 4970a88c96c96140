//! Opening of connections: the SNAT port, the entry in the connection table, and the counters of
//! what allowed the connection.

use podswitch_wire::flow_key::proto;

use super::{BurstContext, Engine};
use crate::action::DropReason;
use crate::flow::connection::{Created, IndexHash, Refused};
use crate::nat::ports::Lease;
use crate::nat::select::Served;
use crate::pinned::{Pinned, SourceNat};
use crate::resolve::Forward;
use crate::snapshot::PortFacts;

/// Slots of the connection table that are examined for one to end when the table is full.
const EVICTION_SCAN: usize = 256;
/// Source ports that are tried for a connection whose reply key another connection has.
const NAT_TRIES: usize = 64;

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
        // Where the search for a port begins. Derived from the secret key, so that nobody outside
        // can predict ports.
        let mut from = None;
        let first = |engine: &Self, pinned: &Pinned| pinned.original.hash(&engine.shared.hash_key);
        for _ in 0..NAT_TRIES {
            // Without ports, only the addresses tell connections apart.
            let leases = pinned.source_nat != SourceNat::Kept && has_ports(pinned.original.proto);
            if leases {
                let fair = matches!(cx.snapshot.port(pinned.origin), PortFacts::Pod(_));
                let from = *from.get_or_insert_with(|| first(self, pinned));
                let port = self.shared.tracker.nat().lease(pinned, &Lease { range, from, fair });
                pinned.reply.dst_port = port.ok_or(DropReason::NatPortsExhausted)?;
            }
            let created = self.create(cx, index_hash, pinned);
            if leases && !matches!(created, Ok(Created::New(_))) {
                self.shared.tracker.nat().release(pinned);
            }
            match created {
                Ok(created) => {
                    if let Created::New(_) = created {
                        self.count_opened(cx, pinned, forward);
                    }
                    return Ok(created);
                }
                Err(Refused::Full) => return Err(DropReason::ConnectionTableFull),
                Err(Refused::PortLimit) => return Err(DropReason::ConnectionLimit),
                // Another connection has this reply key: the same client port reaches the same
                // backend by two addresses of a Service. The second gets another port (S16).
                Err(Refused::Collision) if has_ports(pinned.original.proto) => {
                    let next = from.unwrap_or_else(|| first(self, pinned));
                    let next = next.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let next = next.rotate_left(29).wrapping_add(1);
                    from = Some(next);
                    if pinned.source_nat == SourceNat::Endpoint {
                        // The port that all connections of the client share is in use towards this
                        // peer. This connection gets a port of its own.
                        pinned.source_nat = SourceNat::Connection;
                    } else if !leases {
                        let ports = u64::from(*range.end() - *range.start()) + 1;
                        pinned.reply.dst_port = range.start() + (next % ports) as u16;
                    }
                }
                Err(Refused::Collision) => break,
            }
        }
        Err(DropReason::NatPortsExhausted)
    }

    /// Creates the connection. If the table is full, short-lived connections are ended first (T-C5).
    fn create(
        &mut self,
        cx: &BurstContext<'_>,
        index_hash: IndexHash,
        pinned: &Pinned,
    ) -> Result<Created, Refused> {
        let seconds = cx.now.as_secs() as u32;
        let tracker = &self.shared.tracker;
        match tracker.create_at(index_hash, pinned, seconds) {
            Err(Refused::Full) => {
                let slots = tracker.slots().max(1);
                self.eviction_cursor = (self.eviction_cursor + EVICTION_SCAN) % slots;
                tracker.sweep(self.eviction_cursor, EVICTION_SCAN, seconds, true);
                tracker.create_at(index_hash, pinned, seconds)
            }
            created => created,
        }
    }

    /// Counts what allowed a new connection: the policy rules, and the Service's backend. Also
    /// stores the client's session affinity.
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

fn has_ports(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6)
}
