//! Contents that stand in files of the server's own and are no message: the model, piece by piece.

use crate::protocol::Address;
use axum::body::Body;
use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Where a content stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    pub offset: u64,
    pub len: u64,
}

/// Contents by address, for every device of the run. Nothing is held in memory: a piece is read as it is sent.
#[derive(Clone, Debug, Default)]
pub struct Shelf(Arc<BTreeMap<Address, Place>>);

/// Bytes read at a time.
const READ: u64 = 64 << 10;
/// Reads that may wait for a slow connection.
const AHEAD: usize = 2;

impl Shelf {
    pub fn get(&self, address: &Address) -> Option<&Place> {
        self.0.get(address)
    }
}

impl FromIterator<(Address, Place)> for Shelf {
    fn from_iter<T: IntoIterator<Item = (Address, Place)>>(places: T) -> Shelf {
        Shelf(Arc::new(places.into_iter().collect()))
    }
}

impl Place {
    /// The hash of what stands here.
    pub fn address(&self) -> io::Result<Address> {
        let (mut file, mut hash) = (self.open(0..self.len)?, blake3::Hasher::new());
        let hashed = io::copy(&mut file, &mut hash)?;
        if hashed != self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Address(*hash.finalize().as_bytes()))
    }

    fn open(&self, span: Range<u64>) -> io::Result<io::Take<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset + span.start))?;
        Ok(file.take(span.end - span.start))
    }

    /// These of its bytes, read as they are sent.
    pub fn stream(&self, span: Range<u64>) -> io::Result<Body> {
        let (sender, body) = Channel::<Bytes, io::Error>::new(AHEAD);
        tokio::spawn(send(self.open(span)?, sender));
        Ok(Body::new(body))
    }
}

/// Send until the end, or until nobody listens.
async fn send(mut file: io::Take<File>, mut sender: Sender<Bytes, io::Error>) {
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::with_capacity(READ as usize);
            let read = file.by_ref().take(READ).read_to_end(&mut bytes);
            (file, read.map(|_| bytes))
        });
        let Ok((rest, read)) = read.await else { return };
        file = rest;
        let sent = match read {
            Ok(bytes) if bytes.is_empty() => return,
            Ok(bytes) => sender.send_data(bytes.into()).await,
            Err(error) => return sender.abort(error),
        };
        if sent.is_err() {
            return;
        }
    }
}
