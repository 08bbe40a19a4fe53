//! Floods of small frames, each of which is legal: the connection ends, memory does not grow, others go on.

use crate::client::Client;
use crate::crowd::resident;
use crate::stage::{Dummy, Server, Stage};
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use undertone_net::protocol::{Role, Token};

/// Frames of a flood: had each left a hundred bytes behind, it would be seen. (The server shares its process
/// with the tests that run beside this one; what floods cost a server alone is held to 16 MiB in `cli`.)
const FRAMES: usize = 500_000;
/// How long to wait for a server that neither reads on nor hangs up.
const PATIENCE: Duration = Duration::from_secs(2);
const GROWTH: u64 = 48 << 20;

struct Flooded {
    stage: Stage,
    server: Server,
    token: Token,
}

impl Flooded {
    fn new() -> Flooded {
        let stage = Stage::new(Dummy::new(2, 1));
        let server = stage.serve();
        let token = stage.token(1, Role::Device, 600);
        Flooded { stage, server, token }
    }

    /// Speaks HTTP/2 frame by frame: says `first`, then `again` and again until the server has had enough;
    /// whether it ever had.
    fn flood(&self, tls: &Arc<ClientConfig>, first: &[u8], again: &[u8]) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut stream = self.connect(tls).await;
            let (preface, settings) = (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(4, 0, 0, b""));
            stream.write_all(&[preface, &settings[..], first].concat()).await.unwrap();
            let piece = again.repeat(1000);
            for _ in 0..FRAMES / 1000 {
                match timeout(PATIENCE, stream.write_all(&piece)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return true,
                    // It takes no more in before somebody listens.
                    Err(_) => return false,
                }
            }
            // GOAWAY, or no word at all.
            timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.is_ok()
        })
    }

    async fn connect(&self, tls: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
        let mut config = (**tls).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.server.address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("undertone.server").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// The server is there for others, and as small as before.
    fn withstood(self, before: u64) {
        let grown = resident().saturating_sub(before);
        assert!(grown < GROWTH, "it grew by {grown} bytes");
        let mut stranger = Client::stranger(&self.token, self.server.address);
        assert_eq!(stranger.raw("GET", "/healthz", &[], b"").unwrap().status, 200);
        self.server.actor.interrupt().unwrap();
    }
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a request, as HPACK without tables (RFC 7541): POST, https, a path, an authority.
fn head(path: &str) -> Vec<u8> {
    let literal = |name: u8, value: &str| [&[name, value.len() as u8], value.as_bytes()].concat();
    [vec![0x83, 0x87], literal(0x04, path), literal(0x01, "undertone.server")].concat()
}

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const DATA: u8 = 0;
const PING: u8 = 6;
const END_HEADERS: u8 = 4;

/// CERT VU#421644: a head that never ends.
#[test]
fn heads_that_never_end_are_cut_off() {
    let flooded = Flooded::new();
    let before = resident();
    let tls = undertone_net::tls::enrolling(&flooded.token).unwrap();
    let field = [&[0, 1, b'x', 100][..], &[b'y'; 100]].concat();
    let more = frame(CONTINUATION, 0, 1, &field);
    assert!(flooded.flood(&tls, &frame(HEADERS, 0, 1, &head("/healthz")), &more));
    flooded.withstood(before);
}

/// CVE-2019-9518: a body of empty pieces, from a device that may send one.
#[test]
fn bodies_of_nothing_are_cut_off() {
    let flooded = Flooded::new();
    let wallet = flooded.stage.enroll(2, &flooded.server.url());
    let before = resident();
    let tls = wallet.identity(wallet.card().unwrap().unwrap()).unwrap().tls;
    let first = frame(HEADERS, END_HEADERS, 1, &head("/v1/messages"));
    flooded.flood(&tls, &first, &frame(DATA, 0, 1, b""));
    let mut device = Client::of(&wallet, &flooded.server.url());
    assert_eq!(device.raw("GET", "/v1/run", &[], b"").unwrap().status, 200);
    flooded.withstood(before);
}

/// CVE-2019-9512: questions whose answers are not read.
#[test]
fn pings_that_are_not_listened_to_are_cut_off() {
    let flooded = Flooded::new();
    let before = resident();
    let tls = undertone_net::tls::enrolling(&flooded.token).unwrap();
    flooded.flood(&tls, b"", &frame(PING, 0, 0, b"12345678"));
    flooded.withstood(before);
}

/// CVE-2023-44487: streams that are opened and reset at once cost a client nothing.
#[test]
fn rapid_resets_end_the_connection_and_nothing_else() {
    let flooded = Flooded::new();
    let before = resident();
    let tls = undertone_net::tls::enrolling(&flooded.token).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let (client, connection) = h2::client::handshake(flooded.connect(&tls).await).await.unwrap();
        let driver = tokio::spawn(connection);
        for _ in 0..20_000 {
            let Ok(mut client) = client.clone().ready().await else { break };
            let request = hyper::Request::get("https://undertone.server/healthz").body(()).unwrap();
            let Ok((_, mut stream)) = client.send_request(request, true) else { break };
            stream.send_reset(h2::Reason::CANCEL);
            tokio::task::yield_now().await;
        }
        drop(client);
        driver.await.unwrap()
    });
    assert!(ended.is_err(), "the server ends the connection");
    flooded.withstood(before);
}
