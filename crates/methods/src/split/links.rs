//! What a device and its link do now, as far as the server can tell: from how long answers take, and how much
//! of that the device says it computed.

use super::Terms;
use super::seats::{Planner, Times};
use base::Time;
use federation::Member;
use serde::{Deserialize, Serialize};

/// An answer counts half as much as the one after it.
const FADING: f64 = 0.5;
/// Nothing is believed to be slower or faster than its profile by more than this factor.
const WIDEST: f64 = 100.0;
/// So many answers are remembered.
const REMEMBERED: usize = 8;

/// How a device does, in the round under way and before.
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

/// What came back.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Came {
    pub bytes: u64,
    /// Tokens of its batch.
    pub rows: u64,
    /// Seconds that the device computed, as it says.
    pub own: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Answer {
    seconds: f64,
    sent: Sent,
    came: Came,
}

impl Observed {
    /// The device was told to go on.
    pub fn told(&mut self, now: Time, sent: Sent) {
        self.waiting = Some((now, sent));
    }

    /// It answered.
    pub fn answered(&mut self, now: Time, came: Came) {
        let Some((since, sent)) = self.waiting.take() else { return };
        if self.answers.len() == REMEMBERED {
            self.answers.remove(0);
        }
        let seconds = now.seconds() - since.seconds();
        self.answers.push(Answer { seconds, sent, came });
    }

    /// What it did not answer says nothing.
    pub fn forget(&mut self) {
        self.waiting = None;
    }
}

/// The device with its speed and its link as they were last seen; both directions of the link are taken to
/// have changed alike.
pub fn seen(planner: &Planner, member: &Member, observed: Option<&Observed>) -> Member {
    let (mut computing, mut link) = (Slower::default(), Slower::default());
    for (age, answer) in observed.iter().flat_map(|observed| observed.answers.iter().rev()).enumerate() {
        let Answer { seconds, sent, came } = answer;
        let Times { forward, backward, .. } = planner.times(&sent.terms, member);
        let share = came.rows as f64 / planner.rows().max(1) as f64;
        let expected = share * (forward + if sent.in_the_middle { backward } else { 0.0 });
        let nominal =
            sent.bytes as f64 / member.down_bytes_per_s + came.bytes as f64 / member.up_bytes_per_s;
        let (own, weight) = (came.own.min(*seconds), FADING.powi(age as i32));
        computing.add(own / expected, weight);
        link.add((seconds - own) / nominal, weight);
    }
    Member {
        flops_per_s: member.flops_per_s / computing.mean(),
        up_bytes_per_s: member.up_bytes_per_s / link.mean(),
        down_bytes_per_s: member.down_bytes_per_s / link.mean(),
        ..member.clone()
    }
}

/// A geometric mean of how many times slower something is than it should be.
#[derive(Default)]
struct Slower {
    sum: f64,
    weights: f64,
}

impl Slower {
    fn add(&mut self, times: f64, weight: f64) {
        if times.is_finite() {
            self.sum += weight * times.clamp(1.0 / WIDEST, WIDEST).ln();
            self.weights += weight;
        }
    }

    fn mean(&self) -> f64 {
        if self.weights > 0.0 { (self.sum / self.weights).exp() } else { 1.0 }
    }
}
