//! Cases of load, and the load generator for the systems that speak RESP: `nodesync bench`, the
//! same for all of them.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::processes::remove_settings;

/// Number of different keys, each of 16 bytes, all written before the load.
pub const KEYS: u64 = 100_000;
/// Size of a value, in bytes.
pub const SIZE: usize = 64;

/// Kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// True for reads, false for writes.
    pub get: bool,
    /// Number of clients, each of which waits for its answers before it goes on.
    pub clients: usize,
    /// Requests that a client sends at once.
    pub pipeline: usize,
    /// Number of connections that the clients share, where the protocol allows it; otherwise one
    /// for each client.
    pub connections: usize,
    /// True if clients are spread over all nodes, false if all are at the leader.
    pub all: bool,
}

impl Case {
    /// Writes by this number of clients.
    pub const fn set(clients: usize) -> Case {
        Case { get: false, clients, pipeline: 1, connections: clients, all: false }
    }

    /// Reads by this number of clients.
    pub const fn get(clients: usize) -> Case {
        Case { get: true, ..Case::set(clients) }
    }

    /// Same case, with this number of requests at once.
    pub const fn pipeline(self, pipeline: usize) -> Case {
        Case { pipeline, ..self }
    }

    /// Same case, over this number of connections.
    pub const fn over(self, connections: usize) -> Case {
        Case { connections, ..self }
    }

    /// Same case, spread over all nodes.
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

/// Figures of one run of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Answers a second.
    pub per_second: f64,
    /// Median latency, in milliseconds.
    pub p50: f64,
    /// 99th percentile of the latency, in milliseconds.
    pub p99: f64,
}

/// Duration of a case.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Time under load before the measured time.
    pub warm_up: Duration,
    /// Measured time.
    pub measured: Duration,
}

/// Load generator `nodesync bench`, with the nodes that it loads.
#[derive(Debug)]
pub struct Generator {
    /// Path of the program.
    pub binary: PathBuf,
    /// Ports of the nodes.
    pub ports: Vec<u16>,
    /// Consistency of the sessions: strong, eventual, or the server's default.
    pub consistency: &'static str,
    /// Duration of each case.
    pub span: Span,
}

impl Generator {
    /// Runs a case; returns its sample and its problem, if there are any.
    pub fn run(&self, case: Case, preload: bool) -> (Option<Sample>, Option<String>) {
        let mut command = Command::new(&self.binary);
        remove_settings(&mut command);
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

/// Extracts the figures from the JSON of one run.
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

/// Extracts the errors from the JSON of one run.
fn errors(json: &str) -> &str {
    let rest = json.split_once("\"errors\": [").map_or("", |(_, rest)| rest);
    rest.split_once("], \"answers").map_or("", |(errors, _)| errors)
}
