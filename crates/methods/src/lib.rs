//! The methods, one file each with both halves, and the one list that drives help, docs, the
//! scenario and the conformance suite.
//!
//! To add a method: write its file, implementing [`Method`] and two [`federation::Side`]s, and add
//! its row to [`METHODS`].

mod centralized;
mod dummy;
mod evaluate;
mod fedavg_lora;
mod fedsgd;
mod forward;
mod fwdllm;
mod lab;
mod method;
mod mobillm;
pub mod schedule;
mod sfl;
pub mod side;
mod side_tuning;
mod sl;
mod split;
mod split_lora;
mod train;

pub use evaluate::evaluate;
pub use lab::{Lab, OtherBackbone, Workload, gather};
pub use method::{Assembly, Draws, Entry, Keep, Method, Quote, Saver, ServerQuote, Setup, SetupError};
pub use train::TrainConfig;

/// Every method there is.
pub const METHODS: &[Entry] = &[
    Entry::of::<centralized::Centralized>(),
    Entry::of::<fedavg_lora::FedavgLora>(),
    Entry::of::<fedsgd::Fedsgd>(),
    Entry::of::<fwdllm::Fwdllm>(),
    Entry::of::<split_lora::SplitLora>(),
    Entry::of::<sl::SplitLearning>(),
    Entry::of::<sfl::SplitFed>(),
    Entry::of::<side_tuning::SideTuning>(),
    Entry::of::<mobillm::MobiLlm>(),
    Entry::of::<dummy::Dummy>(),
];

/// The method of that name.
pub fn find(name: &str) -> Option<&'static Entry> {
    METHODS.iter().find(|entry| entry.name == name)
}
