//! What the network does to a message, latency, rate and loss, and what else the world does to a device: how
//! fast it computes and how much memory it has left. Each is a function of the seed, of who sends and how many
//! messages that node has sent before, and of time; never of a shared generator.

use crate::ConfigError;
use base::{Node, SERVER, Seed, Time};
use federation::Member;
use serde::{Deserialize, Serialize};

/// The `[weather]` table of a scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct WeatherConfig {
    /// Seconds from one node to the other, on top of the time the bytes take.
    pub latency: f64,
    /// The mean, in seconds, of an exponential addition to each message's latency.
    pub latency_jitter: f64,
    /// The standard deviation of a log-normal factor on each message's rate; 0 is constant.
    pub rate_jitter: f64,
    /// Each device's rate wanders over the run between its rate divided and multiplied by this
    /// factor; 1 is constant.
    pub rate_swing: f64,
    /// The chance that a message never arrives.
    pub loss: f64,
    /// That chance wanders in the same way, for each device by itself.
    pub loss_swing: f64,
    /// A device's computing speed wanders in the same way: other programs run on it, or it grows hot.
    pub speed_swing: f64,
    /// A device's memory wanders between all of it and all of it divided by this: other programs take theirs.
    /// Who is refused a job for it depends on times, as with a deadline.
    pub memory_swing: f64,
    /// Seconds for which every swing stays what it is. A transfer keeps the rate it began with, and a job its
    /// speed.
    #[serde(alias = "rate-swing-seconds")]
    pub swing_seconds: f64,
    /// Whether messages queue for the server's own link as they do for a device's.
    pub server_link: ServerLink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerLink {
    /// All devices share the server's up and down rates.
    Shared,
    /// The server's link never limits anyone.
    Unlimited,
}

impl Default for WeatherConfig {
    /// 20 ms one way, constant rates, no loss.
    fn default() -> WeatherConfig {
        WeatherConfig {
            latency: 0.02,
            latency_jitter: 0.0,
            rate_jitter: 0.0,
            rate_swing: 1.0,
            loss: 0.0,
            loss_swing: 1.0,
            speed_swing: 1.0,
            memory_swing: 1.0,
            swing_seconds: 60.0,
            server_link: ServerLink::Shared,
        }
    }
}

/// What one message meets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Passage {
    pub latency_s: f64,
    /// A factor on both ends' rates.
    pub rate: f64,
    pub lost: bool,
}

impl WeatherConfig {
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::non_negative("weather.latency", self.latency)?;
        ConfigError::non_negative("weather.latency-jitter", self.latency_jitter)?;
        ConfigError::non_negative("weather.rate-jitter", self.rate_jitter)?;
        let swings = [
            ("weather.rate-swing", self.rate_swing),
            ("weather.loss-swing", self.loss_swing),
            ("weather.speed-swing", self.speed_swing),
            ("weather.memory-swing", self.memory_swing),
        ];
        swings.iter().try_for_each(|(key, swing)| ConfigError::at_least(key, *swing, 1.0))?;
        ConfigError::at_least("weather.swing-seconds", self.swing_seconds, 1e-3)?;
        ConfigError::chance("weather.loss", self.loss)
    }

    /// What the `count`th message of `from` meets when it leaves at `now`. `device` is the device at
    /// either end: its link swings, the server's does not.
    pub fn passage(&self, seed: Seed, from: Node, count: u64, device: Node, now: Time) -> Passage {
        let mut draws = seed.child("message", u64::from(from.0)).child("nth", count).stream();
        let latency_s = self.latency + self.latency_jitter * draws.exponential();
        let place = |what| self.place(what, seed, device, now);
        let chance = self.loss * swung(self.loss_swing, || place("loss-swing"));
        let lost = draws.unit() < chance.min(MOST_LOST);
        let jitter = libm::exp(self.rate_jitter * draws.normal());
        Passage { latency_s, rate: jitter * swung(self.rate_swing, || place("swing")), lost }
    }

    /// How fast a node computes now: a factor on its speed. The server's is constant.
    pub fn speed(&self, seed: Seed, node: Node, now: Time) -> f64 {
        let swing = if node == SERVER { 1.0 } else { self.speed_swing };
        swung(swing, || self.place("speed-swing", seed, node, now))
    }

    /// How much of its memory a member has now, in bytes. The server's is constant.
    pub fn memory(&self, seed: Seed, member: &Member, now: Time) -> u64 {
        if member.node == SERVER || self.memory_swing == 1.0 {
            return member.memory_bytes;
        }
        let place = self.place("memory-swing", seed, member.node, now);
        (member.memory_bytes as f64 * libm::pow(self.memory_swing, -place)) as u64
    }

    /// When devices' memory changes next, if it ever does.
    pub fn memory_changes_after(&self, now: Time) -> Option<Time> {
        let next = (self.piece(now) + 1) as f64 * self.swing_seconds;
        (self.memory_swing > 1.0).then(|| Time::ZERO.after(next)).filter(|next| *next > now)
    }

    /// Where a swing of a device stands, in `0..1`: anew for each piece of the run.
    fn place(&self, what: &str, seed: Seed, device: Node, now: Time) -> f64 {
        seed.child(what, u64::from(device.0)).child("piece", self.piece(now)).stream().unit()
    }

    fn piece(&self, now: Time) -> u64 {
        (now.seconds() / self.swing_seconds) as u64
    }
}

/// No link is so bad that nothing ever passes.
const MOST_LOST: f64 = 0.9;

/// Log-uniform between the swing's inverse and the swing.
fn swung(swing: f64, place: impl Fn() -> f64) -> f64 {
    if swing == 1.0 { 1.0 } else { libm::pow(swing, 2.0 * place() - 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_configuration_and_nothing_else() {
        let weather = WeatherConfig {
            latency: 0.1,
            latency_jitter: 0.05,
            rate_swing: 4.0,
            loss: 0.2,
            ..WeatherConfig::default()
        };
        let pass = |count| weather.passage(Seed(1), Node(3), count, Node(3), Time(0));
        assert_eq!(pass(7), pass(7));
        let all: Vec<Passage> = (0..20_000).map(pass).collect();
        let mean = |f: &dyn Fn(&Passage) -> f64| all.iter().map(f).sum::<f64>() / all.len() as f64;
        assert!((mean(&|p| p.latency_s) - 0.15).abs() < 0.002);
        assert!((mean(&|p| f64::from(u8::from(p.lost))) - 0.2).abs() < 0.01);
        assert!(all.iter().all(|p| p.rate == all[0].rate && (0.25..=4.0).contains(&p.rate)));
        let later = weather.passage(Seed(1), Node(3), 0, Node(3), Time::ZERO.after(61.0));
        assert_ne!(later.rate, all[0].rate, "the rate wanders over the run");
    }

    #[test]
    fn devices_wander_each_by_itself_and_the_server_does_not() {
        let weather = WeatherConfig {
            loss: 0.1,
            loss_swing: 5.0,
            speed_swing: 2.0,
            memory_swing: 4.0,
            ..WeatherConfig::default()
        };
        let member = |node| Member {
            node,
            class: String::new(),
            flops_per_s: 1.0,
            memory_bytes: 1000,
            up_bytes_per_s: 1.0,
            down_bytes_per_s: 1.0,
            examples: 1,
        };
        let later = |piece: u32| Time::ZERO.after(60.0 * f64::from(piece) + 1.0);
        let memory = |node, piece| weather.memory(Seed(1), &member(Node(node)), later(piece));
        let speed = |node, piece| weather.speed(Seed(1), Node(node), later(piece));
        let lost = |node, piece| {
            let lost = |n| weather.passage(Seed(1), Node(node), n, Node(node), later(piece)).lost;
            (0..2000).filter(|&n| lost(n)).count()
        };
        for (node, piece) in (1..5).flat_map(|node| (0..20).map(move |piece| (node, piece))) {
            assert!(
                (250..=1000).contains(&memory(node, piece)) && (0.5..=2.0).contains(&speed(node, piece))
            );
        }
        assert!((memory(0, 3), speed(0, 3)) == (1000, 1.0));
        assert!(memory(1, 0) != memory(1, 1) && memory(1, 0) != memory(2, 0) && speed(1, 0) != speed(1, 1));
        let all: Vec<usize> = (0..20).map(|piece| lost(1, piece)).collect();
        assert!(all.iter().max().unwrap() > &(4 * all.iter().min().unwrap()), "{all:?}");
        let change = weather.memory_changes_after(later(2)).unwrap();
        assert_eq!(
            (change, weather.memory_changes_after(change)),
            (Time::ZERO.after(180.0), Some(Time::ZERO.after(240.0)))
        );
        assert_eq!(WeatherConfig::default().memory_changes_after(Time::ZERO), None);
    }

    #[test]
    fn a_wrong_figure_names_its_key() {
        let weather = WeatherConfig { loss: 1.0, ..WeatherConfig::default() };
        assert!(weather.check().unwrap_err().to_string().contains("weather.loss"));
    }
}
