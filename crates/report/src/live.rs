//! A run on the terminal while it goes: bars for people, lines for pipes, JSON for programs.

use crate::fold::{Fold, Point};
use crate::progress;
use crate::run_info::RunInfo;
use crate::summary::{Bytes, Peaks, StatusFields, Summary, without_nulls};
use base::units;
use federation::{Eval, Fact, Record, Status};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;
use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

/// What the user asked for with `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// How a run is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A tree per round above a bar with an ETA.
    Bars,
    /// A tree per round.
    Plain,
    /// One JSON object a line: `run`, `round` ..., `end`.
    Json,
}

impl Style {
    /// Bars need a terminal.
    pub fn choose(format: Format, terminal: bool) -> Style {
        match (format, terminal) {
            (Format::Json, _) => Style::Json,
            (Format::Text, true) => Style::Bars,
            (Format::Text, false) => Style::Plain,
        }
    }
}

/// Shows one run.
pub struct Live {
    style: Style,
    info: RunInfo,
    out: Box<dyn Write + Send>,
    bar: ProgressBar,
    round_began: Duration,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Line<'a> {
    Run(&'a RunInfo),
    Resumed { rounds: u32 },
    Round(&'a Point),
    End(End<'a>),
}

#[derive(Serialize)]
struct End<'a> {
    #[serde(flatten, with = "StatusFields")]
    status: Status,
    #[serde(serialize_with = "without_nulls")]
    eval: Option<Eval>,
    time_s: f64,
    wall_s: f64,
    bytes: Bytes,
    device_peak_bytes: &'a Peaks,
    server_peak_bytes: u64,
    weights_hash: &'a Option<String>,
    trace_hash: &'a str,
}

impl Live {
    /// Show a run on `out`; the bar, if the style has one, on standard error. The run's id is
    /// written first.
    pub fn new(style: Style, info: &RunInfo, out: Box<dyn Write + Send>) -> io::Result<Live> {
        let target = match style {
            Style::Bars => ProgressDrawTarget::stderr(),
            Style::Plain | Style::Json => ProgressDrawTarget::hidden(),
        };
        Live::with_bar_on(target, style, info, out)
    }

    /// The same with the bar drawn elsewhere.
    pub fn with_bar_on(
        target: ProgressDrawTarget,
        style: Style,
        info: &RunInfo,
        out: Box<dyn Write + Send>,
    ) -> io::Result<Live> {
        let look = ProgressStyle::with_template("{bar:24} {pos}/{len}  eta {left}  {wide_msg}")
            .expect("the template is well-formed")
            .with_key("left", eta)
            .progress_chars("━╸─");
        let bar = ProgressBar::with_draw_target(Some(u64::from(info.rounds)), target).with_style(look);
        let mut live = Live { style, info: info.clone(), out, bar, round_began: Duration::ZERO };
        match style {
            Style::Json => live.json(&Line::Run(info))?,
            Style::Bars | Style::Plain => live.text(&progress::head(info))?,
        }
        Ok(live)
    }

    /// The run goes on from `fold`, which an earlier process began.
    pub fn resumed(&mut self, fold: &Fold) -> io::Result<()> {
        let rounds = fold.curve.last().map_or(0, |point| point.round);
        self.bar.set_position(u64::from(rounds));
        self.bar.reset_eta();
        match self.style {
            Style::Json => self.json(&Line::Resumed { rounds }),
            Style::Bars | Style::Plain => self.text(&progress::resumed(rounds)),
        }
    }

    /// A record has come and is in the fold; `elapsed` is the real time since the run began.
    pub fn update(&mut self, record: &Record, fold: &Fold, elapsed: Duration) -> io::Result<()> {
        match &record.fact {
            Fact::RoundOpened { .. } => self.round_began = elapsed,
            Fact::RoundClosed { .. } => self.close(fold, elapsed)?,
            _ => {}
        }
        if let Some(open) = &fold.open
            && self.style == Style::Bars
        {
            self.bar.set_message(progress::pulse(open));
        }
        Ok(())
    }

    /// The run has ended.
    pub fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.bar.finish_and_clear();
        match self.style {
            Style::Bars | Style::Plain => self.text(&progress::end(summary)),
            Style::Json => self.json(&Line::End(End {
                status: summary.status.clone(),
                eval: summary.eval.clone(),
                time_s: summary.time_s,
                wall_s: summary.wall_s,
                bytes: summary.bytes,
                device_peak_bytes: &summary.device_peak_bytes,
                server_peak_bytes: summary.server_peak_bytes,
                weights_hash: &summary.weights_hash,
                trace_hash: &summary.trace_hash,
            })),
        }
    }

    fn close(&mut self, fold: &Fold, elapsed: Duration) -> io::Result<()> {
        let [earlier @ .., point] = fold.curve.as_slice() else { return Ok(()) };
        if self.style == Style::Json {
            return self.json(&Line::Round(point));
        }
        let took = elapsed.saturating_sub(self.round_began);
        self.bar.set_position(u64::from(point.round));
        self.text(&progress::round(&self.info, earlier.last(), point, took))
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let Live { bar, out, .. } = self;
        bar.suspend(|| out.write_all(text.as_bytes()).and_then(|()| out.flush()))
    }

    fn json(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }
}

/// No round has ended yet, no estimate.
fn eta(state: &ProgressState, out: &mut dyn fmt::Write) {
    let text = if state.pos() == 0 { "?".to_owned() } else { units::seconds(state.eta().as_secs_f64()) };
    // A bar that cannot be drawn is no reason to stop a run.
    let _ = out.write_str(&text);
}
