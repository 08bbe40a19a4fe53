//! What crosses a cut, as bytes: activations upwards and their gradients downwards.

use base::Blob;
use federation::Fault;
use half::f16;
use serde::{Deserialize, Serialize};

/// The number format of activations and gradients on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    #[default]
    F32,
    /// Half precision, scaled by the largest value of the message: gradients would vanish otherwise.
    F16,
    /// One byte a value, scaled by the largest value of each token.
    Int8,
}

/// A message's numbers, and what their format cost.
pub struct Packed {
    pub blob: Blob,
    /// The root of the squared error over the squared values: 0 is exact.
    pub error: f64,
}

impl Traffic {
    /// The most exact first.
    pub const ALL: [Traffic; 3] = [Traffic::F32, Traffic::F16, Traffic::Int8];

    /// Bytes of `rows` tokens of `width` numbers.
    pub fn bytes(self, rows: usize, width: usize) -> usize {
        match self {
            Traffic::F32 => 4 * rows * width,
            Traffic::F16 => 4 + 2 * rows * width,
            Traffic::Int8 => rows * (4 + width),
        }
    }

    /// `values` are tokens of `width` numbers each.
    pub fn pack(self, values: &[f32], width: usize) -> Packed {
        let bytes = match self {
            Traffic::F32 => return Packed { blob: Blob::from_f32(values), error: 0.0 },
            Traffic::F16 => pack_f16(values),
            Traffic::Int8 => values.chunks_exact(width.max(1)).flat_map(pack_int8).collect(),
        };
        let blob = Blob(bytes.into());
        let mut read = vec![0f32; values.len()];
        let error = match self.unpack(&blob, width, &mut read) {
            Ok(()) => relative_error(values, &read),
            Err(_) => f64::NAN,
        };
        Packed { blob, error }
    }

    /// Read tokens of `width` numbers into `values`; a fault where they are not exactly there, or not
    /// finite.
    pub fn unpack(self, blob: &Blob, width: usize, values: &mut [f32]) -> Result<(), Fault> {
        let rows = values.len() / width.max(1);
        if blob.len() != self.bytes(rows, width) {
            let expected = self.bytes(rows, width);
            return Err(Fault(format!("{} bytes for {rows} tokens, {expected} expected", blob.len())));
        }
        let bytes = &blob.0[..];
        match self {
            Traffic::F32 => {
                values
                    .iter_mut()
                    .zip(bytes.chunks_exact(4))
                    .for_each(|(value, four)| *value = f32_of(four));
            }
            Traffic::F16 => {
                let scale = f32_of(&bytes[..4]);
                for (value, two) in values.iter_mut().zip(bytes[4..].chunks_exact(2)) {
                    *value = scale * f16::from_le_bytes([two[0], two[1]]).to_f32();
                }
            }
            Traffic::Int8 => {
                for (token, packed) in values.chunks_exact_mut(width).zip(bytes.chunks_exact(4 + width)) {
                    let scale = f32_of(&packed[..4]);
                    for (value, byte) in token.iter_mut().zip(&packed[4..]) {
                        *value = scale * f32::from(byte.cast_signed());
                    }
                }
            }
        }
        if ops::slice::all_finite(values) {
            Ok(())
        } else {
            Err(Fault("numbers that are not finite".into()))
        }
    }
}

fn f32_of(four: &[u8]) -> f32 {
    f32::from_le_bytes([four[0], four[1], four[2], four[3]])
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |largest, value| largest.max(value.abs()))
}

fn pack_f16(values: &[f32]) -> Vec<u8> {
    let scale = largest(values);
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut bytes = scale.to_le_bytes().to_vec();
    bytes.extend(values.iter().flat_map(|value| f16::from_f32(value * inverse).to_le_bytes()));
    bytes
}

fn pack_int8(token: &[f32]) -> Vec<u8> {
    let scale = largest(token) / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut bytes = scale.to_le_bytes().to_vec();
    bytes.extend(token.iter().map(|value| ((value * inverse).round() as i8).cast_unsigned()));
    bytes
}

fn relative_error(values: &[f32], read: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let off: f64 = values.iter().zip(read).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let all: f64 = values.iter().map(|value| square(f64::from(*value))).sum();
    if all == 0.0 { 0.0 } else { (off / all).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Seed;

    /// Tokens whose sizes differ by ten orders of magnitude, as gradients' do.
    fn tokens(width: usize) -> Vec<f32> {
        let mut stream = Seed(3).stream();
        let size = |row: i32| 10f64.powi(-row);
        (0..10)
            .flat_map(|row| (0..width).map(move |_| row))
            .map(|row| (size(row) * stream.normal()) as f32)
            .collect()
    }

    #[test]
    fn what_is_packed_is_read_within_the_error_it_states() {
        let (width, values) = (64, tokens(64));
        for (traffic, most) in [(Traffic::F32, 0.0), (Traffic::F16, 5e-4), (Traffic::Int8, 1e-2)] {
            let packed = traffic.pack(&values, width);
            assert_eq!(packed.blob.len(), traffic.bytes(10, width), "{traffic:?}");
            assert!(packed.error <= most, "{traffic:?}: {}", packed.error);
            let mut read = vec![0.0; values.len()];
            traffic.unpack(&packed.blob, width, &mut read).unwrap();
            assert!((relative_error(&values, &read) - packed.error).abs() < 1e-12);
            let short = Blob(packed.blob.0.slice(1..));
            assert!(traffic.unpack(&short, width, &mut read).is_err());
        }
        assert!(Traffic::Int8.bytes(1, 384) as f64 <= 0.27 * Traffic::F32.bytes(1, 384) as f64);
        let wild = Traffic::F32.pack(&[f32::NAN, 1.0], 2).blob;
        assert!(Traffic::F32.unpack(&wild, 2, &mut [0.0; 2]).is_err());
    }

    #[test]
    fn int8_serves_small_tokens_as_well_as_large_ones() {
        let (width, values) = (64, tokens(64));
        let mut read = vec![0.0; values.len()];
        Traffic::Int8.unpack(&Traffic::Int8.pack(&values, width).blob, width, &mut read).unwrap();
        for (token, read) in values.chunks(width).zip(read.chunks(width)) {
            assert!(relative_error(token, read) < 1e-2);
        }
    }
}
