//! The command line as a whole: a node by default, or one of the tools that try nodes out.
//!
//! `nodesync PORT PEERS…` starts a node (see [`crate::config`]); `nodesync sim`, `nodesync verify`
//! and `nodesync bench` are commands of their own with their own flags and exit codes. What more
//! than one of them needs lies beside them: `process` for nodes, [`Port`] for where they listen,
//! `watch` for bars and signals.

// The load generator waits by epoll.
#[cfg(target_os = "linux")]
pub mod bench;
mod port;
mod process;
pub mod sim;
pub mod verify;
mod watch;

use std::ffi::OsString;

use clap::{Parser, Subcommand};

pub use port::Port;

/// A tool, chosen by the first word of the command line.
#[derive(Debug, Parser)]
#[command(name = "nodesync", version, about, max_term_width = 100)]
pub struct Cli {
    /// Which one.
    #[command(subcommand)]
    pub tool: Tool,
}

/// The tools.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Runs whole clusters under simulated time and faults, and checks what must hold
    Sim(sim::Args),
    /// Puts a live cluster, or one of its own, under load and faults, and judges what clients saw
    Verify(verify::Args),
    /// Measures throughput and latency of a live cluster, or of one of its own
    #[cfg(target_os = "linux")]
    Bench(Box<bench::Args>),
}

impl Tool {
    const NAMES: [&str; 3] = ["sim", "verify", "bench"];

    /// The tool that the words of a command line ask for, the program's name first. `None` if they
    /// start a node. Mistakes end the process, as clap does.
    pub fn asked_for(words: &[OsString]) -> Option<Tool> {
        let known = Tool::NAMES.iter().any(|name| words.get(1).is_some_and(|word| word == *name));
        known.then(|| Cli::parse_from(words).tool)
    }

    /// Does its work; the exit code of the process.
    pub fn run(self) -> u8 {
        match self {
            Tool::Sim(args) => sim::run(&args),
            Tool::Verify(args) => verify::run(&args),
            #[cfg(target_os = "linux")]
            Tool::Bench(args) => bench::run(&args),
        }
    }
}
