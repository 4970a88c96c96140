//! Processor time: of this process, of switches (workers in this process, daemons beside it), and of the
//! whole machine.
//!
//! The process contains the generators and the switch, and the kernel's work for them is charged to
//! it. Kernel work in interrupts is charged to nobody: it shows only in the machine's time, as does
//! the work of other programs.

use std::fs;
use std::ops::Sub;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Readings, or the difference of two readings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Time that passed.
    pub(crate) wall: Duration,
    /// Processor time charged to this process and to switches' daemons.
    pub(crate) accounted: Duration,
    /// Processor time of all switches' workers and daemons; idle ones use almost none.
    pub(crate) switch: Duration,
    /// Busy time of all processors.
    pub(crate) machine: Duration,
    /// Time that the hypervisor gave to other machines while a processor here had work.
    pub(crate) steal: Duration,
}

impl Usage {
    /// The totals now. A value that the system does not report is zero.
    pub(crate) fn now() -> Self {
        let (machine, steal) = machine().unwrap_or_default();
        let daemons = daemons().unwrap_or_default();
        Self {
            wall: monotonic(),
            accounted: clock(ClockId::ProcessCPUTime) + daemons,
            switch: workers().unwrap_or_default() + daemons,
            machine,
            steal,
        }
    }

    /// The difference to an earlier reading.
    pub(crate) fn since(earlier: &Self) -> Self {
        Self::now() - *earlier
    }
}

impl Sub for Usage {
    type Output = Usage;

    fn sub(self, earlier: Usage) -> Usage {
        Usage {
            wall: self.wall.saturating_sub(earlier.wall),
            accounted: self.accounted.saturating_sub(earlier.accounted),
            switch: self.switch.saturating_sub(earlier.switch),
            machine: self.machine.saturating_sub(earlier.machine),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }
}

/// Wall time.
pub(crate) fn monotonic() -> Duration {
    clock(ClockId::Monotonic)
}

/// Processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    clock(ClockId::ThreadCPUTime)
}

fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[expect(clippy::disallowed_types, reason = "no packets pass here")]
static PROCESSES: std::sync::Mutex<Vec<u32>> = std::sync::Mutex::new(Vec::new());

/// From now on the processor time of this process, a switch's daemon, is counted as that of
/// switches.
pub(crate) fn count_process(pid: u32) {
    if let Ok(mut processes) = PROCESSES.lock() {
        processes.push(pid);
    }
}

/// Threads of this process that have the names of the control plane's workers.
fn workers() -> Option<Duration> {
    threads(Path::new("/proc/self/task"), "podswitch-")
}

/// The counted processes, with all their threads. A process may have ended since.
fn daemons() -> Option<Duration> {
    let processes = PROCESSES.lock().ok()?;
    let folder = |pid: &u32| Path::new("/proc").join(pid.to_string()).join("task");
    Some(processes.iter().filter_map(|pid| threads(&folder(pid), "")).sum())
}

/// Threads in a folder of `/proc` whose names begin like this.
fn threads(folder: &Path, name: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for thread in fs::read_dir(folder).ok()? {
        let folder = thread.ok()?.path();
        // A thread may have ended since.
        let Ok(comm) = fs::read_to_string(folder.join("comm")) else { continue };
        if !comm.starts_with(name) {
            continue;
        }
        let Ok(text) = fs::read_to_string(folder.join("schedstat")) else { continue };
        let nanos = text.split_whitespace().next()?.parse().ok()?;
        sum += Duration::from_nanos(nanos);
    }
    Some(sum)
}

/// Busy and stolen time of all processors (proc_stat(5)).
fn machine() -> Option<(Duration, Duration)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let mut fields = text.lines().next()?.split_whitespace().skip(1).map(str::parse::<u64>);
    let mut next = || fields.next()?.ok();
    let (user, nice, system) = (next()?, next()?, next()?);
    let (_idle, _iowait, irq, softirq) = (next()?, next()?, next()?, next()?);
    let steal = next()?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let time = |ticks: u64| Duration::from_nanos(ticks * (1_000_000_000 / per_second));
    Some((time(user + nice + system + irq + softirq), time(steal)))
}

/// The load averages over one, five and fifteen minutes.
pub(crate) fn load_averages() -> [f64; 3] {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut fields = text.split_whitespace().map(|f| f.parse().unwrap_or(f64::NAN));
    [(); 3].map(|()| fields.next().unwrap_or(f64::NAN))
}
