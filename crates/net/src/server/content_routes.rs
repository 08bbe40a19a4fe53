//! Contents: uploads that resume at an offset, downloads that resume by range.

use crate::blobs::Piece;
use crate::envelope::Beside;
use crate::host::Mail;
use crate::protocol::{Address, CHUNK_BYTES, LENGTH, OFFSET, PART_BYTES};
use crate::server::body;
use crate::server::desk::{Desk, Device};
use crate::server::refusal::Refusal;
use crate::server::shelf::Place;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base::Node;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// Contents that may be arriving from one device at once; of more, those left longest are forgotten.
const UNFINISHED: usize = 64;

/// `HEAD /v1/uploads/{address}`: how much of a content has arrived.
pub async fn offset(
    State(desk): State<Arc<Desk>>,
    Device(device): Device,
    Path(address): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let part = part(&address, &headers)?;
    let partial = desk.blobs.arriving(&sender(device.node), part);
    let mut offset = if desk.blobs.has(&part) { part.len } else { partial.offset() };
    if offset == part.len && !desk.blobs.has(&part) {
        // The server was killed between its last piece and its name.
        let _writing = desk.begin_writing(device.node)?;
        let blobs = desk.blobs.clone();
        if !blocking(move || blobs.finish(&partial)).await?? {
            offset = 0;
        }
    }
    Ok((StatusCode::NO_CONTENT, [(OFFSET, offset.to_string())]).into_response())
}

/// `PATCH /v1/uploads/{address}`: the next piece. It counts once it is whole, signed and on the disk.
pub async fn append(
    State(desk): State<Arc<Desk>>,
    Device(device): Device,
    Path(address): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let part = part(&address, &parts.headers)?;
    let offset = number(&parts.headers, OFFSET)?;
    let (node, name) = (device.node, sender(device.node));
    let _writing = desk.begin_writing(node)?;
    if desk.blobs.has(&part) {
        return Ok((StatusCode::CREATED, [(OFFSET, part.len.to_string())]).into_response());
    }
    let partial = desk.blobs.arriving(&name, part);
    let there = partial.offset();
    if offset != there {
        let reason = format!("{there} bytes have arrived; go on from there");
        let mut refusal = Refusal::new(StatusCode::CONFLICT, "wrong-offset", reason).into_response();
        refusal.headers_mut().insert(OFFSET, there.into());
        return Ok(refusal);
    }
    if there == 0 {
        desk.blobs.make_room(&name, UNFINISHED);
    }
    let (piece, hash, came) = receive(partial.append(offset)?, body).await?;
    let path = parts.uri.path();
    let sequence = desk.admit(&device, ("PATCH", path), &parts.headers, hash)?;
    blocking(move || piece.keep()).await??;
    desk.commit(|receipt| Mail::Sequence { from: node, sequence, receipt }).await?;
    desk.meters.upload_bytes.add(came);
    let there = offset + came;
    if there < part.len {
        return Ok((StatusCode::NO_CONTENT, [(OFFSET, there.to_string())]).into_response());
    }
    let blobs = desk.blobs.clone();
    if blocking(move || blobs.finish(&partial)).await?? {
        return Ok((StatusCode::CREATED, [(OFFSET, there.to_string())]).into_response());
    }
    let reason = "the content is not the one of that address; begin anew";
    Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "wrong-content", reason))
}

/// Write a piece as it comes; its hash and length.
async fn receive(mut piece: Piece, body: Body) -> Result<(Piece, Address, u64), Refusal> {
    let (mut hash, mut came) = (blake3::Hasher::new(), 0);
    body::each(body, CHUNK_BYTES, |bytes| {
        hash.update(bytes);
        came += bytes.len() as u64;
        let too_long = "the piece is longer than what is missing";
        piece.write(bytes)?.map_err(|_| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", too_long))
    })
    .await?;
    Ok((piece, Address(*hash.finalize().as_bytes()), came))
}

/// A content to send.
enum Content {
    /// Of a message.
    Waiting(Bytes),
    /// Of the model.
    Shelved(Place),
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Content::Waiting(bytes) => bytes.len() as u64,
            Content::Shelved(place) => place.len,
        }
    }

    fn send(self, span: Range<u64>) -> Result<Body, Refusal> {
        match self {
            Content::Waiting(bytes) => Ok(Body::from(bytes.slice(span.start as usize..span.end as usize))),
            Content::Shelved(place) => place.stream(span).map_err(|error| {
                tracing::error!(path = %place.path.display(), %error, "a file of the model cannot be read");
                let reason = "the server cannot read its model any more; its operator was told";
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "unreadable", reason).after(60)
            }),
        }
    }
}

/// `GET /v1/blobs/{address}`: a content that a message for this device names, or a piece of the model.
pub async fn download(
    State(desk): State<Arc<Desk>>,
    Device(device): Device,
    Path(address): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let address = parse(&address)?;
    let missing = || {
        let reason =
            "no message that waits for this device names that content, and it is no piece of the model";
        Refusal::new(StatusCode::NOT_FOUND, "no-such-content", reason)
    };
    let shelved = || desk.shelf.get(&address).cloned().map(Content::Shelved);
    let waiting = desk.outbox.content(device.node, address).map(Content::Waiting);
    let content = waiting.or_else(shelved).ok_or_else(missing)?;
    let etag = format!("\"{address}\"");
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|tag| tag.as_bytes() == etag.as_bytes());
    let common = [(header::ETAG, etag), (header::ACCEPT_RANGES, "bytes".to_owned())];
    if known {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let total = content.len();
    let asked =
        headers.get(header::RANGE).map(|range| range.to_str().ok().and_then(|range| span(range, total)));
    let (status, span) = match asked {
        None => (StatusCode::OK, 0..total),
        Some(Some(span)) => (StatusCode::PARTIAL_CONTENT, span),
        Some(None) => {
            let whole = [(header::CONTENT_RANGE, format!("bytes */{total}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, whole).into_response());
        }
    };
    let length = [(header::CONTENT_LENGTH, (span.end - span.start).to_string())];
    let range = format!("bytes {}-{}/{total}", span.start, span.end.saturating_sub(1));
    let range = (status == StatusCode::PARTIAL_CONTENT).then_some([(header::CONTENT_RANGE, range)]);
    desk.meters.download_bytes.add(span.end - span.start);
    Ok((status, common, length, range, content.send(span)?).into_response())
}

/// The bytes that a range header with one range asks for.
fn span(range: &str, total: u64) -> Option<Range<u64>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let last = if last.is_empty() { total.checked_sub(1)? } else { last.parse().ok()? };
    let last = last.min(total.checked_sub(1)?);
    (first <= last).then_some(first..last + 1)
}

fn sender(node: Node) -> String {
    node.0.to_string()
}

fn part(address: &str, headers: &HeaderMap) -> Result<Beside, Refusal> {
    let (address, len) = (parse(address)?, number(headers, LENGTH)?);
    if len > PART_BYTES {
        let reason = format!("a content of {len} bytes; {PART_BYTES} are the most");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", reason));
    }
    Ok(Beside { address, len })
}

fn parse(address: &str) -> Result<Address, Refusal> {
    let wrong =
        || Refusal::new(StatusCode::BAD_REQUEST, "bad-address", "an address is 64 hexadecimal digits");
    Address::parse(address).ok_or_else(wrong)
}

fn number(headers: &HeaderMap, name: &str) -> Result<u64, Refusal> {
    let value = headers.get(name).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let wrong =
        || Refusal::new(StatusCode::BAD_REQUEST, "bad-request", format!("the header {name} is missing"));
    value.ok_or_else(wrong)
}

/// Work that waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Refusal::closing())
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn ranges_are_those_of_the_content() {
        assert_eq!(span("bytes=0-", 10), Some(0..10));
        assert_eq!(span("bytes=3-5", 10), Some(3..6));
        assert_eq!(span("bytes=3-99", 10), Some(3..10));
        for wrong in
            ["bytes=10-", "bytes=5-3", "bytes=-5", "bytes=0-1,3-4", "lines=0-1", "bytes=", "bytes=0-0"]
        {
            assert_eq!(span(wrong, if wrong == "bytes=0-0" { 0 } else { 10 }), None, "{wrong}");
        }
    }
}
