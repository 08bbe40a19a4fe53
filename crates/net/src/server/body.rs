//! Bodies of requests, taken in within bounds of size and patience.

use crate::server::refusal::Refusal;
use axum::body::Body;
use axum::http::StatusCode;
use bytes::Bytes;
use http_body_util::BodyExt;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// A body may pause this long ...
const PAUSE: Duration = Duration::from_secs(20);
/// ... and must come at this rate, in bytes a second, once it is older than that. There is no other limit to
/// its time: what is slow but moves is welcome.
const LEAST_RATE: u64 = 256;
/// Pieces of a body that may bring nothing: each is a few bytes to send and work to take in.
const EMPTY: u32 = 64;

/// Hand each piece of a body on as it comes.
pub async fn each(
    mut body: Body,
    limit: u64,
    mut piece: impl FnMut(&Bytes) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let (begun, mut came, mut empty) = (Instant::now(), 0u64, 0);
    loop {
        let frame = timeout(PAUSE, body.frame()).await.map_err(|_| slow())?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|_| cut())?;
        let Some(bytes) = frame.data_ref() else { continue };
        empty += u32::from(bytes.is_empty());
        if empty > EMPTY {
            return Err(slow());
        }
        came += bytes.len() as u64;
        if came > limit {
            let reason = format!("the body is longer than {limit} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", reason));
        }
        if begun.elapsed() > PAUSE && came < LEAST_RATE * begun.elapsed().as_secs() {
            return Err(slow());
        }
        piece(bytes)?;
    }
}

/// A whole body of at most `limit` bytes.
pub async fn whole(body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let mut bytes = Vec::new();
    each(body, limit as u64, |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })
    .await?;
    Ok(bytes.into())
}

fn slow() -> Refusal {
    Refusal::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "the body came too slowly")
}

fn cut() -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "cut-short", "the body ended before its end")
}
