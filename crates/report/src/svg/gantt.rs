//! Who trained when: one row per node, rounds as bands.

use super::axis::{Axis, Quantity};
use super::{Anchor, Svg};
use crate::fold::{Fold, Point};
use crate::timeline::{Activity, Row, Span, Timeline};
use base::{Time, units};

const WIDTH: f64 = 1040.0;
const LEFT: f64 = 132.0;
const RIGHT: f64 = 1034.0;
const TOP: f64 = 22.0;
/// Up to this many rows are set wide enough for text of the usual size.
const ROOMY: usize = 32;

/// The chart of a whole run.
pub(crate) fn chart(fold: &Fold, end: Time, clock: &str) -> String {
    draw(fold, &fold.timeline, (Time::ZERO, end), format!("{clock} time"))
}

/// The chart of a run's first steps, where there are any to show: see [`Opening`](crate::timeline::Opening).
pub(crate) fn opening(fold: &Fold, clock: &str) -> Option<String> {
    let window = fold.opening.window()?;
    let since = units::seconds(window.0.seconds());
    Some(draw(fold, &fold.opening.timeline, window, format!("{clock} time since {since}")))
}

fn draw(fold: &Fold, timeline: &Timeline, (begin, end): (Time, Time), label: String) -> String {
    let mut devices = timeline.devices();
    devices.sort_by_key(|(node, _)| (fold.class(*node), *node));
    let (pitch, text) = if devices.len() > ROOMY { (11.0, "tick small") } else { (15.0, "tick") };
    let bottom = TOP + pitch * (devices.len() + 1) as f64 + 10.0;
    let axis = Axis::over(Quantity::Seconds, [0.0, end.seconds() - begin.seconds()].into_iter(), 8);
    let svg = Svg::new(WIDTH, bottom + 34.0, "who trained when");
    let mut plot = Plot { svg, axis, begin, end, pitch };
    plot.rounds(&fold.curve, bottom);
    let middle = pitch / 2.0 + 1.5;
    plot.svg.words(&format!("{text} strong"), 0.0, TOP + middle, Anchor::Start, "server");
    plot.row(TOP, "server", &timeline.server);
    let mut above = None;
    for (index, (node, row)) in devices.iter().enumerate() {
        let y = TOP + 6.0 + pitch * (index + 1) as f64;
        plot.svg.words(text, LEFT - 8.0, y + middle, Anchor::End, &node.0.to_string());
        let class = fold.class(*node);
        if above != Some(class) {
            let short: String = class.chars().take(16).collect();
            plot.svg.line("grid", 0.0, y - 2.0, RIGHT, y - 2.0);
            plot.svg.words(&format!("{text} strong"), 0.0, y + middle, Anchor::Start, &short);
            above = Some(class);
        }
        plot.row(y, &node.to_string(), row);
    }
    plot.time_axis(bottom, &label);
    plot.svg.finish()
}

struct Plot {
    svg: Svg,
    axis: Axis,
    begin: Time,
    end: Time,
    pitch: f64,
}

impl Plot {
    fn at(&self, time: Time) -> f64 {
        LEFT + (RIGHT - LEFT)
            * self.axis.place(time.clamp(self.begin, self.end).seconds() - self.begin.seconds())
    }

    /// Every second round is shaded; numbers stand where they do not touch.
    fn rounds(&mut self, curve: &[Point], bottom: f64) {
        let mut free = LEFT;
        let shown = |point: &&Point| {
            let opened = Time::ZERO.after(point.opened_s);
            opened < self.end && Time::ZERO.after(point.time_s) > self.begin
        };
        for (index, point) in curve.iter().filter(shown).enumerate() {
            let from = self.at(Time::ZERO.after(point.opened_s));
            let to = self.at(Time::ZERO.after(point.time_s));
            let tip = format!("round {}: {}/{} counted", point.round, point.counted, point.cohort);
            let shade = if index % 2 == 0 { "band" } else { "hit" };
            self.svg.rect(shade, from, TOP - 2.0, (to - from).max(0.5), bottom - TOP, &tip);
            let text = point.round.to_string();
            let half = 3.5 * text.len() as f64 + 2.0;
            let middle = (from + to) / 2.0;
            if middle - half >= free {
                self.svg.words("tick", middle, TOP - 7.0, Anchor::Middle, &text);
                free = middle + half + 4.0;
            }
        }
        self.svg.words("label", 0.0, TOP - 7.0, Anchor::Start, "round");
    }

    fn row(&mut self, y: f64, name: &str, row: &Row) {
        let tall = self.pitch - 5.0;
        let lanes = [
            (Activity::Away, "away", 0.0, tall, "away"),
            (Activity::Receive, "bar receive", 0.0, tall * 0.3, "receiving"),
            (Activity::Send, "bar send", tall * 0.7, tall * 0.3, "sending"),
            (Activity::Compute, "bar compute", tall * 0.2, tall * 0.6, "computing"),
        ];
        for (activity, class, down, height, verb) in lanes {
            let Some(lane) = row.lanes.get(&activity) else { continue };
            // Gaps under half a pixel cannot be seen.
            let grain = ((self.end.0 - self.begin.0) as f64 * 0.5 / (RIGHT - LEFT)) as u64;
            let seen = |span: &Span| span.begin < self.end && span.end > self.begin;
            for span in lane.joined(grain).into_iter().filter(seen) {
                let (from, to) = (self.at(span.begin), self.at(span.end));
                self.svg.rect(class, from, y + down, (to - from).max(0.6), height, &tip(name, verb, span));
            }
        }
        for lost in &row.lost {
            let (x, half) = (self.at(*lost), tall / 2.0 - 1.4);
            let centre = y + tall / 2.0;
            self.svg.line("lost", x - half, centre - half, x + half, centre + half);
            self.svg.line("lost", x - half, centre + half, x + half, centre - half);
        }
    }

    fn time_axis(&mut self, bottom: f64, label: &str) {
        self.svg.line("axis", LEFT, bottom, RIGHT, bottom);
        for tick in self.axis.ticks.clone() {
            let x = LEFT + (RIGHT - LEFT) * self.axis.place(tick);
            self.svg.line("axis", x, bottom, x, bottom + 4.0);
            self.svg.words("tick", x, bottom + 15.0, Anchor::Middle, &self.axis.label(tick));
        }
        let label = format!("{label}, {}", self.axis.unit_name);
        self.svg.words("label", RIGHT, bottom + 30.0, Anchor::End, &label);
    }
}

fn tip(name: &str, verb: &str, span: Span) -> String {
    let (begin, end) = (span.begin.seconds(), span.end.seconds());
    let times = if span.joined > 1 { format!(", {} times", span.joined) } else { String::new() };
    if span.end == Time(u64::MAX) {
        return format!("{name} {verb} from {} on", units::seconds(begin));
    }
    let (from, to, took) = (units::seconds(begin), units::seconds(end), units::seconds(end - begin));
    format!("{name} {verb} {from} to {to} ({took}{times})")
}
