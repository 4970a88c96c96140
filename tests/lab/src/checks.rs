//! Named checks, one after the other.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// Starting a cluster takes long: a failed check must not prevent the others from running.
#[derive(Default)]
pub struct Checks {
    passed: usize,
    failed: Vec<String>,
}

impl Checks {
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result) -> bool {
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_default())
        });
        let seconds = start.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok    {name} ({seconds:.1} s)");
                true
            }
            Err(reason) => {
                println!("FAIL  {name} ({seconds:.1} s): {reason}");
                self.failed.push(format!("{name}: {reason}"));
                false
            }
        }
    }

    /// The end of the test.
    #[track_caller]
    pub fn finish(self) {
        println!("{} checks passed, {} failed", self.passed, self.failed.len());
        assert!(self.failed.is_empty(), "{}", self.failed.join("\n"));
        assert!(self.passed > 0, "no check ran");
    }
}

/// Retries until the check passes; returns the last reason if it does not pass in time.
pub fn eventually<T>(timeout: Duration, mut holds: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match holds() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => {
                return Err(format!("not within {} s: {reason}", timeout.as_secs()));
            }
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}
