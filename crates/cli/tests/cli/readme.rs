//! README says what the program does.

use crate::scratch::{Scratch, workspace};
use std::fs;

fn readme() -> String {
    fs::read_to_string(workspace().join("README.md")).unwrap()
}

#[test]
fn readme_has_the_methods() {
    let output = Scratch::new().undertone(&["methods"]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(readme().contains(&table), "README.md must hold the output of `undertone methods`:\n{table}");
}

#[test]
fn readme_and_help_have_the_exit_codes() {
    let output = Scratch::new().undertone(&["--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    for (exit, meaning) in undertone_cli::errors::Exit::ALL {
        let code = exit as u8;
        assert!(help.contains(&format!("{code:>3}  {meaning}")), "--help lacks {code}");
        assert!(readme().contains(&format!("| {code} | {meaning} |")), "README.md lacks {code}");
    }
}

#[test]
fn readme_has_the_commands() {
    let output = Scratch::new().undertone(&["--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    for name in names.filter(|name| !["help", "methods"].contains(name)) {
        assert!(readme().contains(&format!("| `{name}")), "README.md lacks the command {name}");
    }
}

/// Every scenario can be read by this version; its data may be absent.
#[test]
fn every_scenario_is_valid() {
    for entry in fs::read_dir(workspace().join("scenarios")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            let read = undertone_cli::scenario::Scenario::read(&path, &[]);
            let (scenario, _) = read.unwrap_or_else(|failure| panic!("{failure}"));
            assert_eq!(Some(scenario.run.name.as_str()), path.file_stem().unwrap().to_str());
        }
    }
}
