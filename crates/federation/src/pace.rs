//! Who is drawn for a round, and how long the round waits for them: the `[cohort]` table of a scenario.

use serde::{Deserialize, Serialize};

/// Settings of the cohort. Names follow Flower's strategies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CohortConfig {
    /// Share of the available devices that a round needs, in (0, 1].
    pub fraction_train: f64,
    /// No round opens with fewer devices available.
    pub min_available_nodes: u32,
    /// A round needs at least this many devices, whatever the fraction says.
    pub min_train_nodes: u32,
    pub pace: Pace,
    /// `pace = "deadline"`: seconds until a round goes on without those who are late.
    pub deadline_seconds: Option<f64>,
    /// `pace = "deadline"`: invite this many times the devices that are needed; the first ones count.
    pub over_selection: f64,
}

/// What a round waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// Every expected device before the first draw, and every drawn one before the round closes: the
    /// final weights depend on the scenario and the seed alone.
    #[default]
    Synchronous,
    /// The devices that are there, until the deadline or until enough have finished: the final weights
    /// depend on the acceptance log too.
    Deadline,
}

/// A setting that cannot be, and what to do about it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("[cohort] {0}")]
pub struct CohortError(pub String);

impl Default for CohortConfig {
    fn default() -> Self {
        CohortConfig {
            fraction_train: 1.0,
            min_available_nodes: 1,
            min_train_nodes: 1,
            pace: Pace::Synchronous,
            deadline_seconds: None,
            over_selection: 1.0,
        }
    }
}

impl CohortConfig {
    /// Hold the settings against each other and against the number of devices (0: a run without any).
    pub fn validate(&self, devices: u32) -> Result<(), CohortError> {
        let refuse = |text: String| Err(CohortError(text));
        let fraction = self.fraction_train;
        if !(fraction > 0.0 && fraction <= 1.0) {
            return refuse(format!("fraction-train = {fraction}: a share above 0 and at most 1 is meant"));
        }
        for (name, nodes) in
            [("min-available-nodes", self.min_available_nodes), ("min-train-nodes", self.min_train_nodes)]
        {
            if devices > 0 && nodes > devices {
                return refuse(format!(
                    "{name} = {nodes}, but the fleet has {devices} devices: no round could ever open"
                ));
            }
        }
        if !(self.over_selection >= 1.0 && self.over_selection <= 10.0) {
            return refuse(format!(
                "over-selection = {}: a factor from 1 to 10 is meant, such as 1.3",
                self.over_selection
            ));
        }
        match (self.pace, self.deadline_seconds) {
            (Pace::Deadline, None) => refuse("pace = \"deadline\" needs deadline-seconds".to_owned()),
            (Pace::Deadline, Some(s)) if !(s.is_finite() && s > 0.0) => {
                refuse(format!("deadline-seconds = {s}: a positive number of seconds is meant"))
            }
            (Pace::Synchronous, Some(_)) => refuse("deadline-seconds has no meaning with pace = \"synchronous\": set pace = \"deadline\" or remove it".to_owned()),
            (Pace::Synchronous, None) if self.over_selection > 1.0 => refuse("over-selection has no meaning with pace = \"synchronous\": set pace = \"deadline\" or remove it".to_owned()),
            _ => Ok(()),
        }
    }

    /// How many of `available` devices a round needs, and how many it invites.
    pub fn size(&self, available: usize) -> (usize, usize) {
        // A share such as 0.29 of 100 is 28.999999999999996 in binary.
        let share = (self.fraction_train * available as f64 + 1e-9) as usize;
        let needed = share.max(self.min_train_nodes as usize).min(available);
        let invited = (needed as f64 * self.over_selection - 1e-9).ceil() as usize;
        (needed, invited.clamp(needed, available))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_settings() {
        let config = CohortConfig { fraction_train: 0.29, over_selection: 1.3, ..CohortConfig::default() };
        assert_eq!(config.size(100), (29, 38));
        assert_eq!(config.size(1), (1, 1));
        assert_eq!(config.size(0), (0, 0));
        let few = CohortConfig { fraction_train: 0.1, min_train_nodes: 5, ..CohortConfig::default() };
        assert_eq!(few.size(16), (5, 5));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refused = |config: CohortConfig, devices, name: &str| {
            let error = config.validate(devices).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        };
        let good = CohortConfig::default();
        assert_eq!(good.validate(1), Ok(()));
        for fraction_train in [0.0, -1.0, 1.5, f64::NAN] {
            refused(CohortConfig { fraction_train, ..good.clone() }, 4, "fraction-train");
        }
        refused(CohortConfig { min_available_nodes: 5, ..good.clone() }, 4, "min-available-nodes");
        refused(CohortConfig { over_selection: 0.5, ..good.clone() }, 4, "over-selection");
        refused(CohortConfig { over_selection: 1.3, ..good.clone() }, 4, "over-selection");
        refused(CohortConfig { deadline_seconds: Some(9.0), ..good.clone() }, 4, "deadline-seconds");
        let late = CohortConfig { pace: Pace::Deadline, ..good };
        refused(late.clone(), 4, "deadline-seconds");
        refused(CohortConfig { deadline_seconds: Some(f64::NAN), ..late.clone() }, 4, "deadline-seconds");
        let fine = CohortConfig { deadline_seconds: Some(60.0), over_selection: 1.3, ..late };
        assert_eq!(fine.validate(4), Ok(()));
    }
}
