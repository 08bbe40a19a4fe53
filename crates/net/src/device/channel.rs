//! One connection to the server, made when it is needed and made again when it breaks.

use crate::protocol::{Problem, SERVER_NAME};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HeaderMap;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    host: String,
    port: u16,
}

/// The port that servers listen on, unless they are told otherwise.
pub const PORT: u16 = 7443;

impl Url {
    /// `https://host:port`; the port may be left out.
    pub fn parse(text: &str) -> Option<Url> {
        let rest = text.trim().strip_prefix("https://")?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (authority, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let plain = !host.is_empty() && !host.contains(['/', '@', ' ', '?', '#']);
        plain.then(|| Url { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Url { host, port } = self;
        if host.contains(':') {
            write!(f, "https://[{host}]:{port}")
        } else {
            write!(f, "https://{host}:{port}")
        }
    }
}

/// A request that brought no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("{0} cannot be reached: {1}")]
    Unreachable(Url, io::Error),
    #[error("no TLS with {0}: {1}")]
    Tls(Url, io::Error),
    #[error("nothing moved for {} s", .0.as_secs())]
    Stalled(Duration),
    #[error("the connection broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("{}", .1.reason)]
    Refused(StatusCode, Problem, Option<Duration>),
    #[error("the answer makes no sense: {0}")]
    Answer(String),
}

impl ChannelError {
    /// The server has understood, and repeating the same will not help.
    pub fn is_final(&self) -> bool {
        let ChannelError::Refused(status, ..) = self else { return false };
        // What another attempt settles: numbers, offsets and contents that have moved on, and patience.
        let passing = [
            StatusCode::CONFLICT,
            StatusCode::FAILED_DEPENDENCY,
            StatusCode::UNPROCESSABLE_ENTITY,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        status.is_client_error() && !passing.contains(status)
    }

    /// When the server wants to be asked again, if it said so.
    pub fn retry_after(&self) -> Option<Duration> {
        if let ChannelError::Refused(_, _, after) = self { *after } else { None }
    }

    pub fn problem(&self) -> Option<&Problem> {
        if let ChannelError::Refused(_, problem, _) = self { Some(problem) } else { None }
    }
}

/// A connection, or the will to have one.
pub struct Channel {
    url: Url,
    tls: Arc<ClientConfig>,
    /// A request fails when no byte has moved for this long.
    stall: Duration,
    open: Option<Open>,
}

struct Open {
    send: SendRequest<Full<Bytes>>,
    activity: Arc<Activity>,
    chain: Vec<CertificateDer<'static>>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// An answer whose body is still to be read.
pub struct Answer<'a> {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    channel: &'a mut Channel,
}

/// The largest answer that is read as a whole.
const ANSWER_BYTES: usize = 8 << 20;

impl Channel {
    pub fn new(url: Url, tls: Arc<ClientConfig>, stall: Duration) -> Channel {
        Channel { url, tls, stall, open: None }
    }

    /// The certificates the server showed on the open connection.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        self.open.as_ref().map_or(&[], |open| &open.chain)
    }

    /// Send a request and read the head of the answer; one that says no is an error. `patience` is the time
    /// the server may stay silent beyond the usual.
    pub async fn request(
        &mut self,
        request: Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<Answer<'_>, ChannelError> {
        let result = self.exchange(request, patience).await;
        match result {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let answer = Answer { status: head.status, headers: head.headers, body, channel: self };
                if answer.status.is_client_error() || answer.status.is_server_error() {
                    return Err(answer.refusal().await);
                }
                Ok(answer)
            }
            Err(error) => {
                self.open = None;
                Err(error)
            }
        }
    }

    async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        patience: Duration,
    ) -> Result<Response<Incoming>, ChannelError> {
        if self.open.as_ref().is_none_or(|open| open.send.is_closed()) {
            self.open = None;
            self.open = Some(self.connect().await?);
        }
        let stall = self.stall + patience;
        let open = self.open.as_mut().expect("it was just opened");
        open.activity.touch();
        let answer = open.send.send_request(request);
        tokio::select! {
            answer = answer => Ok(answer?),
            () = open.activity.stalled(stall) => Err(ChannelError::Stalled(stall)),
        }
    }

    async fn connect(&self) -> Result<Open, ChannelError> {
        let Url { host, port } = &self.url;
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let unreachable = |error| ChannelError::Unreachable(self.url.clone(), error);
        let stream = timeout(self.stall, TcpStream::connect((host.as_str(), *port))).await;
        let stream = stream.unwrap_or_else(|_| Err(late())).map_err(unreachable)?;
        // A message that is ready is not held back for more.
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(SERVER_NAME).expect("a constant name");
        let stream = timeout(self.stall, TlsConnector::from(self.tls.clone()).connect(name, stream)).await;
        let stream = stream.unwrap_or_else(|_| Err(late()));
        let stream = stream.map_err(|error| ChannelError::Tls(self.url.clone(), error))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let activity = Arc::new(Activity::new());
        let io = TokioIo::new(Watched { inner: stream, activity: activity.clone() });
        let (send, connection) = http1::handshake(io).await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection broke off");
            }
        });
        Ok(Open { send, activity, chain, driver })
    }
}

impl Answer<'_> {
    /// Hand each piece of the body on as it comes.
    pub async fn each<E: From<ChannelError>>(
        self,
        mut piece: impl FnMut(&Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let Answer { mut body, channel, .. } = self;
        let Some(open) = channel.open.as_ref() else { return Ok(()) };
        let stall = channel.stall;
        let done = loop {
            open.activity.touch();
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = open.activity.stalled(stall) => break Err(ChannelError::Stalled(stall).into()),
            };
            match frame {
                None => break Ok(()),
                Some(Err(error)) => break Err(ChannelError::from(error).into()),
                Some(Ok(frame)) => {
                    if let Some(Err(error)) = frame.data_ref().map(&mut piece) {
                        break Err(error);
                    }
                }
            }
        };
        if done.is_err() {
            channel.open = None;
        }
        done
    }

    /// The whole body.
    pub async fn whole(self) -> Result<Bytes, ChannelError> {
        let mut bytes = Vec::new();
        self.each(|piece| {
            if bytes.len() + piece.len() > ANSWER_BYTES {
                return Err(ChannelError::Answer(format!("it is longer than {ANSWER_BYTES} bytes")));
            }
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .await?;
        Ok(bytes.into())
    }

    /// A header's value, if there is one that can be read.
    pub fn header<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.headers.get(name)?.to_str().ok()?.parse().ok()
    }

    async fn refusal(self) -> ChannelError {
        let (status, after) = (self.status, self.header("retry-after").map(Duration::from_secs));
        let body = match self.whole().await {
            Ok(body) => body,
            Err(error) => return error,
        };
        let problem = serde_json::from_slice(&body).unwrap_or_else(|_| Problem {
            error: "unknown".to_owned(),
            reason: format!("the server answers {status}"),
            sequence: None,
        });
        ChannelError::Refused(status, problem, after)
    }
}

/// When a byte last moved.
struct Activity {
    begun: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn new() -> Activity {
        Activity { begun: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.last_ms.store(self.begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Done when no byte has moved for that long.
    async fn stalled(&self, span: Duration) {
        loop {
            let since = self.begun.elapsed().as_millis() as u64 - self.last_ms.load(Ordering::Relaxed);
            let Some(left) = span.checked_sub(Duration::from_millis(since)).filter(|left| !left.is_zero())
            else {
                return;
            };
            tokio::time::sleep(left).await;
        }
    }
}

/// A stream that notes when bytes move through it.
struct Watched<S> {
    inner: S,
    activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() {
            self.activity.touch();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        if polled.is_ready() {
            self.activity.touch();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_host_and_port() {
        let url = |text| Url::parse(text).map(|url| url.to_string());
        assert_eq!(url("https://edge"), Some("https://edge:7443".into()));
        assert_eq!(url("https://10.0.0.1:99/"), Some("https://10.0.0.1:99".into()));
        assert_eq!(url("https://[::1]:99"), Some("https://[::1]:99".into()));
        assert_eq!(url("https://[::1]"), Some("https://[::1]:7443".into()));
        for wrong in
            ["", "edge:99", "http://edge", "https://", "https://edge:x", "https://a/b", "https://u@h"]
        {
            assert_eq!(url(wrong), None, "{wrong}");
        }
    }
}
