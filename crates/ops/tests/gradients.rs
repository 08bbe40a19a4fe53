//! Every operation, forward and backward, on every instruction set this machine has and on one, two
//! and three threads: the output against naive f64 loops, every gradient against central
//! differences of these loops, results bit for bit equal between numbers of threads, and the meter
//! back at zero.

mod naive;

use base::{Meter, Seed, Stream};
use undertone_ops::act::{self, Activation};
use undertone_ops::attention::{self, Heads, Mask};
use undertone_ops::pool::Pooling;
use undertone_ops::rope::Table;
use undertone_ops::{Level, Linear, Mat, Workspace, dense, embed, lora, loss, norm};

type Floats = Vec<f32>;
/// The output, and the gradient of each input that has one.
type Outcome = (Floats, Vec<Option<Floats>>);

/// From the inputs and the gradient of the output.
type Run<'a> = &'a dyn Fn(&Workspace, &[Floats], &[f32]) -> Outcome;

/// One operation at one shape.
struct Case<'a> {
    name: String,
    /// The inputs; numbers that f32 holds exactly.
    inputs: Vec<Vec<f64>>,
    naive: &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>,
    run: Run<'a>,
}

/// Inputs with more elements than this are checked at so many of them, the last included.
const PROBES: usize = 40;

impl Case<'_> {
    fn check(&self) {
        let expected = (self.naive)(&self.inputs);
        let mut stream = Seed(11).child(&self.name, 0).stream();
        let gradient = numbers(&mut stream, expected.len(), 1.0);
        let slopes = self.slopes(&gradient, &mut stream);
        let inputs: Vec<Floats> = self.inputs.iter().map(|input| narrow(input)).collect();
        for level in Level::available() {
            let at = format!("{} on {}", self.name, level.name());
            let [one, two, three] = [1, 2, 3].map(|threads| {
                let meter = Meter::unlimited();
                let ws = Workspace::with_level(&meter, threads, level);
                let result = (self.run)(&ws, &inputs, &narrow(&gradient));
                assert_eq!(meter.used(), 0, "{at}: something is still charged");
                result
            });
            assert!(
                bits(&one) == bits(&two) && bits(&one) == bits(&three),
                "{at}: threads change the result"
            );
            close(&format!("{at}, output"), &one.0, expected.iter().copied().enumerate());
            for (index, (gradient, slopes)) in one.1.iter().zip(&slopes).enumerate() {
                if let Some(gradient) = gradient {
                    close(&format!("{at}, gradient {index}"), gradient, slopes.iter().copied());
                }
            }
        }
    }

    /// For each input, (element, derivative of the sum of gradient * output).
    fn slopes(&self, gradient: &[f64], stream: &mut Stream) -> Vec<Vec<(usize, f64)>> {
        let value = |inputs: &[Vec<f64>]| -> f64 {
            (self.naive)(inputs).iter().zip(gradient).map(|(y, g)| y * g).sum()
        };
        let mut inputs = self.inputs.clone();
        let mut slopes = Vec::new();
        for index in 0..inputs.len() {
            let len = inputs[index].len();
            let mut probes: Vec<usize> = (0..len).collect();
            if len > PROBES {
                probes = (1..PROBES).map(|_| stream.below(len as u64) as usize).chain([len - 1]).collect();
            }
            let slope = |probe| {
                const STEP: f64 = 4e-5;
                let centre = inputs[index][probe];
                inputs[index][probe] = centre + STEP;
                let above = value(&inputs);
                inputs[index][probe] = centre - STEP;
                let below = value(&inputs);
                inputs[index][probe] = centre;
                (probe, (above - below) / (2.0 * STEP))
            };
            slopes.push(probes.into_iter().map(slope).collect());
        }
        slopes
    }
}

/// Within 2e-6 of the largest.
fn close(what: &str, found: &[f32], expected: impl Iterator<Item = (usize, f64)> + Clone) {
    let largest = expected.clone().map(|(_, value)| value.abs()).fold(1e-3, f64::max);
    for (index, value) in expected {
        let error = (f64::from(found[index]) - value).abs();
        assert!(error <= 2e-6 * largest, "{what}, element {index}: {} instead of {value}", found[index]);
    }
}

fn bits((output, gradients): &Outcome) -> Vec<u32> {
    output.iter().chain(gradients.iter().flatten().flatten()).map(|x| x.to_bits()).collect()
}

/// Uniform between -scale and scale, exact in f32.
fn numbers(stream: &mut Stream, len: usize, scale: f64) -> Vec<f64> {
    (0..len).map(|_| f64::from((scale * (2.0 * stream.unit() - 1.0)) as f32)).collect()
}

fn narrow(values: &[f64]) -> Floats {
    values.iter().map(|&value| value as f32).collect()
}

fn draw(name: &str, lens: &[usize]) -> Vec<Vec<f64>> {
    let stream = |index| Seed(5).child(name, index as u64).stream();
    lens.iter().enumerate().map(|(index, &len)| numbers(&mut stream(index), len, 1.0)).collect()
}

fn mat(ws: &Workspace, width: usize, values: &[f32]) -> Mat {
    ws.from_slice(values.len() / width, width, values).unwrap()
}

/// Rows, in and out: single elements, remainders of every tile, more than one panel, more than one
/// slice of k, more rows than a task takes.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (3, 8, 5), (9, 64, 172), (33, 200, 50), (530, 17, 97), (5, 400, 48), (2, 16, 320)];

#[test]
fn frozen_linear() {
    for (rows, in_, out) in SHAPES {
        let name = format!("linear {rows} x {in_} -> {out}");
        let inputs = draw(&name, &[rows * in_, out]);
        let weight = draw("weight", &[out * in_]).remove(0);
        let linear = Linear::pack(out, in_, &narrow(&weight), None).unwrap();
        assert_eq!(linear.unpack(), narrow(&weight));
        Case {
            name,
            inputs,
            naive: &|x| naive::linear(&x[0], &weight, Some(&x[1]), out),
            run: &|ws, x, dy| {
                let (input, dy) = (mat(ws, in_, &x[0]), mat(ws, out, dy));
                let y = linear.forward_with_bias(ws, &input, &x[1]).unwrap();
                let biased = Linear::pack(out, in_, &narrow(&weight), Some(&x[1])).unwrap();
                assert_eq!(*biased.forward(ws, &input).unwrap(), *y);
                let dx = linear.backward(ws, &dy).unwrap();
                let mut twice = ws.copy(&dx).unwrap();
                linear.backward_add(ws, &dy, &mut twice).unwrap();
                assert!(twice.iter().zip(dx.iter()).all(|(twice, dx)| (twice - 2.0 * dx).abs() < 1e-3));
                let mut db = vec![0.0; out];
                dense::bias_gradient(ws, &dy, &mut db).unwrap();
                (y.to_vec(), vec![Some(dx.to_vec()), Some(db)])
            },
        }
        .check();
    }
}

#[test]
fn trainable_linear() {
    for (rows, in_, out) in SHAPES {
        let name = format!("dense {rows} x {in_} -> {out}");
        Case {
            inputs: draw(&name, &[rows * in_, out * in_, out]),
            name,
            naive: &|x| naive::linear(&x[0], &x[1], Some(&x[2]), out),
            run: &|ws, x, dy| {
                let (input, dy) = (mat(ws, in_, &x[0]), mat(ws, out, dy));
                let y = dense::forward(ws, &input, &x[1], Some(&x[2]), out).unwrap();
                let mut unbiased = dense::forward(ws, &input, &x[1], None, out).unwrap();
                dense::add_bias(ws, &x[2], &mut unbiased).unwrap();
                assert!(y.iter().zip(unbiased.iter()).all(|(y, u)| (y - u).abs() < 1e-4));
                let mut dx = ws.zeros(rows, in_).unwrap();
                dense::backward_input_add(ws, &dy, &x[1], &mut dx).unwrap();
                assert_eq!(*dx, *dense::backward_input(ws, &dy, &x[1], in_).unwrap());
                let (mut dw, mut db) = (vec![0.0; out * in_], vec![0.0; out]);
                dense::backward_weight(ws, &input, &dy, &mut dw).unwrap();
                dense::bias_gradient(ws, &dy, &mut db).unwrap();
                (y.to_vec(), vec![Some(dx.to_vec()), Some(dw), Some(db)])
            },
        }
        .check();
    }
}

#[test]
fn low_rank_adapter() {
    for ((rows, in_, out), rank) in SHAPES.into_iter().zip([1, 2, 8, 16, 3, 64, 5]) {
        let name = format!("lora {rows} x {in_} -> {rank} -> {out}");
        Case {
            inputs: draw(&name, &[rows * in_, rank * in_, out * rank, rows * out]),
            name,
            naive: &|x| {
                let h = naive::linear(&x[0], &x[1], None, rank);
                let scaled: Vec<f64> = h.iter().map(|h| 0.5 * h).collect();
                naive::sum(&x[3], &naive::linear(&scaled, &x[2], None, out))
            },
            run: &|ws, x, dy| {
                let (input, mut y, dy) = (mat(ws, in_, &x[0]), mat(ws, out, &x[3]), mat(ws, out, dy));
                let h = lora::forward(ws, &input, &x[1], &x[2], 0.5, &mut y).unwrap();
                let mut dx = ws.zeros(rows, in_).unwrap();
                let (mut da, mut db) = (vec![0.0; rank * in_], vec![0.0; out * rank]);
                let grads = lora::Grads { a: &mut da, b: &mut db };
                lora::backward(ws, &input, &h, &dy, (&x[1], &x[2], 0.5), Some(&mut dx), grads).unwrap();
                (y.to_vec(), vec![Some(dx.to_vec()), Some(da), Some(db), None])
            },
        }
        .check();
    }
}

#[test]
fn norms() {
    for (rows, width) in [(1, 3), (5, 12), (3, 64), (400, 172)] {
        let name = format!("layer norm {rows} x {width}");
        Case {
            inputs: draw(&name, &[rows * width, width, width]),
            name,
            naive: &|x| naive::norm(&x[0], &x[1], Some(&x[2]), 1e-2),
            run: &|ws, x, dy| {
                let (input, dy) = (mat(ws, width, &x[0]), mat(ws, width, dy));
                let y = norm::layer(ws, &input, &x[1], &x[2], 1e-2).unwrap();
                let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
                let grads = Some((&mut dw[..], &mut db[..]));
                let dx = norm::layer_backward(ws, &input, &dy, &x[1], 1e-2, grads).unwrap();
                (y.to_vec(), vec![Some(dx.to_vec()), Some(dw), Some(db)])
            },
        }
        .check();
        let name = format!("rms norm {rows} x {width}");
        Case {
            inputs: draw(&name, &[rows * width, width]),
            name,
            naive: &|x| naive::norm(&x[0], &x[1], None, 1e-2),
            run: &|ws, x, dy| {
                let (input, dy) = (mat(ws, width, &x[0]), mat(ws, width, dy));
                let y = norm::rms(ws, &input, &x[1], 1e-2).unwrap();
                let mut dw = vec![0.0; width];
                let dx = norm::rms_backward(ws, &input, &dy, &x[1], 1e-2, Some(&mut dw)).unwrap();
                (y.to_vec(), vec![Some(dx.to_vec()), Some(dw)])
            },
        }
        .check();
    }
}

#[test]
fn activations() {
    use Activation::{Gelu, GeluTanh, Relu, Silu, Tanh};
    for function in [Gelu, GeluTanh, Relu, Tanh, Silu] {
        let naive = |x: f64| match function {
            Gelu => naive::gelu(x),
            GeluTanh => naive::gelu_tanh(x),
            Relu => x.max(0.0),
            Tanh => x.tanh(),
            Silu => naive::silu(x),
        };
        for scale in [1.0, 6.0, 60.0] {
            let name = format!("{function:?} up to {scale}");
            let inputs = draw(&name, &[700 * 51]).remove(0).into_iter().map(|x| scale * x);
            Case {
                name,
                inputs: vec![inputs.map(|x| f64::from(x as f32)).collect()],
                naive: &|x| x[0].iter().map(|&x| naive(x)).collect(),
                run: &|ws, x, dy| {
                    let (mut input, mut dy) = (mat(ws, 51, &x[0]), mat(ws, 51, dy));
                    let y = function.forward(ws, &input).unwrap();
                    function.backward(ws, &input, &mut dy).unwrap();
                    function.apply(ws, &mut input);
                    assert_eq!(*y, *input);
                    (y.to_vec(), vec![Some(dy.to_vec())])
                },
            }
            .check();
        }
    }
}

#[test]
fn gated_activation() {
    Case {
        name: "silu gate".to_owned(),
        inputs: draw("silu gate", &[300 * 172, 300 * 172]),
        naive: &|x| x[0].iter().zip(&x[1]).map(|(&gate, up)| naive::silu(gate) * up).collect(),
        run: &|ws, x, dy| {
            let [gate, up, dy] = [&x[0], &x[1], dy].map(|x| mat(ws, 172, x));
            let y = act::silu_gate(ws, &gate, &up).unwrap();
            let (dgate, dup) = act::silu_gate_backward(ws, &gate, &up, dy).unwrap();
            (y.to_vec(), vec![Some(dgate.to_vec()), Some(dup.to_vec())])
        },
    }
    .check();
}

#[test]
fn rotary_positions() {
    for (heads, head_dim) in [(1, 2), (3, 8), (2, 64)] {
        let (name, starts) = (format!("rope {heads} x {head_dim}"), [0, 1, 5, 12]);
        let table = Table::new(head_dim, 10, 10_000.0);
        let width = heads * head_dim;
        Case {
            inputs: draw(&name, &[12 * width]),
            name,
            naive: &|x| naive::rope(&x[0], heads, head_dim, &starts, 0, 10_000.0),
            run: &|ws, x, dy| {
                let (mut y, mut dx) = (mat(ws, width, &x[0]), mat(ws, width, dy));
                table.apply(ws, &mut y, heads, &starts, 0).unwrap();
                table.apply_backward(ws, &mut dx, heads, &starts).unwrap();
                // With a cache before it, a sequence begins at a later position.
                let mut last = ws.copy_rows(&mat(ws, width, &x[0]), 9..12).unwrap();
                table.apply(ws, &mut last, heads, &[0, 3], 4).unwrap();
                assert_eq!(*last, y[9 * width..]);
                assert!(table.apply(ws, &mut last, heads, &[0, 3], 8).is_err());
                (y.to_vec(), vec![Some(dx.to_vec())])
            },
        }
        .check();
    }
}

#[test]
fn attention_over_ragged_sequences() {
    // (query heads, key and value heads, head width, lengths): a length of 1, head widths below a
    // vector, grouped heads, more queries than a block and more keys than a panel.
    let shapes: [(usize, usize, usize, &[u32]); 5] = [
        (1, 1, 1, &[1]),
        (2, 2, 8, &[3, 1, 7]),
        (6, 2, 16, &[5, 20, 2]),
        (4, 1, 32, &[50, 1]),
        (2, 1, 64, &[131, 9]),
    ];
    for ((heads, kv_heads, head_dim, lengths), mask) in
        shapes.iter().flat_map(|shape| [Mask::Full, Mask::Causal].map(|mask| (*shape, mask)))
    {
        let heads = Heads { heads, kv_heads, head_dim };
        let name = format!("attention {heads:?} {mask:?}");
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let starts: Vec<u32> = [0].into_iter().chain(ends).collect();
        let rows = starts[lengths.len()] as usize;
        let kv_cells = rows * heads.kv_width();
        let mut inputs = draw(&name, &[rows * heads.width(), kv_cells, kv_cells]);
        inputs[0].iter_mut().for_each(|q| *q *= 4.0);
        Case {
            name,
            inputs,
            naive: &|x| naive::attention(&x[0], &x[1], &x[2], heads, &starts, mask),
            run: &|ws, x, dy| {
                let [q, dy] = [&x[0], dy].map(|x| mat(ws, heads.width(), x));
                let [k, v] = [&x[1], &x[2]].map(|x| mat(ws, heads.kv_width(), x));
                let y = attention::forward(ws, &q, &k, &v, heads, &starts, mask).unwrap();
                let (dq, dk, dv) = attention::backward(ws, &q, &k, &v, &dy, heads, &starts, mask).unwrap();
                (y.to_vec(), [dq, dk, dv].map(|gradient| Some(gradient.to_vec())).to_vec())
            },
        }
        .check();
    }
}

#[test]
fn attention_over_a_cache_equals_attention_over_the_sequence() {
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 8 };
    let inputs = draw("cache", &[90 * 32, 90 * 16, 90 * 16]);
    for level in Level::available() {
        let ws = Workspace::with_level(&Meter::unlimited(), 2, level);
        let [q, k, v] = [(0, 32), (1, 16), (2, 16)].map(|(i, width)| mat(&ws, width, &narrow(&inputs[i])));
        let whole = attention::forward(&ws, &q, &k, &v, heads, &[0, 90], Mask::Causal).unwrap();
        for (first, end) in [(0, 90), (0, 1), (89, 90), (60, 71), (5, 5), (0, 0)] {
            let queries = ws.copy_rows(&q, first..end).unwrap();
            let part = attention::cached(&ws, &queries, &k[..end * 16], &v[..end * 16], heads).unwrap();
            let expected = whole[first * 32..end * 32].iter().map(|&x| f64::from(x)).enumerate();
            close("a cached step", &part, expected);
        }
    }
}

#[test]
fn embeddings() {
    let ids = [3, 0, 3, 6, 1];
    Case {
        name: "embedding".to_owned(),
        inputs: draw("embedding", &[7 * 19]),
        naive: &|x| naive::gather(&x[0], 19, &ids),
        run: &|ws, x, dy| {
            let y = embed::gather(ws, &ids, &x[0], 19).unwrap();
            let tied = Linear::pack(7, 19, &x[0], None).unwrap();
            let same = embed::gather_with(ws, &ids, 19, |id, row| tied.row(id, row)).unwrap();
            assert_eq!(*y, *same);
            assert!(embed::gather(ws, &[7], &x[0], 19).is_err());
            let mut dtable = vec![0.0; 7 * 19];
            embed::backward(&mat(ws, 19, dy), &ids, &mut dtable).unwrap();
            (y.to_vec(), vec![Some(dtable)])
        },
    }
    .check();
}

#[test]
fn pooling() {
    for pooling in [Pooling::Cls, Pooling::Mean, Pooling::Last] {
        let (name, starts) = (format!("{pooling:?}"), [0, 4, 5, 12]);
        Case {
            inputs: draw(&name, &[12 * 20]),
            name,
            naive: &|x| naive::pool(&x[0], 20, &starts, pooling),
            run: &|ws, x, dy| {
                let y = pooling.forward(ws, &mat(ws, 20, &x[0]), &starts).unwrap();
                let dx = pooling.backward(ws, &mat(ws, 20, dy), &starts).unwrap();
                (y.to_vec(), vec![Some(dx.to_vec())])
            },
        }
        .check();
    }
}

#[test]
fn classification_loss() {
    for classes in [2, 6, 21, 600] {
        let targets: Vec<u32> = (0..70).map(|r| if r % 5 == 2 { loss::IGNORE } else { r % 2 }).collect();
        let name = format!("cross-entropy over {classes}");
        let mut inputs = draw(&name, &[70 * classes]);
        inputs[0].iter_mut().for_each(|logit| *logit = f64::from((20.0 * *logit) as f32));
        Case {
            name,
            inputs,
            naive: &|x| vec![naive::cross_entropy(&x[0], classes, &targets)],
            run: &|ws, x, dy| {
                let mut logits = mat(ws, classes, &x[0]);
                let alone = loss::cross_entropy(ws, &logits, &targets).unwrap();
                let loss = loss::cross_entropy_backward(ws, &mut logits, &targets, dy[0]).unwrap();
                assert_eq!(loss, alone);
                assert_eq!(loss.count, 56);
                (vec![loss.sum as f32], vec![Some(logits.to_vec())])
            },
        }
        .check();
    }
}

#[test]
fn language_model_loss_in_chunks() {
    let (rows, width) = (40, 3);
    for vocabulary in [11, 40_000] {
        let targets: Vec<u32> = (0..rows).map(|r| if r % 7 == 6 { loss::IGNORE } else { r % 11 }).collect();
        let name = format!("causal loss over {vocabulary}");
        Case {
            inputs: draw(&name, &[rows as usize * width, vocabulary * width]),
            name,
            naive: &|x| {
                let logits = naive::linear(&x[0], &x[1], None, vocabulary);
                vec![naive::cross_entropy(&logits, vocabulary, &targets)]
            },
            run: &|ws, x, dy| {
                let (hidden, w) = (mat(ws, width, &x[0]), &x[1]);
                let logits = |chunk: &Mat| dense::forward(ws, chunk, w, None, vocabulary);
                let alone = loss::causal_lm(ws, &hidden, &targets, vocabulary, logits).unwrap();
                let mut dw = vec![0.0; w.len()];
                let (loss, dx) = loss::causal_lm_backward(
                    ws,
                    &hidden,
                    &targets,
                    (vocabulary, dy[0]),
                    |chunk| Ok::<_, undertone_ops::Error>((logits(chunk)?, ())),
                    |chunk, (), dlogits| {
                        dense::backward_weight(ws, chunk, dlogits, &mut dw)?;
                        dense::backward_input(ws, dlogits, w, width)
                    },
                )
                .unwrap();
                assert_eq!(loss, alone);
                (vec![loss.sum as f32], vec![Some(dx.to_vec()), Some(dw)])
            },
        }
        .check();
    }
}
