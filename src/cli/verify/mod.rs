//! `nodesync verify`: clients, faults and a verdict on a live cluster.

/// What was typed.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command; the exit code.
pub fn run(_args: &Args) -> u8 {
    3
}
