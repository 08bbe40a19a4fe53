//! Side-tuning of a language model: a sample is a position whose next token is learned, and its pivot is
//! the state there. Prompts are read and never sent.
//!
//! The device's prediction is the backbone's own distribution `p` over the vocabulary. Of the difference
//! `onehot(next) - p` the entries of the likeliest tokens and of the next one are sent, the others count
//! as zero: they are the small ones.

use super::bench::{Forwarded, SideBench};
use super::device_head::softmax;
use crate::lab::gather;
use crate::train::hold;
use base::{Cost, Meter, Node};
use data::{Encoded, Target};
use federation::{Eval, Fault};
use model::side::{AddedTo, Pivot, Tapped, joint, vocabulary_logits};
use model::{Targets, Tokens};
use ops::{Mat, Workspace};

/// How many positions of a row are learned.
pub fn samples(row: &Encoded) -> usize {
    let from = if let Target::Completion { from } = row.target { from } else { 0 };
    row.ids.len().saturating_sub(from.max(1))
}

/// The positions of a batch that are learned, as rows of it, and the token that follows each.
fn learned(tokens: &Tokens, targets: &Targets) -> (Vec<u32>, Vec<u32>) {
    let from = |sequence: usize| match targets {
        Targets::Completion(from) => from[sequence].max(1),
        Targets::NextToken | Targets::Classes(_) => 1,
    };
    let mut pairs = (Vec::new(), Vec::new());
    for (sequence, bounds) in tokens.starts.windows(2).enumerate() {
        for at in bounds[0] + from(sequence)..bounds[1] {
            pairs.0.push(at - 1);
            pairs.1.push(tokens.ids[at as usize]);
        }
    }
    pairs
}

/// What a frozen forward pass says of a batch.
struct Read {
    tapped: Tapped,
    /// The backbone's distribution at each sample, samples x vocabulary.
    own: Mat,
    /// The token that follows.
    next: Vec<u32>,
}

impl SideBench {
    fn read_language(&self, ws: &Workspace, frozen: &[f32], rows: &[Encoded]) -> Result<Read, Fault> {
        let (tokens, targets) = gather(rows, 0..rows.len());
        let (at, next) = learned(&tokens, &targets);
        let backbone = self.backbones.first();
        let tapped = backbone.tap(ws, frozen, &tokens, &Pivot::Rows(at))?;
        let own = vocabulary_logits(ws, &backbone.model, frozen, &tapped.hidden);
        let mut own = own.map_err(|error| Fault(format!("the forward pass: {error}")))?;
        softmax(&mut own);
        Ok(Read { tapped, own, next })
    }

    /// The one forward pass over these rows of a device: taps and differences of every sample.
    pub fn forward_language(
        &self,
        node: Node,
        positions: &[u32],
        meter: &Meter,
    ) -> Result<Forwarded, Fault> {
        let (work, backbone) = (&self.lab.work, self.backbones.first());
        let rows: Vec<Encoded> = self.places(node, positions).map(|row| work.train[row].clone()).collect();
        let count: usize = rows.iter().map(samples).sum();
        let _held = hold(meter, self.forwarded_bytes(backbone, count) + backbone.frozen_bytes())?;
        let (ws, frozen) = (Workspace::new(meter, 1), backbone.frozen()?);
        let mut out = Forwarded { rows: count as u32, ..Forwarded::default() };
        let mut differences = Vec::with_capacity(count * backbone.shape.difference_bytes());
        for rows in rows.chunks(work.recipe.per_device_train_batch_size.get()) {
            let Read { tapped, own, next } = self.read_language(&ws, &frozen, rows)?;
            self.write(backbone, &tapped, &mut out);
            for (at, &next) in next.iter().enumerate() {
                self.write_sparse(own.row(at), next, &mut differences);
            }
        }
        out.differences = Some(differences);
        Ok(out)
    }

    /// The entries of the likeliest tokens and of the next one.
    fn write_sparse(&self, own: &[f32], next: u32, out: &mut Vec<u8>) {
        let entries = self.backbones.first().shape.difference_bytes() / 8;
        let mut likeliest: Vec<u32> = (0..own.len() as u32).collect();
        let likelier = |a: &u32, b: &u32| own[*b as usize].total_cmp(&own[*a as usize]).then(a.cmp(b));
        likeliest.sort_unstable_by(likelier);
        likeliest.truncate(entries);
        if !likeliest.contains(&next)
            && let Some(last) = likeliest.last_mut()
        {
            *last = next;
        }
        for token in likeliest {
            let difference = f32::from(u8::from(token == next)) - own[token as usize];
            out.extend(token.to_le_bytes());
            out.extend(difference.to_le_bytes());
        }
    }

    /// What [`SideBench::forward_language`] takes.
    pub fn price_of_language(&self, node: Node, positions: &[u32]) -> Cost {
        let (work, backbone) = (&self.lab.work, self.backbones.first());
        let (mut cost, mut count) = (Cost::FREE, 0);
        for batch in positions.chunks(work.recipe.per_device_train_batch_size.get()) {
            let rows: Vec<usize> = self.places(node, batch).collect();
            count += rows.iter().map(|&row| samples(&work.train[row])).sum::<usize>();
            cost = cost + self.price_of_reading(&work.train, &rows);
        }
        let kept = self.forwarded_bytes(backbone, count) + backbone.frozen_bytes();
        Cost { bytes: cost.bytes + kept, ..cost }
    }

    fn price_of_reading(&self, rows: &[Encoded], which: &[usize]) -> Cost {
        let backbone = self.backbones.first();
        let count: usize = which.iter().map(|&row| samples(&rows[row])).sum();
        let cost = backbone.inference(rows, which.iter().copied());
        let kept = count * ((backbone.shape.taps + 1) * backbone.shape.width + self.outputs);
        Cost { bytes: cost.bytes + 4 * kept as u64, ..cost }
    }

    /// Loss and perplexity of backbone and side network together on the test rows.
    pub fn evaluate_language(&self, theta: &[f32], meter: &Meter) -> Result<Eval, Fault> {
        let work = &self.lab.work;
        let backbone = self.backbones.first();
        let _held = hold(meter, backbone.frozen_bytes())?;
        let (ws, frozen) = (Workspace::new(meter, work.threads), backbone.frozen()?);
        let (mut loss, mut count) = (0.0, 0u64);
        for rows in work.test.chunks(work.recipe.per_device_eval_batch_size.get()) {
            let Read { tapped, own, next } = self.read_language(&ws, &frozen, rows)?;
            let side = self.side(&ws, theta, backbone.number, &tapped.taps)?;
            for (at, &next) in next.iter().enumerate() {
                let joint = joint(AddedTo::Probabilities, own.row(at), side.row(at), 1.0);
                loss -= f64::from(joint[next as usize]).ln();
            }
            count += next.len() as u64;
        }
        let loss = loss / count.max(1) as f64;
        Ok(Eval { loss, examples: work.test.len() as u64, perplexity: Some(loss.exp()), ..Eval::default() })
    }

    /// What [`SideBench::evaluate_language`] takes beside the parameters it is given.
    pub fn price_of_language_evaluation(&self) -> u64 {
        let backbone = self.backbones.first();
        let (test, size) = (&backbone.test, self.lab.work.recipe.per_device_eval_batch_size.get());
        let all: Vec<usize> = (0..test.len()).collect();
        let batch = |rows: &[usize]| {
            let count: usize = rows.iter().map(|&row| samples(&test[row])).sum();
            let joint = 4 * (count * (backbone.shape.width + self.outputs)) as u64;
            self.price_of_reading(test, rows).bytes.max(self.peaks.evaluation + joint)
        };
        all.chunks(size).map(batch).max().unwrap_or(0) + backbone.frozen_bytes()
    }
}
