//! The caller's choices for a run, beside its seed.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::testing::sim::faults::Fault;
use crate::testing::sim::mutant::Mutant;

/// The caller's choices for a run. Those after `trace` make a run smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The virtual time in which faults strike.
    pub trouble: Duration,
    /// A promise that is broken on purpose.
    pub mutant: Option<Mutant>,
    /// The events that a run writes into its trace.
    pub trace: TraceDetail,
    /// The number of nodes; `None`: the seed decides.
    pub nodes: Option<usize>,
    /// The trouble ends after this many events.
    pub steps: Option<u64>,
    /// Kinds of faults that do not strike.
    pub without: BTreeSet<Fault>,
    /// The faults that strike, by their numbers within the run; `None`: all.
    pub only: Option<BTreeSet<u64>>,
    /// No message is lost, doubled or held up, no client is slow, and clocks run alike.
    pub gentle: bool,
    /// No client chooses the eventual mode.
    pub strong_only: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            trouble: Duration::from_secs(6),
            mutant: None,
            trace: TraceDetail::Last(200),
            nodes: None,
            steps: None,
            without: BTreeSet::new(),
            only: None,
            gentle: false,
            strong_only: false,
        }
    }
}

/// The events in the trace of a run, which its report or its violation carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceDetail {
    /// The last lines before a violation, this many.
    Last(usize),
    /// Elections, starts, ends and faults.
    Headlines,
    /// Every message, write and answer.
    Everything,
}
