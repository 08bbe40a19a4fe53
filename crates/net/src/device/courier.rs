//! What goes between a device and its server: polls, uploads, messages, renewals.

use crate::blobs::Partial;
use crate::device::DeviceNews;
use crate::device::channel::{Answer, Channel, ChannelError, Url};
use crate::device::download::{download, failed, wrong_content};
use crate::device::persistence::{Patience, Persistence};
use crate::envelope::{Beside, Envelope, Packed, take};
use crate::host::Mail;
use crate::identity::{Identity, Wallet};
use crate::protocol::{
    CHUNK_BYTES, Enrolled, LENGTH, OFFSET, RenewRequest, SEQUENCE, SERVER_NAME, SIGNATURE, TIME,
};
use crate::server::CURSOR;
use base::{CodecError, Node, Packet, SERVER};
use bytes::Bytes;
use federation::Record;
use http_body_util::Full;
use hyper::{Method, Request};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc, oneshot};

/// What the courier carries to the server.
#[derive(Debug)]
pub enum Parcel {
    Packet(Packet),
    Records(Vec<Record>),
}

/// What a courier is made from.
pub struct Route {
    pub wallet: Wallet,
    pub identity: Identity,
    pub url: Url,
    pub patience: Patience,
    /// Where downloads that were cut off wait to go on.
    pub downloads: PathBuf,
    /// The last sequence number the server has seen.
    pub sequence: u64,
    /// Seconds a poll is held open.
    pub wait: Duration,
    pub mail: Sender<Mail>,
    pub news: Sender<DeviceNews>,
    /// Parcels that have not been delivered.
    pub pending: Arc<AtomicUsize>,
}

/// What all errands share.
pub struct Courier {
    node: Node,
    url: Url,
    patience: Patience,
    downloads: PathBuf,
    wait: Duration,
    mail: Sender<Mail>,
    news: Sender<DeviceNews>,
    pending: Arc<AtomicUsize>,
    wallet: Wallet,
    identity: SyncMutex<Arc<Identity>>,
    signer: Mutex<Signer>,
    /// Up to where messages were kept.
    cursor: SyncMutex<String>,
}

/// The connection of signed requests, one at a time, so that their numbers rise.
struct Signer {
    channel: Channel,
    sequence: u64,
}

/// A piece of an upload begins this small and doubles while pieces take less than ...
const FIRST_PIECE: u64 = 256 << 10;
/// ... this long, so that a cut costs little on a slow link.
const PIECE_TIME: Duration = Duration::from_secs(4);
/// How often the age of the certificate is looked at.
const RENEWAL: Duration = Duration::from_secs(60);

impl Courier {
    pub fn new(route: Route) -> Courier {
        let Route { wallet, identity, url, patience, downloads, sequence, wait, mail, news, pending } =
            route;
        let identity = Arc::new(identity);
        let channel = Channel::new(url.clone(), identity.tls.clone(), patience.stall);
        Courier {
            node: identity.card.node,
            signer: Mutex::new(Signer { channel, sequence }),
            identity: SyncMutex::new(identity),
            cursor: SyncMutex::default(),
            url,
            patience,
            downloads,
            wait,
            mail,
            news,
            pending,
            wallet,
        }
    }

    fn identity(&self) -> Arc<Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cursor(&self) -> std::sync::MutexGuard<'_, String> {
        self.cursor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel(&self) -> Channel {
        Channel::new(self.url.clone(), self.identity().tls.clone(), self.patience.stall)
    }

    fn tell(&self, news: DeviceNews) {
        // Nobody listens any more only when the process is about to end.
        let _ = self.news.send(news);
    }

    /// Say what is wrong and wait; an error when waiting cannot help.
    async fn endure(&self, persistence: &mut Persistence, error: ChannelError) -> Result<(), ChannelError> {
        if error.is_final() || is_expired(&error) {
            return Err(error);
        }
        let pause = persistence.failed(&error);
        self.tell(DeviceNews::Trouble { what: error.to_string(), again: pause });
        tokio::time::sleep(pause).await;
        Ok(())
    }

    // ---- From the server

    /// Fetch messages for ever; an error when the server will never give any.
    pub async fn fetch(&self) -> Result<(), ChannelError> {
        let (mut channel, mut persistence) = (self.channel(), Persistence::new(self.patience, self.node));
        let mut of = self.identity();
        loop {
            if !Arc::ptr_eq(&of, &self.identity()) {
                (of, channel) = (self.identity(), self.channel());
            }
            let cursor = self.cursor().clone();
            match self.poll(&mut channel, &cursor).await {
                Ok(Some(kept)) => {
                    persistence.succeeded();
                    *self.cursor() = kept;
                }
                Ok(None) => persistence.succeeded(),
                Err(error) => self.endure(&mut persistence, error).await?,
            }
        }
    }

    /// Tell the server that everything was kept, and wait for nothing.
    pub async fn take_leave(&self) -> Result<(), ChannelError> {
        let request = plain(Method::GET, &format!("/v1/messages?after={}&wait=0", self.cursor()));
        self.channel().request(request, Duration::ZERO).await?.whole().await.map(drop)
    }

    /// One poll; the cursor after it, once everything it brought is committed.
    async fn poll(&self, channel: &mut Channel, cursor: &str) -> Result<Option<String>, ChannelError> {
        let wait = self.wait.as_secs();
        let request = plain(Method::GET, &format!("/v1/messages?after={cursor}&wait={wait}"));
        let answer = channel.request(request, self.wait).await?;
        self.tell(DeviceNews::Connected);
        let Some(cursor) = answer.header::<String>(CURSOR) else {
            answer.whole().await?;
            return Ok(None);
        };
        let mut body = answer.whole().await?;
        let mut receipts = Vec::new();
        while !body.is_empty() {
            let envelope =
                next_envelope(&mut body).map_err(|error| ChannelError::Answer(error.to_string()))?;
            let Some(packet) = self.open(channel, &envelope).await? else { continue };
            let (receipt, committed) = oneshot::channel();
            let mail = Mail::Message { from: SERVER, packet, sequence: None, receipt };
            if self.mail.send(mail).is_ok() {
                receipts.push(committed);
            }
        }
        for committed in receipts {
            // A host that is gone commits nothing: what it did not keep will be sent again.
            committed.await.map_err(|_| ChannelError::Answer("this device is stopping".to_owned()))?;
        }
        Ok(Some(cursor))
    }

    /// A message with its contents; `None` where the server has forgotten one: it will repeat the message.
    async fn open(
        &self,
        channel: &mut Channel,
        envelope: &Envelope,
    ) -> Result<Option<Packet>, ChannelError> {
        let mut contents = Vec::new();
        for part in envelope.beside() {
            match self.download(channel, part).await {
                Ok(content) => contents.push((part, content)),
                Err(error) if error.problem().is_some_and(|problem| problem.error == "no-such-content") => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let mut contents = contents.into_iter();
        let missing = || CodecError("a content is missing".to_owned());
        let packet = envelope.unpack(|_| contents.next().map(|(_, content)| content).ok_or_else(missing));
        packet.map(Some).map_err(|error| ChannelError::Answer(error.to_string()))
    }

    /// A content, from where an earlier attempt was cut off.
    async fn download(&self, channel: &mut Channel, part: Beside) -> Result<Bytes, ChannelError> {
        let partial = Partial::new(self.downloads.join(part.address.to_string()), part);
        download(channel, part, &partial, u64::MAX).await?;
        partial.take().map_err(failed)?.ok_or_else(wrong_content)
    }

    // ---- To the server

    /// Deliver parcels for ever, one after another.
    pub async fn deliver(&self, mut parcels: mpsc::Receiver<Parcel>) -> Result<(), ChannelError> {
        while let Some(parcel) = parcels.recv().await {
            match parcel {
                Parcel::Packet(packet) => self.send(&packet).await?,
                Parcel::Records(records) => {
                    let body = serde_json::to_vec(&records).expect("records are plain data");
                    let sent = self.persist(Method::POST, "/v1/records", &[], body.into()).await;
                    if let Err(error) = sent {
                        // Its operator sees less; the run is not worse for it.
                        self.tell(DeviceNews::Trouble { what: error.to_string(), again: Duration::ZERO });
                    }
                }
            }
            self.pending.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(())
    }

    async fn send(&self, packet: &Packet) -> Result<(), ChannelError> {
        let Packed { envelope, beside } = Envelope::pack(packet);
        let body = Bytes::from(envelope.to_bytes());
        let mut persistence = Persistence::new(self.patience, self.node);
        loop {
            for (part, content) in &beside {
                self.upload(*part, content).await?;
            }
            match self.persist(Method::POST, "/v1/messages", &[], body.clone()).await {
                Err(error) if error.problem().is_some_and(|problem| problem.error == "missing-content") => {
                    self.endure(&mut persistence, error).await?;
                }
                done => return done.map(drop),
            }
        }
    }

    /// Bring a content to the server, from where an earlier attempt was cut off.
    async fn upload(&self, part: Beside, content: &Bytes) -> Result<(), ChannelError> {
        let path = format!("/v1/uploads/{}", part.address);
        let length = (LENGTH, part.len.to_string());
        let (mut size, mut persistence) = (FIRST_PIECE, Persistence::new(self.patience, self.node));
        let mut known = None;
        loop {
            let offset = match known.take() {
                Some(offset) => offset,
                None => match self.offset(&path, &length).await {
                    Ok(offset) => offset,
                    Err(error) => {
                        self.endure(&mut persistence, error).await?;
                        continue;
                    }
                },
            };
            if offset >= part.len {
                return Ok(());
            }
            let end = (offset + size).min(part.len);
            let piece = content.slice(offset as usize..end as usize);
            let headers = [length.clone(), (OFFSET, offset.to_string())];
            let begun = Instant::now();
            match self.signed(Method::PATCH, &path, &headers, piece).await {
                Ok(()) => {
                    persistence.succeeded();
                    known = Some(end);
                    size = if begun.elapsed() < PIECE_TIME { size * 2 } else { size / 2 };
                }
                Err(error) => {
                    size /= 2;
                    self.endure(&mut persistence, error).await?;
                }
            }
            size = size.clamp(FIRST_PIECE / 4, CHUNK_BYTES);
        }
    }

    async fn offset(&self, path: &str, length: &(&str, String)) -> Result<u64, ChannelError> {
        let mut request = plain(Method::HEAD, path);
        let value = length.1.parse().expect("a number is plain text");
        request.headers_mut().insert(LENGTH, value);
        let mut signer = self.signer.lock().await;
        let answer = signer.channel.request(request, Duration::ZERO).await?;
        let offset = answer.header(OFFSET);
        answer.whole().await?;
        offset.ok_or_else(|| ChannelError::Answer("it does not say how much has arrived".to_owned()))
    }

    /// A signed request, until it is answered for good.
    async fn persist(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<(), ChannelError> {
        let mut persistence = Persistence::new(self.patience, self.node);
        loop {
            match self.signed(method.clone(), path, headers, body.clone()).await {
                Err(error) if error.problem().is_some_and(|problem| problem.error == "missing-content") => {
                    return Err(error);
                }
                Err(error) => self.endure(&mut persistence, error).await?,
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn signed(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<(), ChannelError> {
        let mut signer = self.signer.lock().await;
        let answer = self.sign_and_send(&mut signer, method, path, headers, body).await?;
        answer.whole().await.map(drop)
    }

    /// Sign a request and send it; with a new number where an earlier one is ahead.
    async fn sign_and_send<'a>(
        &self,
        signer: &'a mut Signer,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Answer<'a>, ChannelError> {
        let Signer { channel, sequence } = signer;
        *sequence += 1;
        let mut request = plain(method.clone(), path);
        let signature = self.identity().sign(method.as_str(), path, &body, *sequence);
        let own = [(SEQUENCE, sequence.to_string()), (SIGNATURE, signature)];
        for (name, value) in headers.iter().chain(&own) {
            request.headers_mut().insert(*name, value.parse().expect("headers are plain text"));
        }
        *request.body_mut() = Full::new(body);
        let answer = channel.request(request, Duration::ZERO).await;
        if let Err(error) = &answer
            && let Some(seen) = error.problem().and_then(|problem| problem.sequence)
        {
            *sequence = seen.max(*sequence);
        }
        answer
    }

    // ---- Identity

    /// Renew the certificate when it ages, for ever.
    pub async fn renew(&self) -> Result<(), ChannelError> {
        loop {
            tokio::time::sleep(RENEWAL.min(Duration::from_secs(1 + self.identity().card.lifetime / 10)))
                .await;
            if self.identity().card.is_ageing()
                && let Err(error) = self.renew_now().await
            {
                self.tell(DeviceNews::Trouble { what: error.to_string(), again: RENEWAL });
            }
        }
    }

    async fn renew_now(&self) -> Result<(), ChannelError> {
        let wrong = |error: &dyn std::fmt::Display| ChannelError::Answer(error.to_string());
        let csr = self.wallet.request().map_err(|error| wrong(&error))?;
        let body = serde_json::to_vec(&RenewRequest { csr }).expect("a request is plain data");
        let mut signer = self.signer.lock().await;
        let answer = self.sign_and_send(&mut signer, Method::POST, "/v1/renew", &[], body.into()).await?;
        let server_now = answer.header(TIME).unwrap_or_default();
        let enrolled: Enrolled =
            serde_json::from_slice(&answer.whole().await?).map_err(|error| wrong(&error))?;
        let card = self.identity().card.clone();
        let authority = card.authority().ok_or_else(|| wrong(&"its authority is lost"))?;
        let card = self.wallet.keep(&card.server, &authority, enrolled, server_now);
        let identity = card.and_then(|card| self.wallet.identity(card)).map_err(|error| wrong(&error))?;
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
        signer.channel = self.channel();
        Ok(())
    }
}

/// A request without a body.
pub fn plain(method: Method, path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", SERVER_NAME);
    request.body(Full::default()).expect("paths and headers are plain text")
}

fn next_envelope(body: &mut Bytes) -> Result<Envelope, CodecError> {
    let len = u32::from_le_bytes(take(body)?) as usize;
    if len > body.len() {
        return Err(CodecError(format!("{len} bytes announced, {} there", body.len())));
    }
    Envelope::from_bytes(body.split_to(len))
}

/// Whether the server says that the certificate has expired.
pub fn is_expired(error: &ChannelError) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let tls = tls.or_else(|| error.downcast_ref::<rustls::Error>());
        let expired = rustls::AlertDescription::CertificateExpired;
        if tls.is_some_and(|tls| *tls == rustls::Error::AlertReceived(expired)) {
            return true;
        }
        next = error.source();
    }
    false
}
