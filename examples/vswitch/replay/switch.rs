//! The switch of a replay: one worker, polled explicitly in virtual time, one frame at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam::queue::SegQueue;
use hashbrown::HashMap;
use podswitch_core::action::DropReason;
use podswitch_core::control::{ControlPlane, Options};
use podswitch_core::engine::{Dropped, Observer, Trace};
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::packet::MAX_FRAME;
use podswitch_core::stats::WorkerCounters;
use podswitch_core::worker::Worker;
use podswitch_wire::flow_key::HashKey;

use super::input::Frame;
use super::output::{Drop, Output, PortSummary, Summary};
use super::port::{Exchange, ReplayDevice};
use super::setup::{ConfigChange, Setup};
use super::timeline::Timeline;
use crate::failure::Failure;
use crate::state;

/// The hash key, the same in every replay.
const HASH_KEY: HashKey = HashKey::new(0x706f_6473_7769_7463_685f_7265_706c_6179);

/// Number of stored positions above which those of frames that can no longer be held are removed.
const MANY_POSITIONS: usize = 1 << 16;
/// Longer than any frame is held, in nanoseconds.
const LONG_HELD: u64 = 60_000_000_000;

/// A drop as reported by the engine.
struct Event {
    trace: Trace,
    reason: DropReason,
    object: Option<Cookie>,
}

/// Collects drops for the replay to fetch after each poll.
struct Listener(Arc<SegQueue<Event>>);

impl Observer for Listener {
    fn dropped(&mut self, drop: &Dropped<'_>) {
        self.0.push(Event { trace: drop.trace, reason: drop.reason, object: drop.object.cloned() });
    }
}

/// The position of a frame in its capture.
#[derive(Clone, Copy, Debug)]
struct Position {
    port: PortId,
    number: u64,
    time: u64,
}

/// See the module's description.
pub(super) struct Switch<'a> {
    control: ControlPlane,
    worker: Worker,
    counters: Arc<WorkerCounters>,
    exchange: Arc<Exchange>,
    events: Arc<SegQueue<Event>>,
    ports: &'a [String],
    /// Configurations still to come, and the time of the first frame.
    changes: std::iter::Peekable<std::slice::Iter<'a, ConfigChange>>,
    begin: u64,
    timeline: Option<Timeline>,
    /// The frame being switched, and its mark.
    current: (u32, Position),
    /// Positions of frames that the engine may hold (fragments), and the number above which those
    /// that it can no longer hold are removed.
    held: HashMap<u32, Position>,
    many: usize,
}

impl<'a> Switch<'a> {
    /// A switch with the ports and the first configuration.
    pub(super) fn new(setup: &'a Setup) -> Result<Self, Failure> {
        let mut control =
            ControlPlane::new(Options { hash_key: Some(HASH_KEY), ..Options::default() });
        let exchange = Exchange::new();
        for (number, name) in setup.ports().iter().enumerate() {
            control.attach(Box::new(ReplayDevice::new(&exchange, number, name)))?;
        }
        let worker = control.add_worker()?;
        let events = Arc::new(SegQueue::new());
        control.observe(|_| Some(Box::new(Listener(Arc::clone(&events)))));
        let position = Position { port: PortId(0), number: 0, time: 0 };
        let mut switch = Self {
            counters: Arc::clone(&worker.handle().counters),
            control,
            worker,
            exchange,
            events,
            ports: setup.ports(),
            changes: setup.changes.iter().peekable(),
            begin: 0,
            timeline: None,
            current: (0, position),
            held: HashMap::new(),
            many: MANY_POSITIONS,
        };
        if let Some(first) = switch.changes.next() {
            switch.apply(first)?;
        }
        Ok(switch)
    }

    fn apply(&mut self, change: &ConfigChange) -> Result<(), Failure> {
        state::apply(&mut self.control, &change.config)
    }

    /// Receives a frame, after everything due before its time.
    pub(super) fn take(&mut self, frame: Frame, output: &mut Output) -> Result<(), Failure> {
        if self.timeline.is_none() {
            self.begin = frame.time;
            self.timeline = Some(Timeline::begin(frame.time));
        }
        while let Some(change) =
            self.changes.next_if(|a| self.begin.saturating_add(a.at) <= frame.time)
        {
            self.advance(self.begin.saturating_add(change.at), output)?;
            self.apply(change)?;
        }
        self.advance(frame.time, output)?;
        let position = Position { port: frame.port, number: frame.number, time: frame.time };
        self.current = (self.current.0.wrapping_add(1), position);
        if frame.bytes.len() > MAX_FRAME {
            self.counters.received.add(1);
            self.counters.count_drop(frame.port, DropReason::FrameTooLong);
            if let Some(port) = self.counters.port(frame.port) {
                port.rx_frames.add(1);
            }
            let trace = Trace {
                ingress: frame.port,
                origin: Default::default(),
                mark: self.current.0,
                tag: 0,
            };
            return self
                .report(&Event { trace, reason: DropReason::FrameTooLong, object: None }, output);
        }
        self.exchange.give(frame.port, frame.bytes, self.current.0);
        self.poll();
        self.collect(output)
    }

    /// Advances time to `to`.
    fn advance(&mut self, to: u64, output: &mut Output) -> Result<(), Failure> {
        let Some(mut timeline) = self.timeline else { return Ok(()) };
        let mut result = Ok(());
        timeline.advance(to, |now| {
            self.worker.poll(now.engine());
            self.timeline = Some(*now);
            if result.is_ok() {
                result = self.collect(output);
            }
            result.is_ok() && !self.worker.engine().is_idle()
        });
        self.timeline = Some(timeline);
        result
    }

    fn poll(&mut self) {
        if let Some(timeline) = &self.timeline {
            self.worker.poll(timeline.engine());
        }
    }

    /// Writes what was sent and dropped.
    fn collect(&mut self, output: &mut Output) -> Result<(), Failure> {
        let now = self.timeline.map_or(0, |t| t.capture());
        while let Some(sent) = self.exchange.next_sent() {
            output.sent(sent.port, now, &sent.frame)?;
            self.exchange.recycle(sent.frame);
        }
        while let Some(event) = self.events.pop() {
            self.report(&event, output)?;
        }
        self.remember(now);
        Ok(())
    }

    /// Stores the frame's position while the engine holds frames.
    fn remember(&mut self, now: u64) {
        let c = &self.counters;
        let ended =
            c.forwarded.get().wrapping_add(c.consumed.get()).wrapping_add(c.dropped_total());
        if c.received.get() == ended {
            return self.held.clear();
        }
        self.held.insert(self.current.0, self.current.1);
        if self.held.len() > self.many {
            self.held.retain(|_, position| position.time.saturating_add(LONG_HELD) > now);
            self.many = MANY_POSITIONS.max(2 * self.held.len());
        }
    }

    fn report(&mut self, event: &Event, output: &mut Output) -> Result<(), Failure> {
        let (mark, current) = self.current;
        let position = match event.trace.mark {
            own if own == mark => current,
            other => self.held.remove(&other).unwrap_or(current),
        };
        output.dropped(&Drop {
            port: self.ports.get(position.port.index()).map_or("", String::as_str),
            frame: position.number,
            time: position.time,
            reason: event.reason,
            object: event.object.as_ref().map(Cookie::as_str),
        })
    }

    /// End of input: frames that are still held are dropped.
    pub(super) fn finish(&mut self, output: &mut Output) -> Result<(), Failure> {
        if let Some(timeline) = &self.timeline {
            self.worker.finish(timeline.engine());
        }
        self.collect(output)
    }

    /// Times of the configuration changes that did not take effect, in seconds from the first
    /// frame.
    pub(super) fn swaps_to_come(&self) -> impl Iterator<Item = f64> + use<'a> {
        self.changes.clone().map(|change| change.at as f64 / 1e9)
    }

    /// The totals.
    pub(super) fn summary(&self, setup: &Setup) -> Summary {
        let c = &self.counters;
        let drops = DropReason::ALL.iter().map(|r| (r.name(), c.dropped(*r))).filter(|d| d.1 > 0);
        let port = |(number, name): (usize, &String)| {
            let counters = c.port(PortId(number as u16))?;
            let (received, sent) = (counters.rx_frames.get(), counters.tx_frames.get());
            Some((name.clone(), PortSummary { received, sent, dropped: counters.dropped.get() }))
        };
        Summary {
            received: c.received.get(),
            forwarded: c.forwarded.get(),
            consumed: c.consumed.get(),
            dropped: c.dropped_total(),
            originated: c.originated.get(),
            copies: c.copies.get(),
            drops: drops.collect(),
            ports: setup.ports().iter().enumerate().filter_map(port).collect::<BTreeMap<_, _>>(),
        }
    }
}
