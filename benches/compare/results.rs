//! Computes rows from samples: medians, spread, and ratios within a round.
//!
//! A ratio is computed between two paths in the same round, in which they ran soon after each
//! other. The result is the median of the ratios: if the machine is slower for a while, both paths
//! are slower, and the ratio does not change.

use crate::Outcome;
use crate::args::Args;
use crate::loads::{self, Figure, Load, Sample};
use crate::paths::{self, Group};
use crate::usage::{Usage, load_averages};

/// All measurements.
pub(crate) struct Results {
    pub(crate) seconds: f64,
    pub(crate) rounds: Vec<Round>,
    /// Paths that this machine does not support, with the reason.
    pub(crate) left_out: Vec<(&'static str, String)>,
    /// Failures, as text.
    pub(crate) failures: Vec<String>,
    /// Total drops of the switches, by reason.
    pub(crate) dropped: Vec<(&'static str, Vec<(&'static str, u64)>)>,
    samples: Vec<Taken>,
}

/// A sample with its path and load.
struct Taken {
    round: usize,
    path: &'static str,
    load: &'static Load,
    sample: Sample,
}

/// The state of the machine during a round.
pub(crate) struct Round {
    start: Usage,
    /// Load averages at the start of the round.
    pub(crate) load: [f64; 3],
    /// Number of processors that were busy with other programs, or with kernel work that is not
    /// charged to any process.
    pub(crate) others: f64,
    /// Number of processors that had work while the hypervisor gave them to other machines.
    pub(crate) steal: f64,
}

impl Round {
    /// Starts a round.
    pub(crate) fn begin() -> Self {
        Self { start: Usage::now(), load: load_averages(), others: 0.0, steal: 0.0 }
    }
}

/// Median, minimum and maximum of some values.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` if there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => return None,
            n if n % 2 == 1 => values[middle],
            _ => f64::midpoint(values[middle - 1], values[middle]),
        };
        Some(Self { median, min: *values.first()?, max: *values.last()? })
    }
}

/// Processor time for a unit of work, in nanoseconds, medians.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Cost {
    /// Everything that the machine did, including other programs.
    pub(crate) machine_ns: f64,
    /// Generators, switches, and the kernel's work for them.
    pub(crate) accounted_ns: f64,
    /// The part of the switches' workers and daemons.
    pub(crate) switch_ns: f64,
}

/// The result of one figure of a load over one path.
pub(crate) struct Row {
    pub(crate) load: &'static Load,
    pub(crate) figure: Figure,
    pub(crate) path: &'static str,
    pub(crate) group: Group,
    pub(crate) value: Spread,
    /// The value of every round.
    pub(crate) values: Vec<f64>,
    /// Ratio to the group's baseline in the same round.
    pub(crate) ratio: Option<Spread>,
    pub(crate) cost: Cost,
    /// Ratio of the machine's cost to the baseline's.
    pub(crate) cost_ratio: Option<Spread>,
}

impl Results {
    /// No results yet.
    pub(crate) fn new(args: &Args) -> Self {
        Self {
            seconds: args.duration().as_secs_f64(),
            rounds: Vec::new(),
            left_out: Vec::new(),
            failures: Vec::new(),
            dropped: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// Records a failure.
    pub(crate) fn failed(&mut self, what: String) {
        self.failures.push(what);
    }

    /// Records that a path is not measured because the machine lacks something.
    pub(crate) fn left_out(&mut self, path: &'static str, reason: String) {
        self.left_out.push((path, reason));
    }

    /// Records the drops of a path's switch.
    pub(crate) fn dropped(&mut self, path: &'static str, by_reason: Vec<(&'static str, u64)>) {
        if !by_reason.is_empty() {
            self.dropped.push((path, by_reason));
        }
    }

    /// Adds a sample.
    pub(crate) fn add(
        &mut self,
        round: usize,
        path: &'static str,
        load: &'static Load,
        sample: Outcome<Sample>,
    ) {
        match sample {
            Ok(sample) => self.samples.push(Taken { round, path, load, sample }),
            Err(error) => {
                self.failed(format!("round {}, {}, {path}: {error}", round + 1, load.name));
            }
        }
    }

    /// Ends a round.
    pub(crate) fn end_round(&mut self, mut round: Round) {
        let used = Usage::since(&round.start);
        let wall = used.wall.as_secs_f64();
        round.others = used.machine.saturating_sub(used.accounted).as_secs_f64() / wall;
        round.steal = used.steal.as_secs_f64() / wall;
        self.rounds.push(round);
    }

    /// The results of all figures of all loads, by figure and path.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let of_load = |load: &'static Load| {
            let figures = load.figures.iter().enumerate();
            figures.flat_map(move |(at, figure)| {
                paths::ALL.iter().filter_map(move |kind| self.row(load, at, *figure, kind.name))
            })
        };
        loads::ALL.iter().flat_map(of_load).collect()
    }

    /// A path's figure divided by another path's in the same round.
    pub(crate) fn between(
        &self,
        load: &str,
        figure: &str,
        path: &str,
        versus: &str,
    ) -> Option<Spread> {
        let load = loads::ALL.iter().find(|l| l.name == load)?;
        let at = load.figures.iter().position(|f| f.name == figure)?;
        let of = |path| self.each(load, path, |sample| sample.values.get(at).copied());
        Spread::of(ratios(&of(path), &of(versus)))
    }

    fn row(
        &self,
        load: &'static Load,
        at: usize,
        figure: Figure,
        path: &'static str,
    ) -> Option<Row> {
        let group = paths::group_of(path);
        let values = self.each(load, path, |sample| sample.values.get(at).copied());
        let baseline = self.each(load, group.baseline(), |sample| sample.values.get(at).copied());
        let cost = |sample: &Sample| Some(cost(sample).machine_ns);
        let costs = self.each(load, path, cost);
        let baseline_costs = self.each(load, group.baseline(), cost);
        let median = |each: fn(&Cost) -> f64| {
            let all = self.each(load, path, |sample| Some(each(&self::cost(sample))));
            Spread::of(all.into_iter().map(|(_, v)| v)).map_or(f64::NAN, |s| s.median)
        };
        Some(Row {
            load,
            figure,
            path,
            group,
            value: Spread::of(values.iter().map(|(_, v)| *v))?,
            values: values.iter().map(|(_, v)| *v).collect(),
            ratio: Spread::of(ratios(&values, &baseline)),
            cost: Cost {
                machine_ns: median(|c| c.machine_ns),
                accounted_ns: median(|c| c.accounted_ns),
                switch_ns: median(|c| c.switch_ns),
            },
            cost_ratio: Spread::of(ratios(&costs, &baseline_costs)),
        })
    }

    /// A value of every sample, with its round.
    fn each(
        &self,
        load: &'static Load,
        path: &str,
        f: impl Fn(&Sample) -> Option<f64>,
    ) -> Vec<(usize, f64)> {
        self.samples
            .iter()
            .filter(|t| t.path == path && t.load.name == load.name)
            .filter_map(|t| Some((t.round, f(&t.sample)?)))
            .collect()
    }
}

/// The cost of a unit of a sample's work.
pub(crate) fn cost(sample: &Sample) -> Cost {
    let each = |time: std::time::Duration| time.as_secs_f64() * 1e9 / sample.work;
    Cost {
        machine_ns: each(sample.usage.machine),
        accounted_ns: each(sample.usage.accounted),
        switch_ns: each(sample.usage.switch),
    }
}

/// Values divided by the baseline's of the same round.
fn ratios(values: &[(usize, f64)], baseline: &[(usize, f64)]) -> Vec<f64> {
    let of_round = |round| baseline.iter().find(|(r, _)| *r == round).map(|(_, v)| *v);
    values.iter().filter_map(|(round, v)| Some(v / of_round(*round)?)).collect()
}
