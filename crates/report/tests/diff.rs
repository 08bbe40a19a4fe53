//! The first divergence of two runs, and what is said about it.

mod synthetic;

use base::{Node, Time};
use federation::{Fact, Record, Status};
use std::convert::Infallible;
use synthetic::{EMOTION, Shape};
use undertone_report::{Divergence, Ending, Fold, Summary, diff_summaries, diff_traces};

fn diff(left: &[Record], right: &[Record]) -> Result<u64, Box<Divergence>> {
    let whole = Ok::<Record, Infallible>;
    diff_traces(left.iter().cloned().map(whole), right.iter().cloned().map(whole)).unwrap()
}

/// Changes the record at `index` and returns what is said.
fn changed(index: usize, change: impl FnOnce(&mut Record)) -> (Divergence, String) {
    let left = synthetic::trace(&EMOTION);
    let mut right = left.clone();
    change(&mut right[index]);
    let divergence = diff(&left, &right).unwrap_err();
    let text = divergence.to_string();
    (*divergence, text)
}

fn find(wanted: impl Fn(&Fact) -> bool) -> usize {
    synthetic::trace(&EMOTION).iter().position(|record| wanted(&record.fact)).unwrap()
}

#[test]
fn equal_traces_have_no_divergence() {
    let trace = synthetic::trace(&EMOTION);
    assert_eq!(diff(&trace, &trace), Ok(trace.len() as u64));
    assert_eq!(diff(&[], &[]), Ok(0));
}

#[test]
fn other_numbers_are_named_field_by_field() {
    let index = find(|fact| matches!(fact, Fact::RoundClosed { round: 2, .. }));
    let (divergence, text) = changed(index, |record| {
        let Fact::RoundClosed { summary, .. } = &mut record.fact else { unreachable!() };
        summary.loss += 0.25;
    });
    assert_eq!((divergence.index, divergence.round), (index as u64, 2));
    let fields: Vec<&str> = divergence.fields.iter().map(|row| row.field.as_str()).collect();
    assert_eq!(fields, ["summary.loss"]);
    assert!(text.contains("the same round ends with other numbers"), "{text}");
}

#[test]
fn a_change_of_time_alone_is_told_from_a_change_of_work() {
    let index = find(|fact| matches!(fact, Fact::Ran { .. }));
    let (divergence, text) = changed(index, |record| record.t = Time(record.t.0 + 1));
    assert_eq!(divergence.fields.len(), 1);
    assert!(text.contains("at another time"), "{text}");
    let (divergence, text) = changed(index, |record| record.node = Node(999));
    assert!(divergence.fields.is_empty());
    assert!(
        text.contains("another thing happens next: ran on device 999 instead of ran on device "),
        "{text}"
    );
}

#[test]
fn a_trace_that_ends_early_is_a_divergence() {
    let trace = synthetic::trace(&EMOTION);
    let divergence = diff(&trace[..40], &trace).unwrap_err();
    assert_eq!((divergence.index, divergence.agreed_until), (40, trace[39].t));
    assert_eq!((&divergence.left, divergence.right.as_ref()), (&None, Some(&trace[40])));
    assert!(divergence.to_string().contains("the left trace ends here"));
}

#[test]
fn summaries_differ_in_what_matters_and_not_in_names_and_real_time() {
    let summary = |shape: &Shape, wall_s, trace_hash: &str| {
        let fold = Fold::of(&synthetic::trace(shape));
        let (trace_hash, weights_hash) = (trace_hash.to_owned(), None);
        let ending = Ending { status: Status::Completed, time: fold.now, wall_s, trace_hash, weights_hash };
        Summary::of(&synthetic::info(shape), &fold, &ending)
    };
    let left = summary(&EMOTION, 1.0, "a");
    assert_eq!(diff_summaries(&left, &summary(&EMOTION, 2.0, "a")), []);
    let other = diff_summaries(&left, &summary(&Shape { update: 310_000, ..EMOTION }, 1.0, "b"));
    let fields: Vec<&str> = other.iter().map(|row| row.field.as_str()).collect();
    assert_eq!(fields, ["time_s", "bytes.up", "bytes.down", "trace_hash"]);

    let mut right = left.clone();
    right.curve[3].train_loss = None;
    right.curve[5].train_loss = None;
    let other = diff_summaries(&left, &right);
    assert_eq!(other.iter().map(|row| row.field.as_str()).collect::<Vec<_>>(), ["round 4 train_loss"]);
}
