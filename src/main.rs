//! The command `nodesync`: runs one node until a signal stops it, or one of the tools.
//!
//! Exit codes: 0 clean; 1 failed; 2 usage; 65 data refused; 74 I/O; 78 configuration.

#![warn(clippy::unwrap_used)]

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::Parser;
use nodesync::config::{Config, NodeArgs};
use nodesync::node::{Fatal, Node, Stop};
#[cfg(feature = "tools")]
use nodesync::tools::Tool;

fn main() -> ExitCode {
    if let Some(code) = run_tool(&std::env::args_os().collect::<Vec<_>>()) {
        return ExitCode::from(code);
    }
    let args = NodeArgs::parse();
    start_log(args.log_level);
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            eprintln!("nodesync: {fatal}");
            ExitCode::from(fatal.exit_code())
        }
    }
}

/// Runs the tool that the command line names, if it names one; its exit code.
#[cfg(feature = "tools")]
fn run_tool(words: &[OsString]) -> Option<u8> {
    Tool::from_words(words).map(Tool::run)
}

/// Refuses a tool that this build does not contain; the exit code.
#[cfg(not(feature = "tools"))]
fn run_tool(words: &[OsString]) -> Option<u8> {
    let tool = words.get(1)?.to_str().filter(|word| ["sim", "verify", "bench"].contains(word))?;
    eprintln!(
        "nodesync: this build is the server alone, without `{tool}`; \
         `cargo build --release` builds it with its tools"
    );
    Some(2)
}

fn run(args: NodeArgs) -> Result<(), Fatal> {
    let config = Config::new(args).map_err(Fatal::Config)?;
    // Before the node takes its first write: from then on a signal must stop it in an orderly way.
    let stop = Arc::new(Stop::default());
    let (signals, stop_of_signal) = (AtomicU32::new(0), Arc::clone(&stop));
    ctrlc::set_handler(move || {
        // The second signal ends the process without an orderly stop.
        if signals.fetch_add(1, Ordering::Relaxed) > 0 {
            std::process::exit(1);
        }
        log::info!(target: "NodeSync", "Stopping (a second signal stops at once)");
        stop_of_signal.ask();
    })
    .map_err(|error| Fatal::Io(format!("cannot handle signals: {error}")))?;
    Node::start(config, stop)?.run_until_stopped()
}

/// Starts the log: `HH:MM:SS [TAG       ] message`, in UTC. The tag is the log target of our own
/// lines; the lines of libraries, whose target is a module path, get the tag `NodeSync`.
fn start_log(level: log::LevelFilter) {
    env_logger::Builder::new()
        .filter_level(level)
        .format(|out, record| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let day_seconds = now.map_or(0, |since| since.as_secs() % 86_400);
            let (hour, minute) = (day_seconds / 3600, day_seconds / 60 % 60);
            let second = day_seconds % 60;
            let tag = match record.target() {
                tag @ ("ELECTION" | "FAILURE" | "RECOVERED") => tag,
                _ => "NodeSync",
            };
            writeln!(out, "{hour:02}:{minute:02}:{second:02} [{tag:<10}] {}", record.args())
        })
        .init();
}
