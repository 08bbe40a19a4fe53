//! What comes over the network before a machine sees it, and what a device's server answers.

use crate::form::{JOURNAL, PLAIN};
use crate::target::{Decoder, Room, Said, Target, size, target};
use base::{Blob, Node, Packet, SERVER, Time};
use federation::journal::Entry;
use federation::{Durable, Input, Journal};
use net::Authority;
use net::device::channel::Url;
use net::envelope::Envelope;
use net::identity::{Card, Wallet};
use net::protocol::{Address, EnrollRequest, Enrolled, Problem, Token};
use net::server::Cursor;
use serde::de::DeserializeOwned;

const ROOM: Room = Room { bytes: 64 << 10, factor: 16 };

pub fn targets() -> Vec<Target> {
    vec![
        target("envelope", envelope),
        target("journal", journal),
        target("words of a request", words),
        target("certificate request", certificate_request),
        target("answers of the network", answers),
    ]
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether it reads as such a value.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

fn packet() -> Packet {
    let blobs = vec![Blob::from_f32(&[1.0]), Blob(vec![9; 70_000].into())];
    Packet { body: vec![1, 2, 3].into(), blobs }
}

fn envelope() -> Decoder {
    let decode = |bytes: &[u8]| -> Said {
        let envelope = Envelope::from_bytes(bytes.to_vec().into()).map_err(|error| error.to_string())?;
        Ok(size(envelope.to_bytes().len()))
    };
    let seeds = vec![Envelope::pack(&packet()).envelope.to_bytes()];
    Decoder { seeds, form: PLAIN, room: ROOM, decode: Box::new(decode) }
}

/// A journal's file, and the machine brought back from it.
fn journal() -> Decoder {
    let federation = crate::nodes::dummy().federation;
    let message = Input::Message { from: Node(1), packet: packet() };
    let snapshot = (federation.build)(SERVER).snapshot();
    let entries = [
        Entry::Snapshot(Time(1), snapshot),
        Entry::Input(Time(2), message),
        Entry::Input(Time(3), Input::Lost(Node(1))),
        Entry::Input(Time(4), Input::Refused { job: 1, need: 9, budget: 3 }),
        Entry::Input(Time(5), Input::Timer),
    ];
    let decode = move |bytes: &[u8]| -> Said {
        let read = Journal::from_bytes(bytes.to_vec().into());
        if read.journal.is_empty() {
            return Err("nothing in it is whole".to_owned());
        }
        let revived = Durable::revive(read.journal, || (federation.build)(SERVER));
        let (tasks, cut) = (revived.tasks.len(), size(read.discarded));
        Ok(format!("inputs {}, tasks {tasks}, cut {cut}", size(revived.replayed as usize)))
    };
    let seeds = vec![entries.iter().flat_map(Entry::seal).collect()];
    Decoder { seeds, form: JOURNAL, room: ROOM, decode: Box::new(decode) }
}

/// Tokens, addresses, cursors and URLs.
fn words() -> Decoder {
    let token = Token { node: Node(7), secret: "0a".repeat(16), authority: "b1".repeat(16) };
    let decode = |bytes: &[u8]| -> Said {
        let text = text(bytes);
        let token = Token::parse(&text).map(|_| "a token".to_owned());
        let others = [
            Address::parse(&text).map(|_| "an address"),
            Cursor::parse(&text).map(|_| "a cursor"),
            Url::parse(&text).map(|_| "a URL"),
        ];
        let other = others.into_iter().flatten().next().map(str::to_owned);
        token.or_else(|error| other.ok_or_else(|| error.to_string()))
    };
    let words = [
        token.to_string(),
        Address::of(b"x").to_string(),
        "1f.2e".to_owned(),
        "https://[::1]:99/".to_owned(),
        "https://example.org:8443".to_owned(),
    ];
    let seeds = words.map(String::into_bytes).to_vec();
    Decoder { seeds, form: PLAIN, room: ROOM, decode: Box::new(decode) }
}

fn certificate_request() -> Decoder {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let wallet = Wallet::open(folder.path()).expect("a fresh wallet");
    let seeds = vec![wallet.request().expect("a request").into_bytes()];
    let decode = |bytes: &[u8]| -> Said {
        Authority::key_of(&text(bytes)).map(|_| "a key".to_owned()).map_err(|error| error.to_string())
    };
    Decoder { seeds, form: PLAIN, room: ROOM, decode: Box::new(decode) }
}

/// What an enrolling device asks for, what it is answered, and what it keeps of that.
fn answers() -> Decoder {
    let decode = |bytes: &[u8]| -> Said {
        let ask = json::<EnrollRequest>(bytes).map(|_| "a request");
        let answers = [
            json::<Enrolled>(bytes).ok().map(|_| "an enrolment"),
            json::<Problem>(bytes).ok().map(|_| "a problem"),
            json::<Card>(bytes).ok().map(|_| "a card"),
        ];
        let answer = answers.into_iter().flatten().next();
        ask.or_else(|error| answer.ok_or(error)).map(str::to_owned)
    };
    let seeds = [
        r#"{"token":"1-2-3","csr":"-----BEGIN"}"#,
        r#"{"node":1,"role":"device","certificate":"x","expires":9}"#,
        r#"{"error":"no-such-run","reason":"look again","sequence":7}"#,
        r#"{"server":"https://[::1]:9","node":1,"role":"operator","certificate":"x","expires":9}"#,
    ];
    let seeds = seeds.map(|text| text.as_bytes().to_vec()).to_vec();
    Decoder { seeds, form: PLAIN, room: ROOM, decode: Box::new(decode) }
}
