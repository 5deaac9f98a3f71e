//! The program's tools, run as processes.

use std::process::{Command, Output, Stdio};

use super::binary;

/// `nodesync` with these words, separated by blanks; its output is kept.
pub fn command(line: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end; see [`told`].
pub fn run(line: &str) -> (Option<i32>, String, String) {
    told(command(line).output().unwrap())
}

/// The exit code of a tool that has ended, what it wrote to standard output, and to standard error.
pub fn told(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}
