//! What stands behind the last block: the final norm, and the head of the task.

use crate::error::Error;
use crate::norm::Norm;
use crate::pass::{Below, Pass, Values};
use crate::tangent::TangentPass;
use crate::tokens::{Targets, Tokens};
use crate::train::Loss;
use ops::act::Activation;
use ops::pool::Pooling;
use ops::{Dual, Linear, Mat, dense, loss};
use std::ops::Range;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub norm: Option<Norm>,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Classifier(Classifier),
    Language(Language),
}

/// `logits = W tanh(k * pooled) + b`, or without the tanh.
#[derive(Clone, Debug)]
pub(crate) struct Classifier {
    pub pooling: Pooling,
    pub squash: Option<f32>,
    /// classes x width.
    pub weight: Values,
    pub bias: Values,
    pub classes: usize,
}

/// `logits = W hidden`, at every position.
#[derive(Clone, Debug)]
pub(crate) struct Language {
    pub weight: LanguageWeight,
    pub vocab: usize,
}

#[derive(Debug)]
pub(crate) enum LanguageWeight {
    /// Possibly the word embedding's packed copy too.
    Frozen(Arc<Linear>),
    /// Possibly the word embedding's range too: then both uses add to its gradient.
    Trained(Range<usize>),
}

/// A copy shares nothing, not even with an embedding.
impl Clone for LanguageWeight {
    fn clone(&self) -> LanguageWeight {
        match self {
            LanguageWeight::Frozen(linear) => LanguageWeight::Frozen(Arc::new(Linear::clone(linear))),
            LanguageWeight::Trained(range) => LanguageWeight::Trained(range.clone()),
        }
    }
}

impl Head {
    /// The hidden states as the task's head reads them: after the final norm, where there is one.
    pub fn hidden(&self, pass: Pass<'_>, x: Mat) -> ops::Result<Mat> {
        match &self.norm {
            Some(norm) => norm.forward(pass, &x),
            None => Ok(x),
        }
    }

    /// Sequences x classes; for a language model the logits after the last token of each sequence.
    pub fn logits(&self, pass: Pass<'_>, x: Mat) -> ops::Result<Mat> {
        let hidden = self.hidden(pass, x)?;
        match &self.kind {
            Kind::Classifier(classifier) => Ok(classifier.forward(pass, &hidden)?.logits),
            Kind::Language(language) => {
                let last = Pooling::Last.forward(pass.ws, &hidden, pass.starts)?;
                language.forward(pass, &last)
            }
        }
    }

    /// What the classifier's weight reads of each sequence: sequences x width.
    pub fn features(&self, pass: Pass<'_>, x: Mat) -> Result<Mat, Error> {
        let hidden = self.hidden(pass, x)?;
        match &self.kind {
            Kind::Classifier(classifier) => Ok(classifier.features(pass, &hidden)?),
            Kind::Language(_) => {
                Err(Error::Task { loaded: "causal language modelling", asked: "a classifier's features" })
            }
        }
    }

    /// One row a sequence in place of the output `x` of the last block, from which the head computes the
    /// same; `None` where it needs all rows.
    pub fn condense(&self, pass: Pass<'_>, x: &Mat) -> ops::Result<Option<Mat>> {
        match (&self.kind, &self.norm) {
            (Kind::Classifier(classifier), None) => {
                classifier.pooling.forward(pass.ws, x, pass.starts).map(Some)
            }
            _ => Ok(None),
        }
    }

    pub fn loss(&self, pass: Pass<'_>, x: Mat, tokens: &Tokens, targets: &Targets) -> Result<Loss, Error> {
        let hidden = self.hidden(pass, x)?;
        match &self.kind {
            Kind::Classifier(classifier) => {
                let classes = classifier.targets(targets, tokens.sequences())?;
                let logits = classifier.forward(pass, &hidden)?.logits;
                let sum = loss::cross_entropy(pass.ws, &logits, classes)?;
                Ok(Loss::of_classes(sum, &logits, classes))
            }
            Kind::Language(language) => {
                let next = tokens.next(targets)?;
                let head = |chunk: &Mat| language.forward(pass, chunk);
                Ok(loss::causal_lm(pass.ws, &hidden, &next, language.vocab, head)?.into())
            }
        }
    }

    /// The loss, and the derivative of the loss of each sequence (the mean over its predictions) along each
    /// lane of tangents: lanes x sequences.
    pub fn loss_tangent(
        &self,
        pass: TangentPass<'_>,
        x: Dual,
        tokens: &Tokens,
        targets: &Targets,
    ) -> Result<(Loss, Vec<f64>), Error> {
        let hidden = match &self.norm {
            Some(norm) => {
                let hidden = norm.tangent(pass, &x)?;
                drop(x);
                hidden
            }
            None => x,
        };
        match &self.kind {
            Kind::Classifier(classifier) => {
                let classes = classifier.targets(targets, tokens.sequences())?;
                let logits = classifier.tangent(pass, hidden)?.widen(pass.ws(), pass.lanes())?;
                let (sum, slopes) = loss::cross_entropy_tangent(pass.ws(), &logits, classes)?;
                let logits = logits.into_primal(pass.ws())?;
                Ok((Loss::of_classes(sum, &logits, classes), slopes))
            }
            Kind::Language(language) => language.loss_tangent(pass, &hidden, &tokens.next(targets)?),
        }
    }

    /// The loss, and the gradient of its mean: of the input `x` if something below is trained, and
    /// of the sites here, accumulated into `grad`.
    pub fn loss_and_gradient(
        &self,
        pass: Pass<'_>,
        x: Mat,
        (tokens, targets): (&Tokens, &Targets),
        below: Below,
        grad: &mut [f32],
    ) -> Result<(Loss, Option<Mat>), Error> {
        let normed = self.norm.as_ref().map(|norm| norm.forward(pass, &x)).transpose()?;
        let hidden = normed.as_ref().unwrap_or(&x);
        let inner = Below::of(below == Below::Trained || self.norm.as_ref().is_some_and(Norm::is_trained));
        let (loss, dhidden) = match &self.kind {
            Kind::Classifier(classifier) => {
                let classes = classifier.targets(targets, tokens.sequences())?;
                classifier.loss_and_gradient(pass, hidden, classes, inner, grad)?
            }
            Kind::Language(language) => {
                language.loss_and_gradient(pass, hidden, &tokens.next(targets)?, grad)?
            }
        };
        drop(normed);
        match (&self.norm, dhidden) {
            (Some(norm), Some(dhidden)) => {
                let dx = norm.backward(pass, &x, &dhidden, grad)?;
                Ok((loss, (below == Below::Trained).then_some(dx)))
            }
            (_, dhidden) => Ok((loss, dhidden)),
        }
    }

    /// The memory its frozen part holds.
    pub fn bytes(&self) -> u64 {
        let kind = match &self.kind {
            Kind::Classifier(classifier) => classifier.weight.bytes() + classifier.bias.bytes(),
            Kind::Language(Language { weight: LanguageWeight::Frozen(linear), .. }) => linear.bytes(),
            Kind::Language(_) => 0,
        };
        kind + self.norm.as_ref().map_or(0, Norm::bytes)
    }
}

/// What a classifier computes; `features` is what its weight reads.
struct Classified {
    features: Mat,
    logits: Mat,
}

impl Classifier {
    fn features(&self, pass: Pass<'_>, hidden: &Mat) -> ops::Result<Mat> {
        let mut features = self.pooling.forward(pass.ws, hidden, pass.starts)?;
        if let Some(k) = self.squash {
            ops::slice::scale(k, &mut features);
            Activation::Tanh.apply(pass.ws, &mut features);
        }
        Ok(features)
    }

    fn forward(&self, pass: Pass<'_>, hidden: &Mat) -> ops::Result<Classified> {
        let features = self.features(pass, hidden)?;
        let (weight, bias) = (self.weight.get(pass.theta), self.bias.get(pass.theta));
        let logits = dense::forward(pass.ws, &features, weight, Some(bias), self.classes)?;
        Ok(Classified { features, logits })
    }

    fn loss_and_gradient(
        &self,
        pass: Pass<'_>,
        hidden: &Mat,
        classes: &[u32],
        below: Below,
        grad: &mut [f32],
    ) -> Result<(Loss, Option<Mat>), Error> {
        let ws = pass.ws;
        let Classified { features, logits } = self.forward(pass, hidden)?;
        let mut dlogits = ws.copy(&logits)?;
        let scale = 1.0 / classes.len() as f32;
        let sum = loss::cross_entropy_backward(ws, &mut dlogits, classes, scale)?;
        let loss = Loss::of_classes(sum, &logits, classes);
        if let Some(grad) = self.weight.gradient(grad) {
            dense::backward_weight(ws, &features, &dlogits, grad)?;
        }
        if let Some(grad) = self.bias.gradient(grad) {
            dense::bias_gradient(ws, &dlogits, grad)?;
        }
        if below == Below::Frozen {
            return Ok((loss, None));
        }
        let weight = self.weight.get(pass.theta);
        let mut dpooled = dense::backward_input(ws, &dlogits, weight, features.width())?;
        if let Some(k) = self.squash {
            // The features are the tanh itself: its slope is 1 - tanh^2.
            dpooled.iter_mut().zip(features.iter()).for_each(|(d, t)| *d *= k * (1.0 - t * t));
        }
        Ok((loss, Some(self.pooling.backward(ws, &dpooled, pass.starts)?)))
    }

    /// The logits with tangents.
    fn tangent(&self, pass: TangentPass<'_>, hidden: Dual) -> ops::Result<Dual> {
        let (ws, theta) = (pass.ws(), pass.theta());
        let sequences = pass.starts().len().saturating_sub(1);
        let pooled = self.pooling.forward(ws, hidden.stack(), &pass.repeated(&hidden))?;
        let mut features = Dual::stacked(pooled, sequences)?;
        drop(hidden);
        if let Some(k) = self.squash {
            ops::slice::scale(k, features.stack_mut());
            Activation::Tanh.tangent(ws, &mut features)?;
        }
        let starts: Vec<u32> = (0..=sequences as u32).collect();
        let pass = pass.at(&starts);
        let (weight, bias) = (self.weight.get(theta), self.bias.get(theta));
        let logits = dense::tangent(ws, &features, weight, Some(bias), self.classes)?;
        let logits = pass.add_product(&features, self.weight.range(), 1.0, logits)?;
        pass.add_bias(self.bias.range(), logits)
    }

    fn targets<'t>(&self, targets: &'t Targets, sequences: usize) -> Result<&'t [u32], Error> {
        let Targets::Classes(classes) = targets else {
            return Err(Error::Task { loaded: "classification", asked: "next tokens" });
        };
        if classes.len() != sequences {
            return Err(Error::Batch(format!("{} labels for {sequences} sequences", classes.len())));
        }
        match classes.iter().find(|class| **class as usize >= self.classes) {
            Some(class) => Err(Error::Batch(format!("label {class} is outside of 0..{}", self.classes))),
            None => Ok(classes),
        }
    }
}

impl Language {
    /// rows x width becomes rows x vocab.
    pub fn forward(&self, pass: Pass<'_>, hidden: &Mat) -> ops::Result<Mat> {
        match &self.weight {
            LanguageWeight::Frozen(linear) => linear.forward(pass.ws, hidden),
            LanguageWeight::Trained(range) => {
                dense::forward(pass.ws, hidden, &pass.theta[range.clone()], None, self.vocab)
            }
        }
    }

    fn loss_tangent(
        &self,
        pass: TangentPass<'_>,
        hidden: &Dual,
        next: &[u32],
    ) -> Result<(Loss, Vec<f64>), Error> {
        let (ws, lanes) = (pass.ws(), pass.lanes());
        let head = |chunk: &Dual, rows: &[usize]| match &self.weight {
            LanguageWeight::Frozen(linear) => {
                Ok::<_, Error>(linear.tangent(ws, chunk, None)?.widen(ws, lanes)?)
            }
            LanguageWeight::Trained(range) => {
                let starts = starts_of(rows, pass.starts());
                let logits = dense::tangent(ws, chunk, &pass.theta()[range.clone()], None, self.vocab)?;
                Ok(pass.at(&starts).add_product(chunk, Some(range), 1.0, logits)?.widen(ws, lanes)?)
            }
        };
        let (sum, slopes) = loss::causal_lm_tangent(ws, hidden, next, self.vocab, lanes, head)?;
        let sequences = || pass.starts().windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
        let of_lane = |lane: &[f64]| -> Vec<f64> {
            let mean = |rows: Range<usize>| {
                let counted = next[rows.clone()].iter().filter(|target| **target != loss::IGNORE).count();
                lane[rows].iter().sum::<f64>() / counted.max(1) as f64
            };
            sequences().map(mean).collect()
        };
        Ok((sum.into(), slopes.chunks_exact(next.len().max(1)).flat_map(of_lane).collect()))
    }

    fn loss_and_gradient(
        &self,
        pass: Pass<'_>,
        hidden: &Mat,
        next: &[u32],
        grad: &mut [f32],
    ) -> Result<(Loss, Option<Mat>), Error> {
        let counted = next.iter().filter(|target| **target != loss::IGNORE).count();
        let scale = 1.0 / counted.max(1) as f32;
        let head = |chunk: &Mat| Ok::<_, Error>((self.forward(pass, chunk)?, ()));
        let head_backward = |chunk: &Mat, (): (), dlogits: &Mat| match &self.weight {
            LanguageWeight::Frozen(linear) => Ok(linear.backward(pass.ws, dlogits)?),
            LanguageWeight::Trained(range) => {
                dense::backward_weight(pass.ws, chunk, dlogits, &mut grad[range.clone()])?;
                Ok(dense::backward_input(pass.ws, dlogits, &pass.theta[range.clone()], chunk.width())?)
            }
        };
        let shape = (self.vocab, scale);
        let (sum, dhidden) = loss::causal_lm_backward(pass.ws, hidden, next, shape, head, head_backward)?;
        Ok((sum.into(), Some(dhidden)))
    }
}

/// Where the sequences that begin at `starts` begin among some `rows` of them; some may be left without any.
fn starts_of(rows: &[usize], starts: &[u32]) -> Vec<u32> {
    starts.iter().map(|&start| rows.partition_point(|row| *row < start as usize) as u32).collect()
}
