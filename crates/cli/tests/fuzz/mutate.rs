//! Small changes, several at once, of bytes and of their parts.

use crate::form::Form;
use base::Stream;

const EXTREMES: [u64; 8] = [0, 1, 0x7f, 0x7fff_ffff, 0xffff_ffff, 1 << 62, (1 << 63) - 1, u64::MAX];

/// What stands for trouble in a text.
const WORDS: &[&str] = &[
    "0",
    "-1",
    "1e308",
    "-1e308",
    "1e999",
    "0.5",
    "1e-320",
    "nan",
    "inf",
    "16777216",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "[[",
    "{\"",
    "]",
    "}",
    ",",
    ":",
    "=",
    "\n",
    "\r\n",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\u{feff}",
    "../",
    "é",
    "a.b.",
    "{{",
    "{%",
    "%}",
    "}}",
    "range(99999)",
];

/// A changed copy of one of `pool`, or a mixture of two.
pub fn mutant(pool: &[Vec<u8>], form: Form, draw: &mut Stream) -> Vec<u8> {
    let (mut bytes, other) = (pick(pool, draw).clone(), pick(pool, draw));
    if draw.below(4) > 0
        && let Some(mut parts) = (form.split)(&bytes)
    {
        let others = (form.split)(other).unwrap_or_default();
        if draw.below(16) == 0 {
            rearrange(&mut parts, &others, draw);
        }
        for _ in 0..1 + draw.below(3) {
            let at = draw.below(parts.len().max(1) as u64) as usize;
            let other = others.get(at).unwrap_or(other);
            parts.get_mut(at).into_iter().for_each(|part| change(part, other, draw));
        }
        return (form.join)(parts);
    }
    (0..1 + draw.below(4)).for_each(|_| change(&mut bytes, other, draw));
    bytes
}

fn pick<'a, T>(from: &'a [T], draw: &mut Stream) -> &'a T {
    &from[draw.below(from.len() as u64) as usize]
}

/// A part doubled, dropped, or taken from another input.
fn rearrange(parts: &mut Vec<Vec<u8>>, others: &[Vec<u8>], draw: &mut Stream) {
    let at = draw.below(parts.len() as u64) as usize;
    match draw.below(3) {
        0 => drop(parts.remove(at)),
        1 => parts.insert(at, parts[at].clone()),
        _ => others.get(at).into_iter().for_each(|other| parts[at] = other.clone()),
    }
}

fn change(bytes: &mut Vec<u8>, other: &[u8], draw: &mut Stream) {
    let at = draw.below(bytes.len() as u64 + 1) as usize;
    let end = (at + draw.below(16) as usize).min(bytes.len());
    match draw.below(14) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, draw.bits() as u8),
        2 => {
            bytes.truncate(at);
            bytes.extend(&other[at.min(other.len())..]);
        }
        3 | 4 => {
            let extreme = pick(&EXTREMES, draw).to_le_bytes();
            let width = 1 << draw.below(4);
            bytes.iter_mut().skip(at).zip(&extreme[..width]).for_each(|(byte, new)| *byte = *new);
        }
        5 => drop(bytes.drain(at..end)),
        6 => {
            let piece = bytes[at..end].to_vec();
            let to = draw.below(bytes.len() as u64 + 1) as usize;
            bytes.splice(to..to, piece);
        }
        7 => {
            let piece = bytes[at..end].to_vec();
            let times = 1 << draw.below(12);
            bytes.splice(at..at, piece.repeat(times));
        }
        8 => drop(bytes.splice(at..at, pick(WORDS, draw).bytes())),
        9 | 10 => replace_word(bytes, at, draw),
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << draw.below(8);
            }
        }
    }
}

/// The next word of a text, a number say, becomes another.
fn replace_word(bytes: &mut Vec<u8>, at: usize, draw: &mut Stream) {
    let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-._".contains(byte);
    let Some(from) = (at..bytes.len()).find(|&at| in_word(&bytes[at])) else { return };
    let end = (from..bytes.len()).find(|&at| !in_word(&bytes[at])).unwrap_or(bytes.len());
    bytes.splice(from..end, pick(WORDS, draw).bytes());
}
