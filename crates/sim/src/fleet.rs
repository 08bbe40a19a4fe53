//! Who takes part: device classes and their shares, resolved to one [`Member`] a node.

use crate::profiles::{self, PROFILES};
use crate::{Availability, ConfigError};
use base::units::{bytes, parse_bytes};
use base::{Node, SERVER, Seed};
use federation::Member;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// A server tells its devices the scenario, so it decides what resolving takes of their memory.
const MOST_DEVICES: u32 = 100_000;
const MOST_SHARES: f64 = 1e12;

/// The `[fleet]` table of a scenario.
///
/// ```toml
/// [fleet]
/// devices = 16
/// profiles = { "jetson-nano" = 1, "pixel-7-pro" = 3 }     # shares
/// memory = "512 MB"                                       # replaces that of each device's class
/// server = "edge-server"
/// server-row.up-mbps = 1000                               # the same for the server
///
/// [fleet.custom.old-phone]                                # a class of one's own
/// like = "pixel-7-pro"
/// memory = "1 GB"
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct FleetConfig {
    pub devices: u32,
    /// Shares by class: a preset of [`PROFILES`] or a row of `custom`.
    pub profiles: BTreeMap<String, f64>,
    /// The server's class.
    pub server: String,
    /// Classes of this scenario's own, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: BTreeMap<String, Row>,
    /// Figures that replace those of the server's class.
    #[serde(skip_serializing_if = "Row::is_empty")]
    pub server_row: Row,
    /// These replace the figures of every device's class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flops_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_mbps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down_mbps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability: Option<f64>,
    /// Seconds from the start of one window of availability to the next.
    pub availability_period: f64,
}

/// What is said about a class; what is not comes from `like`, which names another class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub like: Option<String>,
    /// Floating-point operations a second that training sustains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flops_per_s: Option<f64>,
    /// What a training process may take, such as `"512 MB"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_mbps: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down_mbps: Option<f64>,
    /// The share of time the device is reachable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub availability: Option<f64>,
}

/// A number of bytes, written as `"512 MB"` or as a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl Default for FleetConfig {
    /// Sixteen devices, one Jetson Nano to three Pixels.
    fn default() -> FleetConfig {
        FleetConfig {
            devices: 16,
            profiles: BTreeMap::from([("jetson-nano".into(), 1.0), ("pixel-7-pro".into(), 3.0)]),
            server: "edge-server".into(),
            custom: BTreeMap::new(),
            server_row: Row::default(),
            flops_per_s: None,
            memory: None,
            up_mbps: None,
            down_mbps: None,
            availability: None,
            availability_period: 86_400.0,
        }
    }
}

/// A resolved fleet. Members hold 0 examples until someone deals out the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Fleet {
    pub server: Member,
    /// In node order, from node 1.
    pub devices: Vec<Member>,
    /// `availability[i]` is that of `Node(i + 1)`.
    pub availability: Vec<Availability>,
}

/// Every figure of one class.
#[derive(Clone, Copy, Debug)]
struct Class {
    flops_per_s: f64,
    memory_bytes: u64,
    up_mbps: f64,
    down_mbps: f64,
    availability: f64,
}

impl FleetConfig {
    /// Resolve to members. Shares are kept exactly (largest remainder); which node has which class is
    /// drawn by `seed`.
    pub fn resolve(&self, seed: Seed) -> Result<Fleet, ConfigError> {
        if self.devices == 0 {
            return Err(ConfigError::new("fleet.devices", "is 0; at least one device is needed"));
        }
        if self.devices > MOST_DEVICES {
            let said = format!("is {}; at most {MOST_DEVICES} are simulated", self.devices);
            return Err(ConfigError::new("fleet.devices", said));
        }
        ConfigError::at_least("fleet.availability-period", self.availability_period, 1e-3)?;
        let mut fleet = Fleet {
            server: self
                .class(&self.server, &self.server_row, "fleet.server")?
                .member(SERVER, &self.server),
            devices: Vec::new(),
            availability: Vec::new(),
        };
        let every = Row {
            like: None,
            flops_per_s: self.flops_per_s,
            memory: self.memory,
            up_mbps: self.up_mbps,
            down_mbps: self.down_mbps,
            availability: self.availability,
        };
        let mut classes = BTreeMap::new();
        for name in self.profiles.keys() {
            classes.insert(name.as_str(), self.class(name, &every, "fleet.profiles")?);
        }
        for (index, name) in self.deal(seed)?.into_iter().enumerate() {
            let class = classes[name];
            fleet.devices.push(class.member(Node(index as u32 + 1), name));
            let period_s = self.availability_period;
            fleet.availability.push(Availability { share: class.availability, period_s });
        }
        Ok(fleet)
    }

    /// One class name a device.
    fn deal(&self, seed: Seed) -> Result<Vec<&str>, ConfigError> {
        for (name, &share) in &self.profiles {
            let key = format!("fleet.profiles.{name}");
            ConfigError::non_negative(&key, share)?;
            if share > MOST_SHARES {
                let said = format!("is {share}; shares are at most {MOST_SHARES}");
                return Err(ConfigError::new(&key, said));
            }
        }
        let total: f64 = self.profiles.values().sum();
        if total <= 0.0 {
            return Err(ConfigError::new("fleet.profiles", "no class has a share above 0"));
        }
        let quota = |share: f64| f64::from(self.devices) * share / total;
        let mut counts: Vec<(&str, usize, f64)> = (self.profiles.iter())
            .map(|(name, &share)| (name.as_str(), quota(share) as usize, quota(share).fract()))
            .collect();
        counts.sort_by(|a, b| b.2.total_cmp(&a.2));
        let mut names = Vec::with_capacity(self.devices as usize);
        let dealt: usize = counts.iter().map(|count| count.1).sum();
        let left = (self.devices as usize).saturating_sub(dealt);
        for (rank, (name, count, _)) in counts.into_iter().enumerate() {
            names.extend(std::iter::repeat_n(name, count + usize::from(rank < left)));
        }
        names.sort_unstable();
        seed.child("fleet", 0).stream().shuffle(&mut names);
        Ok(names)
    }

    /// The figures of a class: the preset or custom row, with `over`'s replacing them.
    fn class(&self, name: &str, over: &Row, key: &str) -> Result<Class, ConfigError> {
        let class = match self.custom.get(name) {
            Some(row) => self.custom_class(name, row)?,
            None => preset(name).ok_or_else(|| self.unknown(key, name))?,
        };
        let base_key = if key == "fleet.server" { "fleet.server-row" } else { "fleet" };
        over.over(Some(class), base_key)
    }

    fn custom_class(&self, name: &str, row: &Row) -> Result<Class, ConfigError> {
        let key = format!("fleet.custom.{name}");
        let like = match &row.like {
            Some(like) => Some(preset(like).ok_or_else(|| self.unknown(&format!("{key}.like"), like))?),
            None => None,
        };
        row.over(like, &key)
    }

    fn unknown(&self, key: &str, name: &str) -> ConfigError {
        let known: Vec<&str> =
            (PROFILES.iter().map(|row| row.name)).chain(self.custom.keys().map(String::as_str)).collect();
        let nearest = known
            .iter()
            .copied()
            .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
        let nearest = nearest.unwrap_or_default();
        ConfigError::new(
            key,
            format!(
                "names no known class: \"{name}\". Did you mean \"{nearest}\"? Known: {}",
                known.join(", ")
            ),
        )
    }
}

impl Row {
    fn is_empty(&self) -> bool {
        *self == Row::default()
    }

    /// This row's figures, and `base`'s where it has none.
    fn over(&self, base: Option<Class>, key: &str) -> Result<Class, ConfigError> {
        let missing =
            |field: &str| ConfigError::new(key, format!("has no {field} and no `like` to take it from"));
        let pick = |own: Option<f64>, base: Option<f64>, field: &str| {
            let value = own.or(base).ok_or_else(|| missing(field))?;
            ConfigError::positive(&format!("{key}.{field}"), value)
        };
        let memory = self.memory.map(|memory| memory.0).or(base.map(|class| class.memory_bytes));
        let class = Class {
            flops_per_s: pick(self.flops_per_s, base.map(|class| class.flops_per_s), "flops-per-s")?,
            memory_bytes: memory.ok_or_else(|| missing("memory"))?,
            up_mbps: pick(self.up_mbps, base.map(|class| class.up_mbps), "up-mbps")?,
            down_mbps: pick(self.down_mbps, base.map(|class| class.down_mbps), "down-mbps")?,
            availability: pick(
                self.availability,
                base.map(|class| class.availability).or(Some(1.0)),
                "availability",
            )?,
        };
        if class.availability > 1.0 {
            let said = format!("is {}; it is a share of time, at most 1", class.availability);
            return Err(ConfigError::new(&format!("{key}.availability"), said));
        }
        Ok(class)
    }
}

impl Class {
    fn member(self, node: Node, class: &str) -> Member {
        const BYTES_PER_MEGABIT: f64 = 1e6 / 8.0;
        Member {
            node,
            class: class.to_owned(),
            flops_per_s: self.flops_per_s,
            memory_bytes: self.memory_bytes,
            up_bytes_per_s: self.up_mbps * BYTES_PER_MEGABIT,
            down_bytes_per_s: self.down_mbps * BYTES_PER_MEGABIT,
            examples: 0,
        }
    }
}

fn preset(name: &str) -> Option<Class> {
    profiles::find(name).map(|profile| Class {
        flops_per_s: profile.flops_per_s(),
        memory_bytes: profile.memory_bytes,
        up_mbps: profile.up_mbps,
        down_mbps: profile.down_mbps,
        availability: profile.availability,
    })
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = bytes(self.0);
        if parse_bytes(&text) == Some(self.0) {
            serializer.serialize_str(&text)
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size such as \"512 MB\", or a number of bytes")]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(count) => Ok(Bytes(count)),
            // TOML has no larger integers, and resolved scenarios are written as TOML.
            Form::Text(text) => {
                parse_bytes(&text).filter(|b| i64::try_from(*b).is_ok()).map(Bytes).ok_or_else(|| {
                    serde::de::Error::custom(format!(
                        "\"{text}\" is no size: write \"512 MB\" or \"4 GiB\""
                    ))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(text: &str) -> Result<Fleet, ConfigError> {
        toml::from_str::<FleetConfig>(text).unwrap().resolve(Seed(7))
    }

    #[test]
    fn shares_are_exact_and_the_assignment_is_the_seeds() {
        let text = "devices = 10\nprofiles = { jetson-nano = 1, m3 = 1, pixel-7-pro = 1 }";
        let fleet = fleet(text).unwrap();
        let count = |class: &str| fleet.devices.iter().filter(|member| member.class == class).count();
        assert_eq!((count("jetson-nano"), count("m3"), count("pixel-7-pro")), (4, 3, 3));
        let config: FleetConfig = toml::from_str(text).unwrap();
        assert_eq!(config.resolve(Seed(7)).unwrap(), fleet);
        assert_ne!(config.resolve(Seed(8)).unwrap().devices, fleet.devices);
        let nodes: Vec<u32> = fleet.devices.iter().map(|member| member.node.0).collect();
        assert_eq!(nodes, (1..=10).collect::<Vec<_>>());
    }

    #[test]
    fn every_preset_is_a_class() {
        for profile in PROFILES {
            let fleet = fleet(&format!("devices = 1\nprofiles.{} = 1", profile.name)).unwrap();
            assert_eq!(fleet.devices[0].flops_per_s, profile.flops_per_s());
            assert_eq!(fleet.devices[0].up_bytes_per_s, profile.up_mbps * 125_000.0);
            assert_eq!(PROFILES.iter().filter(|other| other.name == profile.name).count(), 1);
        }
    }

    #[test]
    fn overrides_and_custom_rows() {
        let fleet = fleet(
            r#"
            devices = 2
            profiles = { old = 1, bare = 1 }
            memory = "512 MB"
            availability = 0.5
            server-row.flops-per-s = 1e12
            [custom.old]
            like = "pixel-7-pro"
            up-mbps = 8
            [custom.bare]
            flops-per-s = 1e9
            memory = 1000
            up-mbps = 1
            down-mbps = 2
            "#,
        )
        .unwrap();
        let of = |class: &str| fleet.devices.iter().find(|member| member.class == class).unwrap();
        assert_eq!((of("old").up_bytes_per_s, of("old").memory_bytes), (1e6, 512_000_000));
        assert_eq!((of("bare").down_bytes_per_s, of("bare").flops_per_s), (250_000.0, 1e9));
        assert_eq!(fleet.server.flops_per_s, 1e12);
        assert!(fleet.availability.iter().all(|windows| windows.share == 0.5));
    }

    #[test]
    fn errors_say_what_to_do() {
        let said = |text: &str| fleet(text).unwrap_err().to_string();
        assert!(said("profiles = { jetson-nan = 1 }").contains("Did you mean \"jetson-nano\"?"));
        assert!(said("server = \"edgeserver\"").contains("Did you mean \"edge-server\"?"));
        assert!(said("profiles = { x = 1 }\ncustom.x.memory = 5").contains("no flops-per-s"));
        assert!(said("availability = 1.5").contains("at most 1"));
        assert!(said("profiles = { m3 = 0 }").contains("no class has a share above 0"));
        let wrong = toml::from_str::<FleetConfig>("memory = \"many\"").unwrap_err();
        assert!(wrong.to_string().contains("\"many\" is no size"), "{wrong}");
    }

    #[test]
    fn a_resolved_scenario_reads_back() {
        let config: FleetConfig = toml::from_str("memory = \"512 MB\"\ncustom.a.like = \"m3\"").unwrap();
        let written = toml::to_string(&config).unwrap();
        assert!(written.contains("memory = \"512.0 MB\""), "{written}");
        assert_eq!(toml::from_str::<FleetConfig>(&written).unwrap(), config);
    }
}
