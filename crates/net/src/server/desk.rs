//! What all requests share, and the checks that come before any of them is carried out.

use crate::authority::Authority;
use crate::blobs::BlobStore;
use crate::board::Board;
use crate::clock::Clock;
use crate::host::{Mail, Receipt};
use crate::protocol::{Address, Role, SEQUENCE, SIGNATURE, signed_text};
use crate::registry::{Certificate, Registry, unix_now};
use crate::server::meters::Meters;
use crate::server::outbox::Outbox;
use crate::server::refusal::Refusal;
use crate::server::shelf::Shelf;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use base::Node;
use ring::signature::{ED25519, UnparsedPublicKey};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The server's end of every conversation.
pub struct Desk {
    pub mail: Sender<Mail>,
    pub outbox: Arc<Outbox>,
    pub board: Arc<Mutex<Board>>,
    pub authority: Authority,
    pub blobs: BlobStore,
    pub clock: Clock,
    pub meters: Meters,
    /// What devices are told about the run.
    pub brief: Vec<u8>,
    /// The pieces of the model.
    pub shelf: Shelf,
    /// How long a poll is held open.
    pub wait: Duration,
    /// How long a certificate is good for.
    pub lifetime: Duration,
    registry: Mutex<Registry>,
    sequences: Mutex<BTreeMap<Node, u64>>,
    /// Devices with a request that is being written.
    writing: Mutex<BTreeSet<Node>>,
    /// When each node was last heard.
    seen: Mutex<BTreeMap<Node, Instant>>,
    denials: Mutex<Denials>,
}

/// What a desk is made from.
pub struct Fittings {
    pub mail: Sender<Mail>,
    pub outbox: Arc<Outbox>,
    pub board: Arc<Mutex<Board>>,
    pub authority: Authority,
    pub blobs: BlobStore,
    pub clock: Clock,
    pub brief: Vec<u8>,
    pub shelf: Shelf,
    pub wait: Duration,
    pub lifetime: Duration,
    pub registry: Registry,
    pub sequences: BTreeMap<Node, u64>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The hash of its certificate.
    pub certificate: Option<Address>,
    pub ip: IpAddr,
}

/// A request of an enrolled device.
pub struct Device(pub Certificate);

/// A request of an operator.
pub struct Operator;

/// The device's other requests that write wait until this is dropped.
pub struct Writing<'a> {
    desk: &'a Desk,
    node: Node,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        lock(&self.desk.writing).remove(&self.node);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    pub fn new(fittings: Fittings) -> Desk {
        let Fittings { mail, outbox, board, authority, blobs, clock, brief, shelf, wait, lifetime, .. } =
            fittings;
        Desk {
            mail,
            outbox,
            board,
            authority,
            blobs,
            clock,
            meters: Meters::default(),
            brief,
            shelf,
            wait,
            lifetime,
            registry: Mutex::new(fittings.registry),
            sequences: Mutex::new(fittings.sequences),
            writing: Mutex::default(),
            seen: Mutex::default(),
            denials: Mutex::default(),
        }
    }

    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        lock(&self.registry)
    }

    /// Whose certificate this is, if it entitles to `role`.
    pub fn identify(&self, caller: &Caller, role: Role) -> Result<Certificate, Refusal> {
        let refuse = |status, error: &str, reason: &str| Err(Refusal::new(status, error, reason));
        let Some(address) = caller.certificate else {
            return refuse(
                StatusCode::UNAUTHORIZED,
                "no-certificate",
                "this needs a certificate of this server; `undertone join` gets one for a token",
            );
        };
        let Some(certificate) = self.registry().certificate(&address)? else {
            return refuse(
                StatusCode::UNAUTHORIZED,
                "unknown-certificate",
                "this server's database does not know that certificate; enroll again",
            );
        };
        if certificate.revoked {
            return refuse(StatusCode::FORBIDDEN, "revoked", "the operator has revoked this certificate");
        }
        if certificate.expires <= unix_now() {
            let reason = "the certificate has expired since the connection was made";
            return refuse(StatusCode::UNAUTHORIZED, "expired", reason);
        }
        if certificate.role != role {
            let reason = format!("this is for the role {:?} only", role.name());
            return refuse(StatusCode::FORBIDDEN, "wrong-role", &reason);
        }
        lock(&self.seen).insert(certificate.node, Instant::now());
        Ok(certificate)
    }

    /// How long ago each node was heard.
    pub fn seen(&self) -> BTreeMap<Node, Duration> {
        lock(&self.seen).iter().map(|(node, at)| (*node, at.elapsed())).collect()
    }

    /// The largest sequence number seen from `node`.
    pub fn sequence(&self, node: Node) -> u64 {
        lock(&self.sequences).get(&node).copied().unwrap_or(0)
    }

    /// Check the signature of a request whose body has this hash, and that its number is above all before.
    pub fn admit(
        &self,
        device: &Certificate,
        (method, path): (&str, &str),
        headers: &HeaderMap,
        body: Address,
    ) -> Result<u64, Refusal> {
        let unsigned = |reason: &str| Refusal::new(StatusCode::UNAUTHORIZED, "bad-signature", reason);
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let sequence = text(SEQUENCE).and_then(|digits| digits.parse::<u64>().ok());
        let sequence = sequence.filter(|sequence| *sequence < 1 << 62);
        let sequence = sequence.ok_or_else(|| unsigned("the header undertone-sequence is missing"))?;
        let signature = text(SIGNATURE).and_then(bytes_of_hex);
        let signature = signature.ok_or_else(|| unsigned("the header undertone-signature is missing"))?;
        let said = signed_text(method, path, body, sequence);
        UnparsedPublicKey::new(&ED25519, &device.key)
            .verify(said.as_bytes(), &signature)
            .map_err(|_| unsigned("the signature is not that of this request by this device"))?;
        let mut sequences = lock(&self.sequences);
        let seen = sequences.entry(device.node).or_default();
        if sequence <= *seen {
            return Err(Refusal::stale(*seen));
        }
        *seen = sequence;
        Ok(sequence)
    }

    /// One writing request of a device at a time.
    pub fn begin_writing(&self, node: Node) -> Result<Writing<'_>, Refusal> {
        if lock(&self.writing).insert(node) {
            return Ok(Writing { desk: self, node });
        }
        let reason = "another request of this device is being written";
        Err(Refusal::new(StatusCode::CONFLICT, "busy", reason).after(1))
    }

    /// Hand something to the machine and wait until it is committed.
    pub async fn commit(&self, mail: impl FnOnce(Receipt) -> Mail) -> Result<(), Refusal> {
        let (receipt, committed) = oneshot::channel();
        self.mail.send(mail(receipt)).map_err(|_| Refusal::closing())?;
        committed.await.map_err(|_| Refusal::closing())
    }

    /// Refuse those who have been denied too often of late.
    pub fn check_denials(&self, ip: IpAddr) -> Result<(), Refusal> {
        let wait = lock(&self.denials).wait(ip);
        let Some(wait) = wait else { return Ok(()) };
        let reason = "too many tokens were refused of late; try again later";
        Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too-many-attempts", reason)
            .after(wait.as_secs() + 1))
    }

    pub fn note_denial(&self, ip: IpAddr) {
        lock(&self.denials).note(ip);
    }
}

/// Bytes written as two hexadecimal digits each.
fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    (text.len() == 128).then(|| text.as_bytes().chunks(2).map(digits).collect()).flatten()
}

impl FromRequestParts<Arc<Desk>> for Device {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, desk: &Arc<Desk>) -> Result<Device, Refusal> {
        desk.identify(&caller(parts)?, Role::Device).map(Device)
    }
}

impl FromRequestParts<Arc<Desk>> for Operator {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, desk: &Arc<Desk>) -> Result<Operator, Refusal> {
        desk.identify(&caller(parts)?, Role::Operator).map(|_| Operator)
    }
}

fn caller(parts: &Parts) -> Result<Caller, Refusal> {
    let nobody = || Refusal::new(StatusCode::UNAUTHORIZED, "no-certificate", "nobody is known to be there");
    parts.extensions.get::<Caller>().copied().ok_or_else(nobody)
}

/// Guesses at tokens: so many a minute from one address, and from all of them together. A secret has 128
/// bits, so this is against load and noise in the log, not against success.
#[derive(Default)]
struct Denials {
    begun: Option<Instant>,
    total: u32,
    by_address: BTreeMap<IpAddr, u32>,
}

const WINDOW: Duration = Duration::from_secs(60);
const FROM_ONE: u32 = 10;
const FROM_ALL: u32 = 300;

impl Denials {
    fn wait(&mut self, ip: IpAddr) -> Option<Duration> {
        let left = WINDOW.checked_sub(self.begun?.elapsed());
        if left.is_none() {
            *self = Denials::default();
        }
        let many =
            self.total >= FROM_ALL || self.by_address.get(&ip).is_some_and(|count| *count >= FROM_ONE);
        left.filter(|_| many)
    }

    fn note(&mut self, ip: IpAddr) {
        self.begun.get_or_insert_with(Instant::now);
        self.total += 1;
        *self.by_address.entry(ip).or_default() += 1;
    }
}
