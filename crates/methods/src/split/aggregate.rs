//! The average of the devices' adapters at full depth, weighted by examples.
//!
//! Where all LoRA ranks are equal the factors are averaged, as in FedAvg. Where they are not, averaging
//! factors would mix directions that have nothing to do with each other: the products `B A` are averaged,
//! and their best approximation of the model's rank is taken (truncated SVD, as in FlexLoRA, arXiv
//! 2402.11505). Its directions stand in the order of their energy, so that a device of a lower rank is
//! dealt the best approximation of that rank by taking the first of them.

use super::work::{Done, Tuned};
use crate::Lab;
use crate::train::hold;
use base::{Blob, Cost, Meter};
use federation::Fault;
use model::{Site, SiteKind};
use std::collections::BTreeMap;

/// The length of the rows of A that a new adapter starts with: each of its entries is uniform between
/// plus and minus one over the root of the width. The scale is given to A, the energy to B.
const ROW: f64 = 0.577_350_269_189_625_8;
/// A direction whose length fell by this factor is that of the ones before it.
const NOTHING_NEW: f64 = 1e-9;
const SWEEPS: usize = 60;

/// A row-major matrix in f64.
struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f64>,
}

/// A pair of LoRA factors in `theta`.
struct Pair<'a> {
    a: &'a Site,
    b: &'a Site,
}

pub fn price_of_aggregation(lab: &Lab, tuned: &[Tuned]) -> Cost {
    let parameters = lab.parameters() as u64;
    let plain = Cost { flops: 2 * parameters * tuned.len() as u64, bytes: 16 * parameters };
    if !unequal(tuned) {
        return plain;
    }
    let of_pair = |pair: &Pair<'_>| {
        let directions = (pair.a.rows * (tuned.len() + 1)) as u64;
        let (out, width) = (pair.b.rows as u64, pair.a.cols as u64);
        let gram = directions * directions * (out + width + 4 * SWEEPS as u64 * directions);
        Cost { flops: 2 * gram, bytes: 8 * directions * (3 * width + 3 * out + 4 * directions) }
    };
    let pairs = pairs(lab).iter().map(of_pair).fold(Cost::FREE, |sum, cost| sum + cost);
    Cost { flops: plain.flops + pairs.flops, bytes: plain.bytes + pairs.bytes }
}

/// Whether the devices trained adapters of different ranks.
fn unequal(tuned: &[Tuned]) -> bool {
    tuned.windows(2).any(|pair| pair[0].rank != pair[1].rank)
}

fn pairs(lab: &Lab) -> Vec<Pair<'_>> {
    let sites = &lab.work.model.layout.sites;
    let both =
        sites.windows(2).filter(|two| two[0].kind == SiteKind::LoraA && two[1].kind == SiteKind::LoraB);
    both.map(|two| Pair { a: &two[0], b: &two[1] }).collect()
}

/// In node order and f64. `theta` is what the round began with.
pub fn aggregate(lab: &Lab, theta: &Blob, tuned: &[Tuned], meter: &Meter) -> Result<Done, Fault> {
    let parameters = lab.parameters();
    let _held = hold(meter, price_of_aggregation(lab, tuned).bytes)?;
    let total = tuned.iter().map(|one| one.examples).sum::<u64>() as f64;
    let weight = |one: &Tuned| one.examples as f64 / total;
    let mut sums = vec![0f64; parameters];
    for one in tuned {
        let weight = weight(one);
        let local = lab.parameters_from(&one.theta)?;
        sums.iter_mut().zip(&local).for_each(|(sum, value)| *sum += weight * f64::from(*value));
    }
    let mut average: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
    drop(sums);
    let mut lost = BTreeMap::new();
    if unequal(tuned) {
        let began = lab.parameters_from(theta)?;
        let mut spectra = Vec::new();
        for pair in pairs(lab) {
            spectra.push((pair.a.rows, pair.average_products(tuned, weight, &began, &mut average)?));
        }
        let ranks = tuned.iter().map(|one| one.rank.unwrap_or(lab.work.model.peft.r as u32));
        lost = ranks.map(|rank| (rank, share_beyond(rank, &spectra))).collect();
    } else if let Some(rank) = tuned.first().and_then(|one| one.rank) {
        // Directions that nobody trained begin anew.
        let began = lab.parameters_from(theta)?;
        for Pair { a, .. } in pairs(lab).iter().filter(|pair| pair.a.rows > rank as usize) {
            let untrained = a.offset + rank as usize * a.cols..a.range().end;
            average[untrained.clone()].copy_from_slice(&began[untrained]);
        }
    }
    Ok(Done::Aggregated { theta: Blob::from_f32(&average), lost })
}

/// The share of the energy that directions beyond a rank hold, over all pairs: their ranks and spectra.
fn share_beyond(rank: u32, spectra: &[(usize, Vec<f64>)]) -> f64 {
    let all: f64 = spectra.iter().flat_map(|(_, energies)| energies).sum();
    let beyond =
        spectra.iter().flat_map(|(most, energies)| energies.iter().skip((rank as usize).min(*most)));
    if all > 0.0 { beyond.sum::<f64>() / all } else { 0.0 }
}

impl Pair<'_> {
    /// Put the best approximation of the average product into `average`; the energies of that product's
    /// directions, largest first.
    fn average_products(
        &self,
        tuned: &[Tuned],
        weight: impl Fn(&Tuned) -> f64,
        began: &[f32],
        average: &mut [f32],
    ) -> Result<Vec<f64>, Fault> {
        let (rank, width, out) = (self.a.rows, self.a.cols, self.b.rows);
        let mut directions = Vec::new();
        let mut columns = Vec::new();
        for one in tuned {
            let local = one.theta.to_f32(average.len()).map_err(|error| Fault(error.to_string()))?;
            let scale = weight(one);
            let (a, b) = (&local[self.a.range()], &local[self.b.range()]);
            for k in 0..one.rank.map_or(rank, |own| rank.min(own as usize)) {
                directions.push(a[k * width..(k + 1) * width].iter().map(|x| f64::from(*x)).collect());
                columns.push((0..out).map(|row| scale * f64::from(b[row * rank + k])).collect());
            }
        }
        // So that there are as many directions as the rank has room for, whoever was counted.
        for row in began[self.a.range()].chunks_exact(width) {
            directions.push(row.iter().map(|x| f64::from(*x)).collect());
            columns.push(vec![0.0; out]);
        }
        let (basis, product) = orthonormal(&directions, &columns, out);
        let (energies, vectors) = eigen(product.gram());
        let right = vectors.times(&basis);
        let left = product.times_transposed(&vectors);
        let (a, b) = (self.a.offset, self.b.offset);
        for k in 0..rank {
            for column in 0..width {
                let value = if k < right.rows { ROW * right.at(k, column) } else { 0.0 };
                average[a + k * width + column] = value as f32;
            }
            for row in 0..out {
                let value = if k < left.cols { left.at(row, k) / ROW } else { 0.0 };
                average[b + row * rank + k] = value as f32;
            }
        }
        Ok(energies)
    }
}

/// Write the sum of `columns[k] directions[k]^T` in an orthonormal basis (Gram-Schmidt, twice, which is
/// enough): the basis by rows, and the factor that stands before it.
fn orthonormal(directions: &[Vec<f64>], columns: &[Vec<f64>], out: usize) -> (Matrix, Matrix) {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut basis: Vec<Vec<f64>> = Vec::new();
    let mut factor: Vec<Vec<f64>> = Vec::new();
    for (direction, column) in directions.iter().zip(columns) {
        let mut rest = direction.clone();
        let length = dot(&rest, &rest).sqrt();
        let add = |k: usize, amount: f64, factor: &mut Vec<Vec<f64>>| {
            factor[k].iter_mut().zip(column).for_each(|(sum, value)| *sum += amount * value);
        };
        for _ in 0..2 {
            for (k, unit) in basis.iter().enumerate() {
                let along = dot(unit, &rest);
                rest.iter_mut().zip(unit).for_each(|(x, b)| *x -= along * b);
                add(k, along, &mut factor);
            }
        }
        let left = dot(&rest, &rest).sqrt();
        if left > NOTHING_NEW * length {
            rest.iter_mut().for_each(|x| *x /= left);
            basis.push(rest);
            factor.push(vec![0.0; out]);
            add(basis.len() - 1, left, &mut factor);
        }
    }
    let width = directions.first().map_or(0, Vec::len);
    let (rows, values) = (basis.len(), basis.concat());
    let basis = Matrix { rows, cols: width, values };
    let by_row = (0..out).flat_map(|row| factor.iter().map(move |column| column[row]));
    (basis, Matrix { rows: out, cols: rows, values: by_row.collect() })
}

impl Matrix {
    fn at(&self, row: usize, col: usize) -> f64 {
        self.values[row * self.cols + col]
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    /// The products of its columns with each other.
    fn gram(&self) -> Matrix {
        let n = self.cols;
        let mut values = vec![0.0; n * n];
        for row in 0..self.rows {
            let row = self.row(row);
            for i in 0..n {
                values[i * n..(i + 1) * n].iter_mut().zip(row).for_each(|(sum, x)| *sum += row[i] * x);
            }
        }
        Matrix { rows: n, cols: n, values }
    }

    fn times(&self, other: &Matrix) -> Matrix {
        let mut values = vec![0.0; self.rows * other.cols];
        for (row, sums) in values.chunks_exact_mut(other.cols.max(1)).enumerate() {
            for k in 0..self.cols {
                let by = self.at(row, k);
                sums.iter_mut().zip(other.row(k)).for_each(|(sum, x)| *sum += by * x);
            }
        }
        Matrix { rows: self.rows, cols: other.cols, values }
    }

    fn times_transposed(&self, other: &Matrix) -> Matrix {
        let dot = |row: usize, col: usize| {
            self.row(row).iter().zip(other.row(col)).map(|(a, b)| a * b).sum::<f64>()
        };
        let values = (0..self.rows).flat_map(|row| (0..other.rows).map(move |col| dot(row, col)));
        Matrix { rows: self.rows, cols: other.rows, values: values.collect() }
    }
}

/// The eigenvalues of a symmetric matrix, largest first, and the vectors to them by rows (Jacobi's
/// rotations).
fn eigen(mut m: Matrix) -> (Vec<f64>, Matrix) {
    let n = m.rows;
    let mut vectors = Matrix { rows: n, cols: n, values: vec![0.0; n * n] };
    (0..n).for_each(|i| vectors.values[i * n + i] = 1.0);
    let size: f64 = m.values.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| m.at(i, j) * m.at(i, j)).sum();
        if off <= 1e-30 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut m, &mut vectors, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| m.at(b, b).total_cmp(&m.at(a, a)).then(a.cmp(&b)));
    let energies = order.iter().map(|&i| m.at(i, i).max(0.0)).collect();
    let values = order.iter().flat_map(|&i| vectors.row(i).to_vec()).collect();
    (energies, Matrix { rows: n, cols: n, values })
}

/// Turn the plane of `p` and `q` so that their product is nothing.
fn rotate(m: &mut Matrix, vectors: &mut Matrix, p: usize, q: usize) {
    let (n, across) = (m.rows, m.at(p, q));
    if across == 0.0 {
        return;
    }
    let tau = (m.at(q, q) - m.at(p, p)) / (2.0 * across);
    let tangent = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = tangent * cosine;
    let turn = |x: &mut [f64], i: usize, j: usize| {
        let (a, b) = (x[i], x[j]);
        (x[i], x[j]) = (cosine * a - sine * b, sine * a + cosine * b);
    };
    (0..n).for_each(|k| turn(&mut m.values, k * n + p, k * n + q));
    (0..n).for_each(|k| turn(&mut m.values, p * n + k, q * n + k));
    (0..n).for_each(|k| turn(&mut vectors.values, p * n + k, q * n + k));
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Seed;

    fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
        let mut draw = Seed(seed).stream();
        Matrix { rows, cols, values: (0..rows * cols).map(|_| draw.normal()).collect() }
    }

    #[test]
    fn eigenvectors_give_the_matrix_back() {
        let gram = random(9, 7, 1).gram();
        let again = Matrix { values: gram.values.clone(), ..gram };
        let (energies, vectors) = eigen(gram);
        assert!(energies.is_sorted_by(|a, b| a >= b));
        for i in 0..7 {
            for j in 0..7 {
                let sum: f64 = (0..7).map(|k| energies[k] * vectors.at(k, i) * vectors.at(k, j)).sum();
                assert!((sum - again.at(i, j)).abs() < 1e-10, "{i} {j}");
            }
        }
    }

    #[test]
    fn a_sum_of_products_is_the_same_in_an_orthonormal_basis() {
        let (out, width) = (6, 10);
        let mut directions: Vec<Vec<f64>> = (0..5).map(|i| random(1, width, i).values).collect();
        // A direction that adds nothing new, and one that is nothing at all.
        directions.push(directions[0].iter().map(|x| 2.0 * x).collect());
        directions.push(vec![0.0; width]);
        let columns: Vec<Vec<f64>> = (0..7).map(|i| random(1, out, 20 + i).values).collect();
        let (basis, factor) = orthonormal(&directions, &columns, out);
        assert_eq!(basis.rows, 5);
        let product = factor.times(&basis);
        for row in 0..out {
            for column in 0..width {
                let sum: f64 = directions.iter().zip(&columns).map(|(d, c)| c[row] * d[column]).sum();
                assert!((product.at(row, column) - sum).abs() < 1e-10);
            }
        }
    }
}
