//! Timeouts: the periodic sweep of the tables, between bursts.

use core::sync::atomic::Ordering::Relaxed;

use super::flow_events::{EndCause, Ending};
use super::{BurstContext, Engine};
use crate::action::DropReason;
use crate::id::PortId;

/// Interval between two steps of the sweep.
const SWEEP_INTERVAL: core::time::Duration = core::time::Duration::from_millis(100);
/// Steps in which the whole of each table is visited: 10 seconds.
const SWEEP_STEPS: usize = 100;
/// Buckets of a growing flow table that are migrated per poll.
const MIGRATE_PER_POLL: usize = 8;
/// Seconds after which an unused flow entry is removed. Its connection stays.
const ENTRY_IDLE: u32 = 300;
/// The same while the flow table is nearly full.
const ENTRY_IDLE_UNDER_PRESSURE: u32 = 10;

impl Engine {
    /// Runs timeouts; called once per poll. Sweeps a part of every table when it is due, and drops
    /// fragments whose datagram has timed out. Returns whether it swept.
    pub fn poll(&mut self, cx: &mut BurstContext<'_>) -> bool {
        self.expire_fragments(cx);
        self.flows.migrate(MIGRATE_PER_POLL);
        if cx.now < self.sweep_due {
            return false;
        }
        self.sweep_due = cx.now + SWEEP_INTERVAL;
        let seconds = cx.now.as_secs() as u32;
        let tracker = &self.shared.tracker;
        let pressure = tracker.is_under_pressure();
        let slots = tracker.slots().div_ceil(self.shared.workers.load(Relaxed));
        let budget = slots.div_ceil(SWEEP_STEPS).max(64).min(slots);
        let base = self.index * slots;
        if budget > 0 {
            let from = if self.sweep >= slots { 0 } else { self.sweep };
            let (observer, epoch) = (&mut self.flow_observer, cx.snapshot.epoch);
            let on_end = &mut Ending { observer, cause: EndCause::Timeout, time: cx.now, epoch };
            tracker.sweep(base + from, budget.min(slots - from), seconds, pressure, on_end);
            self.sweep = from + budget;
            self.review(cx, from == 0, base + from, budget.min(slots - from));
        }
        let tracker = &self.shared.tracker;
        let idle =
            if self.flows.is_under_pressure() { ENTRY_IDLE_UNDER_PRESSURE } else { ENTRY_IDLE };
        let budget = self.flows.len().div_ceil(SWEEP_STEPS).max(64);
        // The flow table's seconds are modulo 2^31.
        let now = seconds & u32::MAX >> 1;
        let ended = |connection, last_seen| {
            now.saturating_sub(last_seen) > idle || !tracker.is_alive(connection)
        };
        self.flows.sweep(budget, |connection| tracker.prefetch(connection), ended);
        self.add_pending_counts();
        let share = SWEEP_STEPS * self.shared.workers.load(Relaxed);
        self.shared.fdb.sweep(cx.now, self.shared.fdb.slots().div_ceil(share));
        true
    }

    /// Ends all state of a port that was detached, because its number may be assigned to another
    /// port.
    pub fn forget_port(&mut self, cx: &mut BurstContext<'_>, port: PortId) {
        self.drain_port_fragments(cx, port);
    }

    /// Drops held fragments, at the end of the input.
    pub fn finish(&mut self, cx: &mut BurstContext<'_>) {
        self.drain_fragments(cx, DropReason::EndOfInput);
    }
}
