//! A histogram with fixed bounds.

/// Counts of observed values by bucket.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    /// Upper bounds, inclusive, in rising order.
    bounds: &'static [f64],
    /// One for each bound.
    buckets: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, buckets: vec![0; bounds.len()], count: 0, sum: 0.0 }
    }

    pub(super) fn observe(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        if let Some(at) = self.bounds.iter().position(|bound| value <= *bound) {
            self.buckets[at] += 1;
        }
    }

    /// Each bound with the number of values up to it.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds.iter().zip(&self.buckets).scan(0, |sum, (bound, count)| {
            *sum += count;
            Some((*bound, *sum))
        })
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum
    }
}
