//! The server: one TLS port, and behind it the same machine as in every other driver.

mod body;
mod content_routes;
mod desk;
mod identity_routes;
mod listener;
mod message_routes;
mod meters;
mod outbox;
mod refusal;
mod shelf;

use crate::authority::{Authority, IdentityError, LIFETIME};
use crate::blobs::BlobStore;
use crate::board::Board;
use crate::clock::Clock;
use crate::host::{Host, HostError, Living, Mail, Outlet, Parts, Rested};
use crate::protocol::{VERSION, WAIT_S};
use crate::registry::Registry;
use crate::sqlite_store::{SqliteStore, read_records};
use crate::store::{Store, StoreError};
use crate::tls;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, head, post};
use base::{Node, Packet, SERVER};
use desk::{Desk, Fittings, lock};
use federation::{Machine, Record, Status};
use outbox::Outbox;
use refusal::Refusal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

pub use message_routes::CURSOR;
pub use outbox::Cursor;
pub use shelf::{Place, Shelf};

/// How a run is served.
pub struct ServerConfig {
    /// Where authority, database and contents are kept.
    pub folder: PathBuf,
    pub listen: SocketAddr,
    /// Names and addresses under which programs other than devices reach it.
    pub names: Vec<String>,
    /// What devices are told about the run, as JSON.
    pub brief: Vec<u8>,
    /// The model's pieces, for devices that have not got them.
    pub shelf: Shelf,
    pub devices: u32,
    pub rounds: u32,
    /// Memory that the server's jobs may take.
    pub budget: u64,
    /// How long a poll is held open.
    pub wait: Duration,
    /// How long a device's certificate is good for.
    pub lifetime: Duration,
}

impl ServerConfig {
    pub fn new(folder: PathBuf, listen: SocketAddr) -> ServerConfig {
        ServerConfig {
            folder,
            listen,
            names: Vec::new(),
            brief: b"{}".to_vec(),
            shelf: Shelf::default(),
            devices: 0,
            rounds: 0,
            budget: u64::MAX,
            wait: Duration::from_secs(WAIT_S),
            lifetime: LIFETIME,
        }
    }
}

/// What the server tells whoever runs it.
#[derive(Debug)]
pub enum ServerNews<'a> {
    Listening(SocketAddr),
    /// The next record of the run, now committed.
    Record(&'a Record),
}

/// The answer to `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    pub board: Board,
    /// Seconds since each node was last heard.
    pub seen: BTreeMap<Node, f64>,
}

/// A run that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("cannot listen on {at}: {source}")]
    Listen { at: SocketAddr, source: std::io::Error },
    #[error("no thread could be started: {0}")]
    Threads(std::io::Error),
}

/// How long the end of a run is told to devices that do not come to hear it.
const FAREWELL: Duration = Duration::from_secs(10);
/// A device heard within this time may come to hear it.
const AROUND: Duration = Duration::from_secs(60);
/// How often the driver looks whether it was interrupted.
const GLANCE: Duration = Duration::from_millis(20);
/// How often it looks who was revoked.
const REVIEW: Duration = Duration::from_secs(1);

/// Serve until the machine stops or `interrupt` is set. A folder that holds a run goes on with it.
pub fn serve(
    build: &dyn Fn() -> Box<dyn Machine>,
    config: ServerConfig,
    sink: &mut dyn FnMut(ServerNews),
    interrupt: &AtomicBool,
) -> Result<Rested, ServeError> {
    let mut running = Running::start(build, config)?;
    sink(ServerNews::Listening(running.address));
    let ended = running.watch(sink, interrupt);
    if ended == Ended::Stopped {
        running.say_farewell();
    }
    running.rest(sink)
}

/// A server at work.
struct Running {
    address: SocketAddr,
    desk: Arc<Desk>,
    news: Receiver<News>,
    host: JoinHandle<Result<Rested, HostError>>,
    runtime: Runtime,
}

enum News {
    Records(Vec<Record>),
    Stopped,
}

#[derive(PartialEq, Eq)]
enum Ended {
    Stopped,
    Interrupted,
}

/// Effects of the server's machine: messages to queues, records to the board and the driver.
struct ServerOutlet {
    outbox: Arc<Outbox>,
    board: Arc<Mutex<Board>>,
    news: Sender<News>,
}

impl Outlet for ServerOutlet {
    fn send(&mut self, packets: Vec<(Node, Packet)>) {
        self.outbox.post(packets);
    }

    fn publish(&mut self, records: &[Record]) {
        let mut board = lock(&self.board);
        records.iter().for_each(|record| board.push(record));
        // The driver has gone only when the process is about to.
        let _ = self.news.send(News::Records(records.to_vec()));
    }

    fn stopped(&mut self, _: &Status) {
        let _ = self.news.send(News::Stopped);
    }
}

impl Running {
    fn start(build: &dyn Fn() -> Box<dyn Machine>, config: ServerConfig) -> Result<Running, ServeError> {
        let authority = Authority::open(&config.folder)?;
        let acceptor = TlsAcceptor::from(tls::server(&authority, &config.names)?);
        let mut store = SqliteStore::open(&config.folder)?;
        let past = store.load()?;
        let clock = Clock::starting_at(past.time());
        let known = read_records(&config.folder, 0)?;
        let board = Arc::new(Mutex::new(Board::of(config.devices, config.rounds, &known)));
        let outbox = Arc::new(Outbox::new(config.devices));
        let (tell, news) = channel();
        let outlet = ServerOutlet { outbox: outbox.clone(), board: board.clone(), news: tell };
        let living = Living { node: SERVER, budget: config.budget, clock, leave: Box::new(|| {}) };
        let parts = Parts { living, past: past.journal, store: Box::new(store), outlet: Box::new(outlet) };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(ServeError::Threads)?;
        let at = config.listen;
        let listener = runtime.block_on(TcpListener::bind(at));
        let listener = listener.map_err(|source| ServeError::Listen { at, source })?;
        let address = listener.local_addr().map_err(|source| ServeError::Listen { at, source })?;
        let (host, mail) = Host::new(parts, build)?;
        let desk = Arc::new(Desk::new(Fittings {
            mail,
            outbox,
            board,
            authority,
            blobs: BlobStore::open(&config.folder)?,
            clock,
            brief: config.brief,
            shelf: config.shelf,
            wait: config.wait,
            lifetime: config.lifetime,
            registry: Registry::open(&config.folder)?,
            sequences: past.sequences,
        }));
        runtime.spawn(listener::accept(listener, acceptor, router(desk.clone()), desk.clone()));
        runtime.spawn(review(desk.clone()));
        let host = thread::Builder::new().name("host".to_owned()).spawn(move || host.live());
        let host = host.map_err(ServeError::Threads)?;
        Ok(Running { address, desk, news, host, runtime })
    }

    /// Hand records on until the machine stops, its thread ends, or someone interrupts.
    fn watch(&mut self, sink: &mut dyn FnMut(ServerNews), interrupt: &AtomicBool) -> Ended {
        loop {
            match self.news.recv_timeout(GLANCE) {
                Ok(News::Records(records)) => {
                    records.iter().for_each(|record| sink(ServerNews::Record(record)));
                }
                Ok(News::Stopped) => return Ended::Stopped,
                Err(RecvTimeoutError::Disconnected) => return Ended::Interrupted,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if interrupt.load(Ordering::Relaxed) {
                return Ended::Interrupted;
            }
        }
    }

    /// Wait until devices that are around have heard that the run is over.
    fn say_farewell(&self) {
        let begun = Instant::now();
        let waits = |(node, ago): (Node, Duration)| ago < AROUND && self.desk.outbox.len(node) > 0;
        while begun.elapsed() < FAREWELL && self.desk.seen().into_iter().any(waits) {
            thread::sleep(GLANCE);
        }
    }

    fn rest(self, sink: &mut dyn FnMut(ServerNews)) -> Result<Rested, ServeError> {
        let Running { desk, news, host, runtime, .. } = self;
        // A host that has ended hears nothing more, and says why it ended.
        let _ = desk.mail.send(Mail::Close);
        let rested = host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        runtime.shutdown_timeout(Duration::from_secs(1));
        for news in news.try_iter() {
            if let News::Records(records) = news {
                records.iter().for_each(|record| sink(ServerNews::Record(record)));
            }
        }
        Ok(rested)
    }
}

/// Tell the machine of devices that were revoked, so that no round waits for them.
async fn review(desk: Arc<Desk>) {
    let mut told = Vec::new();
    loop {
        tokio::time::sleep(REVIEW).await;
        let excluded = desk.registry().excluded();
        match excluded {
            Ok(excluded) => {
                for node in excluded.iter().filter(|node| !told.contains(*node)) {
                    tracing::warn!(node = node.0, "revoked");
                    let _ = desk.mail.send(Mail::Lost(*node));
                }
                told = excluded;
            }
            Err(error) => tracing::error!(%error, "cannot see who was revoked"),
        }
    }
}

fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(message_routes::metrics))
        .route("/v1/enroll", post(identity_routes::enroll))
        .route("/v1/renew", post(identity_routes::renew))
        .route("/v1/run", get(message_routes::run))
        .route("/v1/messages", get(message_routes::fetch).post(message_routes::post))
        .route("/v1/records", post(message_routes::records))
        .route("/v1/uploads/{address}", head(content_routes::offset).patch(content_routes::append))
        .route("/v1/blobs/{address}", get(content_routes::download))
        .route("/v1/status", get(message_routes::status))
        .fallback(|| async {
            let reason =
                format!("this server speaks version {VERSION} of the protocol, under /v{VERSION}/");
            Refusal::new(StatusCode::NOT_FOUND, "no-such-path", reason)
        })
        .method_not_allowed_fallback(|| async {
            let reason = "that path has no such method";
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", reason)
        })
        .with_state(desk)
}
