//! Labels from prediction differences, and from the side network that was trained on them.

use super::{Finding, Seen, Tally, distance, nearest};
use crate::side::bench::SideBench;
use crate::side::cache::{Cache, RowReader};
use crate::side::trainer::{Batch, Sample, read};
use data::Label;
use federation::Fault;
use model::argmax;
use ops::{Mat, Workspace};
use std::collections::BTreeMap;

/// Samples that are read at a time.
const READ: usize = 256;

/// Labels from the differences alone.
pub(super) fn attack(
    bench: &SideBench,
    ws: &Workspace,
    traffic: &Cache,
    seen: &[Seen],
) -> Result<Vec<Finding>, Fault> {
    let mut said = Vec::with_capacity(seen.len());
    let (mut points, has_classes) = (Vec::new(), !bench.is_language() && !bench.is_number());
    each(bench, ws, traffic, seen, |_, batch| {
        say(bench, &batch.differences, &mut said);
        if has_classes {
            points.extend_from_slice(&batch.differences);
        }
        Ok(())
    })?;
    if !has_classes {
        let attack = if bench.is_number() { "number: the difference" } else { "next token: largest entry" };
        return Ok(vec![tally(&said, seen).finding(attack)]);
    }
    let points = ws.from_slice(seen.len(), bench.outputs, &points);
    let clustered = clusters(&points.map_err(fault)?, &truth(seen), bench.outputs);
    let clustered: Vec<Label> = clustered.into_iter().map(Label::Class).collect();
    Ok(vec![
        tally(&said, seen).finding("label: largest coordinate"),
        tally(&clustered, seen).finding("label: clusters, one known label a class"),
    ])
}

/// Labels from what the trained side network says of the taps. Where the coordinates are mixed the server finds
/// out by clusters which is which.
pub(super) fn ask(
    bench: &SideBench,
    ws: &Workspace,
    traffic: &Cache,
    theta: &[f32],
    seen: &[Seen],
) -> Result<Tally, Fault> {
    let (mut said, mut outputs) = (Vec::with_capacity(seen.len()), Vec::new());
    each(bench, ws, traffic, seen, |backbone, batch| {
        let output = bench.network.forward(ws, theta, backbone, &batch.taps);
        let output = output.map_err(|error| Fault(format!("the side network: {error}")))?;
        say(bench, &output, &mut said);
        if bench.mix.is_some() {
            outputs.extend_from_slice(&output);
        }
        Ok(())
    })?;
    if bench.mix.is_some() {
        let outputs = ws.from_slice(seen.len(), bench.outputs, &outputs).map_err(fault)?;
        said = clusters(&outputs, &truth(seen), bench.outputs).into_iter().map(Label::Class).collect();
    }
    Ok(tally(&said, seen))
}

/// Read all samples in their order, a few of one backbone at a time.
fn each(
    bench: &SideBench,
    ws: &Workspace,
    traffic: &Cache,
    seen: &[Seen],
    mut take: impl FnMut(usize, &Batch) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut reader = RowReader::new(traffic);
    let number = |seen: &Seen| bench.backbones.of(seen.sample.node).number;
    for same in seen.chunk_by(|a, b| number(a) == number(b)) {
        let backbone = bench.backbones.of(same[0].sample.node);
        for few in same.chunks(READ) {
            let samples: Vec<Sample> = few.iter().map(|seen| seen.sample).collect();
            take(backbone.number, &read(ws, &mut reader, backbone.shape, &samples)?)?;
        }
    }
    Ok(())
}

fn fault(error: ops::Error) -> Fault {
    Fault(format!("the audit: {error}"))
}

/// What outputs or differences say: the largest coordinate, or the number.
fn say(bench: &SideBench, outputs: &Mat, said: &mut Vec<Label>) {
    let number = bench.is_number();
    said.extend((0..outputs.rows()).map(|at| match outputs.row(at) {
        &[output] if number => Label::Number(output),
        row => Label::Class(argmax(row)),
    }));
}

fn truth(seen: &[Seen]) -> Vec<u32> {
    seen.iter().filter_map(|seen| seen.label.class()).collect()
}

fn tally(said: &[Label], seen: &[Seen]) -> Tally {
    let numbers: Vec<f32> = seen.iter().filter_map(|seen| number(seen.label)).collect();
    if numbers.is_empty() {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        truth(seen).into_iter().for_each(|class| *counts.entry(class).or_default() += 1);
        let right = said.iter().zip(seen).filter(|(said, seen)| **said == seen.label).count();
        return Tally { right, blind: counts.into_values().max().unwrap_or(0), tried: seen.len() };
    }
    // A number is recovered when what is said lies within a tenth of a deviation of it.
    let count = numbers.len() as f32;
    let mean = numbers.iter().sum::<f32>() / count;
    let deviation = (numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / count).sqrt();
    let is_near = |said: f32, truth: f32| (said - truth).abs() <= 0.1 * deviation;
    let right = said
        .iter()
        .zip(&numbers)
        .filter(|(said, truth)| number(**said).is_some_and(|said| is_near(said, **truth)));
    let blind = numbers.iter().filter(|truth| is_near(mean, **truth)).count();
    Tally { right: right.count(), blind, tried: seen.len() }
}

fn number(label: Label) -> Option<f32> {
    if let Label::Number(number) = label { Some(number) } else { None }
}

/// k-means (Lloyd's iterations) from the first sample of each class, whose label is known.
pub fn clusters(points: &Mat, truth: &[u32], classes: usize) -> Vec<u32> {
    let known = (0..classes as u32).map(|class| truth.iter().position(|&label| label == class));
    let mut centres: Vec<Option<Vec<f32>>> = known.map(|at| at.map(|at| points.row(at).to_vec())).collect();
    let mut assigned = vec![0; truth.len()];
    for _ in 0..20 {
        for (at, assigned) in assigned.iter_mut().enumerate() {
            let distance = |centre: &Option<Vec<f32>>| {
                centre.as_ref().map_or(f32::INFINITY, |centre| distance(centre, points.row(at)))
            };
            *assigned = nearest(centres.iter().map(distance));
        }
        for (class, centre) in (0u32..).zip(&mut centres) {
            let Some(centre) = centre else { continue };
            let members: Vec<usize> = (0..truth.len()).filter(|&at| assigned[at] == class).collect();
            if members.is_empty() {
                continue;
            }
            centre.fill(0.0);
            members
                .iter()
                .for_each(|&at| ops::slice::axpy(1.0 / members.len() as f32, points.row(at), centre));
        }
    }
    assigned
}
