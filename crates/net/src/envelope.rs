//! A packet as it crosses a network or lies in a store: small parts within it, large ones by address.
//!
//! ```text
//! parts: u32 | part 0 (the packet's body) | part 1 (its first blob) | ...
//! part:  0u8 | length: u64 | bytes            within
//!        1u8 | length: u64 | BLAKE3, 32 bytes beside, to be fetched by that address
//! ```
//!
//! Numbers are little endian. Decoding allocates nothing by a length that is not there.

use crate::protocol::{Address, INLINE_BYTES, INLINE_TOTAL, PART_BYTES, PARTS};
use base::{Blob, CodecError, Packet};
use bytes::{Buf, Bytes};

/// A packet's parts: its body, then its blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    parts: Vec<Part>,
}

/// One part of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Within(Bytes),
    Beside(Beside),
}

/// A content that is somewhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Beside {
    pub address: Address,
    pub len: u64,
}

/// An envelope, and the contents that do not stand in it.
pub struct Packed {
    pub envelope: Envelope,
    pub beside: Vec<(Beside, Bytes)>,
}

/// Contents that were hashed, held so that no other can take their place in memory.
#[derive(Default)]
pub struct Hashes(Vec<(Bytes, Address)>);

impl Hashes {
    fn of(&mut self, content: &Bytes) -> Address {
        let same = |known: &Bytes| known.as_ptr() == content.as_ptr() && known.len() == content.len();
        if let Some((_, address)) = self.0.iter().find(|(known, _)| same(known)) {
            return *address;
        }
        let address = Address::of(content);
        self.0.push((content.clone(), address));
        address
    }
}

const WITHIN: u8 = 0;
const BESIDE: u8 = 1;

impl Envelope {
    /// Put a packet into an envelope.
    pub fn pack(packet: &Packet) -> Packed {
        Envelope::pack_knowing(packet, &mut Hashes::default())
    }

    /// The same for one of several packets that share contents: each is hashed once.
    pub fn pack_knowing(packet: &Packet, hashes: &mut Hashes) -> Packed {
        let (mut parts, mut beside) = (Vec::new(), Vec::new());
        let mut room = INLINE_TOTAL;
        for content in std::iter::once(&packet.body).chain(packet.blobs.iter().map(|blob| &blob.0)) {
            if content.len() <= INLINE_BYTES.min(room) {
                room -= content.len();
                parts.push(Part::Within(content.clone()));
                continue;
            }
            let part = Beside { address: hashes.of(content), len: content.len() as u64 };
            parts.push(Part::Beside(part));
            beside.push((part, content.clone()));
        }
        Packed { envelope: Envelope { parts }, beside }
    }

    /// Take the packet out, with contents from `fetch`.
    pub fn unpack<E: From<CodecError>>(
        &self,
        mut fetch: impl FnMut(&Beside) -> Result<Bytes, E>,
    ) -> Result<Packet, E> {
        let mut contents = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            contents.push(match part {
                Part::Within(content) => content.clone(),
                Part::Beside(beside) => fetch(beside)?,
            });
        }
        let mut contents = contents.into_iter();
        let body = contents.next().ok_or_else(|| CodecError("an envelope without a body".to_owned()))?;
        Ok(Packet { body, blobs: contents.map(Blob).collect() })
    }

    /// The contents that do not stand in it.
    pub fn beside(&self) -> impl Iterator<Item = Beside> + '_ {
        self.parts.iter().filter_map(|part| if let Part::Beside(part) = part { Some(*part) } else { None })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend((self.parts.len() as u32).to_le_bytes());
        for part in &self.parts {
            match part {
                Part::Within(content) => {
                    out.push(WITHIN);
                    out.extend((content.len() as u64).to_le_bytes());
                    out.extend(content);
                }
                Part::Beside(beside) => {
                    out.push(BESIDE);
                    out.extend(beside.len.to_le_bytes());
                    out.extend(beside.address.0);
                }
            }
        }
        out
    }

    /// The inverse of [`Envelope::to_bytes`]; parts are slices of `bytes`.
    pub fn from_bytes(mut bytes: Bytes) -> Result<Envelope, CodecError> {
        let refuse = |what: String| Err(CodecError(what));
        let count = u32::from_le_bytes(take(&mut bytes)?);
        if count == 0 || count > PARTS {
            return refuse(format!("an envelope of {count} parts; 1 to {PARTS} are possible"));
        }
        let mut parts = Vec::new();
        for _ in 0..count {
            let [kind] = take(&mut bytes)?;
            let len = u64::from_le_bytes(take(&mut bytes)?);
            parts.push(match kind {
                WITHIN if len <= bytes.len() as u64 => Part::Within(bytes.split_to(len as usize)),
                WITHIN => return refuse(format!("{len} bytes announced, {} there", bytes.len())),
                BESIDE if len <= PART_BYTES => {
                    Part::Beside(Beside { address: Address(take(&mut bytes)?), len })
                }
                BESIDE => return refuse(format!("a part of {len} bytes; {PART_BYTES} are the most")),
                other => return refuse(format!("a part of kind {other}")),
            });
        }
        if !bytes.is_empty() {
            return refuse(format!("{} bytes after the end", bytes.len()));
        }
        Ok(Envelope { parts })
    }
}

/// The next `N` bytes, if they are there.
pub(crate) fn take<const N: usize>(bytes: &mut Bytes) -> Result<[u8; N], CodecError> {
    let mut field = [0; N];
    if bytes.len() < N {
        return Err(CodecError(format!("{N} bytes needed, {} there", bytes.len())));
    }
    bytes.copy_to_slice(&mut field);
    Ok(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet() -> Packet {
        let large = Blob(vec![7; INLINE_BYTES + 1].into());
        Packet { body: Bytes::from_static(b"body"), blobs: vec![Blob::from_f32(&[1.0]), large] }
    }

    #[test]
    fn a_packet_survives_and_large_parts_travel_beside_it() {
        let Packed { envelope, beside } = Envelope::pack(&packet());
        let back = Envelope::from_bytes(envelope.to_bytes().into()).unwrap();
        assert_eq!(back, envelope);
        assert_eq!(back.beside().collect::<Vec<_>>(), [beside[0].0]);
        assert_eq!(back.unpack(|_| Ok::<_, CodecError>(beside[0].1.clone())).unwrap(), packet());
        let many = Packet { body: Bytes::new(), blobs: vec![Blob(vec![1; INLINE_BYTES].into()); 40] };
        assert!(Envelope::pack(&many).envelope.to_bytes().len() < 2 * INLINE_TOTAL);
    }

    #[test]
    fn every_truncation_and_extension_is_refused() {
        let bytes = Envelope::pack(&packet()).envelope.to_bytes();
        for end in 0..bytes.len() {
            assert!(Envelope::from_bytes(bytes[..end].to_vec().into()).is_err(), "cut at {end}");
        }
        let longer = [bytes, vec![0]].concat();
        assert!(Envelope::from_bytes(longer.into()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Envelope::from_bytes(bytes.into());
        }
    }
}
