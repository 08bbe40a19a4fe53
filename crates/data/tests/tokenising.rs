//! Rows to ids: special tokens, truncation, completions and blocks, on a tokenizer small enough to read.

use proptest::prelude::*;
use serde_json::{Value, json};
use undertone_data::{
    Dataset, Encoded, Example, Input, Label, LongRows, Message, Target, Tokenizer, TokenizerError,
};

/// Words `w0` to `w99` (ids 10 to 109) between special tokens, as BERT or as LLaMA would have it; saved
/// with a truncation and a padding that must not act.
fn tokenizer(post_processor: &str, config: &str) -> Tokenizer {
    let mut vocabulary: serde_json::Map<String, Value> =
        (0..100).map(|word| (format!("w{word}"), json!(word + 10))).collect();
    let mut added = Vec::new();
    for (id, token) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocabulary.insert((*token).to_owned(), json!(id));
        added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}));
    }
    let post_processor: Value = serde_json::from_str(post_processor).unwrap();
    let json = json!({
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": post_processor,
        "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocabulary},
    });
    let json = json.to_string();
    Tokenizer::from_bytes(json.as_bytes(), Some(config.as_bytes()))
        .unwrap_or_else(|error| panic!("{error}"))
}

const BERT: &str = r#"{"type":"BertProcessing","sep":["</s>",2],"cls":["<s>",1]}"#;
const LLAMA: &str =
    r#"{"bos_token":"<s>","eos_token":{"content":"</s>"},"add_bos_token":true,"add_eos_token":false}"#;

fn bert() -> Tokenizer {
    tokenizer(BERT, "{}")
}
fn llama() -> Tokenizer {
    tokenizer("null", LLAMA)
}

fn words(from: usize, count: usize) -> String {
    (from..from + count).map(|word| format!("w{word}")).collect::<Vec<_>>().join(" ")
}
fn ids(from: u32, count: u32) -> Vec<u32> {
    (from + 10..from + 10 + count).collect()
}
fn row(input: Input, label: Option<u32>) -> Example {
    Example { input, label: label.map(Label::Class), client: None, line: 5 }
}
fn text(count: usize) -> Example {
    row(Input::Text(words(0, count)), None)
}
fn completion(prompt: usize, completion: usize) -> Example {
    let input =
        Input::PromptCompletion { prompt: words(0, prompt) + " ", completion: words(50, completion) };
    row(input, None)
}

#[test]
fn settings_decide_about_special_tokens() {
    let around = |post: &str, config: &str| tokenizer(post, config).encode(&text(1), 8).unwrap().ids;
    assert_eq!(around(BERT, "{}"), [1, 10, 2]);
    assert_eq!(around("null", LLAMA), [1, 10]);
    assert_eq!(around("null", &LLAMA.replace("false", "true")), [1, 10, 2]);
    assert_eq!(around(BERT, LLAMA), [1, 10], "the configuration wins over the post-processor");
    assert_eq!(around("null", &LLAMA.replace("true", "false")), [10]);
    assert_eq!(llama().encode_prompt("w3 w4").unwrap(), [1, 13, 14]);
    assert_eq!(
        (llama().bos(), llama().eos(), bert().eos(), bert().vocabulary()),
        (Some(1), Some(2), None, 103)
    );
    assert_eq!(bert().decode(&[1, 10, 11, 2]).unwrap(), "w0 w1");
}

#[test]
fn truncation_keeps_special_tokens_and_counts_what_it_cuts() {
    let cut = bert().encode(&row(Input::Text(words(0, 9)), Some(3)), 6).unwrap();
    assert_eq!(
        cut,
        Encoded { cut: 5, ..Encoded::whole([vec![1], ids(0, 4), vec![2]].concat(), Target::Class(3)) }
    );
    let pair = |a, b, max| {
        let input = Input::Pair(words(0, a), words(50, b));
        bert().encode(&row(input, None), max).unwrap().ids
    };
    let expected = |a, b| [vec![1], ids(0, a), vec![2], ids(50, b), vec![2]].concat();
    assert_eq!(pair(2, 3, 99), expected(2, 3));
    assert_eq!(pair(9, 9, 11), expected(4, 4));
    assert_eq!(pair(9, 2, 11), expected(6, 2));
    assert_eq!(pair(2, 9, 11), expected(2, 6));
    let two = row(Input::Pair(words(0, 2), words(50, 3)), None);
    assert_eq!(bert().encode(&two, 99).unwrap().second_from, 4);
    let short = bert().encode(&text(3), 2).unwrap_err();
    assert!(matches!(short, TokenizerError::TooShort { max: 2, special: 2 }), "{short}");
    let none = tokenizer("null", "{}").encode(&text(0), 8).unwrap_err();
    assert!(matches!(none, TokenizerError::NoTokens { line: 5 }), "{none}");
}

#[test]
fn only_completions_are_learned() {
    let whole = llama().encode(&completion(3, 2), 99).unwrap();
    let expected = [vec![1], ids(0, 3), ids(50, 2), vec![2]].concat();
    assert_eq!(whole, Encoded::whole(expected, Target::Completion { from: 4 }));
    let long_prompt = llama().encode(&completion(30, 2), 9).unwrap();
    let expected = [vec![1], ids(25, 5), ids(50, 2), vec![2]].concat();
    assert_eq!(
        long_prompt,
        Encoded { cut: 25, ..Encoded::whole(expected, Target::Completion { from: 6 }) }
    );
    let both_long = llama().encode(&completion(30, 30), 9).unwrap();
    let expected = [vec![1], ids(26, 4), ids(50, 4)].concat();
    assert_eq!(
        both_long,
        Encoded { cut: 26 + 27, ..Encoded::whole(expected, Target::Completion { from: 5 }) }
    );
}

#[test]
fn conversations_follow_the_template_of_the_model() {
    let message =
        |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
    let talk = vec![message("user", " w0 w1 "), message("assistant", "w2")];
    let plain = llama().encode(&row(Input::Messages(talk.clone()), None), 99).unwrap_err();
    assert!(matches!(plain, TokenizerError::NoChatTemplate), "{plain}");
    let template = concat!(
        "{{ bos_token }}{% for m in messages %}\n",
        "    {% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
        "{{ {'user': 'w7', 'assistant': 'w8'}[m.role] }} {{ m['content'].strip() }} {{ eos_token }}",
        "{% endfor %}{% if add_generation_prompt %}w8 {% endif %}",
    );
    let mut config: Value = serde_json::from_str(LLAMA).unwrap();
    config["chat_template"] = template.into();
    let chat = tokenizer("null", &config.to_string());
    let encoded = chat.encode(&row(Input::Messages(talk), None), 99).unwrap();
    assert_eq!(encoded.ids, [1, 17, 10, 11, 2, 18, 12, 2]);
    assert_eq!(encoded.target, Target::Completion { from: 6 });
    let refused = chat.encode(&row(Input::Messages(vec![message("system", "w1")]), None), 99).unwrap_err();
    assert!(refused.to_string().contains("no system"), "{refused}");
    config["chat_template"] =
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}".into();
    let endless = tokenizer("null", &config.to_string());
    assert!(endless.encode(&row(Input::Messages(vec![message("user", "w1")]), None), 99).is_err());
}

proptest! {
    #[test]
    fn encodings_fit_and_keep_their_ends(words in 0usize..40, other in 0usize..40, max in 4usize..50) {
        let single = bert().encode(&text(words), max).unwrap();
        prop_assert!(single.ids.len() <= max && single.ids[0] == 1 && single.ids.last() == Some(&2));
        prop_assert_eq!(single.ids.len() + single.cut, words + 2);
        let learned = llama().encode(&completion(words, other), max).unwrap();
        let Target::Completion { from } = learned.target else { panic!("no completion") };
        prop_assert!(learned.ids.len() <= max && from < learned.ids.len());
        prop_assert_eq!(learned.ids.len() + learned.cut, 1 + words + other + 1);
    }

    /// However a text is cut, the pairs (token, next token) are those of the whole text, each once.
    #[test]
    fn blocks_predict_every_token_once(lengths in proptest::collection::vec(0usize..60, 1..6), size in 2usize..30) {
        let dataset = Dataset {
            examples: lengths.iter().map(|count| text(*count)).collect(),
            labels: Vec::new(),
            path: "rows".into(),
        };
        let rows: Vec<u32> = (0..lengths.len() as u32).collect();
        let pairs = |sequences: &[Vec<u32>]| -> Vec<(u32, u32)> {
            sequences.iter().flat_map(|ids| ids.windows(2).map(|pair| (pair[0], pair[1]))).collect()
        };
        let tokenizer = llama();
        let whole = |count: &usize| [vec![1], ids(0, *count as u32), vec![2]].concat();
        let whole: Vec<Vec<u32>> = lengths.iter().map(whole).collect();
        for (way, expected) in [(LongRows::Chunk, pairs(&whole)), (LongRows::Pack, pairs(&[whole.concat()]))] {
            let blocks = tokenizer.encode_rows(&dataset, &rows, size, way).unwrap();
            let blocks: Vec<Vec<u32>> = blocks.into_iter().map(|block| block.ids).collect();
            prop_assert!(blocks.iter().all(|block| (2..=size).contains(&block.len())));
            prop_assert_eq!(pairs(&blocks), expected);
        }
        let truncated = tokenizer.encode_rows(&dataset, &rows, size, LongRows::Truncate).unwrap();
        prop_assert_eq!(truncated.len(), lengths.len());
    }

    #[test]
    fn malformed_tokenizers_never_panic(cut in 0usize..2000, byte: u8) {
        let model = json!({"type": "WordLevel", "unk_token": "u", "vocab": {"u": 0}});
        let json = json!({"version": "1.0", "added_tokens": [], "model": model});
        let mut json = json.to_string().into_bytes();
        let place = cut % json.len();
        json[place] = byte;
        let _ = Tokenizer::from_bytes(&json, None);
        let _ = Tokenizer::from_bytes(&json[..place], Some(&json));
    }
}
