//! A small SVG writer. Figures carry classes and no colours: the page's style sheet has them, for
//! light and dark.

pub(crate) mod axis;
pub(crate) mod gantt;
pub(crate) mod line;
pub(crate) mod rows;

use std::fmt::Write;

/// Text made safe for HTML and SVG, inside elements and quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(character),
            control if control.is_control() => safe.push('\u{fffd}'),
            _ => safe.push(character),
        }
    }
    safe
}

/// A figure under construction; lengths are user units, which are pixels at the figure's own width.
pub(crate) struct Svg {
    text: String,
}

/// Which end of a text its position names.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    /// A figure that scales to its box; `title` is read out to those who cannot see it.
    pub(crate) fn new(width: f64, height: f64, title: &str) -> Svg {
        let (width, height) = (px(width), px(height));
        let title = escape(title);
        let text = format!(
            "<svg class=\"plot\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\" xmlns=\"http://www.w3.org/2000/svg\">"
        );
        Svg { text }
    }

    pub(crate) fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }

    pub(crate) fn line(&mut self, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
        let (x1, y1, x2, y2) = (px(x1), px(y1), px(x2), px(y2));
        self.push(format_args!(
            "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"
        ));
    }

    pub(crate) fn rect(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64, tip: &str) {
        let (x, y, width, height) = (px(x), px(y), px(width), px(height));
        let head =
            format!("<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"");
        self.tipped(&head, "rect", tip);
    }

    pub(crate) fn circle(&mut self, class: &str, x: f64, y: f64, radius: f64, tip: &str) {
        let (x, y, radius) = (px(x), px(y), px(radius));
        self.tipped(
            &format!("<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"{radius}\""),
            "circle",
            tip,
        );
    }

    pub(crate) fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", px(*x), px(*y))).collect();
        self.push(format_args!("<polyline class=\"{class}\" points=\"{}\"/>", points.join(" ")));
    }

    pub(crate) fn words(&mut self, class: &str, x: f64, y: f64, anchor: Anchor, words: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let (x, y, words) = (px(x), px(y), escape(words));
        self.push(format_args!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\"{anchor}>{words}</text>"));
    }

    fn tipped(&mut self, head: &str, element: &str, tip: &str) {
        if tip.is_empty() {
            self.push(format_args!("{head}/>"));
        } else {
            let tip = escape(tip);
            self.push(format_args!("{head}><title>{tip}</title></{element}>"));
        }
    }

    fn push(&mut self, text: std::fmt::Arguments) {
        self.text.write_fmt(text).expect("writing to a string succeeds");
    }
}

/// A length with at most one decimal.
fn px(length: f64) -> String {
    let text = format!("{length:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// The class of the `index`-th series; the style sheet has eight colours.
pub(crate) fn series_class(index: usize) -> String {
    format!("s{}", index % 8)
}
