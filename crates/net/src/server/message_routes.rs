//! Messages in both directions, what devices record of themselves, and what they are told about the run.

use crate::envelope::Envelope;
use crate::host::Mail;
use crate::protocol::{Address, BODY_BYTES, NODE, PART_BYTES, SEQUENCE, TIME};
use crate::server::body;
use crate::server::content_routes::blocking;
use crate::server::desk::{Desk, Device, lock};
use crate::server::identity_routes::parse;
use crate::server::outbox::Cursor;
use crate::server::refusal::Refusal;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base::{CodecError, Node, Packet};
use bytes::Bytes;
use federation::{Fact, Record};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;

/// Where a device's cursor stands in the headers of an answer.
pub const CURSOR: &str = "undertone-cursor";

/// `GET /v1/run`: what the run is, who the device is in it, what time it is there, and which sequence number
/// was its last.
pub async fn run(State(desk): State<Arc<Desk>>, Device(device): Device) -> Response {
    let headers = [
        (NODE, device.node.0.to_string()),
        (TIME, desk.clock.now().0.to_string()),
        (SEQUENCE, desk.sequence(device.node).to_string()),
    ];
    (headers, [(header::CONTENT_TYPE, "application/json")], desk.brief.clone()).into_response()
}

#[derive(Deserialize)]
pub struct Poll {
    /// Up to where messages were kept.
    after: Option<String>,
    /// Seconds to wait, at most what the server allows.
    wait: Option<u64>,
}

/// `GET /v1/messages`: what waits for this device, as soon as there is something.
pub async fn fetch(
    State(desk): State<Arc<Desk>>,
    Device(device): Device,
    Query(poll): Query<Poll>,
) -> Result<Response, Refusal> {
    let _polling = desk.meters.polls.one();
    let kept = poll.after.as_deref().and_then(Cursor::parse).unwrap_or_default();
    let patience = poll.wait.map_or(desk.wait, |wait| Duration::from_secs(wait).min(desk.wait));
    let Some(bag) = desk.outbox.fetch(device.node, kept, patience).await else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    desk.meters.delivery.add(bag.waited);
    desk.meters.messages_out.add(bag.messages);
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, [(CURSOR, bag.cursor.to_string())], bag.body).into_response())
}

/// `POST /v1/messages`: an envelope. The answer comes when the message is committed.
pub async fn post(
    State(desk): State<Arc<Desk>>,
    Device(device): Device,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let (parts, body) = request.into_parts();
    let from = device.node;
    let _writing = desk.begin_writing(from)?;
    let body = body::whole(body, BODY_BYTES).await?;
    let envelope = Envelope::from_bytes(body.clone()).map_err(malformed)?;
    let total: u64 = envelope.beside().map(|part| part.len).sum();
    if total > PART_BYTES {
        let reason = format!("a message of {total} bytes; {PART_BYTES} are the most");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", reason));
    }
    if let Some(part) = envelope.beside().find(|part| !desk.blobs.has(part)) {
        let reason = format!("the content {} has not arrived; upload it first", part.address);
        return Err(Refusal::new(StatusCode::FAILED_DEPENDENCY, "missing-content", reason));
    }
    let path = parts.uri.path();
    let sequence = desk.admit(&device, ("POST", path), &parts.headers, Address::of(&body))?;
    let packet = unpack(&desk, envelope).await?;
    let sequence = Some(sequence);
    desk.commit(|receipt| Mail::Message { from, packet, sequence, receipt }).await?;
    desk.meters.messages_in.add(1);
    Ok(StatusCode::NO_CONTENT)
}

async fn unpack(desk: &Arc<Desk>, envelope: Envelope) -> Result<Packet, Refusal> {
    if envelope.beside().next().is_none() {
        return envelope.unpack(|_| Err(CodecError("nothing is beside".to_owned()))).map_err(malformed);
    }
    let blobs = desk.blobs.clone();
    let unpacked = blocking(move || {
        envelope.unpack(|part| -> Result<Bytes, Unread> {
            let content = blobs.read(part).map_err(|error| Unread(error.into()))?;
            let gone =
                || Refusal::new(StatusCode::FAILED_DEPENDENCY, "missing-content", "a content is gone");
            content.ok_or_else(|| Unread(gone()))
        })
    });
    unpacked.await?.map_err(|Unread(refusal)| refusal)
}

struct Unread(Refusal);

impl From<CodecError> for Unread {
    fn from(error: CodecError) -> Unread {
        Unread(malformed(error))
    }
}

fn malformed(error: CodecError) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "malformed", error.to_string())
}

/// Records a device may deliver at once.
const RECORDS: usize = 1000;
/// The longest text in one.
const TEXT: usize = 400;

/// `POST /v1/records`: what a device ran, refused and failed at, so that its operator need not fetch its log.
pub async fn records(
    State(desk): State<Arc<Desk>>,
    Device(device): Device,
    request: Request,
) -> Result<StatusCode, Refusal> {
    let (parts, body) = request.into_parts();
    let _writing = desk.begin_writing(device.node)?;
    let body = body::whole(body, BODY_BYTES).await?;
    let path = parts.uri.path();
    let sequence = desk.admit(&device, ("POST", path), &parts.headers, Address::of(&body))?;
    let mut records: Vec<Record> = parse(&body)?;
    let from = device.node;
    if records.len() > RECORDS || !records.iter().all(|record| is_own(record, from)) {
        let reason =
            "a device records what it ran, refused, failed at and could not read, and nothing else";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "bad-records", reason));
    }
    let now = desk.clock.now();
    for record in &mut records {
        // A device whose clock runs ahead must not carry the run's with it.
        record.t = record.t.min(now);
    }
    desk.commit(|receipt| Mail::Records { from, records, sequence, receipt }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether a device may say this of itself.
fn is_own(record: &Record, from: Node) -> bool {
    let plain = |text: &str| text.len() <= TEXT && !text.chars().any(char::is_control);
    record.node == from
        && match &record.fact {
            Fact::Ran { label, .. } | Fact::Refused { label, .. } => plain(label),
            Fact::Fault { label, reason, .. } => plain(label) && plain(reason),
            Fact::Malformed { reason, .. } => plain(reason),
            Fact::Restored { .. } => true,
            _ => false,
        }
}

/// `GET /v1/status`: where the run stands, and when each node was last heard.
pub async fn status(State(desk): State<Arc<Desk>>, _: crate::server::desk::Operator) -> Response {
    let board = lock(&desk.board).clone();
    let seen = desk.seen().into_iter().map(|(node, ago)| (node, ago.as_secs_f64())).collect();
    let status = crate::server::StatusReport { board, seen };
    axum::Json(status).into_response()
}

/// `GET /metrics`: for Prometheus.
pub async fn metrics(State(desk): State<Arc<Desk>>, _: crate::server::desk::Operator) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], desk.meters.text()).into_response()
}
