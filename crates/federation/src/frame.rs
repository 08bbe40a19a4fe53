//! What hosts say to each other: the frames around a method's messages, and how they are sealed.
//!
//! A sealed frame is the body of a packet: the protocol's version (two bytes, little endian), the
//! frame, and eight bytes of BLAKE3 over both and over the lengths of the blobs beside them. Version
//! and checksum stand at the same place in every version, so that an old device and a new server tell
//! each other what is wrong. The checksum finds accidents, not attackers: who a packet is from, and that
//! a blob's content is whole, is for the driver's channel to prove.

use crate::{Member, Status};
use base::{Blob, CodecError, Packet, decode, encode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Version of the frames; both sides check it.
pub const PROTOCOL: u16 = 1;

const VERSION_LEN: usize = 2;
const CHECK_LEN: usize = 8;

/// Everything one host says to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Frame {
    /// Device: let me take part. A larger `life` is a fresh storage.
    Hello { life: u64, method: String, member: Member },
    /// Server: you take part with this life.
    Welcome { life: u64 },
    /// Server: you cannot take part, and why.
    Unwelcome { reason: String },
    /// Letter number `seq`. Letters before `floor` were received or are given up; `ack` is the first
    /// number the sender has not received; `chain` stands for all letters posted before this one.
    Data { life: u64, floor: u64, seq: u64, chain: u64, ack: u64, letter: Letter },
    /// Everything before `ack` was received.
    Ack { life: u64, ack: u64 },
    /// Server: the run is over.
    Bye { status: Status },
}

/// What a link carries once and in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub round: u32,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Content {
    /// A message of the method, as [`encode`] wrote it.
    Said { body: Bytes, blobs: Vec<Blob> },
    /// Device: nothing (more) comes from me in this round.
    Sorry(Excuse),
}

/// Why a device gives nothing to a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Excuse {
    Fault(String),
    /// A job takes more memory than there is.
    Memory {
        need: u64,
        budget: u64,
    },
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Excuse::Fault(reason) => f.write_str(reason),
            Excuse::Memory { need, budget } => {
                let (need, budget) = (base::units::bytes(*need), base::units::bytes(*budget));
                write!(f, "it needs {need} of memory, and there are {budget}")
            }
        }
    }
}

/// Bytes that are no frame of this protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("it speaks protocol {theirs}, this program speaks {PROTOCOL}: update the older of the two")]
    Version { theirs: u16 },
    #[error("{0}")]
    Malformed(String),
}

impl Letter {
    pub fn said<T: Serialize>(round: u32, body: &T) -> Letter {
        let Packet { body, blobs } = encode(body);
        Letter { round, content: Content::Said { body, blobs } }
    }

    pub fn sorry(round: u32, excuse: Excuse) -> Letter {
        Letter { round, content: Content::Sorry(excuse) }
    }

    /// The chain after this letter: a hash over it and the chain of all before. Blobs count by length.
    pub fn chain(&self, before: u64) -> u64 {
        let mut hash = blake3::Hasher::new();
        hash.update(&before.to_le_bytes()).update(&self.round.to_le_bytes());
        match &self.content {
            Content::Said { body, blobs } => {
                hash.update(body);
                blobs.iter().for_each(|blob| {
                    hash.update(&(blob.len() as u64).to_le_bytes());
                });
            }
            Content::Sorry(excuse) => {
                hash.update(excuse.to_string().as_bytes());
            }
        }
        let mut first = [0; 8];
        first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }

    /// Bytes this letter takes on the wire, to within framing.
    pub fn wire_len(&self) -> u64 {
        match &self.content {
            Content::Said { body, blobs } => {
                body.len() as u64 + blobs.iter().map(|blob| blob.len() as u64).sum::<u64>()
            }
            Content::Sorry(_) => 64,
        }
    }
}

impl Frame {
    pub fn seal(&self) -> Packet {
        let Packet { body, blobs } = encode(self);
        let mut sealed = Vec::with_capacity(VERSION_LEN + body.len() + CHECK_LEN);
        sealed.extend(PROTOCOL.to_le_bytes());
        sealed.extend(&body);
        let check = checksum(&sealed, &blobs);
        sealed.extend(check);
        Packet { body: sealed.into(), blobs }
    }

    pub fn open(packet: &Packet) -> Result<Frame, FrameError> {
        let sealed = &packet.body;
        if sealed.len() < VERSION_LEN + CHECK_LEN {
            return Err(FrameError::Malformed(format!("{} bytes are no frame", sealed.len())));
        }
        let end = sealed.len() - CHECK_LEN;
        if sealed[end..] != checksum(&sealed[..end], &packet.blobs) {
            return Err(FrameError::Malformed("the checksum does not match".to_owned()));
        }
        let theirs = u16::from_le_bytes([sealed[0], sealed[1]]);
        if theirs != PROTOCOL {
            return Err(FrameError::Version { theirs });
        }
        let frame = Packet { body: sealed.slice(VERSION_LEN..end), blobs: packet.blobs.clone() };
        decode(&frame).map_err(|CodecError(reason)| FrameError::Malformed(reason))
    }
}

fn checksum(body: &[u8], blobs: &[Blob]) -> [u8; CHECK_LEN] {
    let mut hash = blake3::Hasher::new();
    hash.update(body);
    for blob in blobs {
        hash.update(&(blob.len() as u64).to_le_bytes());
    }
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&hash.finalize().as_bytes()[..CHECK_LEN]);
    check
}

/// The longest text taken over from a peer.
const TEXT_LIMIT: usize = 300;

/// A peer's text, made fit for one line of a trace: bounded, and without control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(TEXT_LIMIT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Node;
    use proptest::prelude::*;

    fn frames() -> Vec<Frame> {
        let member = Member {
            node: Node(3),
            class: "phone".into(),
            flops_per_s: 1e9,
            memory_bytes: 1 << 30,
            up_bytes_per_s: 1e6,
            down_bytes_per_s: 2e6,
            examples: 12,
        };
        let said = Letter::said(4, &(7u32, Blob::from_f32(&[1.0, 2.0])));
        vec![
            Frame::Hello { life: 5, method: "dummy".into(), member },
            Frame::Welcome { life: 5 },
            Frame::Unwelcome { reason: "no".into() },
            Frame::Data { life: 5, floor: 1, seq: 2, chain: u64::MAX, ack: 3, letter: said },
            Frame::Data {
                life: 5,
                floor: 0,
                seq: 0,
                chain: 0,
                ack: 0,
                letter: Letter::sorry(1, Excuse::Memory { need: 9, budget: 8 }),
            },
            Frame::Ack { life: 5, ack: 300 },
            Frame::Bye { status: Status::Completed },
        ]
    }

    #[test]
    fn every_frame_survives_the_wire_and_no_truncation_does() {
        for frame in frames() {
            let bytes = frame.seal().to_bytes();
            let back = Packet::from_bytes(bytes.clone().into()).unwrap();
            assert_eq!(Frame::open(&back).unwrap(), frame);
            for end in 0..bytes.len() {
                let cut = Packet::from_bytes(bytes[..end].to_vec().into());
                assert!(cut.is_err(), "{frame:?} cut at {end}");
            }
            let body = back.body;
            for end in 0..body.len() {
                let cut = Packet { body: body.slice(..end), blobs: back.blobs.clone() };
                assert!(Frame::open(&cut).is_err(), "{frame:?} with its body cut at {end}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_outside_a_blob_is_found() {
        for frame in frames() {
            let packet = frame.seal();
            for bit in 0..packet.body.len() * 8 {
                let mut body = packet.body.to_vec();
                body[bit / 8] ^= 1 << (bit % 8);
                let bent = Packet { body: body.into(), blobs: packet.blobs.clone() };
                assert!(Frame::open(&bent).is_err(), "{frame:?} with bit {bit} flipped");
            }
            let mut longer = packet.clone();
            longer.blobs.push(Blob::from_f32(&[0.0]));
            assert!(Frame::open(&longer).is_err());
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut sealed = 9u16.to_le_bytes().to_vec();
        sealed.extend(b"whatever version 9 says");
        sealed.extend(checksum(&sealed, &[]));
        let packet = Packet { body: sealed.into(), blobs: Vec::new() };
        assert_eq!(Frame::open(&packet), Err(FrameError::Version { theirs: 9 }));
    }

    proptest! {
        #[test]
        fn arbitrary_frames_with_a_good_checksum_never_panic(
            frame in proptest::collection::vec(any::<u8>(), 0..120),
            blobs in 0usize..3,
        ) {
            let blobs = vec![Blob::from_f32(&[1.0]); blobs];
            let mut sealed = PROTOCOL.to_le_bytes().to_vec();
            sealed.extend(frame);
            sealed.extend(checksum(&sealed, &blobs));
            let _ = Frame::open(&Packet { body: sealed.into(), blobs });
        }
    }
}
