//! A record of the tests that were skipped in one run, with the reasons. The last test of `cargo
//! test --workspace` prints it (`tests/summary`).
//!
//! A run is identified by its parent process, because Cargo starts every test program itself. If a
//! test starts a program again, [`FILE`] tells it where its own parent writes.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;

/// Environment variable: where to write.
pub const FILE: &str = "PODSWITCH_TEST_RECORD";

/// The outcome of a test.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// It ran in a user namespace of its own.
    UserNamespace,
    /// It, or a part of it, did not run.
    Skipped,
}

/// A line of the record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    pub outcome: Outcome,
    pub reason: String,
    pub test: String,
}

/// The record of this run. `None`: not started from a build folder.
pub fn path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(FILE) {
        return Some(path.into());
    }
    let run = rustix::process::getppid()?.as_raw_nonzero();
    Some(folder()?.join(format!("{run}-{}", started(run.get())?)))
}

/// `target/PROFILE/test-record`, where test programs are in `target/PROFILE/deps`.
fn folder() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    Some(program.parent()?.parent()?.join("test-record"))
}

/// The start time of a process (proc_pid_stat(5), field 22): together with its id it is unique.
fn started(process: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field, a name in brackets, may have spaces.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Adds a line. If the record cannot be written, the test does not fail.
pub fn add(outcome: Outcome, test: &str, reason: &str) {
    let Some(path) = path() else { return };
    if let Some(folder) = path.parent() {
        let _ = fs::create_dir_all(folder);
    }
    let outcome = match outcome {
        Outcome::UserNamespace => "namespace",
        Outcome::Skipped => "skipped",
    };
    let reason = reason.replace(['\t', '\n'], " ");
    // One write, so that lines of several programs do not mix.
    let line = format!("{outcome}\t{test}\t{reason}\n");
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
        let _ = file.write_all(line.as_bytes());
    }
}

/// The lines of this run so far, sorted. Removes this record, and those of runs that have ended.
pub fn take() -> Vec<Entry> {
    let text = path().and_then(|path| {
        let text = fs::read_to_string(&path).ok();
        let _ = fs::remove_file(path);
        text
    });
    for file in folder().into_iter().filter_map(|f| fs::read_dir(f).ok()).flatten().flatten() {
        let name = file.file_name();
        let run = name.to_str().and_then(|n| n.split_once('-')).and_then(|(p, _)| p.parse().ok());
        if run.is_some_and(|run: i32| started(run).is_none()) {
            let _ = fs::remove_file(file.path());
        }
    }
    let mut entries: Vec<Entry> = text.iter().flat_map(|t| t.lines()).filter_map(parse).collect();
    entries.sort();
    entries.dedup();
    entries
}

fn parse(line: &str) -> Option<Entry> {
    let mut parts = line.splitn(3, '\t').map(str::to_owned);
    let outcome = match parts.next()?.as_str() {
        "namespace" => Outcome::UserNamespace,
        "skipped" => Outcome::Skipped,
        _ => return None,
    };
    let test = parts.next()?;
    Some(Entry { outcome, reason: parts.next()?, test })
}
