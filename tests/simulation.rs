//! Seeded runs of the simulator: fixed seeds, fresh seeds for a minute, and mutants, deliberate
//! bugs each of which must be caught. A failing seed prints the command that replays it.
//!
//! For longer runs `NODESYNC_SEEDS=1000..5000` chooses the fixed seeds, and
//! `NODESYNC_SIM_SECONDS=3600` the time for fresh ones. The table in `docs/testing.md` says which
//! seed catches which mutant; `UPDATE_GOLDENFILES=1` rewrites it.

#[path = "common/mutant_table.rs"]
mod mutant_table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Range;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nodesync::testing::sim::{Mutant, NO_PANIC, Options, Report, TraceDetail, run};
use parking_lot::Mutex;

use mutant_table::MutantTable;

/// Seeds that every test run tries.
const FIXED_SEEDS: Range<u64> = 0..200;

/// Default time for fresh seeds, in seconds; `NODESYNC_SIM_SECONDS` overrides it.
const FRESH_SECONDS: u64 = 60;

/// Number of seeds, one of which must catch a deliberate bug.
const MUTANT_SEEDS: u64 = 500;

/// Lock that the tests that use all processors take in turn.
static PROCESSORS: Mutex<()> = Mutex::new(());

fn from_environment<T: FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} has a wrong value: {text}"))
}

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("NODESYNC_SEEDS") else { return FIXED_SEEDS };
    let bounds = text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (first, end) = bounds.expect("NODESYNC_SEEDS has the form 1000..2000");
    first..end
}

/// Runs consecutive seeds from `first` on all processors, while `wanted` holds. Prints the sums of
/// their reports, or fails with the lowest seed that broke an invariant.
fn run_seeds(first: u64, wanted: impl Fn(u64) -> bool + Sync) {
    let (options, next) = (Options::default(), AtomicU64::new(first));
    let (reports, failures) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if !wanted(seed) {
            return;
        }
        match run(seed, &options) {
            Ok(report) => reports.lock().push(report),
            Err(violation) => _ = failures.lock().insert(seed, violation),
        }
    };
    std::thread::scope(|scope| (0..workers).for_each(|_| _ = scope.spawn(work)));
    let (reports, failures) = (reports.into_inner(), failures.into_inner());
    if let Some((seed, violation)) = failures.first_key_value() {
        let lines: String =
            failures.iter().map(|(seed, v)| format!("  {seed}: {}\n", v.invariant)).collect();
        panic!(
            "{violation}\n\nfailed seeds:\n{lines}\nreplay the first one:\n  \
             nodesync sim --seed {seed}\n  cargo run --release -- sim --seed {seed} --shrink"
        );
    }
    let sum = |field: fn(&Report) -> u64| reports.iter().map(field).sum::<u64>();
    println!(
        "{} runs: {} events, {} commits, {} terms led, {} snapshots, {} restored, {} requests, \
         {} answered, {} eventual writes, {} keys undecided",
        reports.len(),
        sum(|r| r.events),
        sum(|r| r.commits),
        sum(|r| r.terms_led),
        sum(|r| r.snapshots),
        sum(|r| r.restored),
        sum(|r| r.requests),
        sum(|r| r.answered),
        sum(|r| r.eventual),
        sum(|r| r.undecided),
    );
}

/// Writes a line to the terminal at once: `cargo test` captures only the output of macros.
fn announce(line: &str) {
    // A closed standard error must not fail the test.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn the_promises_hold_in_every_seeded_run() {
    let _alone = PROCESSORS.lock();
    let seeds = seeds();
    run_seeds(seeds.start, |seed| seed < seeds.end);
}

#[test]
fn the_promises_hold_for_fresh_seeds() {
    let _alone = PROCESSORS.lock();
    let seconds = from_environment("NODESYNC_SIM_SECONDS", FRESH_SECONDS);
    // Half of the bits make a seed that is short enough to type.
    let first = getrandom::u64().unwrap() >> 32;
    announce(&format!(
        "simulation: fresh seeds for {seconds} s, from {first} on (see NODESYNC_SIM_SECONDS)"
    ));
    let time = Duration::from_secs(seconds);
    let started = Instant::now();
    run_seeds(first, |_| started.elapsed() < time);
}

#[test]
fn a_seed_replays_exactly() {
    let options = Options { trouble: Duration::from_secs(3), ..Options::default() };
    let hashes = || -> Vec<_> {
        (0..6).map(|seed| run(seed, &options).map(|report| report.trace_hash).ok()).collect()
    };
    let first = hashes();
    assert_eq!(first, hashes());
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn a_panic_is_a_violation_of_its_seed() {
    // A simulated cluster without nodes panics as soon as an event picks a node.
    let violation = run(5, &Options { nodes: Some(0), ..Options::default() }).unwrap_err();
    assert_eq!((violation.seed, violation.invariant), (5, NO_PANIC));
    assert!(!violation.how.is_empty(), "the violation keeps the message of the panic");
}

fn name_of(mutant: Mutant) -> String {
    mutant.to_possible_value().unwrap().get_name().to_owned()
}

/// Invariant that a deliberate bug breaks with this seed, if any.
fn broken_by(mutant: Mutant, seed: u64) -> Option<&'static str> {
    let options =
        Options { mutant: Some(mutant), trace: TraceDetail::Last(0), ..Options::default() };
    run(seed, &options).err().map(|violation| violation.invariant)
}

/// Finds the lowest seed that catches each mutant, and rewrites the table.
fn write_table(mut table: MutantTable) {
    table.rows.clear();
    let mut missed = Vec::new();
    for &mutant in Mutant::value_variants() {
        let name = name_of(mutant);
        let found = (0..MUTANT_SEEDS).find_map(|seed| Some((seed, broken_by(mutant, seed)?)));
        match found {
            Some((seed, how)) => table.rows.push((name, seed, how.to_owned())),
            None => missed.push(name),
        }
    }
    table.write();
    assert!(missed.is_empty(), "not found within {MUTANT_SEEDS} seeds: {missed:?}");
}

#[test]
fn every_mutant_is_found() {
    let table = MutantTable::read("mutants");
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        return write_table(table);
    }
    let rows = table.rows.into_iter().map(|(name, seed, invariant)| (name, (seed, invariant)));
    let (mut rows, mut wrong) = (rows.collect::<BTreeMap<_, _>>(), String::new());
    for &mutant in Mutant::value_variants() {
        let name = name_of(mutant);
        let Some((seed, invariant)) = rows.remove(&name) else {
            writeln!(wrong, "  {name}: no row").unwrap();
            continue;
        };
        let found = broken_by(mutant, seed);
        if found != Some(&invariant) || seed >= MUTANT_SEEDS {
            writeln!(wrong, "  {name}: seed {seed} breaks {found:?}, not {invariant:?}").unwrap();
        }
    }
    rows.keys().for_each(|name| writeln!(wrong, "  {name}: no such mutant").unwrap());
    assert!(wrong.is_empty(), "UPDATE_GOLDENFILES=1 finds other seeds:\n{wrong}");
}
