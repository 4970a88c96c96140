//! Saying things: results on standard output, everything else on standard error. A reader that
//! went away (`vswitch … | head`) is no reason to panic, as `println!` would.
//!
//! `run` must not wait for a reader that does not read ([`never_block`]): lines are lost then, and how many
//! is said once somebody reads again.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use podswitch_node::{Event, Failure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

/// A pipe that is writable takes so many bytes without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;
/// How long one line waits for a reader that is slow.
const PATIENCE: Duration = Duration::from_millis(100);

/// Whether lines are lost rather than waited with.
static NEVER_BLOCK: AtomicBool = AtomicBool::new(false);
/// Lines that nobody read.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Whether the last line to standard output or standard error was lost.
static STUCK: [AtomicBool; 2] = [AtomicBool::new(false), AtomicBool::new(false)];

/// From now on lines are lost where nobody reads them.
pub(crate) fn never_block() {
    NEVER_BLOCK.store(true, Relaxed);
}

/// A line of the result.
pub(crate) fn line(text: impl Display) {
    put_out(&format!("{text}\n"));
}

/// A result for programs, on one line.
pub(crate) fn json(value: &impl Serialize) {
    let mut text =
        serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"));
    text.push('\n');
    put_out(&text);
}

/// Something that went wrong.
pub(crate) fn error(text: impl Display) {
    put_err(&format!("vswitch: {text}\n"));
}

/// Something worth knowing that is no result.
pub(crate) fn note(text: impl Display) {
    put_err(&format!("note: {text}\n"));
}

/// Something that is not as its author meant it.
pub(crate) fn warning(text: impl Display) {
    put_err(&format!("warning: {text}\n"));
}

fn put_out(text: &str) {
    if NEVER_BLOCK.load(Relaxed) {
        return try_put(io::stdout(), 0, text);
    }
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn put_err(text: &str) {
    if !NEVER_BLOCK.load(Relaxed) {
        let _ = io::stderr().lock().write_all(text.as_bytes());
        return;
    }
    let lost = LOST.swap(0, Relaxed);
    if lost == 0 {
        return try_put(io::stderr(), 1, text);
    }
    try_put(
        io::stderr(),
        1,
        &format!("warning: {lost} lines of output were lost: nobody read them\n{text}"),
    );
    if STUCK[1].load(Relaxed) {
        LOST.fetch_add(lost, Relaxed);
    }
}

/// Writes `text`, or loses what is left of it when the reader does not take it.
fn try_put(stream: impl AsFd, number: usize, text: &str) {
    // A reader that did not read just now is not waited for again.
    let patience = if STUCK[number].load(Relaxed) { Duration::ZERO } else { PATIENCE };
    for chunk in text.as_bytes().chunks(CHUNK) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let written = match is_writable(&stream, patience) {
                true => rustix::io::write(&stream, rest),
                false => Err(rustix::io::Errno::AGAIN),
            };
            match written {
                Ok(count) => rest = &rest[count..],
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    STUCK[number].store(true, Relaxed);
                    LOST.fetch_add(1, Relaxed);
                    return;
                }
            }
        }
    }
    STUCK[number].store(false, Relaxed);
}

fn is_writable(stream: &impl AsFd, patience: Duration) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
    let mut polled = [PollFd::new(stream, PollFlags::OUT)];
    // A reader that went away makes the write fail at once.
    poll(&mut polled, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// What a node tells of: on standard error what a person should know, nothing of what goes as it should.
pub(crate) fn event(event: Event) {
    match event {
        Event::Failure(Failure::Underlay(error)) => {
            note(format_args!("other nodes are not reached: --{error}"));
        }
        Event::Failure(Failure::NodeRoutes(cause)) => {
            note(format_args!("--routing host-gw: {cause}"))
        }
        Event::Failure(failure @ Failure::UplinkFilter { .. }) => note(format_args!("--{failure}")),
        Event::Failure(failure) => note(failure),
        event @ (Event::LeftOut(_) | Event::BesideKubeProxy { .. }) => warning(event),
        event @ (Event::Taken { .. } | Event::Repaired { .. }) => note(event),
        Event::Refused(errors) => errors.iter().for_each(error),
        _ => {}
    }
}

/// A line that is overwritten by the next, on a terminal only; an empty text wipes it.
pub(crate) fn progress(text: impl Display) {
    let mut err = io::stderr().lock();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[2K{text}");
        let _ = err.flush();
    }
}
