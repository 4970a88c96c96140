//! Latency at a part of the highest load: how long the median request, one in a hundred and one in a thousand take.
//!
//! First the highest rate of the path is measured, with a fixed number of requests on their way. Then requests begin by
//! a schedule, at a share of that rate, whether earlier ones have finished or not, and the latency of each counts from
//! the time at which it was to begin. So a pause of the path counts for every request that it delays. (A client that
//! waits for each response before it sends the next request measures one slow request in such a pause.)
//!
//! Each path has its own highest rate, which is a figure of its own. A request without a response counts as the longest
//! latency. The client is one thread, which waits in `ppoll` for responses or for the next request's time.

pub(super) mod connects;
pub(super) mod round_trips;

use std::time::Duration;

use super::{Figure, Sample, TIMEOUT, micros};
use crate::Outcome;
use crate::usage::{Usage, monotonic};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    /// Share of the highest rate, in percent.
    pub(super) percent: u32,
    /// Whether a policy of the pods changes meanwhile, if the path has a switch.
    pub(super) publishes: bool,
}

pub(super) const FIGURES: &[Figure] = &[
    Figure { name: "rate", unit: "1/s", more_is_better: true },
    micros("p50"),
    micros("p99"),
    micros("p99.9"),
];

/// How long the highest rate is measured, at most.
const CALIBRATION: Duration = Duration::from_millis(500);
/// How long requests that began in time may take to finish.
const PATIENCE: Duration = Duration::from_millis(500);
/// Requests on their way at the highest rate.
const WINDOW: usize = 32;
/// Most requests on their way at any time. Those that have to wait for others count from their own time.
const MOST: usize = 512;

/// When the next request begins.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// When fewer than [`WINDOW`] are on their way.
    Window,
    /// At this number of requests a second.
    Rate(f64),
}

/// The schedule of a run, and what came of it.
struct Run {
    pace: Pace,
    begin: Duration,
    end: Duration,
    started: usize,
    /// Latencies in nanoseconds.
    latencies: Vec<u64>,
}

impl Run {
    fn new(pace: Pace, time: Duration) -> Self {
        let begin = monotonic();
        Self { pace, begin, end: begin + time, started: 0, latencies: Vec::new() }
    }

    /// The time at which the next request was to begin, if that has come. `waiting`: requests on their way.
    fn due(&mut self, now: Duration, waiting: usize) -> Option<Duration> {
        let time = match self.pace {
            Pace::Window => (waiting < WINDOW).then_some(now),
            Pace::Rate(_) => Some(self.next()).filter(|next| *next <= now && waiting < MOST),
        };
        let time = time.filter(|time| *time < self.end)?;
        self.started += 1;
        Some(time)
    }

    fn next(&self) -> Duration {
        match self.pace {
            Pace::Window => self.begin,
            Pace::Rate(rate) => self.begin + Duration::from_secs_f64(self.started as f64 / rate),
        }
    }

    /// How long to wait for a response; `None`: the run is over.
    fn wait(&self, now: Duration, waiting: usize) -> Option<Duration> {
        let last = self.end + PATIENCE;
        if now >= last || (now >= self.end && waiting == 0) {
            return None;
        }
        let until = match self.pace {
            Pace::Rate(_) if waiting < MOST && self.next() < self.end => self.next(),
            _ => last.min(now + PATIENCE / 4),
        };
        Some(until.saturating_sub(now))
    }

    /// Records a request that began, or was to begin, at `begin`.
    fn finished(&mut self, begin: Duration, now: Duration) {
        self.latencies.push(now.saturating_sub(begin).as_nanos() as u64);
    }

    /// Responses a second of its time.
    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / (self.end - self.begin).as_secs_f64()
    }

    /// The latencies in increasing order, those of unanswered requests included.
    fn sorted(mut self) -> Vec<u64> {
        self.latencies.resize(self.started, TIMEOUT.as_nanos() as u64);
        self.latencies.sort_unstable();
        self.latencies
    }
}

/// Measures the highest rate and then the latencies. `run` sends requests at a pace for a time.
fn measure(
    tail: Tail,
    time: Duration,
    mut run: impl FnMut(Run) -> Outcome<Run>,
) -> Outcome<Sample> {
    let highest = run(Run::new(Pace::Window, CALIBRATION.min(time)))?.rate();
    if highest < 100.0 {
        return Err(format!("only {highest:.0} responses a second"));
    }
    let rate = highest * f64::from(tail.percent) / 100.0;
    let start = Usage::now();
    let run = run(Run::new(Pace::Rate(rate), time))?;
    let usage = Usage::since(&start);
    let (answered, work) = (run.rate(), run.latencies.len() as f64);
    let latencies = run.sorted();
    let at = |share: f64| match latencies.get((latencies.len() as f64 * share) as usize) {
        Some(nanos) => *nanos as f64 / 1e3,
        None => f64::NAN,
    };
    Ok(Sample { values: vec![answered, at(0.5), at(0.99), at(0.999)], work, usage })
}
