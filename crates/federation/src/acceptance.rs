//! The acceptance log: who was drawn, who was counted, and what the method decided by measurements, round
//! by round. With the seed it is all that decides the final weights.

use crate::{Fact, Record};
use base::{Node, SERVER};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What `--replay` reads: the decisions of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    pub rounds: BTreeMap<u32, Accepted>,
}

/// One round's decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub cohort: BTreeSet<Node>,
    pub counted: BTreeSet<Node>,
    /// What the method decided by measurements, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
}

impl Acceptance {
    /// Read the log out of a trace. A round that was opened twice (a run that was resumed) counts as it
    /// was opened last; a round that never closed is not part of the log.
    pub fn from_records<'a>(records: impl IntoIterator<Item = &'a Record>) -> Acceptance {
        let (mut log, mut open) = (Acceptance::default(), BTreeMap::new());
        for record in records.into_iter().filter(|record| record.node == SERVER) {
            match &record.fact {
                Fact::RoundOpened { round, cohort, .. } => {
                    let cohort = cohort.iter().copied().collect();
                    open.insert(*round, Accepted { cohort, ..Accepted::default() });
                }
                Fact::Counted { round, device } => {
                    open.entry(*round).or_default().counted.insert(*device);
                }
                Fact::Lost { round, device, .. } => {
                    open.entry(*round).or_default().counted.remove(device);
                }
                Fact::Decided { round, decision } => {
                    open.entry(*round).or_default().decision = Some(decision.clone());
                }
                Fact::RoundClosed { round, .. } => {
                    log.rounds.insert(*round, open.remove(round).unwrap_or_default());
                }
                _ => {}
            }
        }
        log
    }
}
