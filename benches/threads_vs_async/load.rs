//! One measurement: `nodesync bench` loads one front end, and this program observes the server's
//! process meanwhile.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::binary;
use crate::process::Usage;
use crate::server::Server;

const SECONDS: f64 = 3.0;
const WARMUP: f64 = 0.5;
/// Distance of the observation from both ends of the measured time, whose start is not known to the
/// millisecond.
const MARGIN: f64 = 0.5;

/// Request that clients send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Strong writes.
    Set,
    /// Strong reads.
    Get,
    /// Eventual reads.
    EventualGet,
}

/// Kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Operation of all requests.
    pub operation: Operation,
    /// Number of clients.
    pub clients: usize,
    /// Requests that each client has in flight.
    pub pipeline: usize,
}

/// Figures of one measurement.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Operations a second.
    pub throughput: f64,
    /// The median latency, in milliseconds.
    pub p50: f64,
    /// 99th percentile of the latency, in milliseconds.
    pub p99: f64,
    /// Microseconds of processor time of the server's process for each operation.
    pub cpu_micros: f64,
    /// Context switches of the server's process for each operation.
    pub switches: f64,
}

impl Operation {
    /// Name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Set => "strong SET",
            Operation::Get => "strong GET",
            Operation::EventualGet => "eventual GET",
        }
    }
}

/// Command that runs the load generator against one node.
pub fn command(address: &str, operation: Operation) -> Command {
    let mut bench = Command::new(binary());
    let eventual = operation == Operation::EventualGet;
    let (mode, ratio) = (
        if eventual { "eventual" } else { "strong" },
        if operation == Operation::Set { "0" } else { "1" },
    );
    bench.args(["bench", "--peers", address, "--to", "all"]);
    bench.args(["--consistency", mode, "--ratio", ratio]);
    bench.stdin(Stdio::null());
    bench
}

/// Measures one kind of load.
pub fn run(server: &Server, cell: Cell) -> Figures {
    let mut bench = command(&server.address(), cell.operation);
    bench.args(["--csv", "-"]);
    bench.args(["--clients", &cell.clients.to_string(), "--pipeline", &cell.pipeline.to_string()]);
    bench.args(["--seconds", &SECONDS.to_string(), "--warmup", &WARMUP.to_string()]);
    let bench = bench.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let bench = bench.expect("the load can be started");
    thread::sleep(Duration::from_secs_f64(WARMUP + MARGIN));
    let before = Usage::of(server.pid());
    thread::sleep(Duration::from_secs_f64(SECONDS - 2.0 * MARGIN));
    let rate = Usage::of(server.pid()).since(&before);
    let output = bench.wait_with_output().expect("the load ends");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{cell:?} against {}: {table}", server.front.name());
    let mut rows = table.lines().map(|row| row.split(',').collect::<Vec<_>>());
    let (head, row) = (rows.next().unwrap_or_default(), rows.next().unwrap_or_default());
    let field = |name: &str| -> f64 {
        let at = head.iter().position(|field| *field == name);
        let text = at.and_then(|at| row.get(at)).expect("the table has this field");
        text.parse().expect("the field is a number")
    };
    let throughput = field("per_second");
    Figures {
        throughput,
        p50: field("p50_ms"),
        p99: field("p99_ms"),
        cpu_micros: rate.cpu_micros / throughput,
        switches: rate.switches / throughput,
    }
}
