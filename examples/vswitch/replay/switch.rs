//! The switch of a replay: one worker, polled by hand in virtual time, a frame at a time.

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
use super::scene::{Act, Scene};
use super::timeline::Timeline;
use crate::failure::{Failure, Refused};

/// The key of the tables, the same in every replay.
const HASH_KEY: HashKey = HashKey::new(0x706f_6473_7769_7463_685f_7265_706c_6179);

/// Places that are kept before those of frames that cannot be held any more are forgotten.
const MANY_PLACES: usize = 1 << 16;
/// Longer than any frame is held, in nanoseconds.
const LONG_HELD: u64 = 60_000_000_000;

/// A drop as the engine told of it.
struct Event {
    trace: Trace,
    reason: DropReason,
    object: Option<Cookie>,
}

/// Takes down drops for the replay to fetch after each poll.
struct Listener(Arc<SegQueue<Event>>);

impl Observer for Listener {
    fn dropped(&mut self, drop: &Dropped<'_>) {
        self.0.push(Event { trace: drop.trace, reason: drop.reason, object: drop.object.cloned() });
    }
}

/// Which frame a mark stands for.
#[derive(Clone, Copy, Debug)]
struct Place {
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
    /// States that are still to come, and the time of the first frame.
    acts: std::iter::Peekable<std::slice::Iter<'a, Act>>,
    begin: u64,
    timeline: Option<Timeline>,
    /// The frame being switched, and its mark.
    current: (u32, Place),
    /// Frames that the engine may hold (fragments), and how many make it worth to look which of
    /// them it cannot hold any more.
    held: HashMap<u32, Place>,
    many: usize,
}

impl<'a> Switch<'a> {
    /// A switch with the scene's ports, its first state in force.
    pub(super) fn new(scene: &'a Scene) -> Result<Self, Failure> {
        let mut control =
            ControlPlane::new(Options { hash_key: Some(HASH_KEY), ..Options::default() });
        let exchange = Exchange::new();
        for (number, name) in scene.ports().iter().enumerate() {
            control.attach(Box::new(ReplayDevice::new(&exchange, number, name)))?;
        }
        let worker = control.add_worker()?;
        let events = Arc::new(SegQueue::new());
        control.observe(|_| Some(Box::new(Listener(Arc::clone(&events)))));
        let place = Place { port: PortId(0), number: 0, time: 0 };
        let mut switch = Self {
            counters: Arc::clone(&worker.handle().counters),
            control,
            worker,
            exchange,
            events,
            ports: scene.ports(),
            acts: scene.acts.iter().peekable(),
            begin: 0,
            timeline: None,
            current: (0, place),
            held: HashMap::new(),
            many: MANY_PLACES,
        };
        if let Some(first) = switch.acts.next() {
            switch.apply(first)?;
        }
        Ok(switch)
    }

    fn apply(&mut self, act: &Act) -> Result<(), Failure> {
        match self.control.apply(&act.config) {
            Ok(_) => Ok(()),
            Err(errors) => Err(Failure::Refused(errors.0.iter().map(Refused::from).collect())),
        }
    }

    /// Receives a frame, and everything that comes before its time.
    pub(super) fn take(&mut self, frame: Frame, output: &mut Output) -> Result<(), Failure> {
        if self.timeline.is_none() {
            self.begin = frame.time;
            self.timeline = Some(Timeline::begin(frame.time));
        }
        while let Some(act) = self.acts.next_if(|a| self.begin.saturating_add(a.at) <= frame.time) {
            self.advance(self.begin.saturating_add(act.at), output)?;
            self.apply(act)?;
        }
        self.advance(frame.time, output)?;
        let place = Place { port: frame.port, number: frame.number, time: frame.time };
        self.current = (self.current.0.wrapping_add(1), place);
        if frame.bytes.len() > MAX_FRAME {
            self.counters.received.add(1);
            self.counters.count_drop(frame.port, DropReason::FrameTooLong);
            if let Some(port) = self.counters.port(frame.port) {
                port.rx_frames.add(1);
            }
            let trace =
                Trace { ingress: frame.port, origin: Default::default(), mark: self.current.0 };
            return self
                .tell(&Event { trace, reason: DropReason::FrameTooLong, object: None }, output);
        }
        self.exchange.give(frame.port, frame.bytes, self.current.0);
        self.poll();
        self.collect(output)
    }

    /// Lets time pass until `to`.
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

    /// Writes down what left and what was dropped.
    fn collect(&mut self, output: &mut Output) -> Result<(), Failure> {
        let now = self.timeline.map_or(0, |t| t.capture());
        while let Some(sent) = self.exchange.next_sent() {
            output.sent(sent.port, now, &sent.frame)?;
            self.exchange.recycle(sent.frame);
        }
        while let Some(event) = self.events.pop() {
            self.tell(&event, output)?;
        }
        self.remember(now);
        Ok(())
    }

    /// Keeps the frame's place while the engine holds any.
    fn remember(&mut self, now: u64) {
        let c = &self.counters;
        let ended =
            c.forwarded.get().wrapping_add(c.consumed.get()).wrapping_add(c.dropped_total());
        if c.received.get() == ended {
            return self.held.clear();
        }
        self.held.insert(self.current.0, self.current.1);
        if self.held.len() > self.many {
            self.held.retain(|_, place| place.time.saturating_add(LONG_HELD) > now);
            self.many = MANY_PLACES.max(2 * self.held.len());
        }
    }

    fn tell(&mut self, event: &Event, output: &mut Output) -> Result<(), Failure> {
        let (mark, current) = self.current;
        let place = match event.trace.mark {
            own if own == mark => current,
            other => self.held.remove(&other).unwrap_or(current),
        };
        output.dropped(&Drop {
            port: self.ports.get(place.port.index()).map_or("", String::as_str),
            frame: place.number,
            time: place.time,
            reason: event.reason,
            object: event.object.as_ref().map(Cookie::as_str),
        })
    }

    /// The end of the input: what is still held is dropped.
    pub(super) fn finish(&mut self, output: &mut Output) -> Result<(), Failure> {
        if let Some(timeline) = &self.timeline {
            self.worker.finish(timeline.engine());
        }
        self.collect(output)
    }

    /// Seconds from the first frame of the swaps that did not come.
    pub(super) fn swaps_to_come(&self) -> impl Iterator<Item = f64> + use<'a> {
        self.acts.clone().map(|act| act.at as f64 / 1e9)
    }

    /// The sums.
    pub(super) fn summary(&self, scene: &Scene) -> Summary {
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
            ports: scene.ports().iter().enumerate().filter_map(port).collect::<BTreeMap<_, _>>(),
        }
    }
}
