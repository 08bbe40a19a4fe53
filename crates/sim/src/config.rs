//! What a driver is told, and what can be wrong with it.

use crate::{Availability, FaultsConfig, WeatherConfig};
use base::Seed;

/// How a federation is run: everything that is not part of the federation itself.
#[derive(Clone, Debug)]
pub struct SimConfig {
    pub seed: Seed,
    /// OS threads that jobs run on; the result does not depend on it.
    pub threads: usize,
    pub weather: WeatherConfig,
    pub faults: FaultsConfig,
    /// When each device is reachable, from node 1; empty is always.
    pub availability: Vec<Availability>,
    /// Offer a checkpoint at the end of each round whose number this divides; 0 is never. One is always
    /// taken at an interrupt. The local driver offers no other.
    pub checkpoint_rounds: u32,
}

impl SimConfig {
    /// Fair weather on this many threads.
    pub fn new(seed: Seed, threads: usize) -> SimConfig {
        SimConfig {
            seed,
            threads,
            weather: WeatherConfig::default(),
            faults: FaultsConfig::default(),
            availability: Vec::new(),
            checkpoint_rounds: 0,
        }
    }

    pub fn check(&self) -> Result<(), ConfigError> {
        if self.threads == 0 {
            return Err(ConfigError::new("threads", "is 0; at least one is needed"));
        }
        self.weather.check()?;
        self.faults.check()
    }
}

/// A figure in a scenario that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {reason}")]
pub struct ConfigError {
    /// The key as the scenario spells it.
    pub key: String,
    pub reason: String,
}

impl ConfigError {
    pub(crate) fn new(key: &str, reason: impl Into<String>) -> ConfigError {
        ConfigError { key: key.to_owned(), reason: reason.into() }
    }

    pub(crate) fn chance(key: &str, value: f64) -> Result<(), ConfigError> {
        if (0.0..1.0).contains(&value) {
            return Ok(());
        }
        Err(ConfigError::new(key, format!("is {value}; it is a chance, at least 0 and below 1")))
    }

    pub(crate) fn non_negative(key: &str, value: f64) -> Result<(), ConfigError> {
        ConfigError::at_least(key, value, 0.0)
    }

    pub(crate) fn at_least(key: &str, value: f64, least: f64) -> Result<(), ConfigError> {
        if value.is_finite() && value >= least {
            return Ok(());
        }
        Err(ConfigError::new(key, format!("is {value}; at least {least} is needed")))
    }

    pub(crate) fn positive(key: &str, value: f64) -> Result<f64, ConfigError> {
        if value > 0.0 {
            return Ok(value);
        }
        Err(ConfigError::new(key, format!("is {value}; it must be above 0")))
    }
}
