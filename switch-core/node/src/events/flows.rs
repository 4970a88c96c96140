//! Connections, from the workers' records to events.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use podswitch_core::control::ControlPlane;
use podswitch_core::records::{FlowChange, FlowRecord, FlowRecorder};
use podswitch_core::time::Instant;

use super::event::Event;
use super::recorded_flow::RecordedFlow;
use super::sink::Reporter;

/// How soon the workers' queues are read again when they fill up.
const BUSY_INTERVAL: Duration = Duration::from_millis(10);

/// Reads the workers' records.
#[derive(Debug)]
pub(crate) struct FlowReader {
    recorder: FlowRecorder,
    node: Arc<str>,
    /// Interval of records of connections that go on.
    every: Option<Duration>,
    /// The last of those, and the next.
    last_update: Instant,
    next_update: Instant,
}

impl FlowReader {
    /// Has all workers of `control` record connections.
    pub(crate) fn observe(control: &ControlPlane, node: &str, every: Option<Duration>) -> Self {
        let mut recorder = FlowRecorder::new();
        control.observe_flows(|_| Some(recorder.observer()));
        let now = control.clock().now();
        let next_update = now + every.unwrap_or_default();
        Self { recorder, node: node.into(), every, last_update: now, next_update }
    }

    /// Remembers the names of the snapshot in force. Called after each publish.
    pub(crate) fn published(&mut self, control: &ControlPlane) {
        self.recorder.published(control.snapshot());
    }

    /// Reports what was recorded. Returns after how long it is to be called again at the latest, if that
    /// matters.
    pub(crate) fn report(
        &mut self,
        control: &ControlPlane,
        reporter: &Reporter,
    ) -> Option<Duration> {
        let times = Times::now(control);
        let Self { recorder, node, .. } = self;
        recorder.read(times.now, |record| times.report(reporter, node, record));
        if let Some(every) = self.every
            && times.now >= self.next_update
        {
            let alive = control.connections();
            self.recorder.update(&alive, self.last_update, times.now, |record| {
                times.report(reporter, &self.node, record);
            });
            self.last_update = times.now;
            self.next_update = times.now + every;
        }
        self.report_left_out(reporter);
        self.recorder.is_busy().then_some(BUSY_INTERVAL)
    }

    /// Reports the end of all connections, after the workers have stopped.
    pub(crate) fn finish(&mut self, control: &ControlPlane, reporter: &Reporter) {
        let times = Times::now(control);
        let Self { recorder, node, .. } = self;
        recorder.finish(&control.connections(), times.now, |record| {
            times.report(reporter, node, record);
        });
        self.report_left_out(reporter);
    }

    fn report_left_out(&mut self, reporter: &Reporter) {
        let left_out = self.recorder.take_left_out();
        if !left_out.is_none() {
            reporter.event(Event::FlowsLeftOut(left_out));
        }
    }
}

/// The switch's clock and that of the wall.
struct Times {
    now: Instant,
    wall: SystemTime,
}

impl Times {
    fn now(control: &ControlPlane) -> Self {
        #[expect(clippy::disallowed_methods, reason = "people look records up by the time of day")]
        let wall = SystemTime::now();
        Self { now: control.clock().now(), wall }
    }

    fn report(&self, reporter: &Reporter, node: &Arc<str>, record: FlowRecord) {
        let wall = |at: Instant| self.wall.checked_sub(self.now.since(at)).unwrap_or(self.wall);
        let change = record.change;
        let start = wall(record.start);
        let flow = Box::new(RecordedFlow::new(record, Arc::clone(node), start));
        reporter.event(match change {
            FlowChange::Opened => Event::FlowOpened(flow),
            FlowChange::Updated => Event::FlowUpdated(flow),
            FlowChange::Closed(_) => Event::FlowClosed(flow),
        });
    }
}
