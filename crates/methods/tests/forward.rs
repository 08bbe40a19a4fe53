//! Training by forward passes: what crosses, who is lost and who runs ahead may not change the weights, and
//! forward gradients lead where gradients lead.

#[path = "support/unequal.rs"]
mod unequal;

use base::{Node, SERVER, Seed};
use data::{Encoded, Target};
use federation::{Acceptance, CohortConfig, Fact, Member, Plan, Record, Status, Summary};
use model::{Model, PeftConfig, PeftKind, Pooling, Source, Task};
use sim::{FaultsConfig, Output, SimConfig};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use undertone_methods::{Setup, SetupError, TrainConfig, Workload, find};
use unequal::unequal;

const ROUNDS: u32 = 4;
const DEVICES: u32 = 6;

fn member(node: Node) -> Member {
    Member {
        node,
        class: "phone".into(),
        flops_per_s: 1e8 * f64::from(node.0 + 1),
        memory_bytes: 1 << 30,
        up_bytes_per_s: 1e6,
        down_bytes_per_s: 4e6,
        examples: 5 * u64::from(node.0),
    }
}

/// Devices of 5, 10, ... rows of a tiny BERT, whose label can be told from their first token.
fn workload(kind: PeftKind) -> Workload {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/bert");
    let task = Task::Classification { classes: 3, pooling: Pooling::Mean, squash: None };
    let peft = PeftConfig { r: 2, layers_to_transform: Some(vec![1]), ..PeftConfig::new(kind) };
    let peft = if kind == PeftKind::Head { PeftConfig::new(kind) } else { peft };
    let loaded = Model::load(&Source::Directory(directory), &task, &peft, Seed(1)).unwrap();
    let mut draw = Seed(2).stream();
    unequal(loaded, DEVICES, 5, 30, || {
        let class = draw.below(3) as u32;
        let ids = (0..3 + draw.below(5)).map(|_| 20 * class + draw.below(20) as u32).collect();
        Encoded::whole(ids, Target::Class(class))
    })
}

struct Run {
    theta: Vec<f32>,
    records: Vec<Record>,
}

impl Run {
    fn summaries(&self) -> Vec<&Summary> {
        self.records
            .iter()
            .filter_map(|record| match &record.fact {
                Fact::RoundClosed { summary, .. } => Some(summary),
                _ => None,
            })
            .collect()
    }
}

fn run(
    method: &str,
    options: &str,
    work: &Workload,
    rounds: u32,
    faults: FaultsConfig,
) -> Result<Run, SetupError> {
    run_on((1..=DEVICES).map(|i| member(Node(i))).collect(), method, options, work, rounds, faults, None)
}

/// A run on these devices; where there is an earlier one, accepting whom that accepted.
fn run_on(
    devices: Vec<Member>,
    method: &str,
    options: &str,
    work: &Workload,
    rounds: u32,
    faults: FaultsConfig,
    replay: Option<Acceptance>,
) -> Result<Run, SetupError> {
    let setup = Setup {
        server: member(SERVER),
        devices,
        plan: Plan { rounds, cohort: CohortConfig::default(), devices_expected: DEVICES, replay },
        seed: Seed(11),
        options: options.parse().unwrap(),
        work: Some(work.clone()),
        keep: undertone_methods::Keep::default(),
    };
    let assembly = (find(method).unwrap().assemble)(setup)?;
    let mut records = Vec::new();
    let mut sink = |output: Output| {
        if let Output::Record(record) = output {
            records.push(record.clone());
        }
    };
    let config = SimConfig { faults, ..SimConfig::new(Seed(3), 2) };
    let ended = sim::run(&assembly.federation, &config, &mut sink, &AtomicBool::new(false), None).unwrap();
    assert_eq!(ended.status, Status::Completed, "{method} {options}");
    let trained = (assembly.trained)(&ended.server).unwrap();
    Ok(Run { theta: trained.to_f32(work.model.layout.total()).unwrap(), records })
}

fn calm(method: &str, options: &str, work: &Workload) -> Run {
    run(method, options, work, ROUNDS, FaultsConfig::default()).unwrap()
}

fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

#[test]
fn scalars_and_dense_gradients_are_the_same_step() {
    for kind in [PeftKind::Lora, PeftKind::LoraXs, PeftKind::Bottleneck, PeftKind::Head] {
        let work = workload(kind);
        let scalars = calm("fwdllm", "perturbations = 3\nmost_waves = 2", &work);
        let dense = calm("fwdllm", "perturbations = 3\nmost_waves = 2\nuplink = \"dense\"", &work);
        let off = largest_difference(&scalars.theta, &dense.theta);
        assert!(off < 1e-4, "{kind:?}: {off}");
        // A number a direction, and the frame: the rest is the hello and the acknowledgements.
        let sent = |run: &Run| -> u64 {
            let up = |record: &Record| match record.fact {
                Fact::Sent { to, bytes, .. } if to == SERVER => bytes,
                _ => 0,
            };
            run.records.iter().map(up).sum()
        };
        assert!(sent(&scalars) < sent(&dense), "{kind:?}");
    }
}

#[test]
fn central_differences_agree_with_tangents() {
    let mut work = workload(PeftKind::Lora);
    work.recipe = TrainConfig { optim: model::optim::Optim::Sgd, momentum: 0.0, ..work.recipe.clone() };
    let exact = calm("fwdllm", "perturbations = 2", &work);
    let near = calm("fwdllm", "perturbations = 2\nestimator = \"difference\"", &work);
    let start = work.initial.to_f32(work.model.layout.total()).unwrap();
    let moved = largest_difference(&exact.theta, &start);
    assert!(largest_difference(&exact.theta, &near.theta) < 0.1 * moved);
}

/// A direction for each sequence: the same estimator where a batch is one sequence, less noise for as many
/// passes where it is more, and no other mean.
#[test]
fn directions_of_sequences_of_their_own_are_less_noisy_and_unbiased() {
    let mut work = workload(PeftKind::LoraXs);
    let optim = model::optim::Optim::Sgd;
    work.recipe = TrainConfig { optim, momentum: 0.0, ..work.recipe.clone() };
    let single = Workload {
        recipe: TrainConfig { per_device_train_batch_size: 1.try_into().unwrap(), ..work.recipe.clone() },
        ..work.clone()
    };
    let [of_batch, of_sequences] = ["batch", "sequences"].map(|over| format!("perturb = \"{over}\"\n"));
    let alone = |options: &str| calm("fwdllm", &format!("{options}perturbations = 2"), &single).theta;
    assert_eq!(alone(&of_batch), alone(&of_sequences));

    let start = work.initial.to_f32(work.model.layout.total()).unwrap();
    let step = |method: &str, options: &str| -> Vec<f32> {
        let run = run(method, options, &work, 1, FaultsConfig::default()).unwrap();
        run.theta.iter().zip(&start).map(|(after, before)| after - before).collect()
    };
    let true_step = step("fedsgd", "");
    let off = |step: &[f32]| {
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>();
        square(&mut step.iter().zip(&true_step).map(|(a, b)| a - b))
            / square(&mut true_step.iter().copied())
    };
    let of_batch = off(&step("fwdllm", &format!("{of_batch}perturbations = 64")));
    let sequences = |count: u32| off(&step("fwdllm", &format!("{of_sequences}perturbations = {count}")));
    let (of_sequences, of_many) = (sequences(64), sequences(1024));
    assert!(
        of_sequences < of_batch,
        "{of_sequences} of the squared step, {of_batch} with directions of batches"
    );
    assert!(
        of_many < 0.15 * of_sequences,
        "{of_many} of the squared step after 16 times as many as {of_sequences}"
    );
}

/// Deciding by variance: who runs ahead, is killed or comes late changes the clock only.
#[test]
fn running_ahead_and_kills_change_nothing_but_the_clock() {
    let work = workload(PeftKind::Lora);
    let paced = "pacing = \"noise-to-signal\"\nthreshold = 30.0\nmost_waves = 6\nfirst_devices = 0.5\n";
    let waiting = calm("fwdllm", paced, &work);
    let waves: Vec<f64> = waiting.summaries().iter().map(|summary| summary.figures["waves"]).collect();
    assert!(waves.iter().any(|waves| *waves < 6.0) && waves.iter().any(|waves| *waves > 0.0), "{waves:?}");
    let reasons: Vec<bool> =
        waiting.summaries().iter().map(|summary| summary.notes[0].contains("came below 30")).collect();
    assert_eq!(reasons, waves.iter().map(|waves| *waves < 6.0).collect::<Vec<_>>());
    let ahead = calm("fwdllm", &format!("{paced}run_ahead = true"), &work);
    assert_eq!(waiting.theta, ahead.theta);
    let faults = FaultsConfig { kill: 0.1, kill_server: 0.05, ..FaultsConfig::default() };
    let stormy = run("fwdllm", &format!("{paced}run_ahead = true"), &work, ROUNDS, faults).unwrap();
    assert!(stormy.records.iter().any(|record| matches!(record.fact, Fact::Killed { .. })));
    assert_eq!(waiting.theta, stormy.theta);
}

/// Who is lost while a round collects perturbations takes what it told with it; the round is then what it
/// would have been without it.
#[test]
fn a_paced_run_that_lost_devices_is_replayed_from_whom_it_counted() {
    let work = workload(PeftKind::Lora);
    let paced = "pacing = \"noise-to-signal\"\nthreshold = 30.0\nmost_waves = 6\nfirst_devices = 0.5\nrun_ahead = true";
    let whole: Vec<Member> = (1..=DEVICES).map(|i| member(Node(i))).collect();
    // Short batches fit these two, and not all of theirs are short.
    let small = |member: &Member| match member.node.0 {
        2 | 5 => Member { memory_bytes: 93_000, ..member.clone() },
        _ => member.clone(),
    };
    let run = |devices: Vec<Member>, accepted| {
        run_on(devices, "fwdllm", paced, &work, 2 * ROUNDS, FaultsConfig::default(), accepted).unwrap()
    };
    let stormy = run(whole.iter().map(small).collect(), None);
    let refused = |record: &&Record| matches!(&record.fact, Fact::Lost { device: Node(2 | 5), reason, .. } if reason.contains("memory"));
    let counted = |record: &&Record| matches!(record.fact, Fact::Counted { device: Node(2 | 5), .. });
    let times = |of: &dyn Fn(&&Record) -> bool| stormy.records.iter().filter(of).count();
    assert!(times(&refused) > 0 && times(&counted) > 0, "{} and {}", times(&refused), times(&counted));
    let accepted = Acceptance::from_records(&stormy.records);
    assert_eq!(stormy.theta, run(whole.clone(), Some(accepted)).theta);
    assert_ne!(stormy.theta, run(whole, None).theta);
}

#[test]
fn picked_directions_are_a_share_of_the_candidates_and_reproduce() {
    let work = workload(PeftKind::Lora);
    let picked = "keep = 0.2\nperturbations = 2";
    assert_eq!(calm("fwdllm", picked, &work).theta, calm("fwdllm", picked, &work).theta);
    assert_ne!(calm("fwdllm", picked, &work).theta, calm("fwdllm", "perturbations = 2", &work).theta);
}

/// The public code's filter: from the second round on, in every other one, each tensor for itself.
#[test]
fn tensors_choose_among_shared_candidates_in_every_other_round() {
    let mut work = workload(PeftKind::Lora);
    let optim = model::optim::Optim::Sgd;
    work.recipe = TrainConfig { optim, momentum: 0.0, ..work.recipe.clone() };
    let [all, filtered] = ["", "keep = 0.1\ncandidates = \"tensors\"\n"];
    let of = |options: &str, rounds| {
        let options = format!("{options}perturbations = 32");
        run("fwdllm", &options, &work, rounds, FaultsConfig::default()).unwrap()
    };
    assert_eq!(of(filtered, 1).theta, of(all, 1).theta);
    let (first, plain, chosen) = (of(all, 1).theta, of(all, 2).theta, of(filtered, 2).theta);
    assert_eq!(chosen, of(filtered, 2).theta);
    // What is chosen by its signed cosine leans along the gradient of the round before.
    let start = work.initial.to_f32(first.len()).unwrap();
    let old: Vec<f32> = first.iter().zip(&start).map(|(after, before)| after - before).collect();
    let along = |theta: &[f32]| {
        let step = theta.iter().zip(&first).map(|(after, before)| after - before);
        step.zip(&old).map(|(step, old)| f64::from(step * old)).sum::<f64>().abs()
    };
    assert!(along(&chosen) > 1.5 * along(&plain), "{} and {}", along(&chosen), along(&plain));
}

/// The exact gradient of a head is FedSGD's; many perturbations lead where it leads; a fitted head needs one
/// round and no perturbation.
#[test]
fn every_way_of_training_the_head_learns() {
    let mut work = workload(PeftKind::Head);
    let optim = model::optim::Optim::Sgd;
    work.recipe = TrainConfig { optim, momentum: 0.0, learning_rate: 0.05, ..work.recipe.clone() };
    let run =
        |method: &str, options: &str| run(method, options, &work, 40, FaultsConfig::default()).unwrap();
    let gain = |run: &Run| {
        let summaries = run.summaries();
        let last = summaries.last().unwrap().eval.as_ref().unwrap().loss;
        summaries[0].before.as_ref().unwrap().loss - last
    };
    let backward = run("fedsgd", "");
    let exact = run("fwdllm", "head = \"exact\"");
    assert!(largest_difference(&backward.theta, &exact.theta) < 1e-4);
    let forward = run("fwdllm", "perturbations = 16");
    let (backward, forward) = (gain(&backward), gain(&forward));
    assert!(backward > 0.0 && forward > 0.3 * backward, "{forward} where gradients gain {backward}");
    let fitted = run("fwdllm", "head = \"closed-form\"");
    let losses: Vec<f64> = fitted.summaries().iter().map(|summary| summary.loss).collect();
    assert!(losses[1..].iter().all(|loss| *loss < losses[0]), "{losses:?}");
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    let work = workload(PeftKind::Lora);
    let refused = |options: &str, word: &str| {
        let error = run("fwdllm", options, &work, 1, FaultsConfig::default()).err().unwrap().to_string();
        assert!(error.contains(word), "{options}: {error}");
    };
    refused("perturbations = 0", "perturbations");
    refused("keep = 0.0", "keep");
    refused("run_ahead = true", "run_ahead");
    refused("head_rounds = 3", "head_rounds");
    refused("step_size = -1.0", "step_size");
    refused("pacing = \"tensor-variance\"", "checked");
    refused("pacing = \"tensor-variance\"\nchecked = \"pooler\"", "these are: ");
    refused("perturb = \"sequences\"\nkeep = 0.5", "sequences");
}
