//! What was typed, what it means, and the words that would ask for the same again.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use crate::testing::sim::{Fault, Mutant, Options, TraceDetail};

/// So many lines before a violation are told where no trace was asked for.
const TAIL: usize = 60;

const ABOUT: &str = "\
The simulator: a whole cluster in one process, seed by seed.

Replicas, log, snapshots, sessions and failure detectors are the server's own code; clocks, disks, \
links and clients are simulated. One number, the seed, decides everything: the size of the \
cluster, its load, and which faults strike when. The same seed gives the same run, event for \
event, on any machine. Invariants are checked at each step; at the end all must recover, agree, \
and the history that the clients saw must be linearizable.";

const EXAMPLES: &str = "\
Examples:
  nodesync sim --seed 17                 one run, with the hash of all that happened
  nodesync sim --seed 17 --trace         the same as a timeline
  nodesync sim --seeds 1..10000          many runs, on all processors
  nodesync sim --seconds 600             fresh seeds for ten minutes
  nodesync sim --seed 17 --shrink        of a failing run: a smaller one that fails alike

Exit codes: 0 proven, 1 violation, 2 usage, 3 inconclusive";

/// The command line.
#[derive(Debug, clap::Args)]
#[command(before_long_help = ABOUT, after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["seed", "seeds", "seconds"]))]
pub struct Args {
    /// Runs this seed
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Runs all seeds from A up to B, without B itself (A..=B: with it)
    #[arg(long, value_name = "A..B")]
    seeds: Option<Seeds>,

    /// Runs fresh seeds for so many seconds, and tells which they were
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    seconds: Option<u64>,

    /// Size of the cluster [default: the seed decides: 1, 3, 5 or 7]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: Option<u8>,

    /// Faults end after so many events; then the cluster must recover [default: after some seconds
    /// of simulated time]
    #[arg(long, value_name = "N")]
    steps: Option<u64>,

    /// Tells what happened in the one run, or in the failing one: elections, starts, ends and
    /// faults, or all of it
    #[arg(long, value_name = "HOW MUCH", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "headlines")]
    trace: Option<Detail>,

    /// Looks for a smaller run in which the same invariant is broken: fewer nodes, kinds of faults,
    /// faults and steps
    #[arg(long)]
    shrink: bool,

    /// Kinds of faults that do not strike
    #[arg(long, value_delimiter = ',', value_name = "KIND,...")]
    without: Vec<Fault>,

    /// Faults that strike, by their numbers in a trace, or `none`
    #[arg(long, value_name = "N,...")]
    only: Option<Numbers>,

    /// No message is lost, doubled, reordered or very late, no client is slow, clocks run alike
    #[arg(long)]
    gentle: bool,

    /// No client works in the eventual mode
    #[arg(long)]
    strong_only: bool,

    /// Runs at the same time [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,

    /// A promise that is broken on purpose
    #[arg(long, value_name = "NAME", hide = true)]
    mutant: Option<Mutant>,
}

/// How much a trace tells.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Detail {
    /// Elections, starts, ends and faults
    Headlines,
    /// Every message, write and answer
    All,
}

/// A range of seeds that is not empty.
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
        Ok(Seeds(first..=last.ok_or_else(|| format!("{text}: there is no seed in it"))?))
    }
}

/// Numbers of faults.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers(BTreeSet<u64>);

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Numbers, String> {
        if text == "none" {
            return Ok(Numbers(BTreeSet::new()));
        }
        let numbers = text.split(',').map(str::parse).collect::<Result<_, _>>();
        numbers.map(Numbers).map_err(|_| format!("{text}: numbers with commas between, or none"))
    }
}

/// Which seeds are run.
#[derive(Clone, Debug)]
pub enum What {
    /// One.
    Seed(u64),
    /// These.
    Seeds(RangeInclusive<u64>),
    /// Those from this one on, for this time.
    Fresh(u64, Duration),
}

/// What the words mean.
#[derive(Debug)]
pub struct Plan {
    pub what: What,
    /// As fast as can be: nothing is told.
    pub options: Options,
    /// How much is told of the one run that is shown.
    pub trace: TraceDetail,
    pub shrink: bool,
    pub jobs: usize,
}

impl Plan {
    /// The plan, or what is wrong with the words.
    pub fn new(args: &Args) -> Result<Plan, String> {
        let what = match (args.seed, &args.seeds, args.seconds) {
            (Some(seed), ..) => What::Seed(seed),
            (_, Some(Seeds(seeds)), _) => What::Seeds(seeds.clone()),
            (.., seconds) => {
                let random = getrandom::u64().map_err(|error| error.to_string())?;
                // Short enough to be typed.
                What::Fresh(random >> 32, Duration::from_secs(seconds.unwrap_or(1)))
            }
        };
        let within = args.mutant.filter(|mutant| mutant.within().is_some());
        if let Some(mutant) = within.filter(|_| !cfg!(feature = "mutants")) {
            let name = name_of(mutant);
            return Err(format!("--mutant {name} needs a build with --features mutants"));
        }
        let processors = || std::thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Plan {
            what,
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

/// How a kind is called on the command line.
pub fn name_of(kind: impl ValueEnum) -> String {
    kind.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The words that run a seed with the same outcome.
pub struct Replay<'a>(pub u64, pub &'a Options);

impl Display for Replay<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Replay(seed, options) = self;
        write!(f, "nodesync sim --seed {seed}")?;
        write_options(f, options)
    }
}

/// The words for what was asked for beside the seed.
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

    fn plan(line: &str) -> Plan {
        let Tool::Sim(args) = Cli::parse_from(line.split_whitespace()).tool else {
            panic!("{line} is another tool")
        };
        Plan::new(&args).unwrap()
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
            let Plan { what: What::Seed(seed), options, .. } = plan(line) else {
                panic!("{line} is no seed")
            };
            assert_eq!(Replay(seed, &options).to_string(), line);
        }
    }

    #[test]
    fn a_trace_tells_headlines_or_all() {
        assert_eq!(plan("nodesync sim --seed 1").trace, TraceDetail::Last(TAIL));
        assert_eq!(plan("nodesync sim --trace --seed 1").trace, TraceDetail::Headlines);
        assert_eq!(plan("nodesync sim --trace=all --seed 1").trace, TraceDetail::Everything);
    }
}
