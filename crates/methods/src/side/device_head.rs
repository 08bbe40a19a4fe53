//! The device's own head: softmax regression on the backbone's pooled states, or linear regression of a number,
//! trained on the device from what its one forward pass left behind.

use super::format::TapFormat;
use crate::train::hold;
use base::{Cost, Meter, Seed};
use data::Label;
use federation::Fault;
use model::optim::{Optimizer, OptimizerConfig};
use ops::{Mat, Workspace, act::Activation, dense, loss};
use serde::{Deserialize, Serialize};

/// What the device adds the side network's output to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// Every class is equally likely: the side network alone predicts.
    #[default]
    Zero,
    /// A head of the device's own, which never leaves it.
    Trained,
}

/// The format of the states that are kept for it.
pub const FEATURES: TapFormat = TapFormat::F16;

/// `W tanh(k x) + b`, the logits of classes or a number; the squash is that of the model's task.
#[derive(Clone, Debug)]
pub struct DeviceHead {
    pub width: usize,
    pub classes: usize,
    pub squash: Option<f32>,
    pub epochs: u32,
    pub learning_rate: f32,
}

const BATCH: usize = 32;

impl DeviceHead {
    /// Its parameters: `W`, then `b`.
    pub fn parameters(&self) -> usize {
        (self.width + 1) * self.classes
    }

    /// Read kept states back: rows x width, squashed.
    pub fn features(&self, ws: &Workspace, bytes: &[u8]) -> Result<Mat, Fault> {
        let stride = FEATURES.row_bytes(self.width);
        let fault = |error: ops::Error| Fault(error.to_string());
        let mut x = ws.scratch(bytes.len() / stride, self.width).map_err(fault)?;
        for (at, row) in bytes.chunks_exact(stride).enumerate() {
            FEATURES.read(row, x.row_mut(at)).map_err(|error| Fault(error.to_string()))?;
        }
        if let Some(k) = self.squash {
            ops::slice::scale(k, &mut x);
            Activation::Tanh.apply(ws, &mut x);
        }
        Ok(x)
    }

    /// rows x classes
    pub fn logits(&self, ws: &Workspace, head: &[f32], features: &Mat) -> Result<Mat, Fault> {
        let (weight, bias) = head.split_at(self.width * self.classes);
        dense::forward(ws, features, weight, Some(bias), self.classes)
            .map_err(|error| Fault(error.to_string()))
    }

    /// Train from zero on these rows.
    pub fn train(
        &self,
        features: &[u8],
        labels: &[Label],
        order: Seed,
        meter: &Meter,
    ) -> Result<Vec<f32>, Fault> {
        let fault = |error: ops::Error| Fault(format!("training the device's head: {error}"));
        let _held = hold(meter, 16 * self.parameters() as u64)?;
        let ws = Workspace::new(meter, 1);
        let stride = FEATURES.row_bytes(self.width);
        let mut head = vec![0f32; self.parameters()];
        let mut grad = vec![0f32; self.parameters()];
        let mut optimizer = Optimizer::new(&OptimizerConfig::default(), head.len());
        let mut rows: Vec<usize> = (0..labels.len()).collect();
        for epoch in 0..self.epochs {
            order.child("head epoch", epoch.into()).stream().shuffle(&mut rows);
            let rate = self.learning_rate * (1.0 - epoch as f32 / self.epochs as f32);
            for batch in rows.chunks(BATCH) {
                let bytes: Vec<u8> =
                    batch.iter().flat_map(|&row| &features[row * stride..][..stride]).copied().collect();
                let x = self.features(&ws, &bytes)?;
                let targets: Vec<Label> = batch.iter().map(|&row| labels[row]).collect();
                let mut dlogits = self.logits(&ws, &head, &x)?;
                gradient(&ws, &mut dlogits, &targets).map_err(fault)?;
                grad.fill(0.0);
                let (weight, bias) = grad.split_at_mut(self.width * self.classes);
                dense::backward_weight(&ws, &x, &dlogits, weight).map_err(fault)?;
                dense::bias_gradient(&ws, &dlogits, bias).map_err(fault)?;
                optimizer.step(&mut head, &grad, rate);
            }
        }
        Ok(head)
    }

    /// What [`DeviceHead::train`] and then one pass of [`DeviceHead::logits`] over `rows` take.
    pub fn price(&self, rows: usize) -> Cost {
        let parameters = self.parameters() as u64;
        let row = 4 * (2 * self.width + 4 * self.classes) as u64;
        Cost {
            flops: 6 * parameters * rows as u64 * u64::from(self.epochs),
            bytes: 16 * parameters + row * 2 * BATCH as u64 + (1 << 20),
        }
    }
}

/// In place of the head's outputs the gradient of the mean loss: cross-entropy of classes, the squared error of
/// numbers.
fn gradient(ws: &Workspace, outputs: &mut Mat, labels: &[Label]) -> ops::Result<()> {
    let scale = 1.0 / labels.len() as f32;
    let classes: Option<Vec<u32>> = labels.iter().map(|label| label.class()).collect();
    if let Some(classes) = classes {
        return loss::cross_entropy_backward(ws, outputs, &classes, scale).map(drop);
    }
    for (at, label) in labels.iter().enumerate() {
        if let (Label::Number(number), [output]) = (label, outputs.row_mut(at)) {
            *output = 2.0 * scale * (*output - number);
        }
    }
    Ok(())
}

/// Probabilities in place of each row's logits.
pub fn softmax(logits: &mut Mat) {
    for at in 0..logits.rows() {
        let row = logits.row_mut(at);
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|x| *x = (*x - most).exp());
        let total: f32 = row.iter().sum();
        ops::slice::scale(1.0 / total, row);
    }
}
