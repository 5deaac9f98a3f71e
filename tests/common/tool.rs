//! The program's tools, run as processes.

use std::process::{Command, Output, Stdio};

use super::binary;

/// Command `nodesync` with these blank-separated words; its output is captured.
pub fn command(line: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `nodesync` with these words to its end; returns the same as [`result_of`].
pub fn run(line: &str) -> (Option<i32>, String, String) {
    result_of(command(line).output().unwrap())
}

/// Exit code, standard output and standard error of a tool that has ended.
pub fn result_of(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}
