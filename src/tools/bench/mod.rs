//! `nodesync bench`: how fast a cluster is, by a load generator that counts honestly.
//!
//! It measures a live cluster (`--peers`) or one of its own (`--spawn`), in strong and eventual
//! sessions one after the other, with the same load (`run`, `load`), and tells averages, a table of
//! percentiles, and if asked a report with charts (`results`, `report`). With `--kill-leader-at` it
//! shows what clients see of a failover.
//!
//! Rules: latency is measured outside the nodes, from before a request is sent, or was meant to be
//! sent, until its reply is there; an error is never counted as an answer; what the generator
//! itself costs or spoils is told. A signal ends the load early: what was measured by then is told,
//! and a cluster of its own is removed. A second one does not wait for answers.
//!
//! Left out: several machines as the source of one load, commands other than SET and GET, RESP3.

mod args;
mod chart;
mod connection;
mod keys;
mod load;
mod nodes;
mod pace;
mod report;
mod request;
mod results;
mod run;
mod scan;
mod shared;
mod tally;

use std::io::Write;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::tools::exit::{IO, ToolError, USAGE, VIOLATION};
use crate::tools::watch::Watch;
pub use args::BenchArgs;
use args::{BenchPlan, SessionMode};
use keys::Keys;
use nodes::Nodes;
use results::ResultRow;
use run::RunResult;

/// Runs the command; the exit code.
pub fn run(args: &BenchArgs) -> u8 {
    match BenchPlan::new(args).map_err(|error| (USAGE, error)).and_then(|plan| measure(&plan)) {
        Ok(code) => code,
        Err((code, text)) => {
            eprintln!("nodesync bench: {text}");
            code
        }
    }
}

fn measure(plan: &BenchPlan) -> Result<u8, ToolError> {
    let mut watch =
        Watch::new().map_err(|error| (IO, format!("cannot handle signals: {error}")))?;
    raise_open_files();
    let mut nodes = Nodes::new(plan, &watch)?;
    if plan.preload {
        nodes.preload(plan, &mut watch)?;
    }
    let outcomes = all_runs(plan, &mut nodes, &mut watch)?;
    drop(watch);
    let names = nodes.names.clone();
    let complaints = nodes.finish()?;
    tell(plan, &outcomes, &names)?;
    complaints.iter().for_each(|complaint| eprintln!("nodesync bench: {complaint}"));
    let failed = outcomes.iter().any(|outcome| {
        outcome.tally.errors.iter().any(|errors| !errors.killed)
            || outcome.tally.both().latencies.is_empty()
    });
    Ok(if failed || !complaints.is_empty() { VIOLATION } else { 0 })
}

/// As many as the system allows: a connection needs one.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // If it is refused, a run with too many connections says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// All rounds of all modes. The order turns with each round, so that none is always the first.
fn all_runs(
    plan: &BenchPlan,
    nodes: &mut Nodes,
    watch: &mut Watch,
) -> Result<Vec<RunResult>, ToolError> {
    let keys = Keys::new(plan.distribution, plan.keys);
    let mut outcomes = Vec::new();
    for round in 0..plan.rounds {
        let mut modes: Vec<SessionMode> = plan.modes.clone();
        if round % 2 == 1 {
            modes.reverse();
        }
        for mode in modes {
            if watch.must_stop() {
                break;
            }
            let outcome = run::run(plan, &keys, mode, nodes, watch)?;
            let killed = outcome.kill.is_some();
            outcomes.push(outcome);
            if killed && !watch.must_stop() {
                nodes.heal(watch)?;
            }
        }
    }
    Ok(outcomes)
}

/// Prints the results, and writes what was asked for.
fn tell(plan: &BenchPlan, outcomes: &[RunResult], names: &[String]) -> Result<(), ToolError> {
    let rows: Vec<ResultRow> = results::rows(plan, outcomes);
    let notes = results::notes(plan, outcomes, names);
    let quiet = [&plan.json, &plan.csv].iter().any(|path| path.as_deref().is_some_and(is_stdout));
    if !quiet {
        let lines: String = notes.iter().map(|note| format!("{note}\n")).collect();
        say(&format!("\n{}\n{}\n{lines}", results::block(&rows), results::table(&rows)));
    }
    let wants_facts = plan.json.is_some() || plan.report.is_some();
    let facts = if wants_facts { report::facts(plan) } else { Vec::new() };
    if let Some(path) = &plan.json {
        put(path, &results::json(&facts, plan, &rows, outcomes, names))?;
    }
    if let Some(path) = &plan.csv {
        put(path, &results::csv(&rows))?;
    }
    if let Some(dir) = &plan.report {
        report::write(dir, plan, &facts, (&rows, outcomes, &notes))
            .map_err(|error| (IO, format!("{}: {error}", dir.display())))?;
        if !quiet {
            say(&format!("report: {}\n", dir.join("RESULTS.md").display()));
        }
    }
    Ok(())
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

fn put(path: &Path, page: &str) -> Result<(), ToolError> {
    if is_stdout(path) {
        say(page);
        return Ok(());
    }
    std::fs::write(path, page).map_err(|error| (IO, format!("{}: {error}", path.display())))
}

/// Prints; a reader who has gone does not miss anything.
fn say(page: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(page.as_bytes()).and_then(|()| out.flush());
}
