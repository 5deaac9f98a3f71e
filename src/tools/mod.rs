//! The tools that test and measure nodes: `nodesync sim`, `nodesync verify`, `nodesync bench`.
//!
//! `nodesync PORT PEERS…` starts a node (see [`crate::config`]); each tool is a command with flags
//! and exit codes of its own. A tool knows nodes only as processes and as servers that answer
//! clients: `process` starts nodes, [`Port`] reserves their ports, `watch` has progress bars and
//! signals, `exit` the exit codes.

// The load generator waits by epoll.
#[cfg(target_os = "linux")]
pub mod bench;
mod exit;
mod port;
mod process;
pub mod sim;
pub mod verify;
mod watch;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

pub use port::Port;

/// A command line that names a tool.
#[derive(Debug, Parser)]
#[command(name = "nodesync", version, about, max_term_width = 100)]
pub struct Cli {
    /// The tool.
    #[command(subcommand)]
    pub tool: Tool,
}

/// The tools.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Simulates whole clusters with faults in virtual time, and checks invariants
    Sim(sim::SimArgs),
    /// Puts a cluster under load and faults, and checks what its clients saw for consistency
    Verify(verify::VerifyArgs),
    /// Measures the throughput and latency of a cluster
    #[cfg(target_os = "linux")]
    Bench(Box<bench::BenchArgs>),
}

impl Tool {
    const NAMES: [&str; 3] = ["sim", "verify", "bench"];

    /// The tool that a command line names, if any. `words` begin with the program's name. A wrong
    /// command line ends the process, as clap does.
    pub fn from_words(words: &[OsString]) -> Option<Tool> {
        let known = Tool::NAMES.iter().any(|name| words.get(1).is_some_and(|word| word == *name));
        known.then(|| Cli::parse_from(words).tool)
    }

    /// Runs the tool and returns the exit code of the process.
    pub fn run(self) -> u8 {
        match self {
            Tool::Sim(args) => sim::run(&args),
            Tool::Verify(args) => verify::run(&args),
            #[cfg(target_os = "linux")]
            Tool::Bench(args) => bench::run(&args),
        }
    }
}
