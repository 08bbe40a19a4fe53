//! What goes wrong with a node: its process is killed, or it drops out of a round.

use crate::ConfigError;
use base::{Node, SERVER, Seed};
use serde::{Deserialize, Serialize};

/// The `[faults]` table of a scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FaultsConfig {
    /// The chance, for each input a device takes, that its process is killed around it: before the
    /// effects leave, or some time in the work that follows.
    pub kill: f64,
    /// The same for the server.
    pub kill_server: f64,
    /// The mean time, in seconds, that a killed process stays dead.
    pub down_seconds: f64,
    /// The chance that a device of a cohort leaves as the round opens and gives nothing to it.
    pub dropout: f64,
    /// Seconds until a device that dropped out is back.
    pub dropout_seconds: f64,
}

impl Default for FaultsConfig {
    /// Nothing goes wrong.
    fn default() -> FaultsConfig {
        FaultsConfig {
            kill: 0.0,
            kill_server: 0.0,
            down_seconds: 5.0,
            dropout: 0.0,
            dropout_seconds: 120.0,
        }
    }
}

/// One kill: when, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kill {
    pub moment: Moment,
    pub down_s: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Moment {
    /// The input is in the journal, its effects have not left.
    BeforeEffects,
    /// Effects have left; this share of the work under way is done.
    DuringWork(f64),
}

impl FaultsConfig {
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::chance("faults.kill", self.kill)?;
        ConfigError::chance("faults.kill-server", self.kill_server)?;
        ConfigError::non_negative("faults.down-seconds", self.down_seconds)?;
        ConfigError::chance("faults.dropout", self.dropout)?;
        ConfigError::at_least("faults.dropout-seconds", self.dropout_seconds, 1e-3)
    }

    /// Whether the `count`th input of `node` kills it.
    pub fn kill(&self, seed: Seed, node: Node, count: u64) -> Option<Kill> {
        let chance = if node == SERVER { self.kill_server } else { self.kill };
        if chance == 0.0 {
            return None;
        }
        let mut draws = seed.child("kill", u64::from(node.0)).child("nth", count).stream();
        if draws.unit() >= chance {
            return None;
        }
        let during = draws.unit();
        let moment = if draws.unit() < 0.3 { Moment::BeforeEffects } else { Moment::DuringWork(during) };
        Some(Kill { moment, down_s: self.down_seconds * draws.exponential() })
    }

    /// Whether `device` drops out of `round`.
    pub fn drops_out(&self, seed: Seed, device: Node, round: u32) -> bool {
        self.dropout > 0.0
            && seed.child("dropout", u64::from(device.0)).child("round", u64::from(round)).stream().unit()
                < self.dropout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_kept_for_each_node() {
        let faults = FaultsConfig { kill: 0.1, kill_server: 0.0, dropout: 0.3, ..FaultsConfig::default() };
        let kills: Vec<Kill> = (0..20_000).filter_map(|n| faults.kill(Seed(5), Node(2), n)).collect();
        assert!((1_800..2_200).contains(&kills.len()), "{} kills", kills.len());
        assert!(kills.iter().any(|kill| kill.moment == Moment::BeforeEffects));
        assert!((0..20_000).all(|n| faults.kill(Seed(5), SERVER, n).is_none()));
        let dropped = (0..20_000).filter(|&round| faults.drops_out(Seed(5), Node(2), round)).count();
        assert!((5_700..6_300).contains(&dropped), "{dropped} dropped");
    }
}
