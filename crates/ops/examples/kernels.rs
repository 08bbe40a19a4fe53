//! Speed of the kernels: `cargo run --release -p undertone-ops --example kernels [level] [threads]`.
//!
//! Batch 8 x sequence 128 in the shapes of MiniLM and BERT-base; the best of several runs.

use base::{Meter, Seed};
use std::time::{Duration, Instant};
use undertone_ops::attention::{self, Heads, Mask};
use undertone_ops::{Level, Linear, Mat, Workspace, act::Activation, dense, lora, loss, norm};

const ROWS: usize = 1024;

fn main() {
    let mut args = std::env::args().skip(1);
    let wanted = args.next().unwrap_or_default();
    let level = Level::available().into_iter().find(|level| level.name() == wanted);
    let level = level.unwrap_or(Level::best());
    let threads = args.next().and_then(|n| n.parse().ok()).unwrap_or(1);
    let ws = Workspace::with_level(&Meter::unlimited(), threads, level);
    println!("{} on {threads} thread(s)", level.name());
    for (in_, out) in [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768)] {
        products(&ws, in_, out);
    }
    for (width, heads, ffn) in [(384, 12, 1536), (768, 12, 3072)] {
        rows(&ws, width, ffn);
        sequences(&ws, Heads { heads, kv_heads: heads, head_dim: width / heads });
    }
}

fn products(ws: &Workspace, in_: usize, out: usize) {
    let weight = numbers(out, in_, 0.1);
    let linear = Linear::pack(out, in_, &weight, None).unwrap();
    let (x, dy) = (mat(ws, ROWS, in_), mat(ws, ROWS, out));
    let name = format!("{in_} -> {out}");
    let flops = (2 * ROWS * in_ * out) as f64;
    let rate = |what: &str, seconds: f64| {
        println!("{name:14} {what:22} {:8.3} ms {:7.1} Gflop/s", seconds * 1e3, flops / seconds / 1e9);
    };
    rate("frozen forward", best(|| drop(linear.forward(ws, &x).unwrap())));
    rate("frozen backward", best(|| drop(linear.backward(ws, &dy).unwrap())));
    rate("dense forward", best(|| drop(dense::forward(ws, &x, &weight, None, out).unwrap())));
    rate("dense input gradient", best(|| drop(dense::backward_input(ws, &dy, &weight, in_).unwrap())));
    let mut dw = vec![0.0; out * in_];
    rate("dense weight gradient", best(|| dense::backward_weight(ws, &x, &dy, &mut dw).unwrap()));

    let (a, b) = (numbers(8, in_, 0.1), numbers(out, 8, 0.1));
    let mut y = mat(ws, ROWS, out);
    let time = best(|| drop(lora::forward(ws, &x, &a, &b, 2.0, &mut y).unwrap()));
    println!("{name:14} {:22} {:8.3} ms", "lora r=8 forward", time * 1e3);
    let h = mat(ws, ROWS, 8);
    let (mut dx, mut da, mut db) = (mat(ws, ROWS, in_), vec![0.0; 8 * in_], vec![0.0; out * 8]);
    let time = best(|| {
        let grads = lora::Grads { a: &mut da, b: &mut db };
        lora::backward(ws, &x, &h, &dy, (&a, &b, 2.0), Some(&mut dx), grads).unwrap();
    });
    println!("{name:14} {:22} {:8.3} ms", "lora r=8 backward", time * 1e3);
}

fn rows(ws: &Workspace, width: usize, ffn: usize) {
    let (x, dy, wide) = (mat(ws, ROWS, width), mat(ws, ROWS, width), mat(ws, ROWS, ffn));
    let (w, b) = (numbers(1, width, 1.0), numbers(1, width, 1.0));
    let line = |what: &str, seconds: f64| println!("{width:<14} {what:22} {:8.3} ms", seconds * 1e3);
    line("layer norm", best(|| drop(norm::layer(ws, &x, &w, &b, 1e-5).unwrap())));
    line("layer norm backward", best(|| drop(norm::layer_backward(ws, &x, &dy, &w, 1e-5, None).unwrap())));
    line("gelu (ffn)", best(|| drop(Activation::Gelu.forward(ws, &wide).unwrap())));
    let mut dwide = mat(ws, ROWS, ffn);
    line("gelu backward (ffn)", best(|| Activation::Gelu.backward(ws, &wide, &mut dwide).unwrap()));
    let mut sum = mat(ws, ROWS, width);
    line("residual add", best(|| sum.add(&x).unwrap()));
    let mut logits = mat(ws, 32, 30_522);
    let targets = vec![7; 32];
    let time = best(|| {
        loss::cross_entropy_backward(ws, &mut logits, &targets, 0.5).unwrap();
    });
    line("cross-entropy 32x30522", time);
}

fn sequences(ws: &Workspace, heads: Heads) {
    let width = heads.width();
    let [q, k, v, dy] = [0; 4].map(|_| mat(ws, ROWS, width));
    let starts: Vec<u32> = (0..=8).map(|b| b * 128).collect();
    for mask in [Mask::Full, Mask::Causal] {
        let forward = best(|| drop(attention::forward(ws, &q, &k, &v, heads, &starts, mask).unwrap()));
        let backward =
            best(|| drop(attention::backward(ws, &q, &k, &v, &dy, heads, &starts, mask).unwrap()));
        println!(
            "{width:<14} attention {mask:?}: {:.3} ms, backward {:.3} ms",
            forward * 1e3,
            backward * 1e3
        );
    }
}

fn numbers(rows: usize, width: usize, scale: f64) -> Vec<f32> {
    let mut stream = Seed(1).child("numbers", (rows * width) as u64).stream();
    (0..rows * width).map(|_| (scale * (2.0 * stream.unit() - 1.0)) as f32).collect()
}

fn mat(ws: &Workspace, rows: usize, width: usize) -> Mat {
    ws.from_slice(rows, width, &numbers(rows, width, 1.0)).unwrap()
}

/// The shortest of the runs that fit into a third of a second, in seconds.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let begin = Instant::now();
    let mut shortest = Duration::MAX;
    while begin.elapsed() < Duration::from_millis(300) {
        let start = Instant::now();
        run();
        shortest = shortest.min(start.elapsed());
    }
    shortest.as_secs_f64()
}
