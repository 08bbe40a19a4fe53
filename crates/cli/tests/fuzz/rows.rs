//! Data: files of rows, the tokenizer that reads them, and the template of conversations.

use crate::form::{CHOICE, PACKET, PLAIN, bundle, files};
use crate::target::{Decoder, Room, Said, Target, size, target};
use data::{Columns, Example, Input, Message, Tokenizer, read, vocabulary};
use std::io::Write;

pub fn targets() -> Vec<Target> {
    vec![
        target("rows", rows),
        target("packed rows", packed_rows),
        target("tokenizer", tokenizer),
        target("chat template", chat_template),
    ]
}

const TEXTS: [(&str, &str); 8] = [
    ("a.jsonl", "{\"text\":\"good\",\"label\":1}\n{\"text\":\"bad\",\"label\":0,\"client\":\"x\"}\n"),
    ("b.jsonl", "{\"sentence1\":\"a\",\"sentence2\":\"b\",\"label\":\"yes\",\"client\":7}\n"),
    (
        "c.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"ho\"}]}\n",
    ),
    (
        "d.jsonl",
        "{\"instruction\":\"say\",\"input\":\"\",\"output\":\"x\"}\n{\"instruction\":\"say\",\"output\":\"x\"}\n",
    ),
    ("a.json", "[{\"text\":\"good\",\"label\":1},{\"text\":\"bad\",\"label\":0}]"),
    ("b.json", "{\"prompt\":\"p\",\"completion\":\"c\"}\n{\"prompt\":\"q\",\"completion\":\"d\"}\n"),
    ("a.csv", "text,label,client\n\"good, so\",1,ann\nbad,0,bob\n"),
    ("a.tsv", "sentence1\tsentence2\tlabel\na\tb\tyes\nc\td\tno\n"),
];

/// What a reader holds at once beside its rows: a few buffers of 64 KiB, and the names of the classes up to the largest
/// number that stands for one, of which there may be 65,536.
const ROOM: Room = Room { bytes: 16 << 20, factor: 128 };
/// A packed file may come to 4 MiB, and to 200 times its size beyond that; a row as small as it can be takes
/// ten times its text.
const PACKED_ROOM: Room = Room { bytes: 48 << 20, factor: 2000 };

fn read_rows(name: &str, bytes: &[u8]) -> Said {
    let path = std::env::current_dir().expect("a scratch folder").join(name);
    std::fs::write(&path, bytes).expect("the scratch folder can be written");
    let set = read(&path, &Columns::default()).map_err(|error| error.to_string())?;
    Ok(format!("rows {}, labels {}", size(set.examples.len()), size(set.labels.len())))
}

/// The first byte chooses the name, by which files are read.
fn chosen<'a, T>(names: &'a [T], bytes: &'a [u8]) -> Result<(&'a T, &'a [u8]), String> {
    let (first, rest) = bytes.split_first().ok_or("nothing")?;
    Ok((&names[*first as usize % names.len()], rest))
}

fn rows() -> Decoder {
    let decode = |bytes: &[u8]| -> Said {
        let ((name, _), bytes) = chosen(&TEXTS, bytes)?;
        read_rows(name, bytes)
    };
    let seed = |(index, (_, text)): (u8, &(&str, &str))| [&[index], text.as_bytes()].concat();
    let seeds = (0..).zip(&TEXTS).map(seed).collect();
    Decoder { seeds, form: CHOICE, room: ROOM, decode: Box::new(decode) }
}

/// Small files, and some that unpack to eight megabytes.
fn packed_rows() -> Decoder {
    let names: Vec<String> =
        TEXTS.iter().flat_map(|(name, _)| [format!("{name}.zst"), format!("{name}.gz")]).collect();
    let long = |piece: &str| piece.repeat((8 << 20) / piece.len());
    let bombs = [
        (8, format!("[{}", long(" "))),
        (8, format!("[{}", long("{\"text\":\"a\"},"))),
        (0, long(" ")),
        (0, long("\n")),
        (12, long("\"")),
        (12, format!("text\n{}", long("\n"))),
    ];
    let texts = (0..).step_by(2).zip(TEXTS).map(|(index, (_, text))| (index, text.to_owned()));
    let mut seeds = Vec::new();
    for (index, text) in texts.chain(bombs) {
        let zstd = zstd::encode_all(text.as_bytes(), 1).expect("memory takes it");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).expect("memory takes it");
        seeds.push([vec![index], zstd].concat());
        seeds.push([vec![index + 1], gzip.finish().expect("memory takes it")].concat());
    }
    let decode = move |bytes: &[u8]| -> Said {
        let (name, bytes) = chosen(&names, bytes)?;
        read_rows(name, bytes)
    };
    Decoder { seeds, form: CHOICE, room: PACKED_ROOM, decode: Box::new(decode) }
}

const WORD_PIECE: &str = r###"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
{"id":0,"content":"[PAD]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
{"id":1,"content":"[UNK]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
{"id":2,"content":"[CLS]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
{"id":3,"content":"[SEP]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},
"pre_tokenizer":{"type":"BertPreTokenizer"},
"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"[CLS]","type_id":0}},
{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}}],
"pair":[{"SpecialToken":{"id":"[CLS]","type_id":0}},{"Sequence":{"id":"A","type_id":0}},
{"SpecialToken":{"id":"[SEP]","type_id":0}},{"Sequence":{"id":"B","type_id":1}},{"SpecialToken":{"id":"[SEP]","type_id":1}}],
"special_tokens":{"[CLS]":{"id":"[CLS]","ids":[2],"tokens":["[CLS]"]},"[SEP]":{"id":"[SEP]","ids":[3],"tokens":["[SEP]"]}}},
"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},
"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,
"vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"a":4,"##b":5,"word":6,"##s":7,"hi":8,"there":9}}}"###;

const PAIRS: &str = r#"{"version":"1.0","truncation":{"direction":"Right","max_length":6,"strategy":"LongestFirst",
"stride":0},"padding":{"strategy":{"Fixed":8},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,
"pad_token":"<s>"},"added_tokens":[{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,
"normalized":false,"special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"_"},
{"type":"Replace","pattern":{"String":" "},"content":"_"}]},"pre_tokenizer":{"type":"Split","pattern":{"Regex":"\\w+|\\s"},
"behavior":"Isolated","invert":false},"post_processor":null,"decoder":{"type":"Sequence","decoders":[{"type":"Replace",
"pattern":{"String":"_"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,
"stop":0}]},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":true,"ignore_merges":false,
"vocab":{"<s>":0,"a":1,"b":2,"ab":3,"_":4,"_a":5,"h":6,"i":7,"hi":8},"merges":[["a","b"],["_","a"],["h","i"]]}}"#;

const UNIGRAM: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":{"type":"NFKC"},
"pre_tokenizer":{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true},"post_processor":null,
"decoder":{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true},
"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["a",-1.5],["_h",-2.0],["i",-2.5]],"byte_fallback":false}}"#;

const SETTINGS: &str =
    r#"{"bos_token":"<s>","eos_token":{"content":"</s>"},"add_bos_token":true,"add_eos_token":false}"#;

const TEMPLATES: [&str; 2] = [
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}\n{{ message['content'] | trim }}{{ eos_token }}\n\
     {% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = \
     messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for m in messages %}{% if (m.role == 'user') != \
     (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}{{ m.content.split('x')[-1] ~ system * 3 }}{% endfor %}",
];

/// A small tokenizer of bytes, as this program makes it.
fn trained() -> Vec<u8> {
    let corpus: Vec<String> = (0..20).map(|i| format!("hi there, row {i} of words")).collect();
    vocabulary::train(&corpus, 270).expect("room for 256 bytes")
}

fn examples() -> Vec<Example> {
    let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let inputs = [
        Input::Text("Hi there words, x 7 \u{e9}\u{4e2d}".into()),
        Input::Pair("ab a".into(), "word".into()),
        Input::PromptCompletion { prompt: "hi".into(), completion: "there".into() },
        Input::Messages(vec![message("user", "hi x"), message("assistant", "there")]),
    ];
    inputs.into_iter().map(|input| Example { input, label: None, client: None, line: 1 }).collect()
}

/// Encode a row of each kind; the first error, or how many tokens there are.
fn encode(tokenizer: &Tokenizer) -> Said {
    let mut tokens = 0;
    for example in examples() {
        let encoded = tokenizer.encode(&example, 12).map_err(|error| error.to_string())?;
        tokens += encoded.ids.len();
        tokenizer.decode(&encoded.ids).map_err(|error| error.to_string())?;
    }
    Ok(size(tokens))
}

/// A tokenizer's compiled patterns and tables take much more than their text.
const TOKENIZER_ROOM: Room = Room { bytes: 64 << 20, factor: 256 };

/// The template language lets a text be repeated to 100 MB, and holds it a few times over.
const TEMPLATE_ROOM: Room = Room { bytes: 600 << 20, factor: 256 };

/// A model's `tokenizer.json` and `tokenizer_config.json`.
fn tokenizer() -> Decoder {
    let decode = |bytes: &[u8]| -> Said {
        let files = files(bytes).ok_or("no bundle of files")?;
        let settings = files.get(1).map(Vec::as_slice);
        encode(&Tokenizer::from_bytes(&files[0], settings).map_err(|error| error.to_string())?)
    };
    let seeds = [WORD_PIECE.as_bytes(), PAIRS.as_bytes(), UNIGRAM.as_bytes(), &trained()]
        .map(|tokenizer| bundle(&[tokenizer, &settings(TEMPLATES[0].as_bytes())]));
    Decoder { seeds: seeds.to_vec(), form: PACKET, room: TOKENIZER_ROOM, decode: Box::new(decode) }
}

/// The settings of a tokenizer with this template of conversations.
fn settings(template: &[u8]) -> Vec<u8> {
    let mut settings: serde_json::Map<_, _> = serde_json::from_str(SETTINGS).expect("sound settings");
    settings.insert("chat_template".into(), String::from_utf8_lossy(template).into());
    serde_json::to_vec(&settings).expect("a value is JSON")
}

/// A template beside a sound tokenizer.
fn chat_template() -> Decoder {
    let tokenizer = trained();
    let decode = move |bytes: &[u8]| -> Said {
        encode(
            &Tokenizer::from_bytes(&tokenizer, Some(&settings(bytes)))
                .map_err(|error| error.to_string())?,
        )
    };
    let seeds = TEMPLATES.map(|template| template.as_bytes().to_vec()).to_vec();
    Decoder { seeds, form: PLAIN, room: TEMPLATE_ROOM, decode: Box::new(decode) }
}
