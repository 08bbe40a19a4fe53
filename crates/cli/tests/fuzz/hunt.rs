//! One target's run: the corpus, then mutants of whatever was found so far.

use crate::corpus;
use crate::mutate::mutant;
use crate::target::{Decoder, Said, Target};
use base::Seed;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use undertone_cli::memory::PROCESS;

/// How long a target is run.
#[derive(Clone, Copy)]
pub enum Span {
    /// The same ones each time.
    Mutants(u64),
    Minutes(u64),
}

/// The file, in the folder of the process, with the input being decoded and its length before it.
const CURRENT: &str = "current-input";

/// Accepted inputs that join the seeds, since the way beyond them is where faults would be.
const KEPT: usize = 1000;
const LONGEST: usize = 1 << 17;
/// A decode that takes longer than this is a fault.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where and why the last panic was.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// What was seen so far.
struct Hunt {
    decoder: Decoder,
    current: File,
    said: BTreeSet<String>,
    faults: u64,
    accepted: u64,
    most: u64,
}

/// What one input came to.
struct Seen {
    said: Said,
    fault: bool,
}

/// What a process was decoding when it was killed.
pub fn last_input(folder: &Path) -> Vec<u8> {
    let bytes = std::fs::read(folder.join(CURRENT)).unwrap_or_default();
    let Some((len, rest)) = bytes.split_first_chunk() else { return Vec::new() };
    rest[..rest.len().min(u64::from_le_bytes(*len) as usize)].to_vec()
}

/// Run a target and say what came of it in a line. Whether there was no fault.
pub fn hunt(target: &Target, span: Span) -> bool {
    std::panic::set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = panic.to_string();
    }));
    let decoder = (target.build)();
    let current = File::create(CURRENT).expect("a scratch file");
    let said = BTreeSet::new();
    let mut hunt = Hunt { decoder, current, said, faults: 0, accepted: 0, most: 0 };
    let corpus = corpus::load(&target.name);
    let mut held: usize = corpus.iter().map(Vec::len).sum();
    let mut pool: Vec<Vec<u8>> = [hunt.decoder.seeds.clone(), corpus].concat();
    // What is built at the first use of something is not the price of a decode.
    pool.iter().for_each(|input| drop(catch_unwind(AssertUnwindSafe(|| (hunt.decoder.decode)(input)))));
    for input in &pool {
        let seen = hunt.see(input);
        if hunt.said.insert(seen.outcome()) && seen.fault {
            hunt.report(target, input, &seen);
        }
    }
    let (known, kept) = (hunt.said.len(), pool.len() + KEPT);
    let (begun, mut count) = (Instant::now(), 0);
    let mut draw = Seed(13).child(&target.name, 0).stream();
    let goes_on = |count: u64| match span {
        Span::Mutants(most) => count < most,
        Span::Minutes(minutes) => begun.elapsed() < Duration::from_secs(60 * minutes),
    };
    while goes_on(count) {
        count += 1;
        let input = mutant(&pool, hunt.decoder.form, &mut draw);
        let seen = hunt.see(&input);
        hunt.accepted += u64::from(seen.said.is_ok());
        if hunt.said.insert(seen.outcome()) {
            let small = hunt.smallest(&input, &seen);
            if seen.fault {
                hunt.report(target, &small, &seen);
            } else if matches!(span, Span::Minutes(_)) && corpus::has_room(held, small.len()) {
                held += small.len();
                corpus::keep(&target.name, &small);
            }
            pool.push(small);
        } else if seen.said.is_ok() && pool.len() < kept && input.len() < LONGEST {
            pool.push(input);
        }
    }
    println!(
        "{}: {count} mutants, {} outcomes ({} new), {:.1} % accepted, at most {:.0} kB a decode",
        target.name,
        hunt.said.len(),
        hunt.said.len() - known,
        100.0 * hunt.accepted as f64 / count.max(1) as f64,
        hunt.most as f64 / 1e3,
    );
    hunt.faults == 0
}

impl Hunt {
    /// Decode, and hold it against what a decode may do.
    fn see(&mut self, input: &[u8]) -> Seen {
        let current = [&(input.len() as u64).to_le_bytes(), input].concat();
        self.current.write_all_at(&current, 0).expect("a scratch file");
        let begun = Instant::now();
        let before = PROCESS.used();
        PROCESS.reset_peak();
        let result = catch_unwind(AssertUnwindSafe(|| (self.decoder.decode)(input)));
        let taken = PROCESS.peak().saturating_sub(before);
        self.most = self.most.max(taken);
        let fault = |what: String| Seen { said: Err(what), fault: true };
        let Ok(said) = result else {
            return fault(PANIC.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone());
        };
        if taken > self.decoder.room.of(input) {
            return fault("takes more memory than its room".to_owned());
        }
        if begun.elapsed() > PATIENCE {
            return fault("takes too long".to_owned());
        }
        Seen { said, fault: false }
    }

    /// Keep what a decoder failed on, so that it is tested for ever.
    fn report(&mut self, target: &Target, input: &[u8], seen: &Seen) {
        let (kept, what) = (corpus::keep(&target.name, input), seen.said.as_ref().err());
        println!("{}: FAULT: {}\n  {}", target.name, what.map_or("", |what| what), kept.display());
        self.faults += 1;
    }

    /// The input without what does not matter to its outcome, as far as cutting pieces out finds that.
    fn smallest(&mut self, input: &[u8], seen: &Seen) -> Vec<u8> {
        let wanted = seen.outcome();
        let (mut input, mut step, mut tries) = (input.to_vec(), input.len().div_ceil(2), 200);
        while step > 0 && tries > 0 {
            let mut at = 0;
            while at < input.len() && tries > 0 {
                let mut shorter = input.clone();
                shorter.drain(at..(at + step).min(input.len()));
                tries -= 1;
                if self.see(&shorter).outcome() == wanted { input = shorter } else { at += step }
            }
            step /= 2;
        }
        input
    }
}

impl Seen {
    /// What was said without what differs from input to input: quoted parts, paths and digits.
    fn outcome(&self) -> String {
        let (text, mut out) = match &self.said {
            Ok(shape) => (shape, String::from("ok ")),
            Err(error) if self.fault => return error.lines().next().unwrap_or_default().to_owned(),
            Err(error) => (error, String::from("error ")),
        };
        let (mut quote, mut path) = (None, false);
        for c in text.chars().take(2000) {
            path = if path { !c.is_whitespace() && c != ':' } else { c == '/' };
            match quote {
                Some(open) if c == open => quote = None,
                Some(_) => {}
                None if matches!(c, '"' | '`') => quote = Some(c),
                None if c.is_ascii_digit() || path => {
                    if !out.ends_with('#') {
                        out.push('#');
                    }
                }
                None => out.push(c),
            }
        }
        out.chars().take(200).collect()
    }
}
