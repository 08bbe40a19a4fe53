//! Generation: token for token as in PyTorch, and the same with and without a cache.

mod support;

use support::{ids, json, load, shared_model, workspace};
use undertone_model::{PeftConfig, PeftKind, Sampling, Task, generate};

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
