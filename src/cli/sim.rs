//! `nodesync sim`: seeds on all processors, a summary, and for a violation the way to replay it.

/// What was typed.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command; the exit code.
pub fn run(_args: &Args) -> u8 {
    3
}
