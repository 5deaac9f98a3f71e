//! The command line of `nodesync sim`: its flags, their meaning, and the way back from a run to a
//! command line that repeats it.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, ValueEnum};

use crate::testing::sim::{Fault, Mutant, Options, TraceDetail};

/// Lines of the trace before a violation that are shown without `--trace`.
const TAIL: usize = 60;

const ABOUT: &str = "\
The simulator: a whole cluster in one process, seed by seed.

Replicas, log, snapshots, sessions and failure detectors are the server's own code; clocks, disks, \
links and clients are simulated. One number, the seed, decides everything: the size of the \
cluster, its load, and the faults with their times. The same seed gives the same run, event for \
event, on any machine. Invariants are checked after each step; at the end all nodes must recover \
and agree, and the history that the clients saw must be linearizable.";

const EXAMPLES: &str = "\
Examples:
  nodesync sim --seed 17                 one run, with the hash of all its events
  nodesync sim --seed 17 --trace         the same as a timeline
  nodesync sim --seeds 1..10000          many runs, on all processors
  nodesync sim --seconds 600             fresh seeds for ten minutes
  nodesync sim --seed 17 --shrink        a smaller run that breaks the same invariant

Exit codes: 0 proven, 1 violation, 2 usage, 3 inconclusive";

/// The flags of `nodesync sim`.
#[derive(Debug, clap::Args)]
#[command(before_long_help = ABOUT, after_help = EXAMPLES)]
#[command(group = ArgGroup::new("seed_choice").required(true).args(["seed", "seeds", "seconds"]))]
pub struct SimArgs {
    /// Run this seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Run all seeds from A up to, but not including, B (A..=B includes B)
    #[arg(long, value_name = "A..B")]
    seeds: Option<Seeds>,

    /// Run fresh seeds for this many seconds, and report their numbers
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    seconds: Option<u64>,

    /// Size of the cluster [default: the seed decides: 1, 3, 5 or 7]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: Option<u8>,

    /// End the faults after this many events; then the cluster must recover [default: after some
    /// seconds of simulated time]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Show the events of the one run, or of the failing one: elections, starts, ends and faults,
    /// or all events
    #[arg(long, value_name = "HOW MUCH", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "headlines")]
    trace: Option<Detail>,

    /// Search for a smaller run that breaks the same invariant: fewer nodes, kinds of faults,
    /// faults and steps
    #[arg(long)]
    shrink: bool,

    /// Kinds of faults to leave out
    #[arg(long, value_delimiter = ',', value_name = "KIND,...")]
    without: Vec<Fault>,

    /// The only faults to inject, by their numbers in a trace, or `none`
    #[arg(long, value_name = "N,...")]
    only: Option<Numbers>,

    /// Lose, double, reorder and delay no message; slow clients and drifting clocks are off, too
    #[arg(long)]
    gentle: bool,

    /// Run strong sessions only
    #[arg(long)]
    strong_only: bool,

    /// Number of parallel runs [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,

    /// Inject this bug, to see whether the checks catch it
    #[arg(long, value_name = "NAME", hide = true)]
    mutant: Option<Mutant>,
}

/// The events in a trace.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Detail {
    /// Elections, starts, ends and faults
    Headlines,
    /// Every message, write and answer
    All,
}

/// A range of seeds, not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeds(RangeInclusive<u64>);

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Seeds, String> {
        let form = || format!("{text}: seeds have the form A..B or A..=B");
        let (first, end) = text.split_once("..").ok_or_else(form)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| form());
        let (first, last) = match end.strip_prefix('=') {
            Some(last) => (number(first)?, Some(number(last)?)),
            None => (number(first)?, number(end)?.checked_sub(1)),
        };
        let last = last.filter(|last| first <= *last);
        Ok(Seeds(first..=last.ok_or_else(|| format!("{text}: the range has no seed"))?))
    }
}

/// The numbers of some faults.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers(BTreeSet<u64>);

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Numbers, String> {
        if text == "none" {
            return Ok(Numbers(BTreeSet::new()));
        }
        let numbers = text.split(',').map(str::parse).collect::<Result<_, _>>();
        numbers
            .map(Numbers)
            .map_err(|_| format!("{text}: expected numbers separated by commas, or none"))
    }
}

/// The seeds to run.
#[derive(Clone, Debug)]
pub enum SeedChoice {
    /// One seed.
    Seed(u64),
    /// All seeds of a range.
    Seeds(RangeInclusive<u64>),
    /// All seeds from this one on, until the time is over.
    Fresh(u64, Duration),
}

/// The checked meaning of the flags.
#[derive(Debug)]
pub struct SimPlan {
    pub seeds: SeedChoice,
    /// For many runs: without a trace, as fast as possible.
    pub options: Options,
    /// The trace of the one run that is shown.
    pub trace: TraceDetail,
    pub shrink: bool,
    pub jobs: usize,
}

impl SimPlan {
    /// Checks the flags. The error is a sentence for the user.
    pub fn new(args: &SimArgs) -> Result<SimPlan, String> {
        let seeds = match (args.seed, &args.seeds, args.seconds) {
            (Some(seed), ..) => SeedChoice::Seed(seed),
            (_, Some(Seeds(seeds)), _) => SeedChoice::Seeds(seeds.clone()),
            (.., seconds) => {
                let random = getrandom::u64().map_err(|error| error.to_string())?;
                // 32 bits: short enough to type.
                SeedChoice::Fresh(random >> 32, Duration::from_secs(seconds.unwrap_or(1)))
            }
        };
        let processors = || std::thread::available_parallelism().map_or(1, NonZero::get);
        Ok(SimPlan {
            seeds,
            options: Options {
                mutant: args.mutant,
                trace: TraceDetail::Last(0),
                nodes: args.nodes.map(usize::from),
                steps: args.steps,
                without: args.without.iter().copied().collect(),
                only: args.only.clone().map(|Numbers(numbers)| numbers),
                gentle: args.gentle,
                strong_only: args.strong_only,
                ..Options::default()
            },
            trace: match args.trace {
                None => TraceDetail::Last(TAIL),
                Some(Detail::Headlines) => TraceDetail::Headlines,
                Some(Detail::All) => TraceDetail::Everything,
            },
            shrink: args.shrink,
            jobs: args.jobs.map_or_else(processors, usize::from),
        })
    }
}

/// The name of a value on the command line.
pub fn name_of(kind: impl ValueEnum) -> String {
    kind.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The command line that repeats the run of a seed.
pub struct ReplayCommand<'a>(pub u64, pub &'a Options);

impl Display for ReplayCommand<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ReplayCommand(seed, options) = self;
        write!(f, "nodesync sim --seed {seed}")?;
        write_options(f, options)
    }
}

/// Writes the flags for all options except the seed.
pub fn write_options(f: &mut impl fmt::Write, options: &Options) -> fmt::Result {
    if let Some(nodes) = options.nodes {
        write!(f, " --nodes {nodes}")?;
    }
    if let Some(steps) = options.steps {
        write!(f, " --steps {steps}")?;
    }
    if !options.without.is_empty() {
        let kinds: Vec<_> = options.without.iter().map(|kind| name_of(*kind)).collect();
        write!(f, " --without {}", kinds.join(","))?;
    }
    match options.only.as_ref().map(|only| only.iter().map(u64::to_string).collect::<Vec<_>>()) {
        None => {}
        Some(numbers) if numbers.is_empty() => write!(f, " --only none")?,
        Some(numbers) => write!(f, " --only {}", numbers.join(","))?,
    }
    if options.gentle {
        write!(f, " --gentle")?;
    }
    if options.strong_only {
        write!(f, " --strong-only")?;
    }
    match options.mutant {
        Some(mutant) => write!(f, " --mutant {}", name_of(mutant)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::tools::{Cli, Tool};

    fn plan(line: &str) -> SimPlan {
        let Tool::Sim(args) = Cli::parse_from(line.split_whitespace()).tool else {
            panic!("{line} is another tool")
        };
        SimPlan::new(&args).unwrap()
    }

    #[test]
    fn ranges_of_seeds_end_before_their_end_or_with_it() {
        let seeds = |text: &str| text.parse().map(|Seeds(seeds)| seeds);
        assert_eq!(seeds("3..5"), Ok(3..=4));
        assert_eq!(seeds("3..=5"), Ok(3..=5));
        assert_eq!(seeds("0..=18446744073709551615"), Ok(0..=u64::MAX));
        for wrong in ["", "3", "..", "3..", "..5", "3..=", "3..x", "-1..5"] {
            assert!(seeds(wrong).unwrap_err().contains("A..B"), "{wrong}");
        }
        for empty in ["5..5", "5..3", "0..0", "5..=4"] {
            assert!(seeds(empty).unwrap_err().contains("no seed"), "{empty}");
        }
    }

    #[test]
    fn the_words_for_a_replay_mean_the_same() {
        let lines = [
            "nodesync sim --seed 17",
            "nodesync sim --seed 17 --only none",
            "nodesync sim --seed 17 --nodes 3 --steps 3500 --without one-way,crash --only 3,9 \
             --gentle --strong-only --mutant ack-before-sync",
        ];
        for line in lines {
            let SimPlan { seeds: SeedChoice::Seed(seed), options, .. } = plan(line) else {
                panic!("{line} is no seed")
            };
            assert_eq!(ReplayCommand(seed, &options).to_string(), line);
        }
    }

    #[test]
    fn a_trace_tells_headlines_or_all() {
        assert_eq!(plan("nodesync sim --seed 1").trace, TraceDetail::Last(TAIL));
        assert_eq!(plan("nodesync sim --trace --seed 1").trace, TraceDetail::Headlines);
        assert_eq!(plan("nodesync sim --trace=all --seed 1").trace, TraceDetail::Everything);
    }
}
