//! Loads: traffic from the client pod to the server pod through real sockets, on threads of this
//! process, and the results.

mod connections;
mod datagrams;
mod frames;
mod iperf3;
mod round_trip;
mod stream;
mod tails;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crate::Outcome;
use crate::paths::{Family, Path};
use crate::usage::Usage;
use connections::Close;
use tails::Tail;

/// A load.
pub(crate) struct Load {
    pub(crate) name: &'static str,
    /// The figures that it measures.
    pub(crate) figures: &'static [Figure],
    /// The unit of work for which processor time is reported.
    pub(crate) work: &'static str,
    /// Whether it consists of new connections.
    pub(crate) opens_connections: bool,
    /// Measured only if loads are named, or all loads are requested.
    pub(crate) on_request: bool,
    /// A program that it needs.
    pub(crate) needs: Option<&'static str>,
    pub(crate) run: fn(&Path, Duration) -> Outcome<Sample>,
}

/// One of the figures that a load measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// Name; empty if the load has only one figure.
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Whether a greater value is better.
    pub(crate) more_is_better: bool,
}

/// The result of a load.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// A value for each figure.
    pub(crate) values: Vec<f64>,
    /// The total amount of work.
    pub(crate) work: f64,
    /// The resources that it used.
    pub(crate) usage: Usage,
}

const fn rate(unit: &'static str) -> [Figure; 1] {
    [Figure { name: "", unit, more_is_better: true }]
}

const fn micros(name: &'static str) -> Figure {
    Figure { name, unit: "µs", more_is_better: false }
}

const GBIT: &[Figure] = &rate("Gbit/s");
const MPPS: &[Figure] = &rate("Mpps");
const MICROS: &[Figure] = &[micros("p50"), micros("p99")];
const RATE: &[Figure] = &rate("1/s");

/// New connections: the number that are open at a time, and how they end.
macro_rules! connections {
    ($name:literal, $family:expr, $in_flight:literal, $close:expr, $on_request:literal) => {
        Load {
            name: $name,
            figures: RATE,
            work: "connection",
            opens_connections: true,
            on_request: $on_request,
            needs: None,
            run: |path, time| connections::run(path, $family, $in_flight, $close, time),
        }
    };
}

/// Latency of round trips at a share of the highest load, with or without changes of policies.
const fn tail_round_trip(name: &'static str, run: fn(&Path, Duration) -> Outcome<Sample>) -> Load {
    Load {
        name,
        figures: tails::FIGURES,
        work: "round trip",
        opens_connections: false,
        on_request: true,
        needs: None,
        run,
    }
}

/// As [`tail_round_trip`], of new connections.
const fn tail_connect(name: &'static str, run: fn(&Path, Duration) -> Outcome<Sample>) -> Load {
    Load { work: "connection", opens_connections: true, ..tail_round_trip(name, run) }
}

/// Every load, in the order of the table.
pub(crate) const ALL: &[Load] = &[
    Load {
        name: "tcp_stream/ipv4",
        figures: GBIT,
        work: "KiB",
        opens_connections: false,
        on_request: false,
        needs: None,
        run: |path, time| stream::run(path, Family::V4, time),
    },
    Load {
        name: "tcp_stream/ipv6",
        figures: GBIT,
        work: "KiB",
        opens_connections: false,
        on_request: false,
        needs: None,
        run: |path, time| stream::run(path, Family::V6, time),
    },
    Load {
        name: "tcp_stream/ipv4/iperf3",
        figures: GBIT,
        work: "KiB",
        opens_connections: false,
        on_request: false,
        needs: Some(iperf3::PROGRAM),
        run: iperf3::run,
    },
    Load {
        name: "small_frames/ipv4",
        figures: MPPS,
        work: "frame",
        opens_connections: false,
        on_request: false,
        needs: None,
        run: frames::run,
    },
    Load {
        name: "small_datagrams/ipv4",
        figures: MPPS,
        work: "datagram",
        opens_connections: false,
        on_request: false,
        needs: None,
        run: |path, time| datagrams::run(path, Family::V4, time),
    },
    Load {
        name: "round_trip/ipv4",
        figures: MICROS,
        work: "round trip",
        opens_connections: false,
        on_request: false,
        needs: None,
        run: |path, time| round_trip::run(path, Family::V4, time),
    },
    connections!("connect_request_close/ipv4", Family::V4, 4, Close::Fin, false),
    connections!("connect_request_close/ipv4/1", Family::V4, 1, Close::Fin, true),
    connections!("connect_request_close/ipv4/16", Family::V4, 16, Close::Fin, true),
    connections!("connect_request_close/ipv4/64", Family::V4, 64, Close::Fin, true),
    connections!("connect_request_close/ipv4/256", Family::V4, 256, Close::Fin, true),
    connections!("connect_request_close/ipv6", Family::V6, 4, Close::Fin, true),
    connections!("connect_request_reset/ipv4", Family::V4, 4, Close::Rst, true),
    connections!("connect_request_reset/ipv4/1", Family::V4, 1, Close::Rst, true),
    connections!("connect_request_reset/ipv4/16", Family::V4, 16, Close::Rst, true),
    connections!("connect_request_reset/ipv4/64", Family::V4, 64, Close::Rst, true),
    connections!("connect_request_reset/ipv4/256", Family::V4, 256, Close::Rst, true),
    tail_round_trip("tail_round_trip/ipv4/50", |path, time| {
        tails::round_trips::run(path, Family::V4, Tail { percent: 50, publishes: false }, time)
    }),
    tail_round_trip("tail_round_trip/ipv4/90", |path, time| {
        tails::round_trips::run(path, Family::V4, Tail { percent: 90, publishes: false }, time)
    }),
    tail_round_trip("tail_round_trip/ipv4/50/publishes", |path, time| {
        tails::round_trips::run(path, Family::V4, Tail { percent: 50, publishes: true }, time)
    }),
    tail_round_trip("tail_round_trip/ipv6/50", |path, time| {
        tails::round_trips::run(path, Family::V6, Tail { percent: 50, publishes: false }, time)
    }),
    tail_connect("tail_connect/ipv4/50", |path, time| {
        tails::connects::run(path, Family::V4, Tail { percent: 50, publishes: false }, time)
    }),
    tail_connect("tail_connect/ipv4/90", |path, time| {
        tails::connects::run(path, Family::V4, Tail { percent: 90, publishes: false }, time)
    }),
    tail_connect("tail_connect/ipv4/50/publishes", |path, time| {
        tails::connects::run(path, Family::V4, Tail { percent: 50, publishes: true }, time)
    }),
    tail_connect("tail_connect/ipv6/50", |path, time| {
        tails::connects::run(path, Family::V6, Tail { percent: 50, publishes: false }, time)
    }),
];

/// Traffic before the measurement, so that neighbours are resolved, windows grow and caches are
/// filled.
const WARM_UP: Duration = Duration::from_millis(200);
/// Timeout of any operation on an overloaded machine.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a thread waits before it checks whether to stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Ends a load's threads, also when the thread that controls them panics.
#[derive(Default)]
struct Stop(AtomicBool);

impl Stop {
    fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Relaxed);
    }
}

struct StopOnDrop<'a>(&'a Stop);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// Lets the started load run for a while and reads a count before and after. Returns the
/// difference, and the resources used in that time.
fn count_for(time: Duration, mut count: impl FnMut() -> Outcome<u64>) -> Outcome<(u64, Usage)> {
    thread::sleep(WARM_UP);
    let (before, start) = (count()?, Usage::now());
    thread::sleep(time);
    let (after, usage) = (count()?, Usage::since(&start));
    match after.saturating_sub(before) {
        0 => Err("nothing arrived".to_owned()),
        count => Ok((count, usage)),
    }
}
