//! What an attacker makes of what it was sent.

use crate::support::{CLASSES, Run, language, setup, simulate, tiny};
use base::Blob;
use sim::FaultsConfig;
use undertone_methods::side::audit::{Finding, audit};
use undertone_methods::{Keep, Workload};

/// What the audit finds in a run's own traffic.
fn audited(options: &str, work: &Workload) -> (Vec<Finding>, Run) {
    let keep = Keep::recording();
    let run = simulate(setup(options, work, 1, &keep), 1, FaultsConfig::default()).unwrap();
    (audit(&setup(options, work, 1, &keep), Some(&Blob::from_f32(&run.theta))).unwrap(), run)
}

#[test]
fn the_audit_finds_what_each_mode_leaves() {
    let work = tiny(&[150, 150]);
    let share = |options: &str| {
        let (findings, _) = audited(&format!("epochs = 1\n{options}"), &work);
        assert!(findings.iter().all(|found| found.samples == 300 && found.chance < 0.5), "{findings:?}");
        [findings[0].recovered, findings[1].recovered, findings[4].recovered]
    };
    let [argmax, clusters, texts] = share("");
    assert!(argmax == 1.0 && clusters == 1.0 && texts > 0.99, "{argmax} {clusters} {texts}");
    // A mix hides which coordinate is which, and no more.
    let [argmax, clusters, _] = share("privacy = { mode = \"mixed\" }");
    assert!(argmax < 0.9 && clusters == 1.0, "{argmax} {clusters}");
    // The best guess of a label after k-ary randomised response is the one that was said.
    let [argmax, ..] = share("privacy = { mode = \"randomized-response\", epsilon = 1.0 }");
    let kept = 1f64.exp() / (1f64.exp() + CLASSES as f64 - 1.0);
    assert!((argmax - kept).abs() < 0.08, "{argmax}, not {kept}");
    let [argmax, clusters, _] = share("privacy = { mode = \"noise\", epsilon = 0.5 }");
    assert!(argmax < 0.5 && clusters < 0.5, "{argmax} {clusters}");
}

#[test]
fn the_side_network_says_the_labels_of_what_it_was_trained_on_in_every_mode() {
    let work = tiny(&[150, 150]);
    for mode in ["plain", "mixed"] {
        let (findings, _) = audited(&format!("epochs = 40\nprivacy = {{ mode = \"{mode}\" }}"), &work);
        let asked = &findings[2];
        assert!(asked.attack.contains("side network") && asked.recovered > 0.9, "{mode}: {asked:?}");
    }
}

#[test]
fn of_a_language_model_the_audit_recovers_tokens_and_texts() {
    let work = language(&[30, 40]);
    let options = "form = { kind = \"mlp\", hidden = 32 }\ntop_k = 4\nepochs = 10\nchunk_rows = 16";
    let (findings, _) = audited(options, &work);
    let [next, asked, position, text] = &findings[..] else { panic!("{findings:?}") };
    // Half of the rows have 11 tokens to learn, half 9; one sample of each text is tried on activations.
    assert_eq!((next.samples, text.samples), (35 * (11 + 9), 70));
    assert_eq!(next.recovered, 1.0, "one entry of a difference is positive: {next:?}");
    assert!(asked.recovered > 3.0 * asked.chance, "{asked:?}");
    assert!(position.recovered > 5.0 * position.chance, "{position:?}");
    assert!(text.recovered > 0.95 && text.chance < 0.02, "{text:?}");
}
