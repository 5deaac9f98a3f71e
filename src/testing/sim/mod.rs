//! # The simulator: a cluster in one thread, under virtual time
//!
//! [`run`] builds a cluster of 1, 3, 5 or 7 nodes whose replicas, failure detectors, logs, image
//! files, stores and client sessions are the real ones, and whose clocks, disks, links, threads and
//! clients are not. One number, the seed, decides everything: the size, all timings, which faults
//! strike, when, and what clients ask. The same seed gives the same run, event for event, on every
//! machine, which [`Report::trace_hash`] proves.
//!
//! A run has three acts. **Trouble**: clients work while faults strike. **Calm**: everything is
//! healed and restarted, and now things must go well: the node with the highest id comes to lead,
//! every request gets an answer, each node serves a fresh write and a fresh read, and all nodes
//! hold the same state. **Judgement**: all nodes lose power at once, and each recovers that state
//! from its own disk; the history that the clients saw must be linearizable
//! ([`crate::testing::linearizability`]).
//!
//! | room | what lives there |
//! |---|---|
//! | `cluster`, `events` | nodes, the queue of events, virtual time |
//! | `plan` | what a seed makes of the world |
//! | `process` | what a node's threads do around its replica, in the order that effects ask for |
//! | `outside` | the decisions of a turn, in order |
//! | `sessions`, `loops` | what its threads do for clients: real drivers, joined in real rounds |
//! | `storage` | what they do with its disk: the log, images, spare segments |
//! | `disk`, `view` | a directory that can fail, and the model of what must be found in it |
//! | `network` | links, connections, messages that are late, lost, doubled, out of order |
//! | `faults` | the swarm of faults |
//! | `clients`, `workload` | who asks, and the history of what they asked and saw |
//! | `eventual` | what must hold for clients of the eventual mode |
//! | `invariants` | what is checked after each step |
//! | `ending` | calm and judgement |
//! | `mutant` | mistakes made on purpose |
//! | `shrink` | the smallest run that fails alike |
//! | `trace` | what happened, as a hash and as lines |
//!
//! **Checked at each step**: a term has one leader; log matching; a leader holds all that was
//! committed before its term; what is committed never changes, and is durable on a majority when
//! it is first known and when a client is answered; a node votes once in a term, whatever it
//! forgot; terms and commits never fall; equal logs give equal states and equal images; a request
//! is executed once and has one reply; nothing is pending that nobody waits for; a read covers
//! what was committed before it was asked for; a session reads its own eventual writes, and each
//! is newer than those before it; versions do not fall; a disk forgets only eventual writes that
//! are in the log; digests at a mark are equal; nothing grows beyond its bound, on the disk
//! neither; the replica's own check. **At each start**: the disk holds what was synced, or that
//! and what was being written, and nothing else; a vote that has left is found. **At each
//! crash**: an acknowledged eventual write is lost only where no node has had it for a second.
//! **At the end**: the newest of each key has won, and of a client's writes the later one.
//!
//! **Modelled**: message delay, loss, doubling, reordering; connections that break, are refused and
//! come again; partitions of all shapes; power that fails at any change of a disk, in the middle of
//! a batch, of an image being written, received or renamed, of a recovery; kill -9, which keeps
//! what the system was given; lost directories, of a minority; bits that flip in sealed segments
//! and images; failed writes and syncs; slow, stalled and full disks; SIGSTOP; clean stops; wall
//! clocks that differ and jump, clocks of different speed; clients that are slow to read, hang up,
//! or send in pieces.
//!
//! **Not modelled**: locks and real threads (`node` has stress tests); the bytes of peers' frames
//! (`wire` is fuzzed); damage to the end of a log, which looks like a torn write; the identity file
//! and its lock; two faults of one disk at a time.
//!
//! **Does it find anything?** Each [`Mutant`] breaks one promise; tests see to it that each is
//! found.

mod clients;
mod cluster;
mod disk;
mod ending;
mod events;
mod eventual;
mod faults;
mod invariants;
mod loops;
mod mutant;
mod network;
mod outside;
mod plan;
mod process;
mod sessions;
mod shrink;
mod storage;
mod trace;
mod view;
mod workload;

use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

pub use faults::{Fault, Struck};
pub use mutant::Mutant;
pub use shrink::shrink;

use crate::rng::Rng;
use cluster::World;
use plan::Plan;
use trace::Trace;

/// What a run is like, beside what its seed decides. The later ones make a run smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long faults strike, in virtual time.
    pub trouble: Duration,
    /// A promise that is broken on purpose.
    pub mutant: Option<Mutant>,
    /// The events that a run writes into its trace.
    pub trace: TraceDetail,
    /// How many nodes there are.
    pub nodes: Option<usize>,
    /// After so many events all is calm.
    pub steps: Option<u64>,
    /// Kinds of faults that do not strike.
    pub without: BTreeSet<Fault>,
    /// The faults that strike, by their numbers within the run.
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

/// The invariant that a run breaks whose code panics.
pub const NO_PANIC: &str = "nothing panics";

/// What a good run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// Members of the cluster.
    pub nodes: usize,
    /// Faults that struck.
    pub faults: u64,
    /// Events before all was calm.
    pub steps: u64,
    /// Events that happened.
    pub events: u64,
    /// Entries committed.
    pub commits: u64,
    /// Terms that had a leader.
    pub terms_led: u64,
    /// Snapshots taken, counted once for all nodes.
    pub snapshots: u64,
    /// Snapshots of a peer put in the place of a store.
    pub restored: u64,
    /// Requests of clients.
    pub requests: u64,
    /// Requests that ended with their results.
    pub answered: u64,
    /// How often a client's request was asked for together with others of its loop.
    pub joined: u64,
    /// Eventual writes that were acknowledged and not lost within their first second.
    pub eventual: u64,
    /// Keys whose history was too tangled to be judged within the budget.
    pub undecided: u64,
    /// What happened, as far as it is told.
    pub lines: Vec<String>,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Replays the run.
    pub seed: u64,
    /// When, in microseconds of virtual time.
    pub at_micros: u64,
    /// What should have held.
    pub invariant: &'static str,
    /// What was found instead.
    pub how: String,
    /// What the seed made of the world.
    pub plan: String,
    /// Which faults had struck by then.
    pub struck: Vec<Struck>,
    /// Events until then.
    pub steps: u64,
    /// What happened, as far as it is told.
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

/// Runs the world of `seed`, and tells what happened as the options have it.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Violation>> {
    match options.trace {
        TraceDetail::Last(0) => attempt(seed, options, Trace::new(0, false)),
        // Text costs time: only a violation is worth it, and comes again with it.
        TraceDetail::Last(lines) => attempt(seed, options, Trace::new(0, false))
            .or_else(|_| attempt(seed, options, Trace::new(lines, false))),
        TraceDetail::Headlines => attempt(seed, options, Trace::new(usize::MAX, true)),
        TraceDetail::Everything => attempt(seed, options, Trace::new(usize::MAX, false)),
    }
}

fn attempt(seed: u64, options: &Options, trace: Trace) -> Result<Report, Box<Violation>> {
    let mut rng = Rng::new(seed);
    let plan = Plan::draw(&mut rng, options);
    let mut world = World::new(rng, plan, trace, options);
    // What a panic leaves is not used any further, only told.
    let report = catch_unwind(AssertUnwindSafe(|| world.live(options))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        world.failure = Some((NO_PANIC, text.to_owned()));
        Report::default()
    });
    match world.failure.take() {
        None => Ok(Report { lines: world.trace.into_lines(), ..report }),
        Some((invariant, how)) => Err(Box::new(Violation {
            seed,
            at_micros: world.age_micros(),
            invariant,
            how,
            plan: format!("{:?}", world.plan),
            struck: world.struck,
            steps: world.steps,
            lines: world.trace.into_lines(),
        })),
    }
}
