//! The switch as a running program, and what it needs of the machine.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use switch_core::time::{Clock, Instant};

use super::vswitch;

/// The longest wait for anything on an overloaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Whether what a test needs is there; says so loudly where it is not.
pub(crate) fn is_possible(needed: &str, there: bool) -> bool {
    if !there {
        let required = std::env::var_os("PODSWITCH_REQUIRE_PRIVILEGE").is_some_and(|v| v == "1");
        assert!(!required, "{needed} is missing, and PODSWITCH_REQUIRE_PRIVILEGE=1");
        // Not captured by the test harness, as a print would be.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {needed} is missing");
    }
    there
}

/// A switch under test; killed where it is dropped.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts `vswitch run` with these arguments.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(vswitch());
        command.arg("run").args(arguments).stdout(Stdio::piped());
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

    /// Waits for a line that begins so.
    #[track_caller]
    pub(crate) fn says(&self, beginning: &str) -> String {
        self.says_that(|line| line.starts_with(beginning))
    }

    /// Waits for such a line, however many others come.
    #[track_caller]
    pub(crate) fn says_that(&self, wanted: impl Fn(&str) -> bool) -> String {
        let clock = Clock::start();
        let end = Instant::ZERO + PATIENCE;
        loop {
            match self.lines.recv_timeout(end.since(clock.now())) {
                Ok(line) if wanted(&line) => return line,
                Ok(_) => {}
                Err(error) => panic!("not said: {error}"),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Asks it to stop and gives its exit status.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, if the test came so far.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
