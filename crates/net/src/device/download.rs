//! Contents from the server, into files; what was cut off goes on where it was.

use crate::blobs::Partial;
use crate::device::channel::{Channel, ChannelError, Url};
use crate::device::courier::plain;
use crate::device::persistence::Patience;
use crate::device::{DeviceNews, JoinError, persevere, single};
use crate::envelope::Beside;
use crate::identity::Identity;
use base::Node;
use hyper::Method;
use std::fmt::Display;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Bring the next bytes of a content into `partial`, `most` of them if there are so many.
pub async fn download(
    channel: &mut Channel,
    part: Beside,
    partial: &Partial,
    most: u64,
) -> Result<(), ChannelError> {
    let offset = partial.offset();
    if offset >= part.len {
        return Ok(());
    }
    let last = part.len.min(offset.saturating_add(most)) - 1;
    let mut request = plain(Method::GET, &format!("/v1/blobs/{}", part.address));
    let range = format!("bytes={offset}-{last}").parse().expect("a range is plain text");
    request.headers_mut().insert("range", range);
    let answer = channel.request(request, Duration::ZERO).await?;
    let mut piece = partial.append(offset).map_err(failed)?;
    let read = answer
        .each(|bytes| match piece.write(bytes) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ChannelError::Answer("it is longer than was said".to_owned())),
            Err(error) => Err(failed(error)),
        })
        .await;
    // What came before a cut is kept, and the next attempt goes on from there.
    piece.keep().map_err(failed)?;
    read
}

/// For `map_err`: something about files went wrong.
pub fn failed(error: impl Display) -> ChannelError {
    ChannelError::Answer(error.to_string())
}

pub fn wrong_content() -> ChannelError {
    ChannelError::Answer("the content is not the one of its address".to_owned())
}

/// Fetches contents that no message names, before the device takes part.
pub struct Fetcher {
    runtime: Runtime,
    channel: Channel,
    patience: Patience,
    node: Node,
}

/// Bytes asked for at once: an interrupt waits for no more.
const AT_ONCE: u64 = 4 << 20;

impl Fetcher {
    pub fn new(identity: &Identity, url: &Url, patience: Patience) -> Result<Fetcher, JoinError> {
        let channel = Channel::new(url.clone(), identity.tls.clone(), patience.stall);
        Ok(Fetcher { runtime: single()?, channel, patience, node: identity.card.node })
    }

    /// Fetch a content into the file `path`, which bears that name once it is whole. What an earlier process
    /// has fetched of it is not fetched again.
    pub fn fetch(
        &mut self,
        part: Beside,
        path: &Path,
        news: &mut dyn FnMut(DeviceNews),
        interrupt: &AtomicBool,
    ) -> Result<(), JoinError> {
        let partial = Partial::new(path.with_added_extension("partial"), part);
        let Fetcher { runtime, channel, patience, node } = self;
        loop {
            let whole = persevere((*patience, *node), news, interrupt, || {
                runtime.block_on(download(channel, part, &partial, AT_ONCE))?;
                if partial.offset() < part.len {
                    return Ok(false);
                }
                if partial.settle(path).map_err(failed)? { Ok(true) } else { Err(wrong_content()) }
            })?;
            if whole {
                return Ok(());
            }
        }
    }
}
