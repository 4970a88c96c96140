//! The switch as a running program, and its requirements of the machine.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use podswitch_core::time::{Clock, Instant};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::program;

/// The longest wait for anything on an overloaded machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Measures the time left of a limit.
pub struct Limit(Clock, Duration);

impl Limit {
    pub fn new(time: Duration) -> Self {
        Self(Clock::start(), time)
    }

    pub fn left(&self) -> Option<Duration> {
        let passed = self.0.now().since(Instant::ZERO);
        self.1.checked_sub(passed).filter(|left| !left.is_zero())
    }
}

/// A switch under test; killed on drop.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts `vswitch run` with these arguments.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, |_| {})
    }

    /// Like [`start`](Self::start), after `change` has modified the command: its standard error,
    /// its environment.
    pub fn start_with(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(program());
        command.arg("run").args(arguments).stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().expect("the program starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                eprintln!("{line}");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for a line with this beginning.
    #[track_caller]
    pub fn says(&self, beginning: &str) -> String {
        self.find(beginning, |line| line.starts_with(beginning).then(|| line.to_owned()))
    }

    /// Waits for an event (`--json`).
    #[track_caller]
    pub fn event(&self, event: &str) -> Value {
        self.event_with(event, |_| true)
    }

    /// Like [`event`](Self::event), for output from now on.
    #[track_caller]
    pub fn next_event(&self, event: &str) -> Value {
        while self.lines.try_recv().is_ok() {}
        self.event(event)
    }

    /// Waits for an event that satisfies `wanted`.
    #[track_caller]
    pub fn event_with(&self, event: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.find(event, |line| {
            let value: Value = serde_json::from_str(line).expect("JSON");
            (value["event"] == event && wanted(&value)).then_some(value)
        })
    }

    /// Waits until the switch has dropped at least this many frames for a reason.
    #[track_caller]
    pub fn has_dropped(&self, reason: &str, count: u64) {
        self.event_with("stats", |stats| stats["drops"][reason].as_u64() >= Some(count));
    }

    /// Waits for a line in which `found` finds something, ignoring other lines.
    #[track_caller]
    fn find<T>(&self, what: &str, found: impl Fn(&str) -> Option<T>) -> T {
        let limit = Limit::new(PATIENCE);
        let mut last = String::new();
        while let Some(left) = limit.left() {
            match self.lines.recv_timeout(left) {
                Ok(line) => match found(&line) {
                    Some(found) => return found,
                    None => last = line,
                },
                Err(error) => panic!("{what}: {error}; the last: {last}"),
            }
        }
        panic!("no {what} as wanted; the last: {last}");
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is a child").is_none()
    }

    /// Waits until it ends by itself and returns its exit status.
    #[track_caller]
    pub fn ends(&mut self) -> Option<i32> {
        let limit = Limit::new(PATIENCE);
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                return status.code();
            }
            assert!(limit.left().is_some(), "it does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it with SIGTERM and returns its exit status.
    pub fn stop(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has already ended if the test got this far.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
