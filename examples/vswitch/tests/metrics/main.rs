//! Metrics as those who use them have them: `promtool`, the chart's alert rules and dashboard, and a real Prometheus that
//! scrapes a running switch. Parts whose program is missing (Debian's package prometheus has both) say so and are skipped.

mod names;
mod scraped;
mod tool;
