//! Points in time, as operators type them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::{format_rfc3339_micros, parse_duration, parse_rfc3339_weak};

/// A point in time: a time of day (UTC, the last one before now), a date and time of RFC 3339, or a
/// duration before now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment(SystemTime);

impl Moment {
    /// As `/v1` takes it.
    pub(super) fn parameter(self) -> String {
        format_rfc3339_micros(self.0).to_string()
    }
}

#[expect(clippy::disallowed_methods, reason = "people mean the time of day")]
pub(super) fn moment(text: &str) -> Result<Moment, String> {
    read(text, SystemTime::now()).ok_or_else(|| {
        "a time of day (14:03 or 14:03:20, UTC), a date and time (2026-11-30T14:03:00Z) or a duration before now \
         (10m) is expected"
            .to_owned()
    })
}

fn read(text: &str, now: SystemTime) -> Option<Moment> {
    if let Ok(before) = parse_duration(text) {
        return now.checked_sub(before).filter(|time| *time >= UNIX_EPOCH).map(Moment);
    }
    if let Some(time) = time_of_day(text) {
        const DAY: u64 = 86_400;
        let now = now.duration_since(UNIX_EPOCH).ok()?;
        let today = Duration::from_secs(now.as_secs() / DAY * DAY) + time;
        let last = if today > now { today.checked_sub(Duration::from_secs(DAY))? } else { today };
        return Some(Moment(UNIX_EPOCH + last));
    }
    parse_rfc3339_weak(text).ok().map(Moment)
}

/// `HH:MM` or `HH:MM:SS`.
fn time_of_day(text: &str) -> Option<Duration> {
    let mut parts = text.split(':');
    let mut part = |below: u64| -> Option<u64> {
        let part = parts.next()?;
        let is_number = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|number| is_number && *number < below)
    };
    let (hours, minutes) = (part(24)?, part(60)?);
    let seconds = if text.len() > 5 { part(60)? } else { 0 };
    parts.next().is_none().then(|| Duration::from_secs(hours * 3600 + minutes * 60 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        let now = parse_rfc3339_weak("2026-11-30T14:05:00Z").unwrap();
        let read = |text: &str| read(text, now).map(Moment::parameter);
        for (text, means) in [
            ("14:03", "2026-11-30T14:03:00.000000Z"),
            ("14:03:20", "2026-11-30T14:03:20.000000Z"),
            // Not yet today.
            ("23:59", "2026-11-29T23:59:00.000000Z"),
            ("10m", "2026-11-30T13:55:00.000000Z"),
            ("1h 5m", "2026-11-30T13:00:00.000000Z"),
            ("2026-11-30T14:03:00Z", "2026-11-30T14:03:00.000000Z"),
            ("2026-11-30 14:03:00", "2026-11-30T14:03:00.000000Z"),
            ("2026-11-29T14:03:20.123456Z", "2026-11-29T14:03:20.123456Z"),
        ] {
            assert_eq!(read(text).as_deref(), Some(means), "{text}");
        }
        for text in
            ["", "14", "14:60", "24:00", "1:03", "14:03:", "14:03:20:1", "+1:03", "noon", "60y"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
