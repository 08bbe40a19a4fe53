//! A TOML file and `--set` options, merged, and read into typed settings.
//!
//! Serde finds what is wrong; this file says it to a person: which key, in which line or option,
//! what is expected there, and the nearest name that exists.

use crate::errors::{Exit, Failure};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use std::path::Path;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// Settings as the user gave them: nothing filled in, nothing checked.
#[derive(Clone, Debug)]
pub struct Settings {
    table: Table,
    /// The file's name as messages show it.
    file: String,
    text: String,
    overrides: Vec<Override>,
}

/// One `--set a.b=c`.
#[derive(Clone, Debug)]
struct Override {
    path: Vec<String>,
    option: String,
}

impl Settings {
    /// Read a file and lay the `--set` options over it, the last one on top.
    pub fn read(path: &Path, sets: &[String]) -> Result<Settings, Failure> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(Exit::Usage, format!("cannot read the scenario {file}: {error}"))
                .help("a scenario is a TOML file; scenarios/ has one for each method")
        })?;
        Settings::parse(file, text, sets)
    }

    /// The same from text; `file` is the name messages give it.
    pub fn parse(file: String, text: String, sets: &[String]) -> Result<Settings, Failure> {
        let table = text.parse::<Table>().map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(&text, span.start));
            Failure::new(Exit::Usage, format!("not valid TOML: {}", error.message()))
                .at(format!("{file}:{line}"))
        })?;
        let mut settings = Settings { table, file, text, overrides: Vec::new() };
        for option in sets {
            settings.set(option)?;
        }
        Ok(settings)
    }

    fn set(&mut self, option: &str) -> Result<(), Failure> {
        let wrong = |what: String| {
            Failure::new(Exit::Usage, what)
                .at(format!("--set {option}"))
                .help("write --set section.key=value, such as --set run.seed=8")
        };
        let (key, text) = option.split_once('=').ok_or_else(|| wrong("`=` is missing".to_owned()))?;
        let path = key_path(key).ok_or_else(|| wrong(format!("`{key}` is not a key")))?;
        let value = match format!("value = {text}").parse::<Table>() {
            Ok(mut table) if table.len() == 1 => table.remove("value").unwrap_or(Value::Boolean(false)),
            _ => Value::String(text.trim().to_owned()),
        };
        insert(&mut self.table, &path, value)
            .map_err(|at| wrong(format!("`{at}` is a value, not a table with keys in it")))?;
        self.overrides.push(Override { path, option: option.to_owned() });
        Ok(())
    }

    /// What was given for a section or key, without defaults.
    pub fn given(&self) -> &Table {
        &self.table
    }

    /// Read the whole into `T`, or say what is wrong with it.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let value = Value::Table(self.table.clone());
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path: Vec<String> = error.path().iter().filter_map(segment_name).collect();
            self.explain(path, error.inner().message())
        })
    }

    /// Hold the table at `path` against a reader of its own, such as a method's of its options.
    pub fn check_table(
        &self,
        path: &[&str],
        table: &Table,
        read: fn(&Table) -> Result<(), toml::de::Error>,
    ) -> Result<(), Failure> {
        read(table).map_err(|error| {
            let mut path: Vec<String> = path.iter().map(|&key| key.to_owned()).collect();
            path.extend(inner_path(&error));
            self.explain(path, error.message())
        })
    }

    /// A failure about the value at `path`, placed in the file or option it came from.
    pub fn wrong(&self, path: &[&str], what: impl std::fmt::Display) -> Failure {
        let path: Vec<String> = path.iter().map(|&key| key.to_owned()).collect();
        Failure::new(Exit::Usage, format!("`{}` {what}", path.join("."))).at(self.place(&path))
    }

    fn explain(&self, mut path: Vec<String>, message: &str) -> Failure {
        let quoted = quoted_names(message);
        if let (Some(name), true) = (quoted.first(), message.starts_with("unknown field")) {
            if path.last() != Some(name) {
                path.push(name.clone());
            }
            let section = path[..path.len() - 1].join(".");
            let inside =
                if section.is_empty() { "in the scenario".into() } else { format!("in [{section}]") };
            let failure = Failure::new(Exit::Usage, format!("unknown key `{name}` {inside}"));
            return failure.at(self.place(&path)).help(suggestion(name, &quoted[1..], "keys"));
        }
        let key = path.join(".");
        let failure = if let (Some(name), true) = (quoted.first(), message.starts_with("unknown variant")) {
            Failure::new(Exit::Usage, format!("`{key}` cannot be \"{name}\"")).help(suggestion(
                name,
                &quoted[1..],
                "values",
            ))
        } else if let (Some(name), true) = (quoted.first(), message.starts_with("missing field")) {
            path.push(name.clone());
            let place = self.place(&path[..path.len() - 1]);
            return Failure::new(Exit::Usage, format!("`{}` is missing", path.join("."))).at(place);
        } else {
            Failure::new(Exit::Usage, format!("`{key}` is wrong: {}", plain(message)))
        };
        failure.at(self.place(&path))
    }

    /// The option that set the key, or its line in the file, or the file.
    fn place(&self, path: &[String]) -> String {
        let related = |set: &&Override| path.starts_with(&set.path) || set.path.starts_with(path);
        if let Some(set) = self.overrides.iter().rev().filter(|_| !path.is_empty()).find(related) {
            return format!("--set {}", set.option);
        }
        match offset_of(&self.text, path) {
            Some(offset) => format!("{}:{}", self.file, line_of(&self.text, offset)),
            None => self.file.clone(),
        }
    }
}

/// `a.b."c.d"` as TOML reads it.
fn key_path(key: &str) -> Option<Vec<String>> {
    let mut table = format!("{key} = 0").parse::<Table>().ok().filter(|_| !key.contains(['\n', '=']))?;
    let mut path = Vec::new();
    loop {
        let (name, value) = table.into_iter().next()?;
        path.push(name);
        match value {
            Value::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}

/// Put `value` at `path`, making tables on the way; the error names what stands in the way.
fn insert(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    match path {
        [] => Ok(()),
        [key] => {
            table.insert(key.clone(), value);
            Ok(())
        }
        [key, rest @ ..] => match table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => insert(inner, rest, value),
            _ => Err(key.clone()),
        },
    }
}

/// The keys that the last line of the error names, as in "in `a.b`"; no accessor gives them.
fn inner_path(error: &toml::de::Error) -> Vec<String> {
    let text = error.to_string();
    let named = text.lines().last().and_then(|line| line.strip_prefix("in `")?.strip_suffix('`'));
    named.map_or(Vec::new(), |path| path.split('.').map(str::to_owned).collect())
}

fn segment_name(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Map { key } => Some(key.clone()),
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

/// The parts of a serde message that stand in backquotes: the offending name, then the known ones.
fn quoted_names(message: &str) -> Vec<String> {
    message.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn suggestion(name: &str, known: &[String], kind: &str) -> String {
    let list = known.join(", ");
    match nearest(name, known) {
        Some(near) if known.len() > 1 => format!("did you mean `{near}`? The known {kind} are {list}"),
        _ if known.is_empty() => "no key is allowed here".to_owned(),
        _ => format!("the known {kind} are {list}"),
    }
}

/// The known name most like `name`, if any is like it at all.
pub fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a String> {
    let likeness =
        |candidate: &String| strsim::jaro_winkler(&name.to_lowercase(), &candidate.to_lowercase());
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > 0.7).then_some(best)
}

/// Serde's words for types, in words for people.
fn plain(message: &str) -> String {
    let (found, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let found = found.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ");
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list, such as [\"query\", \"value\"]",
        "a map" => "a table",
        other => other,
    };
    if expected.is_empty() { found.to_owned() } else { format!("found {found}, expected {expected}") }
}

/// Where the deepest part of `path` that is in the file begins.
fn offset_of(text: &str, path: &[String]) -> Option<usize> {
    let document = DeTable::parse(text).ok()?.into_inner();
    let mut table = &document;
    let mut offset = None;
    for name in path {
        let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref().as_ref() == name) else {
            break;
        };
        offset = Some(key.span().start);
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    offset
}

/// Lines count from 1.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Whole {
        peft: Peft,
        #[serde(default)]
        partition: Option<Partition>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Peft {
        r: u32,
        lora_alpha: f64,
        target_modules: Option<Vec<String>>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
    enum Partition {
        Iid,
        Dirichlet { alpha: f64, min_rows: Option<u32> },
    }

    fn read(text: &str, sets: &[&str]) -> Result<Whole, String> {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        let settings = Settings::parse("a.toml".into(), text.into(), &sets);
        settings.and_then(|settings| settings.typed()).map_err(|failure| failure.to_string())
    }

    const GOOD: &str = "[peft]\nr = 8\nlora_alpha = 16\n";

    #[test]
    fn options_lie_over_the_file_and_make_tables_on_the_way() {
        let sets =
            ["peft.r=4", "partition.kind=dirichlet", "partition.alpha=0.5", "peft.target_modules=[\"q\"]"];
        let whole = read(GOOD, &sets).unwrap();
        assert_eq!((whole.peft.r, whole.peft.lora_alpha), (4, 16.0));
        assert_eq!(whole.peft.target_modules.unwrap(), ["q"]);
        assert_eq!(whole.partition, Some(Partition::Dirichlet { alpha: 0.5, min_rows: None }));
        assert_eq!(read(GOOD, &["peft.r=4", "peft.r=5"]).unwrap().peft.r, 5);
    }

    #[test]
    fn every_message_names_the_key_the_place_and_what_is_expected() {
        let cases: [(&str, &[&str], &str); 10] = [
            (
                "[peft]\nr = 8\nlora_alhpa = 16",
                &[],
                "unknown key `lora_alhpa` in [peft]\n  at a.toml:3\n  help: did you mean `lora_alpha`? The known keys are r, lora_alpha, target_modules",
            ),
            (
                "[peft]\nr = 8\nlora_alpha = 16\n[pefft]",
                &[],
                "unknown key `pefft` in the scenario\n  at a.toml:4\n  help: did you mean `peft`? The known keys are peft, partition",
            ),
            (
                GOOD,
                &["peft.rank=4"],
                "unknown key `rank` in [peft]\n  at --set peft.rank=4\n  help: did you mean `r`? The known keys are r, lora_alpha, target_modules",
            ),
            (
                GOOD,
                &["peft.r=-1"],
                "`peft.r` is wrong: found integer `-1`, expected a whole number, 0 or more\n  at --set peft.r=-1",
            ),
            (
                "[peft]\nr = \"x\"\nlora_alpha = 16",
                &[],
                "`peft.r` is wrong: found string \"x\", expected a whole number, 0 or more\n  at a.toml:2",
            ),
            ("[peft]\nr = 8", &[], "`peft.lora_alpha` is missing\n  at a.toml:1"),
            (
                GOOD,
                &["partition.kind=dirichlt"],
                "`partition.kind` cannot be \"dirichlt\"\n  at --set partition.kind=dirichlt\n  help: did you mean `dirichlet`? The known values are iid, dirichlet",
            ),
            (
                GOOD,
                &["peft.r.s=1"],
                "`r` is a value, not a table with keys in it\n  at --set peft.r.s=1\n  help: write --set section.key=value, such as --set run.seed=8",
            ),
            (
                GOOD,
                &["peft.r"],
                "`=` is missing\n  at --set peft.r\n  help: write --set section.key=value, such as --set run.seed=8",
            ),
            ("[peft]\nr = = 8", &[], "not valid TOML: "),
        ];
        for (text, sets, expected) in cases {
            let said = read(text, sets).unwrap_err();
            assert!(said.starts_with(expected), "{text} {sets:?}\nsaid: {said}\nexpected: {expected}");
        }
        let inside = read(GOOD, &["partition={ kind = \"dirichlet\", alhpa = 1 }"]).unwrap_err();
        assert!(inside.starts_with("unknown key `alhpa` in [partition]"), "{inside}");
    }
}
