//! Files in every format and compression give the same rows, and wrong files give one clear message.

use std::io::Write;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;
use undertone_data::{Columns, DataError, Dataset, Input, Label, LabelKind, Limits, read, read_within};

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn read_text(name: &str, text: &str) -> Result<Dataset, DataError> {
    let folder = TempDir::new().unwrap();
    read(&write(&folder, name, text.as_bytes()), &Columns::default())
}

/// The message of the error, without the folder.
fn complaint(name: &str, text: &str, columns: &Columns) -> String {
    let folder = TempDir::new().unwrap();
    let error = read(&write(&folder, name, text.as_bytes()), columns).unwrap_err().to_string();
    error.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn every_format_and_compression_gives_the_same_rows() {
    let folder = TempDir::new().unwrap();
    let first = r#"{"text":"a, \"b\"\nc\td","label":"joy","client":3}"#;
    let second = r#"{"text":"é","label":"anger","client":4}"#;
    let json: &str = &format!("{first}\n\n{second}\n");
    let csv = "label,text,client\njoy,\"a, \"\"b\"\"\nc\td\",3\nanger,é,4\n";
    let tsv = "text\tlabel\tclient\n\"a, \"\"b\"\"\nc\td\"\tjoy\t3\né\tanger\t4\n";
    let array: &str = &format!("\u{FEFF} [{first},\n {second}]");
    let rows = |dataset: Dataset| {
        assert_eq!(dataset.labels, ["anger", "joy"]);
        dataset
            .examples
            .into_iter()
            .map(|example| (example.input, example.label, example.client))
            .collect::<Vec<_>>()
    };
    let expected = [
        (Input::Text("a, \"b\"\nc\td".to_owned()), Some(Label::Class(1)), Some("3".to_owned())),
        (Input::Text("é".to_owned()), Some(Label::Class(0)), Some("4".to_owned())),
    ];
    for (name, text) in
        [("a.jsonl", json), ("a.json", json), ("b.csv", csv), ("b.tsv", tsv), ("c.json", array)]
    {
        let bytes = text.as_bytes();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(bytes).unwrap();
        let zstd = zstd::encode_all(bytes, 3).unwrap();
        for (ending, bytes) in [("", bytes), (".gz", &gzip.finish().unwrap()), (".zst", &zstd)] {
            let path = write(&folder, &format!("{name}{ending}"), bytes);
            let read = read(&path, &Columns::default()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(rows(read), expected, "{name}{ending}");
        }
    }
}

#[test]
fn row_shapes_are_found_or_mapped() {
    let shape = |text: &str| read_text("a.jsonl", text).unwrap().examples.remove(0).input;
    let pair = Input::Pair("a".to_owned(), "b".to_owned());
    assert_eq!(shape("{\"sentence1\":\"a\",\"sentence2\":\"b\",\"label\":1}"), pair);
    let prompt = |prompt: &str, completion: &str| Input::PromptCompletion {
        prompt: prompt.to_owned(),
        completion: completion.to_owned(),
    };
    assert_eq!(shape("{\"prompt\":\"a\",\"completion\":\"b\"}"), prompt("a", "b"));
    let bare = "### Instruction:\nadd\n\n### Response:\n";
    assert_eq!(shape("{\"instruction\":\"add\",\"input\":\"\",\"output\":\"3\"}"), prompt(bare, "3"));
    let with_input = "### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n";
    assert_eq!(
        shape("{\"instruction\":\"add\",\"input\":\"1 2\",\"output\":\"3\"}"),
        prompt(with_input, "3")
    );
    let Input::Messages(messages) = shape("{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}") else {
        panic!("not messages")
    };
    assert_eq!((messages[0].role.as_str(), messages[0].content.as_str()), ("user", "hi"));

    let folder = TempDir::new().unwrap();
    let path = write(&folder, "e2e.jsonl", b"{\"mr\":\"name[X]\",\"text\":\"X is here.\"}");
    let columns: Columns =
        serde_json::from_str("{\"prompt\":\"mr\",\"completion\":\"text\"}").expect("known keys");
    assert_eq!(read(&path, &columns).unwrap().examples[0].input, prompt("name[X]", "X is here."));
    assert!(serde_json::from_str::<Columns>("{\"txet\":\"mr\"}").is_err());
}

#[test]
fn integers_in_csv_are_indices_and_test_sets_follow_the_training_set() {
    let train = read_text("a.csv", "text,label\na,2\nb,0\n").unwrap();
    assert_eq!(train.labels, ["0", "1", "2"]);
    assert_eq!(train.examples[0].label, Some(Label::Class(2)));
    let mixed = read_text("a.csv", "text,label\na,2\nb,two\n").unwrap();
    assert_eq!(mixed.labels, ["2", "two"]);

    let columns = Columns::default().with_labels(&["no".to_owned(), "yes".to_owned()]);
    let folder = TempDir::new().unwrap();
    for text in ["text,label\na,yes\n", "text,label\na,1\n"] {
        let test = read(&write(&folder, "t.csv", text.as_bytes()), &columns).unwrap();
        assert_eq!((test.examples[0].label, test.labels.len()), (Some(Label::Class(1)), 2));
    }
    assert_eq!(
        complaint("t.jsonl", "{\"text\":\"a\",\"label\":1}\n{\"text\":\"a\",\"label\":2}", &columns),
        "t.jsonl:2: label 2 is outside 0..2 (the labels are \"no\", \"yes\")"
    );
    assert_eq!(
        complaint("t.csv", "text,label\na,maybe\n", &columns),
        "t.csv:2: unknown label \"maybe\"; the labels are \"no\", \"yes\""
    );
}

#[test]
fn complaints_say_where_what_and_what_to_do() {
    let plain = Columns::default();
    let ask = |name: &str, text: &str, part: &str| {
        let said = complaint(name, text, &plain);
        assert!(said.contains(part), "{said:?} lacks {part:?}");
    };
    ask("a.jsonl", "{\"text\":\"a\"}\nnonsense", "a.jsonl:2: not JSON");
    ask("a.jsonl", "{\"text\":\"a\"}\n[1]", "a.jsonl:2: a row must be an object");
    ask(
        "a.jsonl",
        "{\"text\":\"a\"}\n{\"test\":\"b\"}",
        "a.jsonl:2: no column \"text\"; did you mean \"test\"?",
    );
    ask("a.jsonl", "{\"text\":1}", "a.jsonl:1: column \"text\" must hold a string, found 1");
    ask("a.jsonl", "{\"utterance\":\"a\"}", "name them under [data.columns], e.g. text = \"utterance\"");
    ask("a.jsonl", "{\"text\":\"a\",\"label\":0}\n{\"text\":\"b\"}", "a.jsonl:2: no column \"label\"");
    ask(
        "a.jsonl",
        "{\"text\":\"a\",\"label\":0}\n{\"text\":\"b\",\"label\":\"x\"}",
        "a.jsonl:2: label \"x\" is a string",
    );
    ask("a.jsonl", "{\"text\":\"a\",\"label\":-1}", "a.jsonl:1: label -1 is outside 0..1");
    ask(
        "a.jsonl",
        "{\"text\":\"a\",\"label\":4000000000}",
        "a.jsonl:1: label 4000000000 is outside 0..65536",
    );
    ask("a.jsonl", "{\"text\":\"a\",\"label\":0.5}", "must hold integers or strings, found 0.5");
    ask("a.jsonl", "{\"messages\":[]}", "must hold a list of {\"role\", \"content\"}");
    ask("a.csv", "text,label\na,0\nb\n", "a.csv:3: 1 cells under 2 headings");
    ask("a.csv", "text,text\na,0\n", "a.csv:1: two columns are called \"text\"");
    for empty in ["a.jsonl", "a.csv", "a.json"] {
        ask(empty, "", "holds no rows");
    }
    ask("a.csv", "text,label\n", "a.csv: holds no rows");
    ask("a.json", "[]", "a.json: holds no rows");
    ask("a.parquet", "", "must end in .jsonl, .json, .csv or .tsv");
    let two = Columns { text: Some("a".to_owned()), prompt: Some("b".to_owned()), ..Columns::default() };
    assert!(complaint("a.jsonl", "{\"a\":\"\",\"b\":\"\"}", &two).contains("different row shapes"));

    let folder = TempDir::new().unwrap();
    write(&folder, "train.jsonl.zst", b"not zstd");
    let missing = read(&folder.path().join("trian.jsonl.zst"), &plain).unwrap_err().to_string();
    assert!(
        missing.contains("no such file (is it ") && missing.contains("/train.jsonl.zst?)"),
        "{missing}"
    );
    let damaged = read(&folder.path().join("train.jsonl.zst"), &plain).unwrap_err();
    assert!(matches!(damaged, DataError::Io { .. }), "{damaged}");
    for (name, line) in [("a.jsonl", 2), ("a.csv", 2)] {
        let path = write(&folder, name, b"text\n\xff\xfe\n");
        let path = if name == "a.jsonl" { write(&folder, name, b"{\"text\":\"a\"}\n\xff\n") } else { path };
        let error = read(&path, &plain).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}:{line}: not valid UTF-8")), "{error}");
    }
}

#[test]
fn a_small_file_cannot_fill_the_memory() {
    let folder = TempDir::new().unwrap();
    let limits = Limits { line: 1000, total: 100_000 };
    let long = format!("{{\"text\":\"{}\"}}\n", "a".repeat(2000));
    let error = read_within(&write(&folder, "a.jsonl", long.as_bytes()), &Columns::default(), limits);
    assert!(matches!(error.unwrap_err(), DataError::LineTooLong { at, limit: 1000 } if at.line == 1));
    // A quote left open makes one record of all that follows.
    let open = format!("text\nfine\n\"{}", "and so on\n".repeat(9_000));
    for packed in [open.as_bytes().to_vec(), zstd::encode_all(open.as_bytes(), 3).unwrap()] {
        let name = if packed.len() < 1000 { "a.csv.zst" } else { "a.csv" };
        // The parser reads ahead, so the limit on records binds within one buffer of the true place.
        let limits = Limits { line: 70_000, total: 1 << 20 };
        let error = read_within(&write(&folder, name, &packed), &Columns::default(), limits).unwrap_err();
        assert!(matches!(&error, DataError::LineTooLong { at, .. } if at.line == 3), "{error}");
    }
    let columns = Columns { text: Some("x".to_owned()), ..Columns::default() };
    for (name, text) in [
        ("b.jsonl.zst", "{\"x\":\"a\"}\n".repeat(100_000)),
        ("b.json.zst", format!("[{}", "{\"x\":\"a\"},".repeat(100_000))),
        ("b.csv.zst", "x\n".repeat(100_000)),
    ] {
        let path = write(&folder, name, &zstd::encode_all(text.as_bytes(), 3).unwrap());
        let error = read_within(&path, &columns, limits).unwrap_err();
        assert!(matches!(error, DataError::TooLarge { limit: 100_000, .. }), "{name}: {error}");
    }
    // Without limits of one's own, what is packed may come to so many times its size.
    let packed = zstd::encode_all("x\n".repeat(4 << 20).as_bytes(), 3).unwrap();
    let error = read(&write(&folder, "c.csv.zst", &packed), &columns).unwrap_err();
    let most = 200 * packed.len() as u64 + (4 << 20);
    assert!(matches!(error, DataError::TooLarge { limit, .. } if limit == most), "{error}");
}

proptest! {
    #[test]
    fn malformed_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), mut cut in 0usize..400) {
        let folder = TempDir::new().unwrap();
        let good = b"{\"text\":\"a\",\"label\":1,\"client\":\"x\"}\n{\"messages\":[{\"role\":\"u\",\"content\":\"\"}]}";
        cut = cut.min(good.len());
        let spliced = [&good[..cut], &bytes[..], &good[cut..]].concat();
        for name in ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.csv.gz", "a.jsonl.zst"] {
            for bytes in [&bytes, &spliced] {
                let _ = read(&write(&folder, name, bytes), &Columns::default());
            }
        }
    }

    #[test]
    fn csv_quoting_round_trips(texts in proptest::collection::vec("[ -~\n\"',\t]{1,40}", 1..8)) {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["text"]).unwrap();
        texts.iter().for_each(|text| writer.write_record([text]).unwrap());
        let folder = TempDir::new().unwrap();
        let read = read(&write(&folder, "a.csv", &writer.into_inner().unwrap()), &Columns::default()).unwrap();
        let expected: Vec<Input> = texts.into_iter().map(Input::Text).collect();
        prop_assert_eq!(read.examples.into_iter().map(|example| example.input).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn numbers_are_read_where_numbers_are_learned() {
    let columns = Columns { label_kind: LabelKind::Numbers, ..Columns::default() };
    let numbers = |name: &str, text: &str| -> Vec<Option<Label>> {
        let folder = TempDir::new().unwrap();
        let dataset = read(&write(&folder, name, text.as_bytes()), &columns).unwrap();
        assert!(dataset.labels.is_empty());
        dataset.examples.into_iter().map(|example| example.label).collect()
    };
    let expected = [Some(Label::Number(0.5)), Some(Label::Number(-2.0)), Some(Label::Number(3e4))];
    let lines =
        "{\"text\":\"a\",\"label\":0.5}\n{\"text\":\"b\",\"label\":-2}\n{\"text\":\"c\",\"label\":3e4}\n";
    assert_eq!(numbers("a.jsonl", lines), expected);
    assert_eq!(numbers("a.csv", "text,label\na,0.5\nb,-2\nc,3e4\n"), expected);
    for (label, found) in [("\"high\"", "high"), ("\"0.5\"", "0.5"), ("1e60", "1e+60"), ("null", "null")] {
        let said = complaint("a.jsonl", &format!("{{\"text\":\"a\",\"label\":{label}}}"), &columns);
        assert!(said.starts_with("a.jsonl:1: column \"label\" must hold a number in every row"), "{said}");
        assert!(said.contains(found), "{said}");
    }
}
