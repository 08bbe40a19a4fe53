//! A device's rows as a file of its own, in the order they were dealt.

use data::{Dataset, Example, Input, Label};
use serde_json::{Map, Value, json};

/// Rows of a set as JSON Lines under the usual names of columns, which `join --data` reads.
pub fn lines(dataset: &Dataset, rows: &[u32]) -> String {
    rows.iter().map(|&row| format!("{}\n", line(dataset, &dataset.examples[row as usize]))).collect()
}

fn line(dataset: &Dataset, example: &Example) -> Value {
    let mut row = match &example.input {
        Input::Text(text) => Map::from_iter([("text".to_owned(), json!(text))]),
        Input::Pair(first, second) => Map::from_iter([
            ("sentence1".to_owned(), json!(first)),
            ("sentence2".to_owned(), json!(second)),
        ]),
        Input::PromptCompletion { prompt, completion } => Map::from_iter([
            ("prompt".to_owned(), json!(prompt)),
            ("completion".to_owned(), json!(completion)),
        ]),
        Input::Messages(messages) => Map::from_iter([("messages".to_owned(), json!(messages))]),
    };
    if let Some(label) = example.label {
        let label = match label {
            Label::Class(class) => json!(dataset.labels[class as usize]),
            Label::Number(number) => json!(number),
        };
        row.insert("label".to_owned(), label);
    }
    Value::Object(row)
}
