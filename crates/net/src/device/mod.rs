//! A device: the same host as the server's, and a courier that goes to the server and back.

pub mod channel;
mod courier;
mod download;
mod enroll;
mod persistence;

use crate::authority::IdentityError;
use crate::clock::Clock;
use crate::file_store::FileStore;
use crate::files;
use crate::host::{Host, HostError, Living, Mail, Outlet, Parts, Rested};
use crate::identity::{Card, Identity, Wallet};
use crate::protocol::{NODE, SEQUENCE, TIME, WAIT_S};
use crate::store::{Store, StoreError};
use base::{Node, Packet, Time};
use bytes::Bytes;
use channel::{Channel, ChannelError, Url};
use courier::{Courier, Parcel, Route, is_expired, plain};
use federation::{Fact, Machine, Record, Status};
use hyper::Method;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel as sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

pub use crate::bench::Leave;
pub use download::Fetcher;
pub use enroll::{EnrollError, enroll};
pub use persistence::{Patience, Persistence};

/// How a device takes part.
pub struct DeviceConfig {
    /// Its own folder: identity, journal, downloads.
    pub folder: PathBuf,
    pub patience: Patience,
    /// How long a poll is held open.
    pub wait: Duration,
    /// Memory that jobs may take.
    pub budget: u64,
    /// Waits until this machine may work.
    pub leave: Leave,
}

impl DeviceConfig {
    pub fn new(folder: PathBuf) -> DeviceConfig {
        DeviceConfig {
            folder,
            patience: Patience::default(),
            wait: Duration::from_secs(WAIT_S),
            budget: u64::MAX,
            leave: Box::new(|| {}),
        }
    }
}

/// What the server says of the run and of this device's place in it.
#[derive(Clone, Debug)]
pub struct Brief {
    pub node: Node,
    /// The run's time.
    pub time: Time,
    /// The last sequence number the server has seen.
    pub sequence: u64,
    /// JSON.
    pub body: Bytes,
}

/// What a device tells whoever runs it.
#[derive(Debug)]
pub enum DeviceNews {
    /// The server answers.
    Connected,
    /// It does not, or not well; it is tried again after that time.
    Trouble {
        what: String,
        again: Duration,
    },
    Record(Record),
    /// The device's part is over.
    Stopped(Status),
    /// The server will not have this device.
    Excluded(ChannelError),
}

/// A device that cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{0}")]
    Excluded(ChannelError),
    #[error("the certificate of this device has expired; ask the server's operator for a new token")]
    Expired,
    #[error("no thread could be started: {0}")]
    Threads(std::io::Error),
    #[error("stopped before the server was reached")]
    Interrupted,
}

/// How often the driver looks whether it was interrupted.
const GLANCE: Duration = Duration::from_millis(20);
/// How long the last messages may take once the device's part is over.
const FAREWELL: Duration = Duration::from_secs(5);
/// Parcels that wait for the network; what is dropped is repeated by the link.
const PARCELS: usize = 64;

/// Ask the server what the run is, until it answers or `interrupt` is set.
pub fn brief(
    identity: &Identity,
    url: &Url,
    patience: Patience,
    news: &mut dyn FnMut(DeviceNews),
    interrupt: &AtomicBool,
) -> Result<Brief, JoinError> {
    let runtime = single()?;
    let mut channel = Channel::new(url.clone(), identity.tls.clone(), patience.stall);
    persevere((patience, identity.card.node), news, interrupt, || runtime.block_on(ask(&mut channel)))
}

/// Attempt something until it succeeds, cannot ever, or `interrupt` is set.
fn persevere<T>(
    (patience, node): (Patience, Node),
    news: &mut dyn FnMut(DeviceNews),
    interrupt: &AtomicBool,
    mut attempt: impl FnMut() -> Result<T, ChannelError>,
) -> Result<T, JoinError> {
    let mut persistence = Persistence::new(patience, node);
    while !interrupt.load(Ordering::Relaxed) {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if is_expired(&error) => return Err(JoinError::Expired),
            Err(error) if error.is_final() => return Err(JoinError::Excluded(error)),
            Err(error) => {
                let again = persistence.failed(&error);
                news(DeviceNews::Trouble { what: error.to_string(), again });
                rest(again, interrupt);
            }
        }
    }
    Err(JoinError::Interrupted)
}

/// Sleep, but not through an interrupt.
pub fn rest(span: Duration, interrupt: &AtomicBool) {
    let begun = Instant::now();
    while begun.elapsed() < span && !interrupt.load(Ordering::Relaxed) {
        thread::sleep(GLANCE.min(span));
    }
}

async fn ask(channel: &mut Channel) -> Result<Brief, ChannelError> {
    let answer = channel.request(plain(Method::GET, "/v1/run"), Duration::ZERO).await?;
    let (node, time, sequence) = (answer.header(NODE), answer.header(TIME), answer.header(SEQUENCE));
    let (Some(node), Some(time), Some(sequence)) = (node, time, sequence) else {
        return Err(ChannelError::Answer("it does not say who this device is".to_owned()));
    };
    Ok(Brief { node: Node(node), time: Time(time), sequence, body: answer.whole().await? })
}

/// Ask the server where the run stands, as its operator.
pub fn status(
    identity: &Identity,
    url: &Url,
    patience: Patience,
) -> Result<crate::server::StatusReport, ChannelError> {
    let failed = |error: &dyn std::fmt::Display| ChannelError::Answer(error.to_string());
    let mut channel = Channel::new(url.clone(), identity.tls.clone(), patience.stall);
    let runtime = single().map_err(|error| failed(&error))?;
    runtime.block_on(async {
        let answer = channel.request(plain(Method::GET, "/v1/status"), Duration::ZERO).await?;
        serde_json::from_slice(&answer.whole().await?).map_err(|error| failed(&error))
    })
}

fn single() -> Result<Runtime, JoinError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(JoinError::Threads)
}

/// Take part until the machine stops or `interrupt` is set. A folder that holds a past goes on with it.
pub fn live(
    build: &dyn Fn() -> Box<dyn Machine>,
    (wallet, card): (Wallet, Card),
    url: &Url,
    brief: &Brief,
    config: DeviceConfig,
    news: &mut dyn FnMut(DeviceNews),
    interrupt: &AtomicBool,
) -> Result<Rested, JoinError> {
    let downloads = config.folder.join("downloads");
    files::create_private(&downloads)?;
    let mut store = FileStore::new(&config.folder);
    let past = store.load()?;
    let clock = Clock::starting_at(past.time().max(brief.time));
    let (tell, heard) = sync_channel();
    let (small, large) = (mpsc::channel(PARCELS), mpsc::channel(PARCELS));
    let pending = Arc::new(AtomicUsize::new(0));
    let outlet =
        DeviceOutlet { small: small.0, large: large.0, news: tell.clone(), pending: pending.clone() };
    let living = Living { node: brief.node, budget: config.budget, clock, leave: config.leave };
    let parts = Parts { living, past: past.journal, store: Box::new(store), outlet: Box::new(outlet) };
    let (host, mail) = Host::new(parts, build)?;
    let identity = wallet.identity(card)?;
    let courier = Arc::new(Courier::new(Route {
        wallet,
        identity,
        url: url.clone(),
        patience: config.patience,
        downloads,
        sequence: brief.sequence,
        wait: config.wait,
        mail: mail.clone(),
        news: tell.clone(),
        pending: pending.clone(),
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(JoinError::Threads)?;
    errands(&runtime, &courier, (small.1, large.1), &tell);
    let host = thread::Builder::new().name("host".to_owned()).spawn(move || host.live());
    let host = host.map_err(JoinError::Threads)?;
    let ended = watch(&heard, news, interrupt, &|| host.is_finished());
    if let Ended::Stopped = ended {
        say_farewell(&runtime, &courier, &pending);
    }
    let _ = mail.send(Mail::Close);
    let rested = host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ended::Excluded(error) if is_expired(&error) => Err(JoinError::Expired),
        Ended::Excluded(error) => Err(JoinError::Excluded(error)),
        Ended::Stopped | Ended::Interrupted => Ok(rested),
    }
}

/// Start what goes on beside the host.
fn errands(
    runtime: &Runtime,
    courier: &Arc<Courier>,
    (small, large): (mpsc::Receiver<Parcel>, mpsc::Receiver<Parcel>),
    tell: &Sender<DeviceNews>,
) {
    let report = |errand: Result<(), ChannelError>, tell: Sender<DeviceNews>| {
        if let Err(error) = errand {
            let _ = tell.send(DeviceNews::Excluded(error));
        }
    };
    let (run, news) = (courier.clone(), tell.clone());
    runtime.spawn(async move { report(run.fetch().await, news) });
    for parcels in [small, large] {
        let (run, news) = (courier.clone(), tell.clone());
        runtime.spawn(async move { report(run.deliver(parcels).await, news) });
    }
    let (run, news) = (courier.clone(), tell.clone());
    runtime.spawn(async move { report(run.renew().await, news) });
}

enum Ended {
    Stopped,
    Interrupted,
    Excluded(ChannelError),
}

/// Hand news on until the device's part is over.
fn watch(
    heard: &Receiver<DeviceNews>,
    news: &mut dyn FnMut(DeviceNews),
    interrupt: &AtomicBool,
    host_is_gone: &dyn Fn() -> bool,
) -> Ended {
    loop {
        match heard.recv_timeout(GLANCE) {
            Ok(DeviceNews::Excluded(error)) => return Ended::Excluded(error),
            Ok(DeviceNews::Stopped(status)) => {
                news(DeviceNews::Stopped(status));
                return Ended::Stopped;
            }
            Ok(other) => news(other),
            Err(RecvTimeoutError::Disconnected) => return Ended::Interrupted,
            Err(RecvTimeoutError::Timeout) if host_is_gone() => return Ended::Interrupted,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if interrupt.load(Ordering::Relaxed) {
            return Ended::Interrupted;
        }
    }
}

/// The last records go out, and the server hears that the end was heard.
fn say_farewell(runtime: &Runtime, courier: &Arc<Courier>, pending: &AtomicUsize) {
    let begun = Instant::now();
    while pending.load(Ordering::SeqCst) > 0 && begun.elapsed() < FAREWELL {
        thread::sleep(GLANCE);
    }
    let left = FAREWELL.saturating_sub(begun.elapsed());
    let said = runtime.block_on(async { tokio::time::timeout(left, courier.take_leave()).await });
    if let Ok(Err(error)) = said {
        tracing::debug!(%error, "the server did not hear that this device has ended");
    }
}

/// Effects of a device's machine: parcels for the courier.
struct DeviceOutlet {
    /// Messages that fit into one request, and records.
    small: mpsc::Sender<Parcel>,
    /// Messages with contents to upload: they take long, and nothing small waits for them.
    large: mpsc::Sender<Parcel>,
    news: Sender<DeviceNews>,
    pending: Arc<AtomicUsize>,
}

impl DeviceOutlet {
    fn queue(&self, parcel: Parcel) {
        let large = match &parcel {
            Parcel::Packet(packet) => packet.wire_len() > crate::protocol::INLINE_BYTES as u64,
            Parcel::Records(_) => false,
        };
        let lane = if large { &self.large } else { &self.small };
        self.pending.fetch_add(1, Ordering::SeqCst);
        if lane.try_send(parcel).is_err() {
            self.pending.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Outlet for DeviceOutlet {
    fn send(&mut self, packets: Vec<(Node, Packet)>) {
        packets.into_iter().for_each(|(_, packet)| self.queue(Parcel::Packet(packet)));
    }

    fn publish(&mut self, records: &[Record]) {
        let told = |record: &&Record| !matches!(record.fact, Fact::Sent { .. });
        let records: Vec<Record> = records.iter().filter(told).cloned().collect();
        for record in &records {
            let _ = self.news.send(DeviceNews::Record(record.clone()));
        }
        if !records.is_empty() {
            self.queue(Parcel::Records(records));
        }
    }

    fn stopped(&mut self, status: &Status) {
        let _ = self.news.send(DeviceNews::Stopped(status.clone()));
    }
}
