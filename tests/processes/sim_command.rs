//! `nodesync sim` as users run it: the same run in every process, summaries, mistakes on the
//! command line, and violations whose printed command reproduces them.

use std::io::{BufRead, BufReader, Read};

use crate::common::shared;
use crate::common::tool::{command, run};
use rustix::process::{Pid, Signal, kill_process};

/// Rest of the line that begins with `label`.
#[track_caller]
fn after<'a>(page: &'a str, label: &str) -> &'a str {
    let found = page.lines().find_map(|line| line.trim_start().strip_prefix(label));
    found.unwrap_or_else(|| panic!("no {label:?} in {page}")).trim()
}

#[test]
fn a_seed_gives_the_same_hash_in_every_process() {
    let _shared = shared();
    let hash = |seed: u64| {
        let (code, page, lines) = run(&format!("sim --seed {seed}"));
        assert_eq!(code, Some(0), "{page}{lines}");
        let hash = after(&page, "trace hash").to_owned();
        assert!(hash.len() == 16 && u64::from_str_radix(&hash, 16).is_ok(), "{hash}");
        hash
    };
    let first: Vec<String> = (0..6).map(hash).collect();
    let second: Vec<String> = (0..6).map(hash).collect();
    assert_eq!(first, second);
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]), "{first:?}");
}

#[test]
fn a_range_of_seeds_is_summed_up() {
    let _shared = shared();
    let (code, page, lines) = run("sim --seeds 1..4 --jobs 2");
    assert_eq!((code, lines.as_str()), (Some(0), ""), "{page}");
    assert!(after(&page, "runs").starts_with("3 "), "{page}");
    assert!(page.contains("proven: every invariant held in 3 runs"), "{page}");
    let number = |label| after(&page, label).split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(number("commits") > 0 && number("events") > number("commits"), "{page}");
    assert!(!page.contains("trace hash"), "{page}");
    let (_, again, _) = run("sim --seeds 1..=3 --jobs 1");
    for label in ["faults", "events", "commits", "requests"] {
        assert_eq!(after(&page, label), after(&again, label));
    }
}

#[test]
fn the_summary_names_fresh_seeds() {
    let _shared = shared();
    let (code, page, lines) = run("sim --seconds 1 --nodes 3");
    assert_eq!(code, Some(0), "{page}{lines}");
    let first: u64 =
        after(&lines, "nodesync sim: fresh seeds, from").replace(" on", "").parse().unwrap();
    let runs: u64 = after(&page, "runs").split(' ').next().unwrap().parse().unwrap();
    let range = format!("nodesync sim --seeds {first}..{} --nodes 3\n", first + runs);
    assert!(page.starts_with(&range), "{range}{page}");
}

#[test]
fn a_trace_shows_the_requested_detail() {
    let _shared = shared();
    let pages = ["", "--trace", "--trace=all"].map(|words| run(&format!("sim --seed 3 {words}")).1);
    let lines = |page: &String| page.lines().count();
    assert!(lines(&pages[0]) < lines(&pages[1]) && lines(&pages[1]) < lines(&pages[2]));
    assert!(pages[1].contains("FAULT") && !pages[1].contains(" hears "), "{}", pages[1]);
    assert!(pages[2].contains(" hears "));
    assert!(pages.iter().all(|page| after(page, "trace hash") == after(&pages[0], "trace hash")));
}

#[test]
fn options_change_the_run() {
    let _shared = shared();
    let hashes = ["", "--nodes 3", "--steps 500", "--only none --without crash-voters", "--gentle"]
        .map(|words| {
            let (code, page, lines) = run(&format!("sim --seed 3 {words}"));
            assert_eq!(code, Some(0), "{words}: {page}{lines}");
            after(&page, "trace hash").to_owned()
        });
    for (at, hash) in hashes.iter().enumerate() {
        assert!(!hashes[..at].contains(hash), "{hashes:?}");
    }
    let (_, page, _) = run("sim --seed 3 --only none");
    assert_eq!(after(&page, "faults"), "0");
}

#[test]
fn mistakes_on_the_command_line_are_named() {
    let _shared = shared();
    let cases = [
        ("", "--seed"),
        ("--seed x", "x"),
        ("--seed 1 --seeds 1..2", "cannot be used with"),
        ("--seeds 1..2 --seconds 5", "cannot be used with"),
        ("--seeds 1-2", "A..B"),
        ("--seeds 2..2", "no seed"),
        ("--seconds 0", "0"),
        ("--seed 1 --nodes 0", "0"),
        ("--seed 1 --without fire", "fire"),
        ("--seed 1 --only 1,x", "none"),
        ("--seed 1 --trace=more", "more"),
        ("--seed 1 --mutant nobody", "nobody"),
        ("--seed 1 --jobs 0", "0"),
    ];
    for (line, wanted) in cases {
        let (code, page, lines) = run(&format!("sim {line}"));
        assert_eq!((code, page.as_str()), (Some(2), ""), "{line:?}: {lines}");
        assert!(lines.contains(wanted), "{line:?}: {lines}");
    }
}

/// Runs a command that must find a violation. Returns the page, the broken invariant, and the
/// arguments that reproduce it.
#[track_caller]
fn violation(line: &str) -> (String, String, String) {
    let (code, page, lines) = run(line);
    assert_eq!(code, Some(1), "{line}: {page}{lines}");
    let broken = page.lines().find_map(|line| Some(line.split_once("BROKEN: ")?.1.to_owned()));
    let again = after(&page, "again: nodesync ").to_owned();
    (page.clone(), broken.unwrap(), again)
}

#[test]
fn a_violation_names_the_command_that_reproduces_it() {
    let _shared = shared();
    let (page, broken, again) = violation("sim --seeds 0..30 --mutant ack-before-sync --nodes 3");
    let lowest = page.lines().find(|line| line.starts_with("  seed ")).unwrap();
    assert!(lowest.ends_with(&broken), "{lowest}");
    assert!(page.contains("VIOLATION: ") && page.contains("struck before"), "{page}");
    let seed = lowest.trim_start_matches("  seed ").split(':').next().unwrap();
    assert_eq!(again, format!("sim --seed {seed} --nodes 3 --mutant ack-before-sync"));
    let second = violation(&again);
    assert_eq!((second.1, second.2), (broken, again));
}

#[test]
fn shrinking_makes_a_violation_smaller() {
    let _shared = shared();
    let steps = |page: &str| -> u64 {
        let line = page.lines().find(|line| line.starts_with("seed ")).unwrap();
        line.split(' ').nth_back(1).unwrap().parse().unwrap()
    };
    let large = violation("sim --seeds 0..30 --mutant ack-before-sync");
    let small = violation("sim --seeds 0..30 --mutant ack-before-sync --shrink");
    assert_eq!(small.1, large.1);
    // The printed command contains the options that make the run smaller.
    assert!(small.2.starts_with(&large.2[..8]) && small.2.len() > large.2.len(), "{}", small.2);
    assert!(steps(&small.0) < steps(&large.0), "{}", small.0);
    let again = violation(&small.2);
    assert_eq!((steps(&again.0), again.1), (steps(&small.0), small.1));
}

#[test]
fn a_signal_ends_a_run_early_without_a_proof() {
    let _shared = shared();
    let mut child = command("sim --seconds 600").spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("fresh seeds"), "{line}");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut page = String::new();
    child.stdout.take().unwrap().read_to_string(&mut page).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{page}");
    assert!(page.contains("INCONCLUSIVE: stopped early") && page.contains("runs"), "{page}");
}
