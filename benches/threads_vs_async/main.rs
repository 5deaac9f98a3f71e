//! Comparison of threads, loops and async: the same node behind `--io threads`, `--io poll`, and an
//! async front end on tokio ([`twin`]).
//!
//! `cargo bench -p nodesync-benches --bench threads_vs_async` starts three clusters of three real
//! processes each, which differ only in the front end of their leaders. `nodesync bench` loads the
//! leaders in turn, one kind of load after the other, so a drift of the machine's speed affects all
//! of them alike. The bench prints Markdown tables: throughput, latency, the leader's processor
//! time and context switches for one operation, and its memory for one connection.
//!
//! `-- --quick` measures with 64 clients only; `-- --rounds 5` prints medians of five rounds;
//! `-- --svg FILE` draws throughput by clients.

#[path = "../../src/tools/bench/chart.rs"]
#[allow(dead_code, reason = "not all kinds of axes are needed here")]
mod chart;
#[path = "../../tests/common/mod.rs"]
mod common;
mod load;
mod process;
mod server;
mod tables;
mod twin;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use load::{Cell, Operation};
use server::{Front, Server};
use tables::Measured;

/// Word that selects the twin's process; a port and the arguments of a node follow it.
const SERVE: &str = "serve";

const CLIENTS: [usize; 5] = [1, 16, 64, 256, 1024];
const PIPELINES: [usize; 2] = [1, 16];
/// Number of connections for the memory of one.
const CONNECTIONS: usize = 1000;

/// Compares front ends with threads, loops and async
#[derive(Parser)]
struct Options {
    /// Measure with 64 clients only
    #[arg(long)]
    quick: bool,

    /// Rounds of measurements; the tables show their medians
    #[arg(long, default_value_t = 1)]
    rounds: usize,

    /// File for a chart of throughput by clients
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Set by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if let [_, serve, port, node @ ..] = &words[..]
        && serve == SERVE
    {
        let served = port.parse().map_err(|_| "no port".into());
        return match served.and_then(|port| twin::run(port, node)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let options = Options::parse();
    if options.bench {
        compare(&options);
    } else {
        println!("this takes minutes: run it with `cargo bench`");
    }
    ExitCode::SUCCESS
}

fn compare(options: &Options) {
    raise_open_files();
    let servers = Front::ALL.map(Server::start);
    let memory = [0, 1, 2].map(|at| servers[at].connection_kib(CONNECTIONS));
    servers.iter().for_each(Server::preload);
    let mut measured: Vec<Measured> = cells(options.quick)
        .into_iter()
        .map(|cell| Measured { cell, rounds: Default::default() })
        .collect();
    for round in 0..options.rounds.max(1) {
        for row in &mut measured {
            // The first front end changes from round to round.
            for turn in 0..servers.len() {
                let at = (round + turn) % servers.len();
                let figures = load::run(&servers[at], row.cell);
                let name = servers[at].front.name();
                eprintln!("{:?} by {name}: {:.0} a second", row.cell, figures.throughput);
                row.rounds[at].push(figures);
            }
        }
    }
    println!("{}\n{}", tables::loads(&measured), tables::memory(CONNECTIONS, memory));
    if let Some(path) = &options.svg {
        std::fs::write(path, tables::charts(&measured)).expect("the chart can be written");
    }
}

fn cells(quick: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    for operation in [Operation::Set, Operation::Get] {
        for pipeline in PIPELINES {
            for clients in CLIENTS {
                cells.push(Cell { operation, clients, pipeline });
            }
        }
    }
    cells.push(Cell { operation: Operation::EventualGet, clients: 64, pipeline: 1 });
    cells.retain(|cell| !quick || cell.clients == 64);
    cells
}

/// Raises the limit of open files as far as allowed: for the connections, and for child processes.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // If this is refused, connections beyond the limit fail with an error.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
