//! Between bursts: what ends with time.

use core::sync::atomic::Ordering::Relaxed;

use super::{Engine, Turn};
use crate::action::DropReason;
use crate::flow::table::Untold;
use crate::id::PortId;

/// How often the tables are swept, and in how many steps each is gone round: ten seconds.
const SWEEP_EVERY: core::time::Duration = core::time::Duration::from_millis(100);
const SWEEP_ROUNDS: usize = 100;
/// Buckets of a growing flow table that each poll moves.
const MOVE_PER_POLL: usize = 8;
/// Seconds after which a worker forgets an entry that it did not use. The connection stays.
const ENTRY_IDLE: u32 = 300;
const ENTRY_IDLE_PRESSED: u32 = 10;

impl Engine {
    /// Housekeeping between bursts: a few buckets of every table, in proportion to the time that
    /// passed, and fragments whose datagram did not become whole.
    pub fn poll(&mut self, turn: &mut Turn<'_>) {
        self.expire_fragments(turn);
        self.flows.settle(MOVE_PER_POLL);
        if turn.now < self.sweep_due {
            return;
        }
        self.sweep_due = turn.now + SWEEP_EVERY;
        let seconds = turn.now.as_secs() as u32;
        let tracker = &self.shared.tracker;
        let pressure = tracker.is_under_pressure();
        let slots = tracker.slots().div_ceil(self.shared.workers.load(Relaxed));
        let budget = slots.div_ceil(SWEEP_ROUNDS).max(64).min(slots);
        let base = self.index * slots;
        if budget > 0 {
            let from = if self.sweep >= slots { 0 } else { self.sweep };
            tracker.sweep(base + from, budget.min(slots - from), seconds, pressure);
            self.sweep = from + budget;
        }
        let idle = if self.flows.is_under_pressure() { ENTRY_IDLE_PRESSED } else { ENTRY_IDLE };
        let budget = self.flows.len().div_ceil(SWEEP_ROUNDS).max(64);
        let ended = |connection, last_seen| {
            seconds.saturating_sub(last_seen) > idle || !tracker.is_alive(connection)
        };
        self.flows.sweep(budget, |connection| tracker.prefetch(connection), ended);
        for Untold { connection, packets, bytes } in self.flows.untold() {
            tracker.count(connection, packets, bytes);
        }
        let share = SWEEP_ROUNDS * self.shared.workers.load(Relaxed);
        self.shared.fdb.sweep(turn.now, self.shared.fdb.slots().div_ceil(share));
    }

    /// A port was let go: its number may come back as another's, so what is held from it ends.
    pub fn forget_port(&mut self, turn: &mut Turn<'_>, port: PortId) {
        self.drain_port_fragments(turn, port);
    }

    /// Ends everything held, at the end of the input: held fragments are dropped.
    pub fn finish(&mut self, turn: &mut Turn<'_>) {
        self.drain_fragments(turn, DropReason::EndOfInput);
    }
}
