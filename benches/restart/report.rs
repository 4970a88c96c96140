//! The results as a table.

use std::fmt;
use std::time::Duration;

use crate::Args;
use crate::world::End;

/// See the module's description.
pub(crate) struct Table {
    load: String,
    ends: [Rounds; 6],
    /// Starts without connections, and with.
    starts: [Vec<Duration>; 2],
    restored: Vec<u64>,
}

#[derive(Default)]
struct Rounds {
    blocked: Vec<Duration>,
    answers: Vec<Duration>,
    lost: Vec<u64>,
    gone: usize,
    started: Vec<Duration>,
}

impl Table {
    pub(crate) fn new(args: &Args) -> Self {
        let Args { rounds, rate, connections, workers, .. } = args;
        Self {
            load: format!(
                "{rounds} restarts of each kind, {rate} datagrams a second and {connections} TCP connections through a \
                 ClusterIP, {workers} worker(s)"
            ),
            ends: Default::default(),
            starts: Default::default(),
            restored: Vec::new(),
        }
    }

    pub(crate) fn add(
        &mut self,
        end: End,
        blocked: Duration,
        answer: Duration,
        lost: u64,
        gone: usize,
        started: Duration,
    ) {
        let rounds = &mut self.ends[end as usize];
        rounds.blocked.push(blocked);
        rounds.answers.push(answer);
        rounds.lost.push(lost);
        rounds.gone += gone;
        rounds.started.push(started);
    }

    pub(crate) fn add_restore(&mut self, has_connections: bool, restored: u64, started: Duration) {
        self.starts[usize::from(has_connections)].push(started);
        if has_connections {
            self.restored.push(restored);
        }
    }
}

/// The nearest rank; the values must be sorted.
fn percentile<T: Copy + Ord>(values: &[T], percent: usize) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn millis(values: &[Duration], percent: usize) -> String {
    let value = percentile(values, percent).unwrap_or_default();
    format!("{:.1}", value.as_secs_f64() * 1e3)
}

fn count(values: &[u64], percent: usize) -> String {
    percentile(values, percent).unwrap_or_default().to_string()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; times in ms", self.load)?;
        writeln!(
            f,
            "| restart | blocked p50 | p99 | TCP blocked p50 | p99 | datagrams lost p50 | p99 | connections lost | start to ready p50 | p99 |"
        )?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
        for end in End::ALL {
            let Rounds { blocked, answers, lost, gone, started } = &self.ends[end as usize];
            if blocked.is_empty() {
                continue;
            }
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {} | {gone} | {} | {} |",
                end.name(),
                millis(blocked, 50),
                millis(blocked, 99),
                millis(answers, 50),
                millis(answers, 99),
                count(lost, 50),
                count(lost, 99),
                millis(started, 50),
                millis(started, 99),
            )?;
        }
        if !self.restored.is_empty() {
            let [without, with] = &self.starts;
            writeln!(
                f,
                "start to ready, idle: {} ({} to {}) without connections, {} ({} to {}) with {} to be restored",
                millis(without, 50),
                millis(without, 0),
                millis(without, 100),
                millis(with, 50),
                millis(with, 0),
                millis(with, 100),
                count(&self.restored, 50),
            )?;
        }
        Ok(())
    }
}
