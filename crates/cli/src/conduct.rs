//! Carry a prepared run out: drive it, show it, write it down, and end it well.

use crate::errors::{Exit, Failure, context};
use crate::finished::{Finished, write_report};
use crate::memory::PROCESS;
use crate::prepare::Prepared;
use crate::run_dir::{self, RunDir};
use base::{Blob, units};
use federation::{Fact, Record, Status};
use report::{Clock, Ending, Fold, Live, RunInfo, Style, Summary, TraceWriter, write_atomically};
use sim::{Checkpoint, Ended, Output, SimError};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What carries the federation's effects out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Driver {
    /// A virtual clock: seconds come from device profiles and link rates
    Virtual,
    /// One OS thread a node, in real time
    Local,
}

impl Driver {
    pub fn clock(self) -> Clock {
        match self {
            Driver::Virtual => Clock::Virtual,
            Driver::Local => Clock::Real,
        }
    }
}

/// How a run is carried out and shown; none of it changes the result.
pub struct Stage {
    pub driver: Driver,
    pub style: Style,
    pub interrupt: &'static AtomicBool,
}

/// Where a resumed run goes on.
pub struct Rest {
    pub checkpoint: Checkpoint,
    /// Real seconds spent before.
    pub wall_s: f64,
}

/// A run that ended, completed or interrupted.
pub struct Conducted {
    pub dir: PathBuf,
    pub summary: Summary,
}

impl Conducted {
    pub fn exit(&self) -> Exit {
        if self.summary.status == Status::Interrupted { Exit::Interrupted } else { Exit::Completed }
    }

    /// What a user may want to do now.
    pub fn next_steps(&self) -> String {
        let dir = self.dir.display();
        if self.summary.status == Status::Interrupted {
            return format!("\ngo on with it: undertone resume {dir}\n");
        }
        let peak = units::bytes(self.summary.process_peak_bytes.unwrap_or(0));
        let mut text = format!("\nthis process held at most {peak}\nreport: {dir}/{}\n", run_dir::REPORT);
        match &self.summary.eval {
            Some(eval) if eval.perplexity.is_some() => {
                text += &format!("try: undertone generate {dir} \"Once upon a time\"\n");
            }
            Some(_) => text += &format!("try: undertone predict {dir} \"some text\"\n"),
            None => {}
        }
        text
    }
}

/// Run to the end, or to an interrupt, and keep the run; from where it rests, if it was begun before.
pub fn conduct(
    prepared: &Prepared,
    run: RunDir,
    stage: &Stage,
    rest: Option<Rest>,
) -> Result<Conducted, Failure> {
    prepared.keep.settle(&run.file(""));
    let mut log = Log::open(prepared, &run, stage.style, stage.driver.clock(), rest.as_ref())?;
    let ended = drive(prepared, stage, rest.map(|rest| rest.checkpoint), &mut log);
    log.close()?;
    conclude(prepared, run, log, &ended?)
}

/// Write down how a run ended, and give it its name.
pub fn conclude(
    prepared: &Prepared,
    run: RunDir,
    mut log: Log,
    ended: &Ended,
) -> Result<Conducted, Failure> {
    let trained = (prepared.assembly.trained)(&ended.server)
        .map_err(context(Exit::Failed, "the server's final snapshot cannot be read"))?;
    let summary = log.summary(ended, &trained);
    let summary = Summary { server_resident: prepared.server_resident, ..summary };
    summary.write(&run.file(run_dir::SUMMARY)).map_err(files)?;
    if let Some(checkpoint) = &ended.checkpoint {
        log.save(checkpoint)?;
    }
    if ended.status == Status::Completed {
        complete(prepared, &run, &trained)?;
    }
    log.live.end(&summary).map_err(cannot_show)?;
    if let Status::Failed(reason) = &ended.status {
        let dir = run.fail()?;
        return Err(Failure::new(Exit::Failed, format!("the run failed: {reason}"))
            .help(format!("its trace is kept in {}; no adapter was written", dir.display())));
    }
    Ok(Conducted { dir: run.keep()?, summary })
}

fn drive(
    prepared: &Prepared,
    stage: &Stage,
    from: Option<Checkpoint>,
    log: &mut Log,
) -> Result<Ended, Failure> {
    let federation = &prepared.assembly.federation;
    let mut sink = |output: Output| log.take(output, stage.interrupt);
    let ended = match stage.driver {
        Driver::Virtual => sim::run(federation, &prepared.sim, &mut sink, stage.interrupt, from),
        Driver::Local => sim::local::run(federation, &prepared.sim, &mut sink, stage.interrupt, from),
    };
    ended.map_err(|error| {
        let exit = match error {
            SimError::Config(_) => Exit::Usage,
            SimError::Checkpoint(_) | SimError::Foreign { .. } => Exit::Files,
            _ => Exit::Failed,
        };
        Failure::new(exit, error)
    })
}

/// Where records go.
pub struct Log {
    info: RunInfo,
    trace: TraceWriter,
    checkpoint: PathBuf,
    fold: Fold,
    live: Live,
    began: Instant,
    /// Real time spent before this process.
    before: Duration,
    /// The first thing that could not be written. The run is stopped for it.
    broken: Option<Failure>,
}

impl Log {
    pub fn open(
        prepared: &Prepared,
        run: &RunDir,
        style: Style,
        clock: Clock,
        rest: Option<&Rest>,
    ) -> Result<Log, Failure> {
        let info = prepared.info(run.id(), clock);
        let mut fold = Fold::default();
        let path = run.file(run_dir::TRACE);
        let trace = match rest {
            Some(rest) => {
                TraceWriter::resume(&path, rest.checkpoint.records, &mut |record| fold.push(record))
            }
            None => {
                prepared.write(run)?;
                TraceWriter::create(&path)
            }
        };
        let trace = trace.map_err(files)?;
        let mut live = Live::new(style, &info, Box::new(std::io::stdout())).map_err(cannot_show)?;
        if rest.is_some() {
            live.resumed(&fold).map_err(cannot_show)?;
        }
        let checkpoint = run.file(run_dir::CHECKPOINT);
        let before = Duration::from_secs_f64(rest.map_or(0.0, |rest| rest.wall_s));
        Ok(Log { info, trace, checkpoint, fold, live, began: Instant::now(), before, broken: None })
    }

    /// Take in what the driver hands out; what cannot be written interrupts the run.
    pub fn take(&mut self, output: Output, interrupt: &AtomicBool) {
        if self.broken.is_some() {
            return;
        }
        let done = match output {
            Output::Record(record) => self.record(record),
            Output::Checkpoint(checkpoint) => self.save(&checkpoint),
        };
        if let Err(failure) = done {
            self.broken = Some(failure);
            interrupt.store(true, Ordering::SeqCst);
        }
    }

    fn record(&mut self, record: &Record) -> Result<(), Failure> {
        self.trace.write(record).map_err(files)?;
        self.fold.push(record);
        if matches!(record.fact, Fact::RoundClosed { .. }) {
            self.trace.flush().map_err(files)?;
        }
        self.live.update(record, &self.fold, self.began.elapsed()).map_err(cannot_show)
    }

    /// Take in what an earlier process of this run handed out, without showing it again.
    pub fn recall(&mut self, records: &[Record]) -> Result<(), Failure> {
        for record in records {
            self.trace.write(record).map_err(files)?;
            self.fold.push(record);
        }
        if records.is_empty() { Ok(()) } else { self.live.resumed(&self.fold).map_err(cannot_show) }
    }

    fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), Failure> {
        self.trace.flush().map_err(files)?;
        write_atomically(&self.checkpoint, &checkpoint.to_packet().to_bytes())
            .map_err(context(Exit::Files, "cannot write a checkpoint"))
    }

    /// Write the last records out, or say what could not be written.
    pub fn close(&mut self) -> Result<(), Failure> {
        self.broken.take().map_or(Ok(()), Err)?;
        self.trace.flush().map_err(files)
    }

    fn summary(&self, ended: &Ended, trained: &Blob) -> Summary {
        let ending = Ending {
            status: ended.status.clone(),
            time: ended.time,
            wall_s: (self.before + self.began.elapsed()).as_secs_f64(),
            trace_hash: ended.trace_hash.clone(),
            weights_hash: (!trained.is_empty()).then(|| weights_hash(trained)),
        };
        let summary = Summary::of(&self.info, &self.fold, &ending);
        Summary { process_peak_bytes: Some(PROCESS.peak()), ..summary }
    }
}

/// BLAKE3 of the trained parameters, little-endian f32 in the layout's order.
fn weights_hash(trained: &Blob) -> String {
    format!("blake3:{}", blake3::hash(&trained.0).to_hex())
}

/// What only a completed run has: the adapter and the report.
fn complete(prepared: &Prepared, run: &RunDir, trained: &Blob) -> Result<(), Failure> {
    prepared.save_trained(run, trained)?;
    remove(&run.file(run_dir::CHECKPOINT))?;
    let finished = Finished::read(&run.file(""))?;
    write_report(&run.file(run_dir::REPORT), &run.id(), &[finished])
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(context(Exit::Files, format!("cannot remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

fn files(error: impl Display) -> Failure {
    Failure::new(Exit::Files, error)
}

fn cannot_show(error: std::io::Error) -> Failure {
    context(Exit::Files, "cannot write to the terminal")(error)
}
