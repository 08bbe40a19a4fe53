//! Curves: one small figure per pair of measures.

use super::axis::{Axis, Quantity};
use super::{Anchor, Svg, series_class};

/// A measure along an axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    pub name: &'static str,
    pub quantity: Quantity,
}

/// One curve; `tips[i]` is shown over `points[i]`.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub name: String,
    /// Which of the page's colours.
    pub colour: usize,
    pub dashed: bool,
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 196.0;
const LEFT: f64 = 42.0;
const RIGHT: f64 = 332.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 162.0;
/// Up to this many points a curve carries dots.
const DOTS: usize = 40;
/// Up to this many points a curve carries tool tips.
const TIPS: usize = 300;

/// Totals of bytes this many times apart do not fit an even axis.
const FAR: f64 = 20.0;

/// The figure of some curves: `y` against `x`.
pub(crate) fn chart(x: Measure, y: Measure, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|curve| &curve.points);
    let along = along(x.quantity, series);
    let up = Axis::over(y.quantity, points().map(|point| point.1), 4);
    let mut svg = Svg::new(WIDTH, HEIGHT, &format!("{} against {}", y.name, x.name));
    svg.words("title", 0.0, 13.0, Anchor::Start, y.name);
    if let [curve] = series
        && let Some((_, last)) = curve.points.last()
    {
        svg.words("tick", RIGHT, 13.0, Anchor::End, &format!("{last:.4}"));
    }
    let at_x = |value: f64| LEFT + (RIGHT - LEFT) * along.place(value);
    let at_y = |value: f64| BOTTOM - (BOTTOM - TOP) * up.place(value);
    for tick in &up.ticks {
        let y = at_y(*tick);
        svg.line("grid", LEFT, y, RIGHT, y);
        svg.words("tick", LEFT - 6.0, y + 3.5, Anchor::End, &up.label(*tick));
    }
    for tick in &along.ticks {
        let x = at_x(*tick);
        svg.line("axis", x, BOTTOM, x, BOTTOM + 4.0);
        svg.words("tick", x, BOTTOM + 15.0, Anchor::Middle, &along.label(*tick));
    }
    svg.line("axis", LEFT, BOTTOM, RIGHT, BOTTOM);
    let unit = if along.unit_name.is_empty() { String::new() } else { format!(", {}", along.unit_name) };
    svg.words("label", RIGHT, BOTTOM + 30.0, Anchor::End, &format!("{}{unit}", x.name));
    for curve in series {
        let class = series_class(curve.colour);
        let placed: Vec<(f64, f64)> = curve.points.iter().map(|(x, y)| (at_x(*x), at_y(*y))).collect();
        let dash = if curve.dashed { " dashed" } else { "" };
        svg.polyline(&format!("curve {class}{dash}"), &placed);
        for (place, value) in placed.iter().zip(&curve.points).filter(|_| placed.len() <= TIPS) {
            let unit = if along.unit_name.is_empty() { "" } else { " " };
            let at = format!("{}{unit}{}", tidy(value.0 / along.unit), along.unit_name);
            let tip = format!("{}: {} {:.4} at {} {at}", curve.name, y.name, value.1, x.name);
            if placed.len() <= DOTS {
                svg.circle(&format!("dot {class}"), place.0, place.1, 1.8, "");
            }
            svg.circle("hit", place.0, place.1, 7.0, &tip);
        }
    }
    svg.finish()
}

/// Curves of bytes that end far apart are spread by powers of ten.
fn along(quantity: Quantity, series: &[Series]) -> Axis {
    let values = || series.iter().flat_map(|curve| &curve.points).map(|point| point.0);
    let ends = || series.iter().filter_map(|curve| curve.points.last()).map(|point| point.0);
    let (least, most) = (ends().fold(f64::INFINITY, f64::min), ends().fold(0.0, f64::max));
    if quantity == Quantity::Bytes && most > FAR * least {
        Axis::of_bytes(values())
    } else {
        Axis::over(quantity, values(), 5)
    }
}

fn tidy(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
