//! Folds over traces: terminal lines, `summary.json`, plots, HTML reports and comparisons.
//!
//! A run is its [`RunInfo`], known before it starts, and the records of its trace. [`Fold`] takes the
//! records one by one; [`Live`] shows them while they come; [`Summary`] and [`html`] are made of the
//! fold at the end. Nothing here sees a tensor or reads a clock.

mod comparison;
mod diff;
mod fold;
pub mod html;
mod jsonl;
mod live;
mod progress;
mod run_info;
mod summary;
mod svg;
mod table;
mod timeline;
mod trouble;

pub use base::files::write_atomically;
pub use comparison::comparison_table;
pub use diff::{Difference, Divergence, diff_summaries, diff_traces};
pub use fold::{Fold, OpenRound, Point, Totals};
pub use jsonl::{Torn, TraceError, TraceReader, TraceWriter};
pub use live::{Format, Live, Style};
pub use run_info::{Clock, DeviceClass, RunInfo};
pub use summary::{Bytes, Ending, Leak, Memory, Peaks, Resident, Summary, SummaryError, status_text};
pub use table::Table;
pub use timeline::{Activity, Lane, Row, Span, Timeline};
pub use trouble::{Trouble, TroubleKind};
