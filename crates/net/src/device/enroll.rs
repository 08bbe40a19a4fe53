//! From a token to a certificate.

use crate::authority::IdentityError;
use crate::device::channel::{Channel, ChannelError, Url};
use crate::device::persistence::Patience;
use crate::identity::{Card, Wallet};
use crate::protocol::{EnrollRequest, Enrolled, TIME, Token};
use crate::tls;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use std::time::Duration;

/// An enrolment that failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("no thread could be started: {0}")]
    Threads(std::io::Error),
}

/// Exchange a token for a card, which is kept in the wallet. Asking again with the same wallet and token is
/// harmless: the server gives the same card to the same key.
pub fn enroll(wallet: &Wallet, url: &Url, token: &Token, patience: Patience) -> Result<Card, EnrollError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(EnrollError::Threads)?.block_on(exchange(wallet, url, token, patience))
}

async fn exchange(
    wallet: &Wallet,
    url: &Url,
    token: &Token,
    patience: Patience,
) -> Result<Card, EnrollError> {
    let mut channel = Channel::new(url.clone(), tls::enrolling(token)?, patience.stall);
    let ask = EnrollRequest { token: token.to_string(), csr: wallet.request()? };
    let body = serde_json::to_vec(&ask).expect("a request is plain data");
    let request = Request::post("/v1/enroll").header("host", crate::protocol::SERVER_NAME);
    let request = request.body(Full::new(Bytes::from(body))).expect("a constant request");
    let answer = channel.request(request, Duration::ZERO).await?;
    let server_now = answer.header(TIME).unwrap_or_default();
    let body = answer.whole().await?;
    let enrolled: Enrolled =
        serde_json::from_slice(&body).map_err(|error| ChannelError::Answer(error.to_string()))?;
    let authority = tls::named_by(token, channel.chain());
    let authority = authority.ok_or_else(|| ChannelError::Answer("its authority is missing".to_owned()))?;
    Ok(wallet.keep(&url.to_string(), authority, enrolled, server_now)?)
}
