//! Enrolling and renewing.

use crate::authority::{Authority, CertificateRequest};
use crate::host::Mail;
use crate::protocol::{Address, BODY_BYTES, EnrollRequest, Enrolled, RenewRequest, Role, Token};
use crate::registry::{Certificate, Redeemed, unix_now};
use crate::server::body;
use crate::server::desk::{Caller, Desk, Device};
use crate::server::refusal::Refusal;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base::Node;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// A token and a certificate request are short.
const ENROLL_BYTES: usize = 8 << 10;

/// `POST /v1/enroll`: a certificate for a token.
pub async fn enroll(
    State(desk): State<Arc<Desk>>,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<Response, Refusal> {
    desk.check_denials(caller.ip)?;
    let request: EnrollRequest = parse(&body::whole(body, ENROLL_BYTES).await?)?;
    let denied = |error: &dyn std::fmt::Display| {
        desk.note_denial(caller.ip);
        tracing::warn!(ip = %caller.ip, reason = %error, "a token was refused");
        Refusal::new(StatusCode::FORBIDDEN, "token-refused", error.to_string())
    };
    let token = Token::parse(&request.token).map_err(|error| denied(&error))?;
    let request = Authority::key_of(&request.csr)?;
    let redeemed = desk.registry().redeem(&token, request.key())?.map_err(|error| denied(&error))?;
    let enrolled = match redeemed {
        Redeemed::Again(certificate) => enrolled(certificate),
        Redeemed::Fresh(node, role) => {
            tracing::info!(node = node.0, role = role.name(), "enrolled");
            sign(&desk, &request, node, role)?
        }
    };
    Ok((StatusCode::CREATED, [(crate::protocol::TIME, unix_now().to_string())], Json(enrolled))
        .into_response())
}

/// `POST /v1/renew`: a fresh certificate for one that still holds.
pub async fn renew(
    State(desk): State<Arc<Desk>>,
    Device(device): Device,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let body = body::whole(body, BODY_BYTES.min(ENROLL_BYTES)).await?;
    let sequence = desk.admit(&device, ("POST", parts.uri.path()), &parts.headers, Address::of(&body))?;
    let request: RenewRequest = parse(&body)?;
    let request = Authority::key_of(&request.csr)?;
    let from = device.node;
    desk.commit(|receipt| Mail::Sequence { from, sequence, receipt }).await?;
    let enrolled = sign(&desk, &request, device.node, device.role)?;
    tracing::info!(node = device.node.0, "renewed");
    Ok((StatusCode::CREATED, [(crate::protocol::TIME, unix_now().to_string())], Json(enrolled))
        .into_response())
}

fn sign(desk: &Desk, request: &CertificateRequest, node: Node, role: Role) -> Result<Enrolled, Refusal> {
    let signed = desk.authority.sign(request, node, role, desk.lifetime)?;
    desk.registry().enter(&signed.der, &signed.certificate)?;
    Ok(enrolled(signed.certificate))
}

fn enrolled(certificate: Certificate) -> Enrolled {
    let Certificate { node, role, pem, expires, .. } = certificate;
    Enrolled { node, role, certificate: pem, expires }
}

/// A body of JSON.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "bad-request", error.to_string()))
}
