//! Text generation, a token at a time, with cached keys and values.

use crate::attention::Cache;
use crate::error::Error;
use crate::model::Model;
use crate::side::Beside;
use crate::tokens::Tokens;
use crate::train::argmax;
use base::{Seed, Stream};
use ops::{Mat, Workspace};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely one.
    Greedy,
    /// Drawn from the smallest set of tokens that holds `top_p` of the probability (Holtzman et al.
    /// 2020), after dividing logits by `temperature`.
    Nucleus { temperature: f32, top_p: f32, seed: Seed },
}

/// Continue `prompt` by at most `max_new` tokens. Ends before `eos`, or where positions end.
pub fn generate(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    prompt: &[u32],
    max_new: usize,
    sampling: Sampling,
    eos: Option<u32>,
) -> Result<Vec<u32>, Error> {
    generate_beside(ws, model, theta, None, prompt, (max_new, eos), sampling)
}

/// [`generate`] by the sum of the model's distribution and the side network beside it.
pub fn generate_beside(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    beside: Option<Beside<'_>>,
    prompt: &[u32],
    (max_new, eos): (usize, Option<u32>),
    sampling: Sampling,
) -> Result<Vec<u32>, Error> {
    model.check_tokens(&Tokens::of(&[prompt]))?;
    let positions = model.spec.max_positions.min(prompt.len().saturating_add(max_new));
    let mut cache = caches(ws, model, positions)?;
    let mut stream = match sampling {
        Sampling::Greedy => Seed(0).stream(),
        Sampling::Nucleus { seed, .. } => seed.stream(),
    };
    let mut generated = Vec::new();
    let mut fed = prompt.to_vec();
    for position in prompt.len()..=positions {
        if generated.len() == max_new {
            break;
        }
        let logits = next_logits(ws, model, theta, &fed, position - fed.len(), &mut cache, beside)?;
        let next = choose(&logits, sampling, &mut stream);
        if Some(next) == eos {
            break;
        }
        generated.push(next);
        fed = vec![next];
    }
    Ok(generated)
}

fn caches(ws: &Workspace, model: &Model, positions: usize) -> Result<Vec<Cache>, Error> {
    let width = model.spec.kv_heads * model.spec.head_dim;
    let layers = model.layers();
    Ok(layers.map(|_| Cache::new(ws, positions, width)).collect::<ops::Result<_>>()?)
}

/// The logits after the last of `ids`, whose first stands at position `first`.
fn next_logits(
    ws: &Workspace,
    model: &Model,
    theta: &[f32],
    ids: &[u32],
    first: usize,
    caches: &mut [Cache],
    beside: Option<Beside<'_>>,
) -> Result<Mat, Error> {
    let tokens = Tokens::of(&[ids]);
    let pass = model.pass(ws, theta, &tokens.starts)?;
    let mut x = model.embedding()?.forward(pass, &tokens)?;
    let mut taps = Vec::new();
    for ((layer, block), cache) in model.layers().zip(model.blocks(&model.layers())?).zip(caches) {
        x = block.decode(pass, &x, first, cache)?;
        if beside.is_some_and(|beside| beside.layers.contains(&layer)) {
            taps.push(ws.copy_rows(&x, x.rows() - 1..x.rows())?);
        }
    }
    let mut logits = model.head()?.logits(pass, x)?;
    if let Some(beside) = beside {
        beside.add(ws, &taps, &mut logits)?;
    }
    if ops::slice::all_finite(&logits) { Ok(logits) } else { Err(Error::NonFinite { what: "output" }) }
}

fn choose(logits: &[f32], sampling: Sampling, stream: &mut Stream) -> u32 {
    let Sampling::Nucleus { temperature, top_p, .. } = sampling else {
        return argmax(logits);
    };
    let largest = f64::from(logits[argmax(logits) as usize]);
    let weight = |logit: f32| libm::exp((f64::from(logit) - largest) / f64::from(temperature.max(1e-6)));
    let mut tokens: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(|logit| weight(*logit))).collect();
    tokens.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
    let total: f64 = tokens.iter().map(|(_, weight)| weight).sum();
    let mut sum = 0.0;
    let kept = tokens.iter().take_while(|(_, weight)| {
        let before = sum;
        sum += weight / total;
        before < f64::from(top_p)
    });
    let kept = kept.count().max(1);
    let mass: f64 = tokens[..kept].iter().map(|(_, weight)| weight).sum();
    let mut left = stream.unit() * mass;
    let drawn = tokens[..kept].iter().find(|(_, weight)| {
        left -= weight;
        left < 0.0
    });
    drawn.unwrap_or(&tokens[0]).0
}
