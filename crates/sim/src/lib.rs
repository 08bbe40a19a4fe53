mod availability;
mod config;
pub mod faults;
pub mod fleet;
mod link;
pub mod profiles;
pub mod weather;

pub use availability::Availability;
pub use config::{ConfigError, SimConfig};
pub use faults::FaultsConfig;
pub use fleet::{Fleet, FleetConfig};
pub use profiles::{PROFILES, Profile};
pub use weather::{ServerLink, WeatherConfig};
mod pool;
