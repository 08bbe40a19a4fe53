//! Answers that say no: a status for programs, a word, and a sentence for people.

use crate::protocol::Problem;
use crate::{IdentityError, StoreError};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Why a request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub problem: Problem,
    /// Seconds after which it may be tried again.
    retry_after: Option<u64>,
}

impl Refusal {
    pub fn new(status: StatusCode, error: &str, reason: impl Into<String>) -> Refusal {
        let problem = Problem { error: error.to_owned(), reason: reason.into(), sequence: None };
        Refusal { status, problem, retry_after: None }
    }

    #[must_use]
    pub fn after(self, seconds: u64) -> Refusal {
        Refusal { retry_after: Some(seconds), ..self }
    }

    /// A sequence number that is not above all before it.
    pub fn stale(seen: u64) -> Refusal {
        let reason = format!("sequence numbers rise with every request, and {seen} has been seen");
        let mut refusal = Refusal::new(StatusCode::CONFLICT, "stale-sequence", reason);
        refusal.problem.sequence = Some(seen);
        refusal
    }

    /// The server comes to rest and did not carry the request out.
    pub fn closing() -> Refusal {
        let reason = "the server is stopping; it goes on later from where it is";
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", reason).after(2)
    }
}

impl From<StoreError> for Refusal {
    /// A full disk, most likely. The operator reads which; the peer needs to know only that it may try again.
    fn from(error: StoreError) -> Refusal {
        tracing::error!(%error, "the store refuses");
        let reason = "the server cannot write now; its operator has been told";
        Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "storage", reason).after(10)
    }
}

impl From<IdentityError> for Refusal {
    fn from(error: IdentityError) -> Refusal {
        match error {
            IdentityError::Store(error) => error.into(),
            other => Refusal::new(StatusCode::BAD_REQUEST, "bad-request", other.to_string()),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.problem).expect("a problem is plain data");
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
