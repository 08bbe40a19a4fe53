//! Generation: token for token as in PyTorch, and the same with and without a cache.

mod support;

use base::Seed;
use support::{ids, json, load, repository, shared_model, workspace};
use undertone_model::side::{Beside, Form, SideConfig, SideNetwork, Width};
use undertone_model::{PeftConfig, PeftKind, Sampling, Task, generate, generate_beside};

#[test]
fn two_hundred_greedy_steps_token_for_token() {
    let Some(dir) = shared_model("stories260K") else { return };
    let golden = json(&dir.join("golden_greedy200.json"));
    let (prompt, all) = (ids(&golden["prompt_ids"]), ids(&golden["greedy_ids"]));
    let expected = all.strip_prefix(prompt.as_slice()).unwrap_or(&all);
    assert_eq!(expected.len(), 200);
    let (model, theta) = load(&dir, &Task::CausalLm, &PeftConfig::new(PeftKind::None));
    let ws = workspace(2);
    let found = generate(&ws, &model, &theta, &prompt, 200, Sampling::Greedy, None).unwrap();
    assert_eq!(found, expected);
}

#[test]
fn a_side_network_at_its_start_continues_as_the_model_does() {
    let dir = repository("golden/llama");
    let (model, theta) = load(&dir, &Task::CausalLm, &PeftConfig::new(PeftKind::None));
    let layers: Vec<usize> = (0..model.spec.layers).collect();
    let network = SideNetwork::new(SideConfig {
        form: Form::Mlp { hidden: 5 },
        taps: layers.len(),
        width: model.spec.width,
        outputs: model.spec.vocab,
        backbones: vec![Width::Own],
    })
    .unwrap();
    let ws = workspace(1);
    let mut side = network.initial(Seed(3));
    let prompt = [3, 9, 4];
    let alone = generate(&ws, &model, &theta, &prompt, 8, Sampling::Greedy, None).unwrap();
    let beside = |side: &[f32]| {
        let beside = Beside { network: &network, theta: side, layers: &layers };
        let limit = (8, None);
        generate_beside(&ws, &model, &theta, Some(beside), &prompt, limit, Sampling::Greedy).unwrap()
    };
    assert_eq!(beside(&side), alone);
    // A bias that outweighs everything else has the last word at every position.
    let bias = side.len() - model.spec.vocab + 7;
    side[bias] = 9.0;
    assert_eq!(beside(&side), [7; 8]);
}
