//! Once and in order: numbered, acknowledged and repeated letters between two nodes.
//!
//! Drivers lose, double, delay and reorder packets. A [`Link`] is one node's end of the conversation with
//! one peer: it numbers what it posts, keeps it until it is acknowledged, repeats the oldest letter when
//! its time is up, and hands over what arrives once and in order.
//!
//! **When to repeat** depends on size and on measured progress, not on a constant. A letter is expected
//! to be acknowledged after one second plus the bytes in flight over the link's declared rate, times
//! `slack`; it is repeated after twice that, then after twice as long each time (64 times at most).
//! `slack` is learnt as TCP learns its round-trip time: the largest observed ratio of real to expected
//! time, forgotten slowly. So 758 MB over 10 Mbit/s is first repeated after 20 minutes where it should
//! take 10, and a link that turns out ten times slower than declared is not flooded with copies. Only the
//! head of the queue is repeated: what came after it waits in the peer's buffer.
//!
//! **Acknowledgements** are cumulative and ride on data; a bare one is sent only when nothing else goes
//! out in the same turn. **A floor** travels with each letter: what the sender has given up (a round that
//! ended without the peer), so that the receiver does not wait for it. **A life** is the number of the
//! storage a device writes to: one that lost its storage begins a fresh link with a larger number, and
//! packets of the former life are ignored. **A chain** of hashes over all letters posted finds the storage
//! that was put back to an earlier state, and would use numbers a second time for other letters.

use crate::Effects;
use crate::frame::{Frame, Letter};
use base::{Node, Time};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Letters in flight at once, and letters kept that arrived before their turn.
const WINDOW: usize = 32;
/// Bytes kept that arrived before their turn; the rest is dropped and will be repeated.
const EARLY_BYTES: u64 = 64 << 20;
/// Expected time of an empty letter's round trip, in seconds.
const ROUND_TRIP_S: f64 = 1.0;
/// A letter is repeated after this many times its expected time.
const PATIENCE: f64 = 2.0;
/// Neither slack nor the doubling of patience goes beyond this factor.
const SLACK_LIMIT: f64 = 64.0;
/// Numbers beyond this are no count of letters but an attack on arithmetic.
const SEQ_LIMIT: u64 = 1 << 62;

/// One node's end of a numbered conversation.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Link {
    pub life: u64,
    /// Declared speed in the direction we send, in bytes per second.
    rate: f64,
    slack: f64,
    next_seq: u64,
    /// The chain of all letters posted.
    chain_out: u64,
    outbox: VecDeque<Posted>,
    /// How many letters at the outbox's front are on their way, and their bytes.
    flying: usize,
    flying_bytes: u64,
    next_in: u64,
    /// The chain of all letters received; unknown after a gap of letters that were given up.
    chain_in: Option<u64>,
    /// Letters that arrived before their turn, with their chains.
    early: BTreeMap<u64, (u64, Letter)>,
    early_bytes: u64,
    owes_ack: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Posted {
    seq: u64,
    chain: u64,
    letter: Letter,
    sent: Time,
    /// Expected seconds until its acknowledgement, slack aside.
    expected_s: f64,
    due: Time,
    repeats: u32,
}

/// A peer broke the rules of the link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Breach(pub &'static str);

impl Link {
    pub fn new(life: u64, rate: f64) -> Link {
        Link {
            life,
            rate: rate.max(1.0),
            slack: 1.0,
            next_seq: 0,
            chain_out: 0,
            outbox: VecDeque::new(),
            flying: 0,
            flying_bytes: 0,
            next_in: 0,
            chain_in: Some(0),
            early: BTreeMap::new(),
            early_bytes: 0,
            owes_ack: false,
        }
    }

    /// Queue a letter; it leaves with the next [`flush`](Link::flush).
    pub fn post(&mut self, letter: Letter) {
        let (seq, chain) = (self.next_seq, self.chain_out);
        self.next_seq += 1;
        self.chain_out = letter.chain(chain);
        self.outbox.push_back(Posted {
            seq,
            chain,
            letter,
            sent: Time::ZERO,
            expected_s: 0.0,
            due: Time::ZERO,
            repeats: 0,
        });
    }

    /// Send what is queued and fits the window, or else the acknowledgement that is owed.
    pub fn flush(&mut self, now: Time, to: Node, fx: &mut Effects) {
        while self.flying < self.outbox.len().min(WINDOW) {
            let index = self.flying;
            let posted = &mut self.outbox[index];
            self.flying += 1;
            self.flying_bytes += posted.letter.wire_len();
            posted.sent = now;
            posted.expected_s = ROUND_TRIP_S + self.flying_bytes as f64 / self.rate;
            posted.due = now.after(PATIENCE * posted.expected_s * self.slack);
            self.send(index, to, fx);
        }
        if self.owes_ack {
            self.owes_ack = false;
            fx.sends.push((to, Frame::Ack { life: self.life, ack: self.next_in }.seal()));
        }
    }

    /// Repeat the oldest letter if its time is up.
    pub fn repeat(&mut self, now: Time, to: Node, fx: &mut Effects) {
        let Some(head) = self.outbox.front_mut().filter(|_| self.flying > 0) else { return };
        if now < head.due {
            return;
        }
        head.repeats += 1;
        let doubled = (self.slack * 2f64.powi(head.repeats.min(30) as i32)).min(SLACK_LIMIT);
        head.due = now.after(PATIENCE * head.expected_s * doubled);
        self.send(0, to, fx);
    }

    fn send(&mut self, index: usize, to: Node, fx: &mut Effects) {
        self.owes_ack = false;
        let floor = self.outbox[0].seq;
        let Posted { seq, chain, letter, .. } = &self.outbox[index];
        let (seq, chain, letter) = (*seq, *chain, letter.clone());
        let data = Frame::Data { life: self.life, floor, seq, chain, ack: self.next_in, letter };
        fx.sends.push((to, data.seal()));
    }

    /// This process began anew, and what the former one had handed to the network may have gone with it: every letter on
    /// its way is due at the next instant, however patient its size would be. Not in this turn, whose effects are
    /// those of the past and are dropped.
    pub fn begin_anew(&mut self, now: Time) {
        let due = Time(now.0.saturating_add(1));
        self.outbox.iter_mut().take(self.flying).for_each(|posted| posted.due = due);
    }

    /// When the oldest letter is to be repeated.
    pub fn due(&self) -> Option<Time> {
        self.outbox.front().filter(|_| self.flying > 0).map(|head| head.due)
    }

    /// Nothing posted is waiting for its acknowledgement.
    pub fn is_idle(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Give up what is queued or on its way: the round it belongs to goes on without the peer.
    pub fn abandon(&mut self) {
        self.outbox.clear();
        self.flying = 0;
        self.flying_bytes = 0;
    }

    /// The peer has received everything before `ack`.
    pub fn acknowledge(&mut self, now: Time, ack: u64) -> Result<(), Breach> {
        if ack > self.next_seq {
            return Err(Breach("it acknowledges what was never sent"));
        }
        while let Some(head) = self.outbox.front().filter(|head| head.seq < ack) {
            if self.flying == 0 {
                return Err(Breach("it acknowledges what was never sent"));
            }
            let took = (now.seconds() - head.sent.seconds()) / head.expected_s;
            self.slack = learn(self.slack, took, head.repeats);
            self.flying -= 1;
            self.flying_bytes -= head.letter.wire_len();
            self.outbox.pop_front();
        }
        Ok(())
    }

    /// Take letter `seq`; what can be handed over now, in order.
    pub fn receive(
        &mut self,
        floor: u64,
        seq: u64,
        chain: u64,
        letter: Letter,
    ) -> Result<Vec<Letter>, Breach> {
        if floor > seq || seq > SEQ_LIMIT {
            return Err(Breach("its letters are numbered out of range"));
        }
        self.owes_ack = true;
        if floor > self.next_in {
            (self.next_in, self.chain_in) = (floor, None);
            self.early = self.early.split_off(&floor);
            self.count_early();
        }
        let ahead = seq.checked_sub(self.next_in);
        let fits = ahead.is_some_and(|ahead| ahead < WINDOW as u64);
        let small = ahead == Some(0) || self.early_bytes + letter.wire_len() <= EARLY_BYTES;
        if fits && small {
            self.early.insert(seq, (chain, letter));
        }
        let mut ready = Vec::new();
        while let Some((chain, letter)) = self.early.remove(&self.next_in) {
            if self.chain_in.is_some_and(|known| known != chain) {
                return Err(Breach("it numbers other letters as it did before"));
            }
            self.chain_in = Some(letter.chain(chain));
            self.next_in += 1;
            ready.push(letter);
        }
        self.count_early();
        Ok(ready)
    }

    fn count_early(&mut self) {
        self.early_bytes = self.early.values().map(|(_, letter)| letter.wire_len()).sum();
    }
}

/// Slack after a letter took `took` times its expected time. The acknowledgement of a repeated letter may
/// be that of an earlier copy (Karn's ambiguity), so it can only say "slower", and at most double.
fn learn(slack: f64, took: f64, repeats: u32) -> f64 {
    let took = took.clamp(1.0, SLACK_LIMIT);
    match (took > slack, repeats) {
        (true, 0) => took,
        (true, _) => took.min(2.0 * slack),
        (false, 0) => slack + (took - slack) / 8.0,
        (false, _) => slack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Blob, SERVER};

    #[test]
    fn a_new_process_repeats_a_large_letter_at_once_and_then_is_as_patient_as_before() {
        let (mut link, mut fx) = (Link::new(0, 1e6), Effects::default());
        link.post(letter(1, 100_000_000));
        link.post(letter(1, 1));
        link.flush(Time::ZERO, SERVER, &mut fx);
        let now = Time::ZERO.after(7.0);
        link.repeat(now, SERVER, &mut fx);
        assert_eq!(fx.sends.len(), 2, "its time is not up");
        link.begin_anew(now);
        link.repeat(now, SERVER, &mut fx);
        assert_eq!(fx.sends.len(), 2, "effects of this turn are dropped");
        let next = link.due().unwrap();
        link.repeat(next, SERVER, &mut fx);
        assert_eq!(fx.sends.len(), 3);
        assert!(link.due().unwrap().seconds() > 200.0);
        // What flew behind it is due as soon as it is the oldest.
        link.acknowledge(next, 1).unwrap();
        assert_eq!(link.due(), Some(next));
    }

    fn letter(round: u32, bytes: usize) -> Letter {
        Letter::said(round, &Blob(vec![0; bytes].into()))
    }

    /// Post one letter now, acknowledge it `took` seconds later, and say how many copies left.
    fn copies(link: &mut Link, now: &mut f64, bytes: usize, took: f64) -> usize {
        let (mut fx, end) = (Effects::default(), *now + took);
        link.post(letter(1, bytes));
        link.flush(Time::ZERO.after(*now), SERVER, &mut fx);
        while let Some(due) = link.due().filter(|due| due.seconds() < end) {
            link.repeat(due, SERVER, &mut fx);
        }
        link.acknowledge(Time::ZERO.after(end), link.next_seq).unwrap();
        *now = end;
        fx.sends.len()
    }

    #[test]
    fn repeats_follow_size_and_measured_speed() {
        let payload = 758_000_000;
        let (mut link, mut now) = (Link::new(0, 1.25e6), 0.0);
        assert_eq!(copies(&mut link, &mut now, payload, 607.0), 1, "10 Mbit/s as declared");
        assert_eq!(copies(&mut link, &mut now, 10, 0.2), 1);
        let slow: Vec<usize> = (0..4).map(|_| copies(&mut link, &mut now, payload, 3035.0)).collect();
        assert_eq!(slow, [2, 2, 1, 1], "five times slower than declared");
        let mut dead = Link::new(0, 1e6);
        let hour = copies(&mut dead, &mut 0.0, 10, 3600.0);
        assert!((8..40).contains(&hour), "{hour} copies to a peer that is silent for an hour");
    }

    #[test]
    fn acknowledgements_ride_on_data_and_come_alone_only_without_it() {
        let (mut link, mut fx) = (Link::new(0, 1e6), Effects::default());
        link.flush(Time::ZERO, SERVER, &mut fx);
        assert!(fx.sends.is_empty());
        assert_eq!(link.receive(0, 0, 0, letter(1, 1)).unwrap().len(), 1);
        link.post(letter(1, 1));
        link.flush(Time::ZERO, SERVER, &mut fx);
        assert_eq!(fx.sends.len(), 1);
        assert!(matches!(Frame::open(&fx.sends[0].1), Ok(Frame::Data { ack: 1, .. })));
        assert!(link.receive(0, 0, 0, letter(1, 1)).unwrap().is_empty(), "a double is acknowledged again");
        link.flush(Time::ZERO, SERVER, &mut fx);
        assert!(matches!(Frame::open(&fx.sends[1].1), Ok(Frame::Ack { ack: 1, .. })));
    }

    #[test]
    fn what_was_given_up_is_not_waited_for() {
        let (mut sender, mut receiver, mut fx) = (Link::new(0, 1e6), Link::new(0, 1e6), Effects::default());
        sender.post(letter(1, 1));
        sender.post(letter(1, 1));
        sender.flush(Time::ZERO, SERVER, &mut fx);
        sender.abandon();
        sender.post(letter(2, 1));
        sender.flush(Time::ZERO, SERVER, &mut fx);
        let Ok(Frame::Data { floor, seq, chain, letter, .. }) = Frame::open(&fx.sends[2].1) else {
            panic!()
        };
        assert_eq!((floor, seq), (2, 2));
        assert!(receiver.receive(0, 1, 9, letter.clone()).unwrap().is_empty());
        assert_eq!(receiver.receive(floor, seq, chain, letter.clone()).unwrap(), [letter]);
        assert!(receiver.early.is_empty());
    }

    #[test]
    fn early_letters_are_kept_within_bounds_and_handed_over_in_order() {
        let mut link = Link::new(0, 1e6);
        let mut chains = vec![0, letter(1, 1).chain(0)];
        for seq in 1..1000 {
            chains.push(letter(1, 1 << 20).chain(chains[seq]));
        }
        for seq in (1..1000).rev() {
            assert!(link.receive(0, seq, chains[seq as usize], letter(1, 1 << 20)).unwrap().is_empty());
        }
        assert!(link.early.len() < WINDOW && link.early_bytes <= EARLY_BYTES);
        let kept = link.early.len();
        assert_eq!(link.receive(0, 0, 0, letter(1, 1)).unwrap().len(), 1 + kept);
        assert!(link.early.is_empty() && link.early_bytes == 0);
        let big = letter(1, EARLY_BYTES as usize + 1);
        assert!(link.receive(0, link.next_in + 1, 0, big).unwrap().is_empty() && link.early.is_empty());
    }

    #[test]
    fn a_storage_put_back_is_found_before_its_letters_are_believed() {
        let mut receiver = Link::new(0, 1e6);
        let chain = letter(1, 1).chain(0);
        receiver.receive(0, 0, 0, letter(1, 1)).unwrap();
        receiver.receive(0, 1, chain, letter(1, 2)).unwrap();
        // The sender forgets its second letter, posts two others, and only the last is new by number.
        let other = letter(2, 1).chain(chain);
        assert!(receiver.receive(0, 1, chain, letter(2, 1)).unwrap().is_empty());
        assert!(receiver.receive(0, 2, other, letter(2, 2)).is_err());
    }

    #[test]
    fn numbers_out_of_range_are_a_breach() {
        let mut link = Link::new(0, 1e6);
        link.post(letter(1, 1));
        assert!(link.acknowledge(Time::ZERO, 1).is_err(), "never sent");
        assert!(link.acknowledge(Time::ZERO, u64::MAX).is_err());
        assert!(link.receive(5, 4, 0, letter(1, 1)).is_err());
        assert!(link.receive(0, u64::MAX, 0, letter(1, 1)).is_err());
    }
}
