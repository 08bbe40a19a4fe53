//! Connections: how many, for how long, and with what patience.

use crate::protocol::Address;
use crate::server::desk::{Caller, Desk};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tower_service::Service;

/// Connections at once.
const CONNECTIONS: usize = 8192;
/// Connections of peers that have not shown a certificate, at once: of all, and of one address.
const STRANGERS: usize = 256;
const STRANGERS_OF_ONE: usize = 64;
/// A handshake takes at most this long, and a stranger's whole stay that long.
const HANDSHAKE: Duration = Duration::from_secs(10);
const STAY: Duration = Duration::from_secs(30);
/// The head of a request comes within this time, and so does the next request on a connection.
const HEAD: Duration = Duration::from_secs(60);

/// Take connections until the runtime ends.
pub async fn accept(listener: TcpListener, tls: TlsAcceptor, router: Router, desk: Arc<Desk>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let strangers = Arc::new(Strangers::default());
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: they come back as connections end.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (room, stranger) = (room.clone().try_acquire_owned(), Strangers::enter(&strangers, peer.ip()));
        let (Ok(room), Some(stranger)) = (room, stranger) else {
            desk.meters.connections_shed.add(1);
            continue;
        };
        let (tls, router, desk) = (tls.clone(), router.clone(), desk.clone());
        tokio::spawn(async move {
            let _open = desk.meters.connections.one();
            converse(stream, peer, tls, router, &desk, stranger).await;
            drop(room);
        });
    }
}

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    router: Router,
    desk: &Arc<Desk>,
    stranger: Stranger,
) {
    // A message that is ready is not held back for more.
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            desk.meters.handshakes_failed.add(1);
            tracing::debug!(%peer, %error, "no handshake");
            return;
        }
        Err(_) => return desk.meters.handshakes_failed.add(1),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let caller = Caller { certificate: certificate.map(|der| Address::of(der)), ip: peer.ip() };
    let meters = desk.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller);
        let (mut router, desk) = (router.clone(), meters.clone());
        async move {
            let response: Result<Response, Infallible> = router.call(request.map(Body::new)).await;
            desk.meters.requests.add(1);
            let failed = |response: &Response| response.status().as_u16() >= 400;
            desk.meters.refused.add(u64::from(response.as_ref().is_ok_and(failed)));
            response
        }
    });
    let builder = builder();
    let conversation = builder.serve_connection(TokioIo::new(stream), service);
    let ended = if caller.certificate.is_some() {
        drop(stranger);
        conversation.await
    } else {
        timeout(STAY, conversation).await.unwrap_or(Ok(()))
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection broke off");
    }
}

/// HTTP/1.1 and HTTP/2 with small buffers: large contents are streamed.
fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(32 << 10)
        .max_headers(64);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(30))
        .max_concurrent_streams(16)
        .max_header_list_size(16 << 10)
        .max_pending_accept_reset_streams(16)
        .max_local_error_reset_streams(16)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(256 << 10)
        .max_send_buf_size(128 << 10);
    builder
}

/// Who is there and has not said who it is.
#[derive(Default)]
struct Strangers(Mutex<BTreeMap<IpAddr, usize>>);

/// One of them.
struct Stranger {
    all: Arc<Strangers>,
    ip: IpAddr,
}

impl Strangers {
    fn enter(all: &Arc<Strangers>, ip: IpAddr) -> Option<Stranger> {
        let mut by_address = crate::server::desk::lock(&all.0);
        if by_address.values().sum::<usize>() >= STRANGERS {
            return None;
        }
        let of_one = by_address.entry(ip).or_default();
        if *of_one >= STRANGERS_OF_ONE {
            return None;
        }
        *of_one += 1;
        Some(Stranger { all: all.clone(), ip })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut by_address = crate::server::desk::lock(&self.all.0);
        if let Some(count) = by_address.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.ip);
            }
        }
    }
}
