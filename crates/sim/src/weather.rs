//! What the network does to a message: latency, rate and loss, each a function of the seed, of who
//! sends, and of how many messages that node has sent before; never of a shared generator.

use crate::ConfigError;
use base::{Node, Seed, Time};
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
    /// Seconds for which a device's swing stays what it is. A transfer keeps the rate it began with.
    pub rate_swing_seconds: f64,
    /// The chance that a message never arrives.
    pub loss: f64,
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
            rate_swing_seconds: 60.0,
            loss: 0.0,
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
        ConfigError::at_least("weather.rate-swing", self.rate_swing, 1.0)?;
        ConfigError::at_least("weather.rate-swing-seconds", self.rate_swing_seconds, 1e-3)?;
        ConfigError::chance("weather.loss", self.loss)
    }

    /// What the `count`th message of `from` meets when it leaves at `now`. `device` is the device at
    /// either end: its link swings, the server's does not.
    pub fn passage(&self, seed: Seed, from: Node, count: u64, device: Node, now: Time) -> Passage {
        let mut draws = seed.child("message", u64::from(from.0)).child("nth", count).stream();
        let latency_s = self.latency + self.latency_jitter * draws.exponential();
        let lost = draws.unit() < self.loss;
        let jitter = libm::exp(self.rate_jitter * draws.normal());
        Passage { latency_s, rate: jitter * self.swing(seed, device, now), lost }
    }

    /// Log-uniform between the swing's inverse and the swing, anew for each piece of the run.
    fn swing(&self, seed: Seed, device: Node, now: Time) -> f64 {
        if self.rate_swing == 1.0 {
            return 1.0;
        }
        let piece = (now.seconds() / self.rate_swing_seconds) as u64;
        let unit = seed.child("swing", u64::from(device.0)).child("piece", piece).stream().unit();
        libm::pow(self.rate_swing, 2.0 * unit - 1.0)
    }
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
    fn a_wrong_figure_names_its_key() {
        let weather = WeatherConfig { loss: 1.0, ..WeatherConfig::default() };
        assert!(weather.check().unwrap_err().to_string().contains("weather.loss"));
    }
}
