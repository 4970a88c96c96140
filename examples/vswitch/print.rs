//! Saying things: results on standard output, everything else on standard error. A reader that
//! went away (`vswitch … | head`) is no reason to panic, as `println!` would.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use podswitch_node::{Event, Failure};
use serde::Serialize;

/// A line of the result.
pub(crate) fn line(text: impl Display) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// A result for programs, on one line.
pub(crate) fn json(value: &impl Serialize) {
    let mut text =
        serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"));
    text.push('\n');
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Something that went wrong.
pub(crate) fn error(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "vswitch: {text}");
}

/// Something worth knowing that is no result.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "note: {text}");
}

/// Something that is not as its author meant it.
pub(crate) fn warning(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "warning: {text}");
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
        event @ Event::LeftOut(_) => warning(event),
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
