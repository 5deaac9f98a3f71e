//! The results of a run: a report if every promise held, or else the violation.

use std::fmt;

use crate::testing::sim::faults::Struck;

/// The invariant that a panic breaks.
pub const NO_PANIC: &str = "nothing panics";

/// The numbers of a run in which every promise held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// Members of the cluster.
    pub nodes: usize,
    /// Faults that struck.
    pub faults: u64,
    /// Events before the calm.
    pub steps: u64,
    /// All events.
    pub events: u64,
    /// Entries committed.
    pub commits: u64,
    /// Terms that had a leader.
    pub terms_led: u64,
    /// Snapshots taken, counted once for all nodes.
    pub snapshots: u64,
    /// Stores replaced by a peer's snapshot.
    pub restored: u64,
    /// Requests of clients.
    pub requests: u64,
    /// Requests that ended with their results.
    pub answered: u64,
    /// The paths through the service room that the run took.
    pub coverage: Coverage,
    /// Eventual writes that were acknowledged and not lost within their first second.
    pub eventual: u64,
    /// Keys whose history was too tangled to be judged within the budget.
    pub undecided: u64,
    /// The trace, as far as [`Options::trace`](super::Options::trace) asks for it.
    pub lines: Vec<String>,
}

/// Counts the paths through the service room that a run took. A test demands that a few seeds take
/// all of them, so that no later change loses one unnoticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Requests that entered a round together with requests of other clients.
    pub joined: u64,
    /// Answers to clients that share a loop.
    pub answered_by_loops: u64,
    /// Answers to clients that have a thread of their own.
    pub answered_by_threads: u64,
    /// Parts of lists of eventual writes that were stamped while other parts of the same list were
    /// still to come. Parts behind unsent replies are not counted.
    pub stamped_in_parts: u64,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Replays the run.
    pub seed: u64,
    /// The virtual time since the run began, in microseconds.
    pub at_micros: u64,
    /// The promise.
    pub invariant: &'static str,
    /// The facts that contradict it.
    pub how: String,
    /// The world that the seed has drawn.
    pub plan: String,
    /// The faults that had struck by then.
    pub struck: Vec<Struck>,
    /// Events until then.
    pub steps: u64,
    /// The trace, as far as [`Options::trace`](super::Options::trace) asks for it.
    pub lines: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        let Violation { seed, at_micros, invariant, how, plan, .. } = self;
        let at_ms = *at_micros as f64 / 1000.0;
        write!(f, "seed {seed}, {at_ms:.3} ms: broken: {invariant}\n  {how}\n  {plan}")
    }
}

impl std::error::Error for Violation {}
