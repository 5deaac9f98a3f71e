//! What is asked of the systems, and the load generator for those that talk RESP: the program's own
//! `nodesync bench`, the same for all.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::processes::own_settings_only;

/// Different keys, each of 16 bytes, all written before the load.
pub const KEYS: u64 = 100_000;
/// Bytes of a value.
pub const SIZE: usize = 64;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// Reads, or else writes.
    pub get: bool,
    /// Clients, each of which waits for its answers before it goes on.
    pub clients: usize,
    /// Requests that a client sends at once.
    pub pipeline: usize,
    /// Connections that the clients share, where that can be; or else one for each.
    pub connections: usize,
    /// Clients are spread over all nodes, or else all at the leader.
    pub all: bool,
}

impl Case {
    /// Writes.
    pub const fn set(clients: usize) -> Case {
        Case { get: false, clients, pipeline: 1, connections: clients, all: false }
    }

    /// Reads.
    pub const fn get(clients: usize) -> Case {
        Case { get: true, ..Case::set(clients) }
    }

    /// The same with so many requests at once.
    pub const fn pipeline(self, pipeline: usize) -> Case {
        Case { pipeline, ..self }
    }

    /// The same over so many connections.
    pub const fn over(self, connections: usize) -> Case {
        Case { connections, ..self }
    }

    /// The same, spread over all nodes.
    pub const fn at_all(self) -> Case {
        Case { all: true, ..self }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.clients == 1 { "" } else { "s" };
        let verb = if self.get { "GET" } else { "SET" };
        write!(out, "{verb}, {} client{plural}", self.clients)?;
        if self.pipeline > 1 {
            write!(out, ", pipeline {}", self.pipeline)?;
        }
        if self.connections != self.clients {
            write!(out, " over {} connections", self.connections)?;
        }
        if self.all { write!(out, ", at all nodes") } else { Ok(()) }
    }
}

/// What one run of a case gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Answers a second.
    pub per_second: f64,
    /// Milliseconds.
    pub p50: f64,
    /// Milliseconds.
    pub p99: f64,
}

/// How long a case runs.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Under load, before what counts.
    pub warm_up: Duration,
    /// What counts.
    pub measured: Duration,
}

/// `nodesync bench`, aimed at some nodes.
#[derive(Debug)]
pub struct Generator {
    /// The program.
    pub binary: PathBuf,
    /// Where the nodes are.
    pub ports: Vec<u16>,
    /// Sessions: strong, eventual, or what the server gives to who asks for nothing.
    pub consistency: &'static str,
    /// The time of a case.
    pub span: Span,
}

impl Generator {
    /// Runs a case. What was measured, if anything was, and what went wrong, if anything did.
    pub fn run(&self, case: Case, preload: bool) -> (Option<Sample>, Option<String>) {
        let mut command = Command::new(&self.binary);
        own_settings_only(&mut command);
        let peers: Vec<String> =
            self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        command.args(["bench", "--json", "-", "--peers", &peers.join(",")]);
        command.args(["--consistency", self.consistency]);
        command.args(["--to", if case.all { "all" } else { "leader" }]);
        command.args(["--ratio", if case.get { "1" } else { "0" }]);
        let numbers = [
            ("--clients", case.clients as f64),
            ("--pipeline", case.pipeline as f64),
            ("--size", SIZE as f64),
            ("--keys", KEYS as f64),
            ("--seconds", self.span.measured.as_secs_f64()),
            ("--warmup", self.span.warm_up.as_secs_f64()),
        ];
        for (flag, number) in numbers {
            command.args([flag, &number.to_string()]);
        }
        if preload {
            command.arg("--preload");
        }
        match command.stdin(Stdio::null()).output() {
            Err(error) => (None, Some(format!("{}: {error}", self.binary.display()))),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                let said = String::from_utf8_lossy(&output.stderr);
                let fine = output.status.success();
                let problem = || format!("{} {}{}", output.status, said.trim(), errors(&text));
                (sample(&text), (!fine).then(problem))
            }
        }
    }
}

/// The figures in the JSON of one run.
fn sample(json: &str) -> Option<Sample> {
    let row = json.lines().find(|line| line.contains("\"operation\""))?;
    let number = |name: &str| -> Option<f64> {
        let (_, rest) = row.split_once(&format!("\"{name}\": "))?;
        rest.split([',', '}']).next()?.parse().ok()
    };
    Some(Sample {
        per_second: number("per_second")?,
        p50: number("p50_ms")?,
        p99: number("p99_ms")?,
    })
}

/// The errors in the JSON of one run.
fn errors(json: &str) -> &str {
    let rest = json.split_once("\"errors\": [").map_or("", |(_, rest)| rest);
    rest.split_once("], \"answers").map_or("", |(errors, _)| errors)
}
