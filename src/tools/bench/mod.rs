//! `nodesync bench`: measures the throughput and latency of a cluster.
//!
//! It measures a live cluster (`--peers`) or a temporary one (`--spawn`), in strong and eventual
//! sessions one after the other with the same load (`run`, `load`). It prints averages and a table
//! of percentiles, and writes a report with charts on request (`results`, `report`). With
//! `--kill-leader-at` it measures a failover as clients see it.
//!
//! Rules: latency is measured outside the nodes, from the time before a request is sent, or was
//! meant to be sent, until its reply has arrived (no coordinated omission with `--rate`). An error
//! never counts as an answer. The results include the cost and the lateness of the generator
//! itself. The first signal ends the load early: the results so far are printed, and a temporary
//! cluster is removed. After the second signal the command does not wait for answers.
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

/// Runs the command and returns its exit code.
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
    write_results(plan, &outcomes, &names)?;
    complaints.iter().for_each(|complaint| eprintln!("nodesync bench: {complaint}"));
    let failed = outcomes.iter().any(|outcome| {
        outcome.tally.errors.iter().any(|errors| !errors.killed)
            || outcome.tally.both().latencies.is_empty()
    });
    Ok(if failed || !complaints.is_empty() { VIOLATION } else { 0 })
}

/// Raises the limit on open files as far as the system allows: a connection needs one.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // If this fails, a run with too many connections reports the error.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Runs all rounds of all modes. The order alternates, so that no mode is always the first.
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
            let result = run::run(plan, &keys, mode, nodes, watch)?;
            let killed = result.kill.is_some();
            outcomes.push(result);
            if killed && !watch.must_stop() {
                nodes.heal(watch)?;
            }
        }
    }
    Ok(outcomes)
}

/// Prints the results and writes the files that the flags ask for.
fn write_results(
    plan: &BenchPlan,
    outcomes: &[RunResult],
    names: &[String],
) -> Result<(), ToolError> {
    let rows: Vec<ResultRow> = results::rows(plan, outcomes);
    let notes = results::notes(plan, outcomes, names);
    let quiet = [&plan.json, &plan.csv].iter().any(|path| path.as_deref().is_some_and(is_stdout));
    if !quiet {
        let lines: String = notes.iter().map(|note| format!("{note}\n")).collect();
        print_page(&format!("\n{}\n{}\n{lines}", results::block(&rows), results::table(&rows)));
    }
    let wants_facts = plan.json.is_some() || plan.report.is_some();
    let facts = if wants_facts { report::facts(plan) } else { Vec::new() };
    if let Some(path) = &plan.json {
        write_page(path, &results::json(&facts, plan, &rows, outcomes, names))?;
    }
    if let Some(path) = &plan.csv {
        write_page(path, &results::csv(&rows))?;
    }
    if let Some(dir) = &plan.report {
        report::write(dir, plan, &facts, (&rows, outcomes, &notes))
            .map_err(|error| (IO, format!("{}: {error}", dir.display())))?;
        if !quiet {
            print_page(&format!("report: {}\n", dir.join("RESULTS.md").display()));
        }
    }
    Ok(())
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

fn write_page(path: &Path, page: &str) -> Result<(), ToolError> {
    if is_stdout(path) {
        print_page(page);
        return Ok(());
    }
    std::fs::write(path, page).map_err(|error| (IO, format!("{}: {error}", path.display())))
}

/// Prints a page. A closed standard output is no error.
fn print_page(page: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(page.as_bytes()).and_then(|()| out.flush());
}
