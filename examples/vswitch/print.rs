//! Prints results on standard output, and everything else on standard error. Unlike `println!`, it
//! does not panic if the reader is gone (`vswitch … | head`).
//!
//! `run` must never block on a reader: its results go through a queue ([`crate::output`]), and
//! everything else goes to the log ([`crate::log`]).

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use podswitch_node::{Event, Failure};
use serde::Serialize;

use crate::output;

/// A line of the result.
pub(crate) fn line(text: impl Display) {
    put_out(&format!("{text}\n"));
}

/// A result as JSON, on one line.
pub(crate) fn json(value: &impl Serialize) {
    let mut text =
        serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"));
    text.push('\n');
    put_out(&text);
}

/// An error.
pub(crate) fn error(text: impl Display) {
    put_err(&format!("vswitch: {text}\n"));
}

/// A note: information that is not a result.
pub(crate) fn note(text: impl Display) {
    put_err(&format!("note: {text}\n"));
}

/// A warning: something probably differs from what its author intended.
pub(crate) fn warning(text: impl Display) {
    put_err(&format!("warning: {text}\n"));
}

fn put_out(text: &str) {
    if output::is_queued() {
        return output::OUT.push(text.as_bytes().to_vec());
    }
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn put_err(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Prints those events of a node that a person should know about. Normal operation is not printed.
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

/// On a terminal only: a line that the next one overwrites. An empty text clears it.
pub(crate) fn progress(text: impl Display) {
    let mut err = io::stderr().lock();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[2K{text}");
        let _ = err.flush();
    }
}
