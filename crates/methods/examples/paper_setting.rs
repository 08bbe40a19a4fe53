//! The server's orders in the setting of memory-efficient split federated learning (arXiv 2506.02940) as far as
//! it is known: six devices from a Jetson Nano to an M3 at 100 Mbit/s, batches of 16 sequences of 128 tokens,
//! LoRA of rank 16, activations in f32. One line of CSV a model, distribution of cuts, and server: how long an
//! iteration takes under each policy, in seconds; `random` is the mean of a thousand draws.
//!   cargo run --release -p undertone-methods --example paper_setting

use base::Seed;
use model::price::Split;
use model::{Activations, Below, Layout, PeftConfig, Pooling, Spec, Task};
use sim::Profile;
use sim::profiles::find;
use undertone_methods::schedule::{Policy, Turn, makespan, order};

const DEVICES: [&str; 6] =
    ["jetson-nano", "jetson-tx2", "snapdragon-8s-gen-3", "a17-pro", "snapdragon-8-gen-3", "m3"];
const BATCH: usize = 16;
const SEQUENCE: usize = 128;
const DRAWS: u64 = 1000;

/// A model's shape, and how many blocks each device has where the server has 0.8 of them on average.
const MODELS: [(&str, usize, usize, [usize; 6]); 2] =
    [("minilm", 6, 384, [1, 1, 1, 1, 1, 2]), ("bert-base", 12, 768, [1, 2, 2, 3, 3, 3])];

/// What others leave of the server's speed.
const SHARES: [f64; 3] = [1.0, 0.25, 0.1];

fn main() {
    let names = Policy::ALL.map(|policy| format!("{policy:?}").to_lowercase());
    println!("model,cuts,server_share,server_load,{}", names.join(","));
    for (name, layers, width, unequal) in MODELS {
        for cuts in [[1; 6], unequal] {
            for share in SHARES {
                let turns = turns(&spec(layers, width), &cuts, share);
                let lengths = Policy::ALL.map(|policy| format!("{:.6}", length(policy, &turns)));
                let cuts = cuts.map(|cut| cut.to_string()).join(" ");
                println!("{name},{cuts},{share},{:.3},{}", load(&turns), lengths.join(","));
            }
        }
    }
}

/// The server's work over the mean of what devices take for themselves.
fn load(turns: &[Turn]) -> f64 {
    let own = turns.iter().map(|turn| turn.arrival + turn.tail).sum::<f64>() / turns.len() as f64;
    turns.iter().map(|turn| turn.service).sum::<f64>() / own
}

fn length(policy: Policy, turns: &[Turn]) -> f64 {
    let one = |seed| makespan(turns, &order(policy, turns, Seed(seed)));
    if policy == Policy::Random { (0..DRAWS).map(one).sum::<f64>() / DRAWS as f64 } else { one(0) }
}

fn turns(spec: &Spec, cuts: &[usize; 6], share: f64) -> Vec<Turn> {
    let task = Task::Classification { classes: 6, pooling: Pooling::Mean, squash: None };
    let layout = Layout::new(spec, &task, &PeftConfig::lora(16, 16.0, &["query", "value"]));
    let starts: Vec<u32> = (0..=BATCH).map(|row| (row * SEQUENCE) as u32).collect();
    let bits = (32 * BATCH * SEQUENCE * spec.width) as f64;
    let server = profile("edge-server").flops_per_s() * share;
    let turn = |(name, &at): (&&str, &usize)| {
        let device = profile(name);
        let (task, layout, starts, activations) = (&task, &layout, &starts[..], Activations::Keep);
        let split = Split { spec, task, layout, at, starts, activations };
        let own = |flops: u64| flops as f64 / device.flops_per_s();
        Turn {
            arrival: own(split.lower_forward().flops) + bits / (1e6 * device.up_mbps),
            service: split.upper(Below::Trained).flops as f64 / server,
            tail: bits / (1e6 * device.down_mbps) + own(split.lower_backward().flops),
            load: at as f64 / device.flops_per_s(),
        }
    };
    DEVICES.iter().zip(cuts).map(turn).collect()
}

fn profile(name: &str) -> &'static Profile {
    find(name).expect("a preset")
}

/// A BERT of this shape.
fn spec(layers: usize, width: usize) -> Spec {
    let config = serde_json::json!({
        "model_type": "bert", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 12,
        "intermediate_size": 4 * width, "vocab_size": 30522, "max_position_embeddings": 512,
        "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "architectures": ["BertModel"],
    });
    Spec::from_config(&config.to_string()).expect("a model's config")
}
