//! Scales, round ticks and units.

use base::units;

/// What an axis measures, which decides its unit and its ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantity {
    /// Whole numbers, from 0.
    Count,
    /// A loss, a perplexity.
    Plain,
    /// Between 0 and 1.
    Share,
    /// From 0.
    Seconds,
    /// From 0.
    Bytes,
}

/// As many powers of ten fit beside each other.
const LABELS: i32 = 7;

/// How values are spread along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spread {
    Even,
    /// By powers of ten; what is not positive stands at the low end.
    Logarithmic,
}

/// An axis: values are divided by `unit` before they are shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Axis {
    pub ticks: Vec<f64>,
    pub unit: f64,
    pub unit_name: &'static str,
    low: f64,
    high: f64,
    step: f64,
    spread: Spread,
}

impl Axis {
    /// An axis over `values`, which may be empty, with about `count` ticks.
    pub(crate) fn over(quantity: Quantity, values: impl Iterator<Item = f64>, count: usize) -> Axis {
        let (low, high) = range(values).unwrap_or((0.0, 1.0));
        let fits = matches!(quantity, Quantity::Plain | Quantity::Share);
        let low = if fits { low } else { low.min(0.0) };
        let (unit, unit_name) = unit(quantity, high);
        let flat = if quantity == Quantity::Share { 0.01 } else { high.abs().max(unit) * 0.1 };
        let high = if high > low { high } else { low + flat };
        let least = if quantity == Quantity::Count { 1.0 } else { 0.0 };
        let step = (round_step((high - low) / unit / count as f64)).max(least) * unit;
        let (low, high) =
            if fits { ((low / step).floor() * step, (high / step).ceil() * step) } else { (low, high) };
        let first = (low / step).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let ticks = (first..=last).map(|i| i as f64 * step).collect();
        Axis { ticks, unit, unit_name, low, high, step, spread: Spread::Even }
    }

    /// An axis of bytes over the powers of ten around the positive `values`.
    pub(crate) fn of_bytes(values: impl Iterator<Item = f64>) -> Axis {
        let (low, high) = range(values.filter(|value| *value >= 1.0)).unwrap_or((1.0, 10.0));
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let last = last.max(first + 1);
        let stride = ((last - first) / LABELS + 1) as usize;
        let ticks = (first..=last).step_by(stride).map(|power| 10f64.powi(power)).collect();
        let (low, high) = (f64::from(first), f64::from(last));
        Axis { ticks, unit: 1.0, unit_name: "", low, high, step: 1.0, spread: Spread::Logarithmic }
    }

    /// Where a value lies, from 0 to 1.
    pub(crate) fn place(&self, value: f64) -> f64 {
        let value = match self.spread {
            Spread::Even => value,
            Spread::Logarithmic => value.log10().max(self.low),
        };
        (value - self.low) / (self.high - self.low)
    }

    /// A tick's text, with the decimals that its step needs.
    pub(crate) fn label(&self, tick: f64) -> String {
        if self.spread == Spread::Logarithmic {
            return units::bytes(tick as u64).replace(".0 ", " ");
        }
        let decimals = (-(self.step / self.unit).log10().floor()).clamp(0.0, 6.0) as usize;
        let text = format!("{:.decimals$}", tick / self.unit);
        if text.trim_start_matches(['-', '0', '.']).is_empty() { "0".to_owned() } else { text }
    }
}

/// The smallest and the largest finite value.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|value| value.is_finite());
    finite.fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

fn unit(quantity: Quantity, high: f64) -> (f64, &'static str) {
    let steps: &[(f64, &str)] = match quantity {
        Quantity::Count | Quantity::Plain | Quantity::Share => &[(1.0, "")],
        Quantity::Seconds => &[(1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "days")],
        Quantity::Bytes => &[(1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")],
    };
    *steps.iter().rev().find(|(unit, _)| high >= 2.0 * unit).unwrap_or(&steps[0])
}

/// The nearest of 1, 2, 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let lead = step / power;
    let nice = [1.0, 2.0, 5.0].into_iter().find(|nice| lead <= nice * 1.0001).unwrap_or(10.0);
    nice * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_units_fit() {
        let labels = |quantity, values: &[f64]| {
            let axis = Axis::over(quantity, values.iter().copied(), 4);
            let labels: Vec<String> = axis.ticks.iter().map(|tick| axis.label(*tick)).collect();
            (labels.join(" "), axis.unit_name)
        };
        assert_eq!(labels(Quantity::Count, &[1.0, 3.0]), ("0 1 2 3".into(), ""));
        assert_eq!(labels(Quantity::Share, &[0.31, 0.884]), ("0.2 0.4 0.6 0.8 1.0".into(), ""));
        assert_eq!(labels(Quantity::Share, &[0.5, 0.5]), ("0.500 0.505 0.510".into(), ""));
        assert_eq!(labels(Quantity::Seconds, &[5.0, 430.0]), ("0 2 4 6".into(), "min"));
        assert_eq!(labels(Quantity::Bytes, &[0.0, 24.7e6]), ("0 10 20".into(), "MB"));
        let wide = Axis::of_bytes([0.0, 151e3, 682e6].into_iter());
        let text: Vec<String> = wide.ticks.iter().map(|tick| wide.label(*tick)).collect();
        let wider = Axis::of_bytes([7.0, 2e9].into_iter());
        assert_eq!(wider.ticks, [1e0, 1e2, 1e4, 1e6, 1e8, 1e10]);
        assert_eq!(text.join(", "), "100 kB, 1 MB, 10 MB, 100 MB, 1 GB");
        assert_eq!([0.0, 1e5, 1e7, 1e9].map(|bytes| wide.place(bytes)), [0.0, 0.0, 0.5, 1.0]);
        assert_eq!(labels(Quantity::Plain, &[]), ("0 0.5 1.0".into(), ""));
    }
}
