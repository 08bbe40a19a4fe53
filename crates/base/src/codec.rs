//! Everything that crosses between nodes, or survives one, is a [`Packet`] of bytes.
//!
//! A value is written with postcard; tensors travel beside it as [`Blob`]s, shared by reference
//! count, so that broadcasting an adapter to a thousand devices copies it never and a snapshot
//! holds handles. Decoding is bounded: lengths are checked against what is there before anything is
//! allocated, trailing bytes and unclaimed blobs are errors.

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::RefCell;

/// An encoded value: a small body, and the blobs it names in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    pub body: Bytes,
    pub blobs: Vec<Blob>,
}

/// A tensor or other large value as bytes, shared and never copied.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Blob(pub Bytes);

/// Bytes that are no valid packet, or no valid value of the expected type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed packet: {0}")]
pub struct CodecError(pub String);

impl Packet {
    /// The bytes this packet takes on a wire or disk, framing included.
    pub fn wire_len(&self) -> u64 {
        let blobs: u64 = self.blobs.iter().map(|blob| 8 + blob.len() as u64).sum();
        8 + self.body.len() as u64 + blobs
    }

    /// One contiguous form: body length, blob count, body, then each blob with its length (little
    /// endian).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.wire_len() as usize);
        out.extend((self.body.len() as u32).to_le_bytes());
        out.extend((self.blobs.len() as u32).to_le_bytes());
        out.extend(&self.body);
        for blob in &self.blobs {
            out.extend((blob.len() as u64).to_le_bytes());
            out.extend(&blob.0);
        }
        out
    }

    /// The inverse of [`Packet::to_bytes`]. Body and blobs are slices of `bytes`; nothing is copied
    /// and nothing is allocated by a length that `bytes` does not hold.
    pub fn from_bytes(mut bytes: Bytes) -> Result<Packet, CodecError> {
        let body_len = take_number::<4>(&mut bytes)?;
        let count = take_number::<4>(&mut bytes)?;
        let body = take(&mut bytes, body_len)?;
        let mut blobs = Vec::new();
        for _ in 0..count {
            let len = take_number::<8>(&mut bytes)?;
            blobs.push(Blob(take(&mut bytes, len)?));
        }
        if !bytes.is_empty() {
            return Err(CodecError(format!("{} bytes after the end", bytes.len())));
        }
        Ok(Packet { body, blobs })
    }
}

fn take_number<const N: usize>(bytes: &mut Bytes) -> Result<u64, CodecError> {
    let field = take(bytes, N as u64)?;
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&field);
    Ok(u64::from_le_bytes(wide))
}

fn take(bytes: &mut Bytes, len: u64) -> Result<Bytes, CodecError> {
    if len > bytes.len() as u64 {
        return Err(CodecError(format!("{len} bytes announced, {} there", bytes.len())));
    }
    Ok(bytes.split_to(len as usize))
}

impl Blob {
    /// Little-endian f32.
    pub fn from_f32(values: &[f32]) -> Blob {
        Blob(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into())
    }

    /// The values written by [`Blob::from_f32`]; an error when `count` of them are not what is there.
    pub fn to_f32(&self, count: usize) -> Result<Vec<f32>, CodecError> {
        if Some(self.len()) != count.checked_mul(4) {
            return Err(CodecError(format!("{} bytes where {count} f32 belong", self.len())));
        }
        let value = |chunk: &[u8]| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        Ok(self.0.chunks_exact(4).map(value).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A packet inside another value (a journal of inputs, say): its body travels as one more blob.
impl Serialize for Packet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Blob(self.body.clone()), &self.blobs).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Packet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Packet, D::Error> {
        let (body, blobs) = <(Blob, Vec<Blob>)>::deserialize(deserializer)?;
        Ok(Packet { body: body.0, blobs })
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob({} bytes)", self.len())
    }
}

thread_local! {
    /// The blobs of the packet being written or read on this thread, innermost last. Serde has no
    /// place for a second output beside the serializer's own; this is how a handle finds its bytes.
    static TABLES: RefCell<Vec<Table>> = const { RefCell::new(Vec::new()) };
}

enum Table {
    Writing(Vec<Blob>),
    Reading { blobs: Vec<Blob>, taken: usize },
}

/// Pops its table even when a serializer panics.
struct Open;

impl Open {
    fn push(table: Table) -> Open {
        TABLES.with_borrow_mut(|tables| tables.push(table));
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        TABLES.with_borrow_mut(|tables| tables.pop());
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let index = TABLES.with_borrow_mut(|tables| match tables.last_mut() {
            Some(Table::Writing(blobs)) => {
                blobs.push(self.clone());
                Ok(blobs.len() as u32 - 1)
            }
            _ => Err(S::Error::custom("a blob can only be written inside a packet")),
        })?;
        serializer.serialize_u32(index)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        let index = u32::deserialize(deserializer)? as usize;
        TABLES.with_borrow_mut(|tables| match tables.last_mut() {
            Some(Table::Reading { blobs, taken }) if index == *taken && index < blobs.len() => {
                *taken += 1;
                Ok(blobs[index].clone())
            }
            _ => Err(D::Error::custom(format!("blob {index} is not in this packet"))),
        })
    }
}

/// Write a value. The blobs in it become handles beside the body.
///
/// # Panics
/// If the type's `Serialize` fails, which no derived one does: a fault of this program, not of a peer.
pub fn encode<T: Serialize>(value: &T) -> Packet {
    let _open = Open::push(Table::Writing(Vec::new()));
    let body = postcard::to_stdvec(value).expect("derived serializers do not fail");
    let blobs = TABLES.with_borrow_mut(|tables| match tables.last_mut() {
        Some(Table::Writing(blobs)) => std::mem::take(blobs),
        _ => Vec::new(),
    });
    Packet { body: body.into(), blobs }
}

/// Read a value that must fill the packet exactly.
pub fn decode<T: DeserializeOwned>(packet: &Packet) -> Result<T, CodecError> {
    let _open = Open::push(Table::Reading { blobs: packet.blobs.clone(), taken: 0 });
    let (value, rest) =
        postcard::take_from_bytes(&packet.body).map_err(|error| CodecError(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CodecError(format!("{} bytes after the value", rest.len())));
    }
    let unclaimed = TABLES.with_borrow(|tables| match tables.last() {
        Some(Table::Reading { blobs, taken }) => blobs.len() - taken,
        _ => 0,
    });
    if unclaimed > 0 {
        return Err(CodecError(format!("{unclaimed} blobs that the value does not name")));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Update {
        round: u32,
        name: String,
        weights: Blob,
        parts: Vec<Option<Blob>>,
    }

    fn update() -> Update {
        let weights = Blob::from_f32(&[1.0, -2.5]);
        let parts = vec![None, Some(Blob::from_f32(&[3.0])), Some(weights.clone())];
        Update { round: 3, name: "ünï".into(), weights, parts }
    }

    #[test]
    fn a_value_survives_the_wire() {
        let packet = encode(&update());
        let bytes = packet.to_bytes();
        assert_eq!(bytes.len() as u64, packet.wire_len());
        let back = Packet::from_bytes(bytes.into()).unwrap();
        assert_eq!(decode::<Update>(&back).unwrap(), update());
        assert_eq!(update().weights.to_f32(2).unwrap(), [1.0, -2.5]);
        assert!(update().weights.to_f32(3).is_err());
    }

    #[test]
    fn a_packet_travels_inside_another() {
        let inner = encode(&update());
        let outer = Packet::from_bytes(encode(&(7u8, inner.clone())).to_bytes().into()).unwrap();
        let (tag, back): (u8, Packet) = decode(&outer).unwrap();
        assert_eq!((tag, back), (7, inner));
    }

    #[test]
    fn every_truncation_and_extension_is_refused() {
        let bytes = encode(&update()).to_bytes();
        for end in 0..bytes.len() {
            let cut = Packet::from_bytes(bytes[..end].to_vec().into());
            assert!(cut.and_then(|packet| decode::<Update>(&packet)).is_err(), "cut at {end}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Packet::from_bytes(longer.into()).is_err());
    }

    #[test]
    fn a_blob_claimed_twice_or_never_is_refused() {
        let mut packet = encode(&update());
        packet.blobs.push(Blob::from_f32(&[0.0]));
        assert!(decode::<Update>(&packet).is_err());
        packet.blobs.truncate(2);
        assert!(decode::<Update>(&packet).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(packet) = Packet::from_bytes(bytes.into()) {
                let _ = decode::<Update>(&packet);
            }
        }
    }
}
