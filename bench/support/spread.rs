//! Minimum, median and maximum of the rounds.

use serde::Serialize;

/// What the rounds of one measurement say together.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    /// The least.
    pub(crate) min: f64,
    /// The middle one; of an even number the upper of the two.
    pub(crate) median: f64,
    /// The most.
    pub(crate) max: f64,
}

impl Spread {
    /// `None` without a value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let median = *values.get(values.len() / 2)?;
        Some(Self { min: *values.first()?, median, max: *values.last()? })
    }

    /// The median, and between brackets the least and the most.
    pub(crate) fn show(self, digits: usize) -> String {
        let Self { min, median, max } = self;
        format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
    }
}

/// The median of what one costs against another in the same round, which the clock speed of a
/// shared host hardly touches; `None` where a round failed.
pub(crate) fn median_ratio(of: &[f64], to: &[f64]) -> Option<f64> {
    let ratios = of.iter().zip(to).map(|(of, to)| of / to);
    let median = Spread::of(ratios)?.median;
    (of.len() == to.len()).then_some(median)
}
