//! The log of `run`: events of `tracing`, one line each, on standard error through a queue that
//! never blocks ([`crate::output`]).
//!
//! Targets and levels: [`filter`]. Format of a line: [`line`]. Workers never log; packet events are
//! counted and recorded elsewhere.

pub(crate) mod filter;
mod line;

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use podswitch_api::LogLevel;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use crate::output;
use filter::{Directives, Filter, Verbosity};
use line::{Format, Line, Said};

/// Environment variable with the directives, used without the flag.
const VARIABLE: &str = "PODSWITCH_LOG";

/// Log level and format.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct LogFlags {
    /// Format of the log on standard error: text, or one JSON object per line with time, level,
    /// target, message, node and fields.
    #[arg(long, value_name = "text|json", default_value = "text", value_parser = format)]
    log_format: Format,
    /// Log level: error, warn, info, debug or off, and TARGET=LEVEL for single targets (run, state,
    /// node, dns, cni, kubernetes, log, libraries), separated by commas: `info,cni=debug`. Default: the
    /// environment variable PODSWITCH_LOG, otherwise info. `vswitch log-level` changes it while the
    /// switch runs.
    #[arg(long, value_name = "DIRECTIVES")]
    log_level: Option<Directives>,
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err("it is neither text nor json".to_owned()),
    }
}

/// The log of this process.
#[derive(Debug)]
struct Log {
    node: String,
    format: Format,
    filter: Filter,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Starts logging. Lines are queued until [`output::start`].
///
/// # Errors
/// The environment variable contains invalid directives.
pub(crate) fn start(flags: &LogFlags, node: &str) -> Result<(), String> {
    let directives = match (&flags.log_level, std::env::var(VARIABLE)) {
        (Some(directives), _) => directives.clone(),
        (None, Ok(text)) if !text.is_empty() => {
            text.parse().map_err(|reason| format!("{VARIABLE}: {reason}"))?
        }
        (None, _) => Directives::default(),
    };
    let log =
        Log { node: node.to_owned(), format: flags.log_format, filter: Filter::new(&directives) };
    output::queue(lost_line);
    if LOG.set(log).is_ok() {
        // No other code sets a subscriber.
        let _ = tracing::subscriber::set_global_default(ToStandardError);
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            let thread = thread.name().unwrap_or("unnamed");
            let place = panic.location().map(ToString::to_string);
            let reason = panic.payload_as_str().unwrap_or("not a text");
            tracing::error!(target: "run", thread, place, reason, "panic");
        }));
    }
    Ok(())
}

/// Whether this process logs. If so, errors are logged instead of printed.
pub(crate) fn is_on() -> bool {
    LOG.get().is_some()
}

/// The directives in force.
pub(crate) fn directives() -> String {
    LOG.get().map(|log| log.filter.directives().to_string()).unwrap_or_default()
}

/// The level as the control socket reads and changes it.
#[derive(Debug)]
pub(crate) struct Level;

impl LogLevel for Level {
    fn directives(&self) -> String {
        directives()
    }

    fn set(&self, text: &str) -> Result<(), String> {
        let (before, wanted) = (directives(), text.parse::<Directives>()?);
        if let Some(log) = LOG.get() {
            log.filter.set(&wanted);
        }
        tracing::info!(target: "log", before, now = directives(), "log level changed");
        Ok(())
    }
}

/// Milliseconds, to the microsecond.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// The log line that reports lost lines of a stream.
fn lost_line(stream: &str, lines: u64) -> Vec<u8> {
    let Some(log) = LOG.get() else { return Vec::new() };
    let fields = vec![("stream", stream.into()), ("lines", lines.into())];
    let said = Said { message: "lines were lost: nobody read them".to_owned(), fields };
    log.line(Verbosity::Warn, "log", said)
}

impl Log {
    #[expect(clippy::disallowed_methods, reason = "people look events up by the time of day")]
    fn line(&self, level: Verbosity, target: &str, said: Said) -> Vec<u8> {
        let time = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        Line { time, level, node: &self.node, target, said }.format(self.format)
    }
}

/// A subscriber for the events of `tracing`. Spans are not used.
struct ToStandardError;

impl Subscriber for ToStandardError {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = Verbosity::from(*metadata.level());
        metadata.is_event()
            && LOG.get().is_some_and(|log| log.filter.allows(metadata.target(), level))
    }

    fn event(&self, event: &Event<'_>) {
        let Some(log) = LOG.get() else { return };
        let mut said = Said::default();
        event.record(&mut said);
        let metadata = event.metadata();
        output::ERR.push(log.line((*metadata.level()).into(), metadata.target(), said));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
