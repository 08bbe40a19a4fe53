//! Decoders under mutation: whatever a peer sends, they answer, and never panic.
//!
//! Seeds are what each decoder is really given; a mutant is one or several small changes to one, or a splice
//! of two. Mutants that a decoder accepts join the seeds, since the way beyond it is where faults would be.

use crate::stage::Dummy;
use base::{Blob, Node, Packet, SERVER, Seed, Stream, Time};
use federation::journal::Entry;
use federation::{Effects, Input, Journal, Machine, Record};
use std::time::{Duration, Instant};
use undertone_net::Authority;
use undertone_net::device::channel::Url;
use undertone_net::envelope::Envelope;
use undertone_net::identity::{Card, Wallet};
use undertone_net::protocol::{Address, EnrollRequest, Enrolled, Problem, Token};
use undertone_net::server::Cursor;

/// Whether it accepts these bytes.
type Decoder = Box<dyn FnMut(&[u8]) -> bool>;

/// A decoder: its name, what it is given, and whether it accepts something.
struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    accepts: Decoder,
}

fn target(name: &'static str, seeds: Vec<Vec<u8>>, accepts: impl FnMut(&[u8]) -> bool + 'static) -> Target {
    Target { name, seeds, accepts: Box::new(accepts) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn targets() -> Vec<Target> {
    let packet = Packet {
        body: vec![1, 2, 3].into(),
        blobs: vec![Blob::from_f32(&[1.0]), Blob(vec![9; 70_000].into())],
    };
    let envelope = Envelope::pack(&packet).envelope.to_bytes();
    let message = Input::Message { from: Node(1), packet: packet.clone() };
    let journal = [Entry::Snapshot(Time(1), packet.clone()), Entry::Input(Time(2), message)];
    let journal: Vec<u8> = journal.iter().flat_map(Entry::seal).collect();
    let folder = tempfile::tempdir().unwrap();
    let csr = Wallet::open(folder.path()).unwrap().request().unwrap();
    let token = Token { node: Node(7), secret: "0a".repeat(16), authority: "b1".repeat(16) }.to_string();
    let ask = serde_json::json!({ "token": token, "csr": csr }).to_string();
    let records = r#"[{"t":1,"node":1,"event":"fault","round":1,"job":2,"label":"train","reason":"NaN"}]"#;
    let enrolled = r#"{"node":1,"role":"device","certificate":"x","expires":9}"#;
    let frames = frames();
    let (mut server, mut device) = (machine(SERVER), machine(Node(1)));
    vec![
        target("envelope", vec![envelope], |bytes| Envelope::from_bytes(bytes.to_vec().into()).is_ok()),
        target("packet", vec![packet.to_bytes()], |bytes| {
            Packet::from_bytes(bytes.to_vec().into()).is_ok()
        }),
        target("journal", vec![journal], |bytes| {
            !Journal::from_bytes(bytes.to_vec().into()).journal.is_empty()
        }),
        target("token", vec![token.into_bytes()], |bytes| Token::parse(&text(bytes)).is_ok()),
        target("address", vec![Address::of(b"x").to_string().into_bytes()], |bytes| {
            Address::parse(&text(bytes)).is_some()
        }),
        target("cursor", vec![b"1f.2e".to_vec()], |bytes| Cursor::parse(&text(bytes)).is_some()),
        target("url", vec![b"https://[::1]:99/".to_vec()], |bytes| Url::parse(&text(bytes)).is_some()),
        target("csr", vec![csr.into_bytes()], |bytes| Authority::key_of(&text(bytes)).is_ok()),
        target("enroll", vec![ask.into_bytes()], |bytes| {
            serde_json::from_slice::<EnrollRequest>(bytes).is_ok()
        }),
        target("records", vec![records.into()], |bytes| {
            serde_json::from_slice::<Vec<Record>>(bytes).is_ok()
        }),
        target("enrolled", vec![enrolled.into()], |bytes| {
            serde_json::from_slice::<Enrolled>(bytes).is_ok()
                || serde_json::from_slice::<Problem>(bytes).is_ok()
                || serde_json::from_slice::<Card>(bytes).is_ok()
        }),
        target("server's machine", frames.clone(), move |bytes| hear(&mut *server, Node(1), bytes)),
        target("device's machine", frames, move |bytes| hear(&mut *device, SERVER, bytes)),
    ]
}

fn machine(node: Node) -> Box<dyn Machine> {
    let mut machine = (Dummy::new(2, 1000).assemble().federation.build)(node);
    machine.handle(Time(0), Input::Start, &mut Effects::default());
    machine
}

/// What two machines really say to each other.
fn frames() -> Vec<Vec<u8>> {
    let (mut server, mut devices) = (machine(SERVER), [machine(Node(1)), machine(Node(2))]);
    let (mut said, mut frames) = (Vec::new(), Vec::new());
    for (node, device) in (1..).zip(&mut devices) {
        let mut fx = Effects::default();
        device.handle(Time(5_000_000_000), Input::Timer, &mut fx);
        said.extend(fx.sends.into_iter().map(|(_, packet)| (Node(node), packet)));
    }
    for (from, packet) in said {
        frames.push(packet.to_bytes());
        let mut fx = Effects::default();
        server.handle(Time(6_000_000_000), Input::Message { from, packet }, &mut fx);
        frames.extend(fx.sends.iter().map(|(_, packet)| packet.to_bytes()));
    }
    frames
}

fn hear(machine: &mut dyn Machine, from: Node, bytes: &[u8]) -> bool {
    let Ok(packet) = Packet::from_bytes(bytes.to_vec().into()) else { return false };
    let mut fx = Effects::default();
    machine.handle(Time(7_000_000_000), Input::Message { from, packet }, &mut fx);
    fx.records.is_empty()
}

const EXTREMES: [u64; 6] = [0, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 62, u64::MAX];

fn mutant(seeds: &[Vec<u8>], draw: &mut Stream) -> Vec<u8> {
    let pick = |draw: &mut Stream| seeds[draw.below(seeds.len() as u64) as usize].clone();
    let mut bytes = pick(draw);
    for _ in 0..1 + draw.below(4) {
        let at = draw.below(bytes.len() as u64 + 1) as usize;
        match draw.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, draw.bits() as u8),
            2 => {
                let other = pick(draw);
                bytes.truncate(at);
                bytes.extend(&other[(at).min(other.len())..]);
            }
            3 => {
                let extreme = EXTREMES[draw.below(6) as usize].to_le_bytes();
                bytes.iter_mut().skip(at).zip(extreme).for_each(|(byte, new)| *byte = new);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << draw.below(8);
                }
            }
        }
    }
    bytes
}

/// Seeds kept beside what they began with.
const KEPT: usize = 1000;

fn fuzz(span: Duration) {
    for (index, Target { name, mut seeds, mut accepts }) in (0..).zip(targets()) {
        let mut draw = Seed(13).child("mangle", index).stream();
        let (begun, mut count, first) = (Instant::now(), 0u64, seeds.len());
        for seed in &seeds {
            accepts(seed);
        }
        while begun.elapsed() < span {
            let mutant = mutant(&seeds, &mut draw);
            count += 1;
            if accepts(&mutant) && seeds.len() < KEPT && mutant.len() < 1 << 17 && !seeds.contains(&mutant)
            {
                seeds.push(mutant);
            }
        }
        println!("{name}: {count} mutants, {} accepted and kept", seeds.len() - first);
    }
}

#[test]
fn decoders_answer_whatever_they_are_given() {
    fuzz(Duration::from_millis(300));
}

#[test]
#[ignore = "ten minutes for each of 13 decoders"]
fn decoders_answer_for_ten_minutes_each() {
    fuzz(Duration::from_secs(600));
}
