//! Values of options.

use std::time::Duration;

/// More workers than this help nobody.
const MOST_WORKERS: usize = 64;

/// `--workers N`.
pub(super) fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=MOST_WORKERS) => Ok(count),
        _ => Err(format!("it is not a number from 1 to {MOST_WORKERS}")),
    }
}

/// `--stats SECONDS`.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|s: f64| Duration::try_from_secs_f64(s).ok());
    seconds
        .filter(|duration| (0.1..1e9).contains(&duration.as_secs_f64()))
        .ok_or_else(|| "it is not a number of seconds, at least 0.1".to_owned())
}
