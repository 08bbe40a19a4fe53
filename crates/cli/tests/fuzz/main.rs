//! Every decoder of bytes from outside, under mutation: it answers with a value or a typed error, never panics,
//! and takes no more memory than its target allows.
//!
//! ```text
//! cargo test --release --workspace --test fuzz                  replays the corpus, then a few mutants each
//! cargo test --release --workspace --test fuzz -- scenario      those targets only whose name has this in it
//! <the test binary> --minutes 10 [--test-threads 3]                 the long run; new inputs join the corpus
//! ```
//!
//! Seeds are what a decoder is really given. Without coverage from the compiler, an input counts as new when
//! what the decoder says of it is new: the error's text, or the rough shape of what was accepted. Such inputs
//! are kept under `corpus/`, a folder a target. Each target runs in a process of its own, so that the
//! allocator counts its memory alone, and a stack that overflows or an allocation that fails is found too.

mod corpus;
mod form;
mod hunt;
mod models;
mod mutate;
mod nodes;
mod rows;
mod runs;
mod target;
mod wire;

use hunt::Span;
use std::collections::VecDeque;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;

/// Mutants of each target in a run of all tests.
const FEW: u64 = 300;

/// What was asked for. Flags of the usual test programs mean what they mean there, or nothing.
struct Asked {
    span: Span,
    /// Targets at a time.
    threads: usize,
    /// Part of the names of those that are run.
    filter: String,
    /// This process is to run that one itself.
    target: Option<String>,
    list: bool,
    ignored: bool,
}

fn asked() -> Asked {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (span, filter) = (Span::Mutants(FEW), String::new());
    let mut asked = Asked { span, threads, filter, target: None, list: false, ignored: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value after this option");
        let number = |text: String| text.parse().expect("a whole number");
        match arg.as_str() {
            "--minutes" => asked.span = Span::Minutes(number(value())),
            "--mutants" => asked.span = Span::Mutants(number(value())),
            "--test-threads" => asked.threads = number(value()) as usize,
            "--target" => asked.target = Some(value()),
            "--list" => asked.list = true,
            "--ignored" => asked.ignored = true,
            option if option.starts_with('-') => {}
            _ => asked.filter = arg,
        }
    }
    asked
}

fn main() -> ExitCode {
    let asked = asked();
    let mut targets = target::all();
    if let Some(name) = asked.target {
        let target = targets.into_iter().find(|target| target.name == name);
        return code(hunt::hunt(&target.expect("a target of that name"), asked.span));
    }
    targets.retain(|target| target.name.contains(&asked.filter) && !asked.ignored);
    let names: VecDeque<String> = targets.into_iter().map(|target| target.name).collect();
    if asked.list {
        names.iter().for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    code(run_all(names, asked.span, asked.threads))
}

fn code(sound: bool) -> ExitCode {
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A process a target, so many at a time. Whether all were sound.
fn run_all(names: VecDeque<String>, span: Span, threads: usize) -> bool {
    let (count, queue) = (names.len(), Mutex::new(names));
    let next = || queue.lock().expect("no thread panics").pop_front();
    let work = || {
        let mut unsound = 0;
        while let Some(name) = next() {
            unsound += usize::from(!run(&name, span));
        }
        unsound
    };
    let unsound: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).sum()
    });
    println!("fuzz: {count} targets, {unsound} with faults");
    unsound == 0
}

fn run(name: &str, span: Span) -> bool {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (flag, figure) = match span {
        Span::Mutants(count) => ("--mutants", count),
        Span::Minutes(minutes) => ("--minutes", minutes),
    };
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--target", name, flag, &figure.to_string()])
        .current_dir(scratch.path())
        .output()
        .expect("this program starts again");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.code().is_none_or(|code| code > 1) {
        let kept = corpus::keep(name, &hunt::last_input(scratch.path()));
        println!("{name}: FAULT: the process ended with {}", output.status);
        println!("  {}\n{}", kept.display(), String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}
