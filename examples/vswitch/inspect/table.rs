//! Columns of text.

use std::time::Duration;

use crate::print;

/// Prints rows under a head, each column as wide as its widest cell.
pub(super) fn print_rows<const N: usize>(head: [&str; N], rows: &[[String; N]]) {
    let rows: Vec<Vec<&str>> =
        rows.iter().map(|row| row.iter().map(String::as_str).collect()).collect();
    print_columns(&head, &rows);
}

/// As [`print_rows`], with as many columns as the head has.
pub(super) fn print_columns(head: &[&str], rows: &[Vec<&str>]) {
    let mut widths: Vec<usize> = head.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[&str]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            line.push_str(cell);
            let missing = width.saturating_sub(cell.chars().count()) + 2;
            line.extend(std::iter::repeat_n(' ', missing));
        }
        print::line(line.trim_end());
    };
    line(head);
    rows.iter().for_each(|row| line(row));
}

/// A number of bytes with a unit (1 KiB = 1024 bytes).
pub(super) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// A rate in bit/s with a unit (1 kbit/s = 1000 bit/s), from bytes per second.
pub(super) fn rate(bytes_per_second: f64) -> String {
    let mut value = bytes_per_second * 8.0;
    let mut units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while value >= 999.95
        && let Some(next) = units.next()
    {
        value /= 1000.0;
        unit = next;
    }
    if unit == "bit/s" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// A time in its two largest units: `3d4h`, `1m1s`, `0s`.
pub(super) fn duration(time: Duration) -> String {
    let mut left = time.as_secs();
    let mut parts = Vec::new();
    for (unit, seconds) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        let count = left / seconds;
        left %= seconds;
        if count > 0 || !parts.is_empty() || unit == "s" {
            parts.push((count, unit));
        }
    }
    let shown =
        parts.iter().take(2).filter(|(count, unit)| *count > 0 || parts.len() == 1 && *unit == "s");
    shown.map(|(count, unit)| format!("{count}{unit}")).collect()
}

/// A field of an API response as text; empty if it is missing.
pub(super) fn text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(rate(0.0), "0 bit/s");
        assert_eq!(rate(125.0), "1.0 kbit/s");
        assert_eq!(rate(1.25e9), "10.0 Gbit/s");
        assert_eq!(rate(124.999), "1.0 kbit/s");
        let shown = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!([0, 59, 60, 61].map(shown), ["0s", "59s", "1m", "1m1s"]);
        assert_eq!([3600, 3661, 86_400, 90_061].map(shown), ["1h", "1h1m", "1d", "1d1h"]);
    }
}
