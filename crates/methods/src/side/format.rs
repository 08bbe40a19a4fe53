//! How activations are written, on the wire and in the cache.
//!
//! A row is written by itself, so that any row of a file can be read alone. The quantised formats cut
//! it into blocks of 64 values, each after the f16 scale of its own.
//!
//! Source: NF4 and its blocks are QLoRA's (arXiv 2305.14314), as MobiLLM sends activations.

use half::f16;
use serde::{Deserialize, Serialize};

/// A number format of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TapFormat {
    F32,
    #[default]
    F16,
    /// Steps of a 127th of a block's largest value.
    Int8,
    /// The 16 levels that are equally likely under a normal distribution.
    Nf4,
}

/// Bytes that are no activations in the expected format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadTaps(pub String);

/// Values that share a scale.
const BLOCK: usize = 64;

const SCALE_BYTES: usize = 2;

/// The levels of NF4, in rising order (QLoRA, appendix E).
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

impl TapFormat {
    /// The bytes of a row of this many values.
    pub fn row_bytes(self, values: usize) -> usize {
        let scales = SCALE_BYTES * values.div_ceil(BLOCK);
        match self {
            TapFormat::F32 => 4 * values,
            TapFormat::F16 => 2 * values,
            TapFormat::Int8 => values + scales,
            // Only the last block of a row can be short, and only it can leave half a byte.
            TapFormat::Nf4 => values.div_ceil(2) + scales,
        }
    }

    /// Append a row. Values beyond what f16 holds are written as its largest.
    pub fn write(self, row: &[f32], out: &mut Vec<u8>) {
        match self {
            TapFormat::F32 => out.extend(row.iter().flat_map(|value| value.to_le_bytes())),
            TapFormat::F16 => out.extend(row.iter().flat_map(|&value| saturated(value).to_le_bytes())),
            TapFormat::Int8 => row.chunks(BLOCK).for_each(|block| write_int8(block, out)),
            TapFormat::Nf4 => row.chunks(BLOCK).for_each(|block| write_nf4(block, out)),
        }
    }

    /// Read a row back.
    ///
    /// # Errors
    /// When `bytes` is not [`TapFormat::row_bytes`] long, or holds what is no finite number.
    pub fn read(self, bytes: &[u8], row: &mut [f32]) -> Result<(), BadTaps> {
        let (found, expected) = (bytes.len(), self.row_bytes(row.len()));
        if found != expected {
            let values = row.len();
            return Err(BadTaps(format!("{found} bytes where {values} {self:?} values take {expected}")));
        }
        match self {
            TapFormat::F32 => {
                for (value, bytes) in row.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            TapFormat::F16 => {
                for (value, bytes) in row.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                }
            }
            TapFormat::Int8 => {
                let blocks = bytes.chunks(BLOCK + SCALE_BYTES);
                row.chunks_mut(BLOCK).zip(blocks).for_each(|(block, bytes)| read_int8(bytes, block));
            }
            TapFormat::Nf4 => {
                let blocks = bytes.chunks(BLOCK / 2 + SCALE_BYTES);
                row.chunks_mut(BLOCK).zip(blocks).for_each(|(block, bytes)| read_nf4(bytes, block));
            }
        }
        if ops::slice::all_finite(row) {
            Ok(())
        } else {
            Err(BadTaps("an activation is no finite number".into()))
        }
    }
}

fn saturated(value: f32) -> f16 {
    f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

/// Write a block's scale, as read back, and return its inverse (0 for a block of zeros).
fn write_scale(largest: f32, out: &mut Vec<u8>) -> f32 {
    let scale = saturated(largest);
    out.extend(scale.to_le_bytes());
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}

fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0, |most, value| most.max(value.abs()))
}

fn write_int8(block: &[f32], out: &mut Vec<u8>) {
    let inverse = write_scale(largest(block) / 127.0, out);
    out.extend(block.iter().map(|value| (value * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
}

fn read_int8(bytes: &[u8], block: &mut [f32]) {
    let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    for (value, &byte) in block.iter_mut().zip(&bytes[SCALE_BYTES..]) {
        *value = scale * f32::from(byte as i8);
    }
}

fn write_nf4(block: &[f32], out: &mut Vec<u8>) {
    let inverse = write_scale(largest(block), out);
    let code = |value: f32| {
        let value = value * inverse;
        // The first level whose midpoint to the next lies above the value.
        NF4.windows(2).filter(|pair| value > 0.5 * (pair[0] + pair[1])).count() as u8
    };
    for pair in block.chunks(2) {
        let high = pair.get(1).map_or(0, |&value| code(value));
        out.push(code(pair[0]) | high << 4);
    }
}

fn read_nf4(bytes: &[u8], block: &mut [f32]) {
    let scale = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    for (pair, &byte) in block.chunks_mut(2).zip(&bytes[SCALE_BYTES..]) {
        let codes = [byte & 15, byte >> 4];
        pair.iter_mut().zip(codes).for_each(|(value, code)| *value = scale * NF4[usize::from(code)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Seed;

    const ALL: [TapFormat; 4] = [TapFormat::F32, TapFormat::F16, TapFormat::Int8, TapFormat::Nf4];

    fn round_trip(format: TapFormat, row: &[f32]) -> Vec<f32> {
        let (mut bytes, mut back) = (Vec::new(), vec![0.0; row.len()]);
        format.write(row, &mut bytes);
        assert_eq!(bytes.len(), format.row_bytes(row.len()));
        format.read(&bytes, &mut back).unwrap();
        back
    }

    /// The largest error of a value in a block whose largest value is `most`.
    fn bound(format: TapFormat, value: f32, most: f32) -> f32 {
        match format {
            TapFormat::F32 => 0.0,
            TapFormat::F16 => value.abs() / 2048.0 + 6e-8,
            // Half a step, and what rounding the scale takes from the largest value.
            TapFormat::Int8 => most * (0.5 / 127.0 + 1.0 / 2048.0) + 1e-5,
            // Half of the widest gap between two levels.
            TapFormat::Nf4 => most * (0.5 * 0.303_808 + 1.0 / 2048.0) + 1e-7,
        }
    }

    #[test]
    fn what_is_written_is_read_within_the_bound_of_its_format() {
        for case in 0..500 {
            let mut draw = Seed(1).child("row", case).stream();
            let (count, size) = (1 + draw.below(200), 300.0 * 10f64.powi(-(draw.below(5) as i32)));
            let row: Vec<f32> = (0..count).map(|_| (size * (2.0 * draw.unit() - 1.0)) as f32).collect();
            for format in ALL {
                let back = round_trip(format, &row);
                for (block, back) in row.chunks(BLOCK).zip(back.chunks(BLOCK)) {
                    for (value, back) in block.iter().zip(back) {
                        let (off, most) = ((value - back).abs(), bound(format, *value, largest(block)));
                        assert!(off <= most, "{format:?} in case {case}: {value} came back as {back}");
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_read_as_numbers_or_refused() {
        for case in 0..2000 {
            let mut draw = Seed(2).child("bytes", case).stream();
            let (count, values) = (draw.below(300), draw.below(120) as usize);
            let bytes: Vec<u8> = (0..count).map(|_| draw.bits() as u8).collect();
            for format in ALL {
                for bytes in [&bytes[..], &bytes[..bytes.len().min(format.row_bytes(values))]] {
                    let mut row = vec![0.0; values];
                    if format.read(bytes, &mut row).is_ok() {
                        assert!(bytes.len() == format.row_bytes(values) && ops::slice::all_finite(&row));
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_of_nf4_is_a_fixed_point() {
        assert_eq!(round_trip(TapFormat::Nf4, &NF4), NF4);
        assert_eq!(round_trip(TapFormat::Int8, &[0.0; 70]), [0.0; 70]);
    }

    #[test]
    fn nf4_takes_at_most_27_hundredths_of_f16() {
        for values in [6 * 384, 24 * 1024, 12 * 768] {
            let share = TapFormat::Nf4.row_bytes(values) as f64 / TapFormat::F16.row_bytes(values) as f64;
            assert!(share <= 0.27, "{share} of {values} values");
        }
    }
}
