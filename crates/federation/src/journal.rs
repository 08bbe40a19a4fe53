//! What outlives a killed process: the last snapshot, and the inputs since.
//!
//! Journalling inputs instead of saving state after each one keeps the cost of durability in proportion to
//! what arrives: a snapshot is taken at a checkpoint once as many bytes of inputs have come in as the last
//! snapshot took, so that a server with ten thousand members does not write all of them every round.

use crate::{Effects, Input, Machine, Memory, Task};
use base::{CodecError, Packet, Time, decode, encode};
use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

/// A journal entry takes this much beside its packet.
const ENTRY_BYTES: u64 = 64;
/// Without a checkpoint, a snapshot is taken when the inputs outgrow the last one by this factor ...
const OUTGROWN: u64 = 8;
/// ... where a snapshot counts for at least this much.
const SNAPSHOT_BYTES: u64 = 1 << 20;

/// A node's past, from which it can be brought back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    snapshot: Option<(Time, Packet)>,
    inputs: Vec<(Time, Input)>,
    snapshot_bytes: u64,
    input_bytes: u64,
}

/// One entry of an append-only journal file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// All entries before this one are void.
    Snapshot(Time, Packet),
    Input(Time, Input),
}

/// A journal read back from bytes.
#[derive(Debug)]
pub struct Recovered {
    pub journal: Journal,
    /// Bytes at the end that hold no whole entry: a write that was cut short, or a damaged file.
    pub discarded: usize,
}

/// A machine that can be killed at any instant.
pub struct Durable {
    machine: Box<dyn Machine>,
    journal: Journal,
}

/// A machine brought back.
pub struct Revived {
    pub durable: Durable,
    /// Work that was under way or never begun: to be run (again).
    pub tasks: Vec<Task>,
    /// Journalled inputs that were replayed.
    pub replayed: u64,
}

/// How an input was made to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It was appended to the journal.
    Input,
    /// A snapshot took the place of the whole journal.
    Snapshot,
}

impl Durable {
    /// A node without a past.
    pub fn new(machine: Box<dyn Machine>) -> Durable {
        Durable { machine, journal: Journal::default() }
    }

    /// Journal the input, then let the machine handle it.
    pub fn handle(&mut self, now: Time, input: Input, fx: &mut Effects) -> Kept {
        self.journal.push(now, input.clone());
        self.machine.handle(now, input, fx);
        if !self.journal.wants_snapshot(fx.checkpoint) {
            return Kept::Input;
        }
        self.journal = Journal::from_snapshot(now, self.machine.snapshot());
        Kept::Snapshot
    }

    /// Bring a node back: build it anew, restore its snapshot and replay its inputs. Effects of replayed
    /// inputs are dropped, since they left before the kill or are repeated by timers; the caller feeds an
    /// [`Input::Timer`] next.
    pub fn revive(journal: Journal, build: impl Fn() -> Box<dyn Machine>) -> Revived {
        Durable::bring_back(journal, build, Memory::Lost)
    }

    /// As [`Durable::revive`], but the journal stays what it was, and memory counts as kept: for a driver that
    /// was itself at rest and goes on as if nothing had happened to the node.
    pub fn resume(journal: Journal, build: impl Fn() -> Box<dyn Machine>) -> Revived {
        let mut revived = Durable::bring_back(journal.clone(), build, Memory::Kept);
        revived.durable.journal = journal;
        revived
    }

    fn bring_back(journal: Journal, build: impl Fn() -> Box<dyn Machine>, memory: Memory) -> Revived {
        let replayed = journal.inputs.len() as u64;
        let (mut last, mut machine) = (Time::ZERO, build());
        if let Some((at, snapshot)) = journal.snapshot {
            last = at;
            let past = Input::Restored { snapshot, memory: Memory::Kept };
            machine.handle(at, past, &mut Effects::default());
        }
        for (at, input) in journal.inputs {
            last = at;
            machine.handle(at, input, &mut Effects::default());
        }
        // What the machine, at the end of its past, asks for when restored is exactly what is outstanding.
        let snapshot = machine.snapshot();
        let (mut fx, mut machine) = (Effects::default(), build());
        machine.handle(last, Input::Restored { snapshot, memory }, &mut fx);
        let journal = Journal::from_snapshot(last, machine.snapshot());
        Revived { durable: Durable { machine, journal }, tasks: fx.tasks, replayed }
    }

    /// What is on disk at this instant.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The process is killed: only its journal is left.
    pub fn kill(self) -> Journal {
        self.journal
    }

    /// The machine's state now.
    pub fn snapshot(&self) -> Packet {
        self.machine.snapshot()
    }
}

impl Journal {
    fn from_snapshot(now: Time, snapshot: Packet) -> Journal {
        let snapshot_bytes = snapshot.wire_len() + ENTRY_BYTES;
        Journal { snapshot: Some((now, snapshot)), inputs: Vec::new(), snapshot_bytes, input_bytes: 0 }
    }

    fn push(&mut self, now: Time, input: Input) {
        self.input_bytes += ENTRY_BYTES + input_bytes(&input);
        self.inputs.push((now, input));
    }

    fn wants_snapshot(&self, checkpoint: bool) -> bool {
        let outgrown = OUTGROWN * self.snapshot_bytes.max(SNAPSHOT_BYTES);
        self.input_bytes >= if checkpoint { self.snapshot_bytes } else { outgrown }
    }

    /// The journal as the bytes of a file, to which sealed entries may be appended.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some((at, snapshot)) = &self.snapshot {
            out.extend(Entry::Snapshot(*at, snapshot.clone()).seal());
        }
        for (at, input) in &self.inputs {
            out.extend(Entry::Input(*at, input.clone()).seal());
        }
        out
    }

    /// Read entries up to the first that is not whole.
    pub fn from_bytes(mut bytes: Bytes) -> Recovered {
        let mut journal = Journal::default();
        while let Ok(entry) = Entry::take(&mut bytes) {
            journal.take(entry);
        }
        Recovered { journal, discarded: bytes.len() }
    }

    /// A journal from the entries of a store, oldest first.
    pub fn from_entries(entries: impl IntoIterator<Item = Entry>) -> Journal {
        let mut journal = Journal::default();
        entries.into_iter().for_each(|entry| journal.take(entry));
        journal
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Snapshot(at, snapshot) => *self = Journal::from_snapshot(at, snapshot),
            Entry::Input(at, input) => self.push(at, input),
        }
    }

    /// When the last thing in it happened: a clock goes on from there.
    pub fn time(&self) -> Time {
        let snapshot = self.snapshot.as_ref().map_or(Time::ZERO, |(at, _)| *at);
        self.inputs.last().map_or(snapshot, |(at, _)| *at)
    }

    /// Journalled inputs since the last snapshot.
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Nothing ever happened to this node.
    pub fn is_empty(&self) -> bool {
        self.snapshot.is_none() && self.inputs.is_empty()
    }
}

fn input_bytes(input: &Input) -> u64 {
    match input {
        Input::Message { packet, .. }
        | Input::Done { result: packet, .. }
        | Input::Restored { snapshot: packet, .. } => packet.wire_len(),
        Input::Start | Input::Timer | Input::Refused { .. } | Input::Lost(_) | Input::Taken(_) => 0,
    }
}

const LEN_BYTES: usize = 8;
const CHECK_BYTES: usize = 16;

impl Entry {
    /// Length (little endian), BLAKE3 over length and packet, and the packet.
    pub fn seal(&self) -> Vec<u8> {
        let packet = encode(self).to_bytes();
        let len = (packet.len() as u64).to_le_bytes();
        let mut out = Vec::with_capacity(LEN_BYTES + CHECK_BYTES + packet.len());
        out.extend(len);
        out.extend(checksum(&len, &packet));
        out.extend(packet);
        out
    }

    /// Take the entry at the front, if there is a whole one; else `bytes` stays as it is.
    fn take(bytes: &mut Bytes) -> Result<Entry, CodecError> {
        let short = || CodecError("an entry that is cut short".to_owned());
        let header = bytes.get(..LEN_BYTES + CHECK_BYTES).ok_or_else(short)?;
        let mut field = header;
        let len = usize::try_from(field.get_u64_le()).map_err(|_| short())?;
        let end = len.checked_add(header.len()).ok_or_else(short)?;
        let packet = bytes.get(header.len()..end).ok_or_else(short)?;
        if checksum(&header[..LEN_BYTES], packet) != header[LEN_BYTES..] {
            return Err(CodecError("an entry whose checksum does not match".to_owned()));
        }
        let entry = decode(&Packet::from_bytes(bytes.slice(header.len()..end))?)?;
        bytes.advance(end);
        Ok(entry)
    }
}

fn checksum(len: &[u8], packet: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hash = blake3::Hasher::new();
    hash.update(len).update(packet);
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&hash.finalize().as_bytes()[..CHECK_BYTES]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Blob, Node};

    fn journal() -> Journal {
        let mut journal = Journal::from_snapshot(Time(5), encode(&(1u8, Blob::from_f32(&[1.0]))));
        let packet = encode(&Blob::from_f32(&[2.0, 3.0]));
        journal.push(Time(6), Input::Message { from: Node(2), packet });
        journal.push(Time(7), Input::Timer);
        journal
    }

    #[test]
    fn a_torn_or_damaged_tail_costs_the_entries_from_there_on_and_no_more() {
        let journal = journal();
        let bytes = journal.to_bytes();
        let last = bytes.len() - Entry::Input(Time(7), Input::Timer).seal().len();
        let whole = Journal::from_bytes(bytes.clone().into());
        assert_eq!((whole.journal.len(), whole.discarded), (2, 0));
        assert_eq!(whole.journal.to_bytes(), bytes);
        for end in last..bytes.len() {
            let torn = Journal::from_bytes(bytes[..end].to_vec().into());
            assert_eq!((torn.journal.len(), torn.discarded), (1, end - last), "cut at {end}");
        }
        for bit in last * 8..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let back = Journal::from_bytes(damaged.into());
            assert_eq!((back.journal.len(), back.discarded), (1, bytes.len() - last), "bit {bit}");
        }
        for end in 0..last {
            assert!(Journal::from_bytes(bytes[..end].to_vec().into()).journal.len() < 2);
        }
    }

    #[test]
    fn a_snapshot_voids_what_was_before() {
        let mut bytes = journal().to_bytes();
        bytes.extend(Entry::Snapshot(Time(9), encode(&3u8)).seal());
        let back = Journal::from_bytes(bytes.into()).journal;
        assert_eq!((back.len(), back.snapshot), (0, Some((Time(9), encode(&3u8)))));
    }
}
