//! What waits for devices to come and fetch it.

use crate::envelope::{Beside, Envelope, Hashes, Packed};
use crate::protocol::{Address, BODY_BYTES};
use base::{Node, Packet};
use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Messages kept for a device that does not fetch them; its link repeats what is dropped.
const KEPT: usize = 64;

/// One queue a device. It lives in memory only: after a restart, links repeat what was not acknowledged.
pub struct Outbox {
    lanes: Vec<Lane>,
    /// Names this life of the server in cursors. At random: a process may begin again within a second, in a
    /// container under the same number, and a device that came with the cursor of the former life would be
    /// told nothing any more.
    life: u64,
}

#[derive(Default)]
struct Lane {
    queue: Mutex<Queue>,
    bell: Notify,
}

#[derive(Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    number: u64,
    envelope: Bytes,
    beside: Vec<(Beside, Bytes)>,
    since: Instant,
}

/// Up to which message a device has kept what it fetched: `<life>.<number>` in hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    life: u64,
    number: u64,
}

impl Cursor {
    pub fn parse(text: &str) -> Option<Cursor> {
        let (life, number) = text.split_once('.')?;
        let digits = |text| u64::from_str_radix(text, 16).ok();
        Some(Cursor { life: digits(life)?, number: digits(number)? })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}.{:x}", self.life, self.number)
    }
}

/// What a poll brings.
pub struct Mailbag {
    /// Each envelope with its length before it (four bytes, little endian).
    pub body: Vec<u8>,
    pub cursor: Cursor,
    /// How long the oldest of them has waited while its device was there.
    pub waited: Duration,
    pub messages: u64,
}

impl Outbox {
    /// Queues for devices 1 to `devices`.
    pub fn new(devices: u32) -> Outbox {
        let mut life = [0; 8];
        SystemRandom::new().fill(&mut life).expect("the system has randomness");
        let lanes = (0..devices).map(|_| Lane::default()).collect();
        Outbox { lanes, life: u64::from_le_bytes(life) }
    }

    fn lane(&self, node: Node) -> Option<&Lane> {
        self.lanes.get((node.0 as usize).checked_sub(1)?)
    }

    /// Queue messages; each content that several carry is hashed once.
    pub fn post(&self, packets: Vec<(Node, Packet)>) {
        let mut hashes = Hashes::default();
        for (to, packet) in packets {
            let Some(lane) = self.lane(to) else { continue };
            let Packed { envelope, beside } = Envelope::pack_knowing(&packet, &mut hashes);
            let envelope = Bytes::from(envelope.to_bytes());
            lane.post(envelope, beside);
        }
    }

    /// What waits for `node`, once there is something or `patience` is over; what it has kept is forgotten.
    pub async fn fetch(&self, node: Node, kept: Cursor, patience: Duration) -> Option<Mailbag> {
        let lane = self.lane(node)?;
        let kept = if kept.life == self.life { kept.number } else { 0 };
        let begun = Instant::now();
        loop {
            let rung = lane.bell.notified();
            if let Some(bag) = lane.take(self.life, kept, begun) {
                return Some(bag);
            }
            timeout(patience.checked_sub(begun.elapsed())?, rung).await.ok()?;
        }
    }

    /// A content that a message waiting for `node` names.
    pub fn content(&self, node: Node, address: Address) -> Option<Bytes> {
        let queue = self.lane(node)?.lock();
        let mut named = queue.waiting.iter().flat_map(|waiting| &waiting.beside);
        named.find(|(part, _)| part.address == address).map(|(_, content)| content.clone())
    }

    /// How many messages wait for `node`.
    pub fn len(&self, node: Node) -> usize {
        self.lane(node).map_or(0, |lane| lane.lock().waiting.len())
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, envelope: Bytes, beside: Vec<(Beside, Bytes)>) {
        let mut queue = self.lock();
        if queue.waiting.iter().any(|waiting| waiting.envelope == envelope) {
            return;
        }
        queue.next += 1;
        let waiting = Waiting { number: queue.next, envelope, beside, since: Instant::now() };
        queue.waiting.push_back(waiting);
        if queue.waiting.len() > KEPT {
            queue.waiting.pop_front();
        }
        drop(queue);
        self.bell.notify_waiters();
    }

    fn take(&self, life: u64, kept: u64, begun: Instant) -> Option<Mailbag> {
        let mut queue = self.lock();
        while queue.waiting.front().is_some_and(|waiting| waiting.number <= kept) {
            queue.waiting.pop_front();
        }
        let oldest = queue.waiting.front()?.since;
        let (mut body, mut number, mut messages) = (Vec::new(), kept, 0);
        for waiting in &queue.waiting {
            if !body.is_empty() && body.len() + waiting.envelope.len() > BODY_BYTES {
                break;
            }
            body.extend((waiting.envelope.len() as u32).to_le_bytes());
            body.extend(&waiting.envelope);
            (number, messages) = (waiting.number, messages + 1);
        }
        let waited = oldest.max(begun).elapsed();
        Some(Mailbag { body, cursor: Cursor { life, number }, waited, messages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Blob;

    fn packet(byte: u8) -> Packet {
        Packet { body: vec![byte].into(), blobs: vec![Blob(vec![byte; 1 << 17].into())] }
    }

    #[tokio::test]
    async fn what_was_fetched_stays_until_it_is_kept() {
        let outbox = Outbox::new(2);
        outbox.post(vec![
            (Node(1), packet(1)),
            (Node(1), packet(2)),
            (Node(1), packet(1)),
            (Node(9), packet(3)),
        ]);
        let bag = outbox.fetch(Node(1), Cursor::default(), Duration::ZERO).await.unwrap();
        assert_eq!((bag.cursor.number, bag.messages), (2, 2), "doubles are dropped");
        assert_eq!(Cursor::parse(&bag.cursor.to_string()), Some(bag.cursor));
        let address = Address::of(&packet(2).blobs[0].0);
        assert!(outbox.content(Node(1), address).is_some());
        assert!(outbox.content(Node(2), address).is_none(), "it is not for that device");
        let former = Outbox::new(2);
        former.post((0..9).map(|byte| (Node(1), packet(byte))).collect());
        let stale = former.fetch(Node(1), Cursor::default(), Duration::ZERO).await.unwrap().cursor;
        assert!(outbox.fetch(Node(1), stale, Duration::ZERO).await.is_some(), "of a former life");
        assert!(outbox.fetch(Node(1), bag.cursor, Duration::ZERO).await.is_none());
        assert!(outbox.content(Node(1), address).is_none());
    }

    #[tokio::test]
    async fn a_waiting_device_hears_at_once_and_an_absent_one_is_bounded() {
        let outbox = std::sync::Arc::new(Outbox::new(1));
        let waiting = outbox.clone();
        let fetch = tokio::spawn(async move {
            waiting.fetch(Node(1), Cursor::default(), Duration::from_secs(60)).await
        });
        tokio::task::yield_now().await;
        outbox.post(vec![(Node(1), packet(1))]);
        assert!(fetch.await.unwrap().is_some());
        outbox.post((0..200).map(|byte| (Node(1), packet(byte))).collect());
        assert_eq!(outbox.len(Node(1)), KEPT);
    }
}
