//! A classification head in closed form: linear discriminant analysis from moments that devices send once.
//!
//! With class means m_c, shares p_c and the pooled within-class covariance S, shrunk towards its mean
//! variance: `logit_c = m_c' S^-1 x - m_c' S^-1 m_c / 2 + ln p_c` (Hastie et al. 2009, equation 4.10). No
//! gradient, no perturbation; the moments disclose class counts and mean features of each device.

use crate::Lab;
use crate::lab::gather;
use base::{Blob, CodecError, Node};
use federation::Fault;
use model::{Targets, backbone};
use ops::Workspace;

/// Share of the mean variance that is added to every direction's.
const SHRINKAGE: f64 = 0.05;

/// Counts, sums and second moments of some rows' features, in f64: they are added up over devices.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    classes: usize,
    width: usize,
    /// A count a class; classes x width sums; the lower triangle of the second moments.
    values: Vec<f64>,
}

impl Moments {
    /// Numbers of the moments.
    pub fn len(lab: &Lab) -> usize {
        let (classes, width) = (lab.work.model.task.classes(), lab.work.model.spec.width);
        classes * (1 + width) + width * (width + 1) / 2
    }

    pub fn zero(lab: &Lab) -> Moments {
        let (classes, width) = (lab.work.model.task.classes(), lab.work.model.spec.width);
        Moments { classes, width, values: vec![0.0; Moments::len(lab)] }
    }

    /// Those of a device's rows.
    pub fn of_device(lab: &Lab, theta: &[f32], node: Node, ws: &Workspace) -> Result<Moments, Fault> {
        let (work, mut moments) = (&lab.work, Moments::zero(lab));
        let fault = |error: model::Error| Fault(error.to_string());
        for rows in lab.shard(node).chunks(work.recipe.per_device_eval_batch_size.get()) {
            let (tokens, targets) = gather(&work.train, rows.iter().map(|&row| row as usize));
            let x = backbone::embed(ws, &work.model, theta, &tokens).map_err(fault)?;
            let layers = work.model.layers();
            let x = backbone::forward(ws, &work.model, theta, layers, x, &tokens.starts, |_, _| {});
            let features = model::features(ws, &work.model, theta, x.map_err(fault)?, &tokens.starts);
            let features = features.map_err(fault)?;
            let Targets::Classes(classes) = targets else {
                return Err(Fault("these rows have no classes".into()));
            };
            for (row, class) in classes.iter().enumerate() {
                moments.add_row(*class as usize, features.row(row));
            }
        }
        Ok(moments)
    }

    fn add_row(&mut self, class: usize, x: &[f32]) {
        let (counts, rest) = self.values.split_at_mut(self.classes);
        let (sums, squares) = rest.split_at_mut(self.classes * self.width);
        counts[class] += 1.0;
        for (sum, x) in sums[class * self.width..].iter_mut().zip(x) {
            *sum += f64::from(*x);
        }
        let mut at = 0;
        for (i, &left) in x.iter().enumerate() {
            for (square, &right) in squares[at..].iter_mut().zip(&x[..=i]) {
                *square += f64::from(left) * f64::from(right);
            }
            at += i + 1;
        }
    }

    /// In f32, as they travel.
    pub fn to_blob(&self) -> Blob {
        Blob::from_f32(&self.values.iter().map(|value| *value as f32).collect::<Vec<f32>>())
    }

    /// Adds what a device sent; an error names what is wrong with it.
    pub fn add(&mut self, blob: &Blob) -> Result<(), String> {
        let values = blob.to_f32(self.values.len()).map_err(|CodecError(error)| error)?;
        let counts = values[..self.classes].iter();
        if !ops::slice::all_finite(&values) || counts.clone().any(|count| *count < 0.0) {
            return Err("its class moments are not finite".into());
        }
        self.values.iter_mut().zip(&values).for_each(|(sum, value)| *sum += f64::from(*value));
        Ok(())
    }

    /// In f64, to be kept.
    pub fn store(&self) -> Blob {
        Blob(self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into())
    }

    /// What [`Moments::store`] wrote; nothing yet where it is empty.
    pub fn restore(lab: &Lab, blob: &Blob) -> Moments {
        let mut moments = Moments::zero(lab);
        let stored = blob.0.as_chunks::<8>().0;
        moments
            .values
            .iter_mut()
            .zip(stored)
            .for_each(|(value, bytes)| *value = f64::from_le_bytes(*bytes));
        moments
    }

    /// Weight (classes x width) and bias of the head; `None` while fewer than two classes have a row.
    pub fn fit(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        let (classes, width) = (self.classes, self.width);
        let (counts, rest) = self.values.split_at(classes);
        let (sums, squares) = rest.split_at(classes * width);
        let seen = counts.iter().filter(|count| **count > 0.0).count();
        let rows: f64 = counts.iter().sum();
        if seen < 2 {
            return None;
        }
        let means: Vec<Vec<f64>> = (0..classes)
            .map(|c| sums[c * width..][..width].iter().map(|sum| sum / counts[c].max(1.0)).collect())
            .collect();
        let mut covariance = squares.to_vec();
        let mut at = 0;
        for i in 0..width {
            for (j, value) in covariance[at..=at + i].iter_mut().enumerate() {
                let between: f64 = (0..classes).map(|c| counts[c] * means[c][i] * means[c][j]).sum();
                *value = (*value - between) / rows;
            }
            at += i + 1;
        }
        let diagonal = |i: usize| i * (i + 1) / 2 + i;
        let variance = (0..width).map(|i| covariance[diagonal(i)]).sum::<f64>() / width as f64;
        (0..width).for_each(|i| covariance[diagonal(i)] += SHRINKAGE * variance + 1e-12);
        let factor = cholesky(covariance, width)?;
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (mean, count) in means.iter().zip(counts) {
            let w = solve(&factor, mean);
            let along: f64 = w.iter().zip(mean).map(|(w, m)| w * m).sum();
            // A class without a row is as unlikely as one among all rows and half a row more.
            bias.push((count.max(0.5) / rows).ln() as f32 - (0.5 * along) as f32);
            weight.extend(w.iter().map(|w| *w as f32));
        }
        Some((weight, bias))
    }
}

/// The lower factor of a symmetric matrix given by its lower triangle, row by row.
fn cholesky(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    let row = |i: usize| i * (i + 1) / 2;
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| a[row(i) + k] * a[row(j) + k]).sum();
            let rest = a[row(i) + j] - dot;
            a[row(i) + j] = match i == j {
                true if rest <= 0.0 => return None,
                true => rest.sqrt(),
                false => rest / a[row(j) + j],
            };
        }
    }
    Some(a)
}

/// `(L L')^-1 b`.
fn solve(factor: &[f64], b: &[f64]) -> Vec<f64> {
    let (n, row) = (b.len(), |i: usize| i * (i + 1) / 2);
    let mut x = b.to_vec();
    for i in 0..n {
        let dot: f64 = (0..i).map(|k| factor[row(i) + k] * x[k]).sum();
        x[i] = (x[i] - dot) / factor[row(i) + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| factor[row(k) + i] * x[k]).sum();
        x[i] = (x[i] - dot) / factor[row(i) + i];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Seed;

    /// Two Gaussian classes with one covariance: the fit is the log-odds they were drawn with.
    #[test]
    fn the_fit_recovers_the_log_odds_of_gaussian_classes() {
        let mut moments = Moments { classes: 2, width: 2, values: vec![0.0; 9] };
        let mut stream = Seed(1).stream();
        for i in 0..200_000 {
            let class = usize::from(i % 4 == 0);
            let (a, b) = (stream.normal(), stream.normal());
            let shift = if class == 1 { [1.0, -0.5] } else { [0.0, 0.0] };
            moments.add_row(class, &[(a + shift[0]) as f32, (0.5 * a + b + shift[1]) as f32]);
        }
        let (weight, bias) = moments.fit().unwrap();
        // S = [[1, 0.5], [0.5, 1.25]] + shrinkage, S^-1 (1, -0.5) by hand.
        let s = SHRINKAGE * 1.125;
        let (a, b, c) = (1.0 + s, 0.5, 1.25 + s);
        let determinant = a * c - b * b;
        let expected = [(c + 0.5 * b) / determinant, (-b - 0.5 * a) / determinant];
        for (i, expected) in expected.iter().enumerate() {
            let found = f64::from(weight[2 + i] - weight[i]);
            assert!((found - expected).abs() < 0.03, "{found} for {expected}");
        }
        let along = expected[0] - 0.5 * expected[1];
        let found = f64::from(bias[1] - bias[0]);
        assert!((found - (-0.5 * along - 3f64.ln())).abs() < 0.03, "{found}");
    }
}
