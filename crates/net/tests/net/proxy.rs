//! A network that fails: between a device and its server, seeded, in user space.
//!
//! What is hit is a *flight*: all bytes that go one way until some go the other. A TCP stream has no message
//! that could be dropped or doubled on its own, so a fault breaks TLS, and the connection with it; which
//! request was carried out before that is what device and server must find out.

use base::{Seed, Stream};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Chances that a flight is hit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub drop: f64,
    pub delay: f64,
    pub duplicate: f64,
    pub reorder: f64,
    pub truncate: f64,
    pub corrupt: f64,
    /// Every connection is cut after so many bytes in one direction; 0 is never.
    pub cut_after: usize,
}

impl Faults {
    pub fn all(chance: f64) -> Faults {
        let faults = [chance; 6];
        let [drop, delay, duplicate, reorder, truncate, corrupt] = faults;
        Faults { drop, delay, duplicate, reorder, truncate, corrupt, cut_after: 0 }
    }
}

/// How many flights were hit.
#[derive(Default)]
pub struct Hits(AtomicU64);

impl Hits {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Forward connections to `upstream` until the process ends; where to connect instead.
pub fn start(upstream: SocketAddr, faults: Faults, seed: Seed) -> (SocketAddr, Arc<Hits>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, hits) = (listener.local_addr().unwrap(), Arc::new(Hits::default()));
    let counted = hits.clone();
    thread::spawn(move || {
        for (number, client) in (0u64..).zip(listener.incoming()) {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(upstream)) else { continue };
            let ways = [(&client, &server, "up"), (&server, &client, "down")];
            let turns = Arc::new(AtomicU64::new(u64::MAX));
            for (index, (from, to, way)) in (0..).zip(ways) {
                let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                let draw = seed.child(way, number).stream();
                let way =
                    Way { from, to, index, turns: turns.clone(), faults, draw, hits: counted.clone() };
                thread::spawn(move || way.forward());
            }
        }
    });
    (address, hits)
}

/// One direction of one connection.
struct Way {
    from: TcpStream,
    to: TcpStream,
    index: u64,
    /// Which direction's flight is under way.
    turns: Arc<AtomicU64>,
    faults: Faults,
    draw: Stream,
    hits: Arc<Hits>,
}

impl Way {
    fn forward(mut self) {
        let (mut buffer, mut passed_on) = (vec![0; 16 << 10], 0);
        while let Ok(count) = self.from.read(&mut buffer) {
            let fresh = self.turns.swap(self.index, Ordering::SeqCst) != self.index;
            let passed = if fresh {
                self.hit(&mut buffer[..count])
            } else {
                self.to.write_all(&buffer[..count]).is_ok()
            };
            passed_on += count;
            let cut = self.faults.cut_after > 0 && passed_on > self.faults.cut_after;
            if count == 0 || !passed || cut {
                break;
            }
        }
        // The other side may have gone first.
        let _ = (self.from.shutdown(Shutdown::Both), self.to.shutdown(Shutdown::Both));
    }

    /// Pass the beginning of a flight on as chance has it; `false` when the connection is to end.
    fn hit(&mut self, bytes: &mut [u8]) -> bool {
        let Faults { drop, delay, duplicate, reorder, truncate, corrupt, .. } = self.faults;
        let [drop, delay, duplicate, reorder, truncate, corrupt] =
            [drop, delay, duplicate, reorder, truncate, corrupt].map(|chance| self.draw.unit() < chance);
        let hit = drop || delay || duplicate || reorder || truncate || corrupt;
        self.hits.0.fetch_add(u64::from(hit), Ordering::SeqCst);
        if delay {
            thread::sleep(Duration::from_millis(self.draw.below(50)));
        }
        if drop || bytes.is_empty() {
            return false;
        }
        if corrupt {
            let bit = self.draw.below(bytes.len() as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if reorder {
            bytes.rotate_left(bytes.len() / 2);
        }
        let kept = if truncate { bytes.len() / 2 } else { bytes.len() };
        let copies = if duplicate { 2 } else { 1 };
        (0..copies).all(|_| self.to.write_all(&bytes[..kept]).is_ok()) && !truncate
    }
}
