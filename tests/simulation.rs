//! Seeded runs of the simulator: fixed seeds, fresh seeds for a minute, and mutants, deliberate
//! bugs each of which must be caught. A failing seed prints the command that replays it.
//!
//! For longer runs `NODESYNC_SEEDS=1000..5000` chooses the fixed seeds, and
//! `NODESYNC_SIM_SECONDS=3600` the time for fresh ones. The table in `docs/testing.md` says which
//! seed catches which mutant; `UPDATE_GOLDENFILES=1` rewrites it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nodesync::testing::sim::{Mutant, NO_PANIC, Options, Report, TraceDetail, run};
use parking_lot::Mutex;

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

const TABLE_BEGINS: &str = "<!-- mutants -->\n";
const TABLE_ENDS: &str = "<!-- /mutants -->";

fn name_of(mutant: Mutant) -> String {
    mutant.to_possible_value().unwrap().get_name().to_owned()
}

/// Invariant that a deliberate bug breaks with this seed, if any.
fn broken_by(mutant: Mutant, seed: u64) -> Option<&'static str> {
    let options =
        Options { mutant: Some(mutant), trace: TraceDetail::Last(0), ..Options::default() };
    run(seed, &options).err().map(|violation| violation.invariant)
}

/// Rows of the table in `text`: mutant name to seed and invariant.
fn rows(text: &str) -> BTreeMap<String, (u64, String)> {
    let table = text.split_once(TABLE_BEGINS).and_then(|(_, rest)| rest.split_once(TABLE_ENDS));
    let (table, _) = table.expect("the table stands between its markers");
    let rows = table.lines().skip(2).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [mutant, seed, invariant] = cells[..] else { panic!("no row of three cells: {line}") };
        (mutant.trim_matches('`').to_owned(), (seed.parse().unwrap(), invariant.to_owned()))
    });
    rows.collect()
}

/// Finds the lowest seed that catches each mutant, and rewrites the table.
fn write_table(path: &Path, text: &str) {
    let mut table = String::from("| mutant | seed | invariant |\n|---|---|---|\n");
    let mut missed = Vec::new();
    for &mutant in Mutant::value_variants() {
        let name = name_of(mutant);
        let found = (0..MUTANT_SEEDS).find_map(|seed| Some((seed, broken_by(mutant, seed)?)));
        match found {
            Some((seed, how)) => writeln!(table, "| `{name}` | {seed} | {how} |").unwrap(),
            None => missed.push(name),
        }
    }
    let (before, rest) = text.split_once(TABLE_BEGINS).expect("a marker before the table");
    let (_, after) = rest.split_once(TABLE_ENDS).expect("a marker behind the table");
    fs::write(path, format!("{before}{TABLE_BEGINS}{table}{TABLE_ENDS}{after}")).unwrap();
    assert!(missed.is_empty(), "not found within {MUTANT_SEEDS} seeds: {missed:?}");
}

#[test]
fn every_mutant_is_found() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/testing.md");
    let text = fs::read_to_string(&path).unwrap();
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        return write_table(&path, &text);
    }
    let (mut rows, mut wrong) = (rows(&text), String::new());
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
