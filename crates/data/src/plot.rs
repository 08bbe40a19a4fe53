//! Who holds what, as a picture: one self-contained SVG, as wide as a phone.

use std::fmt::Write;

use crate::holdings::{Holdings, largest, share};

const WIDTH: f64 = 360.0;
/// Up to this number of devices, each has a bar of its own.
const BARS: usize = 48;
/// More devices share columns.
const COLUMNS: usize = 174;
const LEFT: f64 = 34.0;
const LEGEND: usize = 12;

/// Twelve colours that stay apart for colour-blind readers (Tol's muted set, extended).
const COLOURS: [&str; LEGEND] = [
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988", "#882255",
    "#999933", "#332288", "#cc99bb",
];

impl Holdings {
    /// Stacked bars, one a device; for many devices their label mixes side by side, and below them
    /// their sizes from largest to smallest. Text takes the colour of the page around it.
    pub fn svg(&self) -> String {
        let (body, height) = if self.counts.len() <= BARS { self.bars() } else { self.mixes() };
        let (legend, full) = self.legend(height + 18.0);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {full}\" role=\"img\" \
             aria-label=\"rows by device and label\" style=\"width:100%;max-width:720px\" \
             font-family=\"system-ui,sans-serif\" font-size=\"10\" fill=\"currentColor\">{body}{legend}</svg>"
        )
    }

    /// One horizontal bar a device, as long as it has rows.
    fn bars(&self) -> (String, f64) {
        let pitch = if self.counts.len() > 24 { 11.0 } else { 16.0 };
        let longest = f64::from(self.rows().into_iter().max().unwrap_or(0).max(1));
        let scale = (WIDTH - LEFT - 40.0) / longest;
        let mut svg = heading("rows by device");
        let mut paths = vec![String::new(); self.labels.len()];
        for (device, counts) in self.counts.iter().enumerate() {
            let y = 20.0 + pitch * device as f64;
            let mut x = LEFT;
            for (count, path) in counts.iter().zip(&mut paths) {
                let length = f64::from(*count) * scale;
                rectangle(path, [x, y, length, pitch - 3.0]);
                x += length;
            }
            let (base, rows) = (y + pitch - 5.0, counts.iter().sum::<u32>());
            let _ = write!(
                svg,
                "<text x=\"{}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>\
                 <text x=\"{:.1}\" y=\"{base:.1}\">{rows}</text>",
                LEFT - 5.0,
                device + 1,
                x + 4.0,
            );
        }
        self.paint(&mut svg, &paths);
        (svg, 20.0 + pitch * self.counts.len() as f64)
    }

    /// The label mix of every device, neighbours averaged where there are more than columns, sorted by
    /// main label; and the devices' sizes.
    fn mixes(&self) -> (String, f64) {
        let mut devices: Vec<&Vec<u32>> = self.counts.iter().collect();
        devices.sort_by(|a, b| {
            largest(a).cmp(&largest(b)).then(share(b).total_cmp(&share(a))).then_with(|| b.cmp(a))
        });
        let mut svg = heading("label mix, devices sorted by their main label");
        let mut paths = vec![String::new(); self.labels.len()];
        for ([x, width], group) in columns(&devices) {
            let total: f64 = group.iter().flat_map(|counts| counts.iter()).map(|n| f64::from(*n)).sum();
            let mut y = 20.0;
            for (label, path) in paths.iter_mut().enumerate() {
                let rows: f64 = group.iter().map(|counts| f64::from(counts[label])).sum();
                let height = 110.0 * rows / total.max(1.0);
                rectangle(path, [x, y, width, height]);
                y += height;
            }
        }
        self.paint(&mut svg, &paths);
        let mut rows = self.rows();
        rows.sort_unstable_by_key(|rows| std::cmp::Reverse(*rows));
        let most = f64::from(rows.first().copied().unwrap_or(0).max(1));
        let mut sizes = String::new();
        for ([x, width], group) in columns(&rows) {
            let mean = group.iter().map(|rows| f64::from(*rows)).sum::<f64>() / group.len() as f64;
            let height = 50.0 * mean / most;
            rectangle(&mut sizes, [x, 206.0 - height, width, height]);
        }
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"147\" font-weight=\"600\">rows of each device, largest first</text>\
             <path d=\"{sizes}\" opacity=\"0.55\"/>\
             <text x=\"{0}\" y=\"162\" text-anchor=\"end\">{most}</text>\
             <text x=\"{0}\" y=\"206\" text-anchor=\"end\">0</text>\
             <text x=\"{0}\" y=\"28\" text-anchor=\"end\">100%</text>\
             <text x=\"{LEFT}\" y=\"218\">1</text>\
             <text x=\"{WIDTH}\" y=\"218\" text-anchor=\"end\">{1}</text>",
            LEFT - 5.0,
            self.counts.len(),
        );
        (svg, 222.0)
    }

    /// Each label's shapes in its colour.
    fn paint(&self, svg: &mut String, paths: &[String]) {
        for (label, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
            let name = escaped(&self.labels[label]);
            let _ =
                write!(svg, "<path fill=\"{}\" d=\"{path}\"><title>{name}</title></path>", colour(label));
        }
    }

    /// Names of the labels in two columns from `top` down, and where they end.
    fn legend(&self, top: f64) -> (String, f64) {
        if self.labels.len() < 2 {
            return (String::new(), top - 8.0);
        }
        let mut svg = String::new();
        let shown = self.labels.len().min(LEGEND);
        for (place, name) in self.labels.iter().take(shown).enumerate() {
            let (x, y) = ((place % 2) as f64 * WIDTH / 2.0, top + (place / 2) as f64 * 15.0);
            let name: String = name.chars().take(26).collect();
            let _ = write!(
                svg,
                "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{}\"/>\
                 <text x=\"{}\" y=\"{y}\">{}</text>",
                y - 9.0,
                colour(place),
                x + 15.0,
                escaped(&name)
            );
        }
        let mut bottom = top + shown.div_ceil(2) as f64 * 15.0 - 8.0;
        if self.labels.len() > shown {
            bottom += 15.0;
            let more = self.labels.len() - shown;
            let _ = write!(svg, "<text x=\"0\" y=\"{}\">and {more} more labels</text>", bottom - 4.0);
        }
        (svg, bottom)
    }
}

/// Items side by side, at most [`COLUMNS`] wide: place and width of each column, and its items.
fn columns<T>(items: &[T]) -> impl Iterator<Item = ([f64; 2], &[T])> {
    let count = items.len().min(COLUMNS);
    let width = (WIDTH - LEFT) / count as f64;
    (0..count).map(move |column| {
        let group = &items[column * items.len() / count..(column + 1) * items.len() / count];
        ([LEFT + width * column as f64, width], group)
    })
}

fn colour(label: usize) -> String {
    match COLOURS.get(label) {
        Some(colour) => (*colour).to_owned(),
        // Past the named colours: hues a golden angle apart.
        None => format!("hsl({:.0} 45% 60%)", label as f64 * 137.508 % 360.0),
    }
}

fn heading(text: &str) -> String {
    format!("<text x=\"0\" y=\"11\" font-weight=\"600\">{text}</text>")
}

fn rectangle(path: &mut String, [x, y, width, height]: [f64; 4]) {
    if width > 0.0 && height > 0.0 {
        let _ = write!(path, "M{x:.1} {y:.1}h{width:.2}v{height:.2}h-{width:.2}z");
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
