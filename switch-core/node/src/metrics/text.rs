//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write as _};

use super::histogram::Histogram;

/// The text, and the family that samples belong to.
#[derive(Default)]
pub(super) struct Text(String, &'static str);

impl Text {
    /// With room for so many bytes.
    pub(super) fn with_room(bytes: usize) -> Self {
        Self(String::with_capacity(bytes), "")
    }

    pub(super) fn family(&mut self, name: &'static str, kind: &str, help: &str) -> &mut Self {
        // Writing to a String does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.1 = name;
        self
    }

    /// A family of one series.
    pub(super) fn one(&mut self, name: &'static str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// A series of the family.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.series("", labels, None, value);
    }

    /// The series of a histogram, in a family of that type.
    pub(super) fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        for (bound, count) in histogram.cumulative() {
            self.series("_bucket", labels, Some(bound), count);
        }
        self.series("_bucket", labels, Some(f64::INFINITY), histogram.count());
        self.series("_sum", labels, None, histogram.sum());
        self.series("_count", labels, None, histogram.count());
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }

    fn series(
        &mut self,
        suffix: &str,
        labels: &[(&str, &str)],
        bound: Option<f64>,
        value: impl Display,
    ) {
        self.0.push_str(self.1);
        self.0.push_str(suffix);
        let mut before = '{';
        for (label, text) in labels {
            self.0.push(before);
            self.0.push_str(label);
            self.0.push_str("=\"");
            escape(&mut self.0, text);
            self.0.push('"');
            before = ',';
        }
        match bound {
            Some(bound) if bound.is_infinite() => {
                let _ = write!(self.0, "{before}le=\"+Inf\"}}");
            }
            Some(bound) => {
                let _ = write!(self.0, "{before}le=\"{bound}\"}}");
            }
            None if !labels.is_empty() => self.0.push('}'),
            None => {}
        }
        let _ = writeln!(self.0, " {value}");
    }
}

/// Appends a label's value.
fn escape(to: &mut String, text: &str) {
    if !text.contains(['\\', '"', '\n']) {
        return to.push_str(text);
    }
    for c in text.chars() {
        match c {
            '\\' => to.push_str("\\\\"),
            '"' => to.push_str("\\\""),
            '\n' => to.push_str("\\n"),
            c => to.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_labels_are_escaped() {
        let mut text = Text::default();
        text.family("x", "gauge", "X.").sample(&[("l", "a\"b\\c\nd")], 1);
        assert_eq!(text.into_string(), "# HELP x X.\n# TYPE x gauge\nx{l=\"a\\\"b\\\\c\\nd\"} 1\n");
    }

    #[test]
    fn buckets_of_a_histogram_are_cumulative() {
        let mut histogram = Histogram::new(&[0.5, 2.0]);
        [0.1, 0.5, 1.0, 7.5].into_iter().for_each(|seconds| histogram.observe(seconds));
        let mut text = Text::default();
        text.family("h", "histogram", "H.").histogram(&[("v", "a")], &histogram);
        let lines = [
            "h_bucket{v=\"a\",le=\"0.5\"} 2",
            "h_bucket{v=\"a\",le=\"2\"} 3",
            "h_bucket{v=\"a\",le=\"+Inf\"} 4",
            "h_sum{v=\"a\"} 9.1",
            "h_count{v=\"a\"} 4",
        ];
        let text = text.into_string();
        assert_eq!(text.lines().skip(2).collect::<Vec<_>>(), lines);
    }
}
