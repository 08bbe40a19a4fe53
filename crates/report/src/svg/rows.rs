//! One row per device class: bars for amounts, marks on a logarithmic line for memory.

use super::axis::{Axis, Quantity};
use super::{Anchor, Svg};
use base::units;

const WIDTH: f64 = 340.0;
const LEFT: f64 = 2.0;
const RIGHT: f64 = 338.0;
const TOP: f64 = 26.0;

/// The bars of one class.
pub(crate) struct Bars {
    pub name: String,
    /// Value and its text, one per series.
    pub values: Vec<(f64, String)>,
}

/// Horizontal bars, one group per class, each bar with its value beside it.
pub(crate) fn bars(title: &str, quantity: Quantity, series: &[&str], groups: &[Bars]) -> String {
    let bar = 9.0;
    let group_height = 22.0 + series.len() as f64 * (bar + 3.0);
    let all = groups.iter().flat_map(|group| group.values.iter().map(|value| value.0));
    let axis = Axis::over(quantity, all.chain([0.0]), 4);
    let mut svg = Svg::new(WIDTH, TOP + group_height * groups.len() as f64 + 4.0, title);
    svg.words("title", 0.0, 13.0, Anchor::Start, title);
    // The longest bar leaves room for its value.
    let reach = RIGHT - LEFT - 70.0;
    for (row, group) in groups.iter().enumerate() {
        let y = TOP + group_height * row as f64;
        svg.words("label", LEFT, y + 11.0, Anchor::Start, &group.name);
        for (index, ((value, text), name)) in group.values.iter().zip(series).enumerate() {
            let y = y + 17.0 + index as f64 * (bar + 3.0);
            let width = (reach * axis.place(*value)).max(1.0);
            let tip = format!("{}: {name} {text}", group.name);
            svg.rect(&format!("bar s{index}"), LEFT, y, width, bar, &tip);
            svg.words("tick", LEFT + width + 5.0, y + 8.0, Anchor::Start, text);
        }
    }
    svg.finish()
}

/// The memory of one class, in bytes.
pub(crate) struct Marks {
    pub name: String,
    pub measured: u64,
    pub priced: u64,
    pub budget: Option<u64>,
}

impl Marks {
    fn text(&self) -> String {
        let measured = units::bytes(self.measured);
        self.budget.map_or(measured.clone(), |budget| format!("{measured} of {}", units::bytes(budget)))
    }
}

/// Measured and priced bytes against the budget, on one logarithmic line for all classes.
pub(crate) fn memory(title: &str, groups: &[Marks]) -> String {
    let row_height = 34.0;
    let bottom = TOP + row_height * groups.len() as f64 + 4.0;
    let all = groups.iter().flat_map(|group| [group.measured, group.priced, group.budget.unwrap_or(0)]);
    let axis = Axis::of_bytes(all.map(|bytes| bytes as f64));
    let at = |bytes: f64| LEFT + 18.0 + (RIGHT - LEFT - 42.0) * axis.place(bytes);
    let mut svg = Svg::new(WIDTH, bottom + 20.0, title);
    svg.words("title", 0.0, 13.0, Anchor::Start, title);
    for tick in &axis.ticks {
        let x = at(*tick);
        svg.line("grid", x, TOP, x, bottom);
        svg.words("tick", x, bottom + 13.0, Anchor::Middle, &axis.label(*tick));
    }
    for (row, group) in groups.iter().enumerate() {
        let y = TOP + row_height * row as f64 + 24.0;
        svg.words("label halo", LEFT, y - 11.0, Anchor::Start, &group.name);
        svg.words("tick halo", RIGHT, y - 11.0, Anchor::End, &group.text());
        let (measured, priced) = (at(group.measured as f64), at(group.priced as f64));
        let end = group.budget.map_or(priced, |budget| at(budget as f64));
        svg.line("axis", measured, y, end.max(priced), y);
        let tip = |name: &str, bytes: u64| format!("{}: {name} {}", group.name, units::bytes(bytes));
        if let Some(budget) = group.budget {
            let x = at(budget as f64);
            svg.rect("budget", x - 1.5, y - 6.0, 3.0, 12.0, &tip("budget", budget));
        }
        svg.circle("ring s1", priced, y, 4.5, &tip("priced", group.priced));
        svg.circle("dot s0", measured, y, 3.0, &tip("measured", group.measured));
    }
    svg.finish()
}
