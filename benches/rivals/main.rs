//! Comparison of NodeSync with the systems that users would choose instead, Redis and etcd: on one
//! machine, in one run, with the same load. `benches/rivals.sh` starts it.
//!
//! Each round starts the systems in turn. The order rotates with the rounds, so a drift of the
//! machine's speed affects all of them alike. Redis runs alone, without replicas. etcd and NodeSync
//! run three nodes over loopback, with their own defaults, and clients connect to their leader.
//! Load generators run on the same machine, with one thread each: `nodesync bench` for the systems
//! that speak RESP (`load`), and a small gRPC client for etcd (`etcd`), which is taken at its best
//! over 64 connections and over 8. The page shows medians of all rounds (`results`).
//!
//! The exit code is 0 only if no run had an error, whether or not targets were met. A system that
//! is not installed is reported and left out.

mod etcd;
mod load;
mod machine;
mod processes;
mod results;
mod systems;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use load::{KEYS, SIZE, Span};
use processes::asked_to_stop;
use results::Results;
use systems::{Setup, System};

const INSTALL: &str = "apt-get install redis-server etcd-server";

/// Compares NodeSync with Redis and etcd on this machine
#[derive(Debug, Parser)]
struct Args {
    /// Rounds, in each of which every system is started and measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// One second for each case, for a first look
    #[arg(long)]
    quick: bool,
    /// Systems to measure [default: all]
    #[arg(long, value_name = "SYSTEMS", value_delimiter = ',')]
    only: Vec<Family>,
    /// A flag for NodeSync's nodes, or several; repeatable
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    node_args: Vec<String>,
    /// The program to measure
    #[arg(long)]
    binary: PathBuf,
    /// Directory for data, on the disk to be measured
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Set by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Family {
    Nodesync,
    Redis,
    Etcd,
}

impl Family {
    fn of(system: System) -> Family {
        match system {
            System::Etcd => Family::Etcd,
            System::Strong | System::Eventual => Family::Nodesync,
            _ => Family::Redis,
        }
    }

    fn program(self, args: &Args) -> &Path {
        match self {
            Family::Nodesync => &args.binary,
            Family::Redis => Path::new("redis-server"),
            Family::Etcd => Path::new("etcd"),
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("rivals: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all rounds; true if there were no errors.
fn run(args: &Args) -> Result<bool, String> {
    processes::handle_signals()?;
    systems::make_dir(&args.dir)?;
    let (systems, versions) = present(args)?;
    let millis = |quick, full| Duration::from_millis(if args.quick { quick } else { full });
    let span = Span { warm_up: millis(300, 500), measured: millis(1000, 3000) };
    let node_args = args.node_args.iter().flat_map(|flags| flags.split_whitespace());
    let setup = Setup {
        binary: args.binary.clone(),
        dir: args.dir.clone(),
        span,
        node_args: node_args.map(str::to_string).collect(),
    };
    let load = first_words("/proc/loadavg", 3);
    let (mut results, mut rounds) = (Results::default(), 0);
    while rounds < args.rounds && !asked_to_stop() {
        eprintln!("round {} of {}", rounds + 1, args.rounds);
        for nth in 0..systems.len() {
            if !asked_to_stop() {
                let at = (nth + rounds as usize) % systems.len();
                setup.run(systems[at], &mut results);
            }
        }
        rounds += 1;
    }
    if asked_to_stop() {
        return Err("asked to stop".into());
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = first_words("/proc/sys/kernel/osrelease", 1);
    println!("Medians of {rounds} rounds; {cores} cores, Linux {kernel}.");
    let after = first_words("/proc/loadavg", 3);
    println!("Load averages before (should be near 0): {load}; after: {after}.");
    println!("{}.", versions.join("; "));
    let seconds = span.measured.as_secs();
    println!("{KEYS} keys of 16 bytes, values of {SIZE} bytes, {seconds} s for each case.\n");
    print!("{}", results.page());
    Ok(results.is_clean())
}

/// Selected systems that are installed, and their versions.
fn present(args: &Args) -> Result<(Vec<System>, Vec<String>), String> {
    let (mut systems, mut versions) = (Vec::new(), Vec::new());
    for family in [Family::Nodesync, Family::Redis, Family::Etcd] {
        if !args.only.is_empty() && !args.only.contains(&family) {
            continue;
        }
        let program = family.program(args);
        match systems::version(program) {
            Some(version) => {
                let own = |system: &System| Family::of(*system) == family;
                systems.extend(System::ALL.into_iter().filter(own));
                versions.push(version);
            }
            None if family == Family::Nodesync => {
                return Err(format!("{} does not run", program.display()));
            }
            None => {
                let name = program.display();
                eprintln!("rivals: NOT MEASURED, as `{name}` does not run: {INSTALL}");
                versions.push(format!("{name} not measured, as it is not installed"));
            }
        }
    }
    // In the order of the tables.
    systems.sort_unstable();
    Ok((systems, versions))
}

fn first_words(path: &str, count: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}
