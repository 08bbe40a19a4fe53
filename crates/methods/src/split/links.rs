//! What a device's link carries now, as far as the server can tell: from how long answers take.

use super::Terms;
use super::seats::{Planner, Times};
use base::Time;
use federation::Member;
use serde::{Deserialize, Serialize};

/// An answer counts half as much as the one after it.
const FADING: f64 = 0.5;
/// No link is believed to be slower or faster than its profile by more than this factor.
const WIDEST: f64 = 100.0;

/// How a device's link does, in the round under way and since.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Observed {
    /// When it was last told to go on, and from where.
    waiting: Option<(Time, Sent)>,
    /// Answers so far, the latest last.
    answers: Vec<Answer>,
}

/// What the device was told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sent {
    pub terms: Terms,
    pub bytes: u64,
    /// Whether a backward comes before the next forward.
    pub in_the_middle: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Answer {
    seconds: f64,
    sent: Sent,
    bytes: u64,
    rows: u64,
}

/// So many answers are remembered.
const REMEMBERED: usize = 8;

impl Observed {
    /// The device was told to go on.
    pub fn told(&mut self, now: Time, sent: Sent) {
        self.waiting = Some((now, sent));
    }

    /// It answered with so many bytes, for a batch of so many tokens.
    pub fn answered(&mut self, now: Time, bytes: u64, rows: u64) {
        let Some((since, sent)) = self.waiting.take() else { return };
        if self.answers.len() == REMEMBERED {
            self.answers.remove(0);
        }
        let seconds = now.seconds() - since.seconds();
        self.answers.push(Answer { seconds, sent, bytes, rows });
    }

    /// What it did not answer says nothing.
    pub fn forget(&mut self) {
        self.waiting = None;
    }
}

/// The device with its link as it was last seen. What an answer took beyond the device's own work is put
/// down to the link, both ways alike.
pub fn seen(planner: &Planner, member: &Member, observed: Option<&Observed>) -> Member {
    let (mut sum, mut weights) = (0f64, 0f64);
    for (age, answer) in observed.iter().flat_map(|observed| observed.answers.iter().rev()).enumerate() {
        let Times { forward, backward, .. } = planner.times(&answer.sent.terms, member);
        let share = answer.rows as f64 / planner.rows().max(1) as f64;
        let own = share * (forward + if answer.sent.in_the_middle { backward } else { 0.0 });
        let nominal = answer.sent.bytes as f64 / member.down_bytes_per_s
            + answer.bytes as f64 / member.up_bytes_per_s;
        let slower = ((answer.seconds - own) / nominal).clamp(1.0 / WIDEST, WIDEST);
        let weight = FADING.powi(age as i32);
        (sum, weights) = (sum + weight * slower.ln(), weights + weight);
    }
    let slower = if weights > 0.0 { (sum / weights).exp() } else { 1.0 };
    Member {
        up_bytes_per_s: member.up_bytes_per_s / slower,
        down_bytes_per_s: member.down_bytes_per_s / slower,
        ..member.clone()
    }
}
