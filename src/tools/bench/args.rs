//! The command line of `nodesync bench`: its flags and their checked meaning.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use crate::config::{PeerAddress, read_password};
use crate::tools::bench::keys::Distribution;
use crate::tools::bench::scan::WireProtocol;

/// The nodes that `run_cluster.sh` starts.
const PEERS: [&str; 3] = ["127.0.0.1:5000", "127.0.0.1:5001", "127.0.0.1:5002"];
const CLIENTS_MAX: usize = 50_000;
const PIPELINE_MAX: usize = 10_000;
const THREADS_MAX: usize = 64;
const SIZE_MAX: usize = 64 << 20;
/// As many as the twelve digits of a key can number.
const KEYS_MAX: u64 = 1_000_000_000_000;
/// Largest value that fits into a line of the line protocol.
const LINE_SIZE_MAX: usize = 60 << 10;
/// Most bytes of requests that a connection has in flight.
const BATCH_BYTES_MAX: usize = 256 << 20;
const SECONDS_MAX: f64 = 86_400.0;
const RATE_MAX: f64 = 100e6;

const AFTER_HELP: &str = "\
Closed loop (the default): each client has --pipeline requests in flight, and sends the next ones
when all are answered; latency counts from sending to the reply. Open loop (--rate): each
operation has an intended start, and its latency counts from that start, even if it was sent later.

Only operations that start within the measured time count; throughput is their number divided by the
time until the last of their answers. The warm-up before the measured time does not count.

Exit codes: 0 done; 1 a node that was not killed answered with an error or lost a connection, or no
request was answered; 2 usage; 74 I/O.";

/// The nodes that clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum To {
    /// The leader; after an election the new one
    Leader,
    /// All other nodes, evenly
    Follower,
    /// All nodes, evenly
    All,
}

/// The consistency modes to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MeasuredModes {
    /// Strong sessions
    Strong,
    /// Eventual sessions
    Eventual,
    /// Strong sessions, then eventual sessions, with the same load
    Both,
    /// Sessions that do not set a mode (so that Redis can be measured, too)
    Default,
}

/// The consistency mode of the sessions of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionMode {
    /// Strong.
    Strong,
    /// Eventual.
    Eventual,
    /// The server's default: the sessions do not set a mode.
    Default,
}

impl SessionMode {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            SessionMode::Strong => "strong",
            SessionMode::Eventual => "eventual",
            SessionMode::Default => "default",
        }
    }
}

/// The flags of `nodesync bench`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct BenchArgs {
    /// Nodes of a live cluster, each as HOST:PORT; the load writes keys named `key:...`
    /// [default: 127.0.0.1:5000,127.0.0.1:5001,127.0.0.1:5002]
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT,...", conflicts_with = "spawn")]
    peers: Vec<PeerAddress>,

    /// Start a temporary cluster of this many nodes on this machine, and remove it afterwards
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    spawn: Option<u8>,

    /// Flags for the nodes of the temporary cluster; repeatable
    #[arg(long, value_name = "FLAGS", requires = "spawn", allow_hyphen_values = true)]
    node_args: Vec<String>,

    /// Directory for the temporary cluster [default: the system's for temporary files]
    #[arg(long, requires = "spawn")]
    dir: Option<PathBuf>,

    /// Kill the leader (SIGKILL) this many seconds into the measured time of each run
    #[arg(long, value_name = "SECONDS", requires = "spawn", conflicts_with = "requests")]
    kill_leader_at: Option<f64>,

    /// Number of clients, each with one connection
    #[arg(long, short, default_value_t = 64)]
    clients: usize,

    /// Requests that a client has in flight
    #[arg(long, short = 'P', default_value_t = 1)]
    pipeline: usize,

    /// Share of reads, from 0 (all SET) to 1 (all GET)
    #[arg(long, default_value_t = 0.0)]
    ratio: f64,

    /// Bytes of a value
    #[arg(long, default_value_t = 64)]
    size: usize,

    /// Number of different keys
    #[arg(long, default_value_t = 100_000)]
    keys: u64,

    /// Distribution of the keys
    #[arg(long, value_enum, default_value_t = Distribution::Uniform)]
    distribution: Distribution,

    /// Write every key once before the load, so that every read finds a value
    #[arg(long)]
    preload: bool,

    /// Measured time of each run, in seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,

    /// End each run after this many operations instead
    #[arg(long, conflicts_with = "seconds")]
    requests: Option<u64>,

    /// Seconds under load before the measured time
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,

    /// Open loop: operations a second of all clients together
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,

    /// Nodes that clients connect to [default: leader; all with --kill-leader-at]
    #[arg(long, value_enum)]
    to: Option<To>,

    /// Consistency modes to measure
    #[arg(long, value_enum, default_value_t = MeasuredModes::Both)]
    consistency: MeasuredModes,

    /// Runs of each mode, in turn; the results are medians
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Protocol of the clients
    #[arg(long, value_enum, default_value_t = WireProtocol::Resp)]
    protocol: WireProtocol,

    /// Threads of the load generator, each of which serves many clients
    #[arg(long, default_value_t = 1)]
    threads: usize,

    /// Seed of the keys and of the mix of reads and writes [default: random]
    #[arg(long)]
    seed: Option<u64>,

    /// Write the results as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the table as CSV; `-` is standard output
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,

    /// Write RESULTS.md, latency.svg and throughput.svg into this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,

    /// Password of the cluster (visible to other users: prefer the file)
    #[arg(long, env = "NODESYNC_REQUIREPASS", hide_env_values = true)]
    requirepass: Option<String>,

    /// File whose first line is the password
    #[arg(long, env = "NODESYNC_REQUIREPASS_FILE", conflicts_with = "requirepass")]
    requirepass_file: Option<PathBuf>,
}

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Until {
    /// After this time.
    Time(Duration),
    /// After so many operations.
    Requests(u64),
}

/// The checked meaning of the flags.
#[derive(Clone, Debug)]
pub struct BenchPlan {
    /// Addresses of a live cluster.
    pub peers: Vec<String>,
    /// Number of nodes of a temporary cluster, if one is to be started.
    pub spawn: Option<usize>,
    /// The flags of its nodes.
    pub node_args: Vec<String>,
    /// Its directory.
    pub dir: PathBuf,
    /// The time to kill the leader, from the beginning of the measured time.
    pub kill_at: Option<Duration>,
    /// Number of clients.
    pub clients: usize,
    /// Requests in flight of each client.
    pub pipeline: usize,
    /// Share of reads.
    pub ratio: f64,
    /// Bytes of a value.
    pub size: usize,
    /// Number of keys.
    pub keys: u64,
    /// Their distribution.
    pub distribution: Distribution,
    /// True to write all keys before the load.
    pub preload: bool,
    /// The end of each run.
    pub until: Until,
    /// Time of load before the measured time.
    pub warmup: Duration,
    /// Operations a second, in an open loop.
    pub rate: Option<f64>,
    /// The nodes that clients connect to.
    pub to: To,
    /// The modes to measure, in the order of the first round.
    pub modes: Vec<SessionMode>,
    /// Number of runs of each mode.
    pub rounds: u32,
    /// The protocol of the clients.
    pub protocol: WireProtocol,
    /// Threads of the load generator.
    pub threads: usize,
    /// The seed of keys and operations.
    pub seed: u64,
    /// The file for the results as JSON.
    pub json: Option<PathBuf>,
    /// The file for the table as CSV.
    pub csv: Option<PathBuf>,
    /// The directory for the report.
    pub report: Option<PathBuf>,
    /// The password of the cluster, if it has one.
    pub password: Option<String>,
}

impl BenchPlan {
    /// Checks the flags. The error is a sentence for the user.
    pub fn new(args: &BenchArgs) -> Result<BenchPlan, String> {
        check(args)?;
        let seconds = duration("--seconds", args.seconds, 0.1)?;
        let kill_at = kill_at(args, seconds)?;
        let to = to(args)?;
        let random = getrandom::u64().map_err(|error| error.to_string())?;
        let peers = args.peers.iter().map(PeerAddress::address).collect::<Vec<_>>();
        let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let words = args.node_args.iter().flat_map(|flags| flags.split_whitespace());
        Ok(BenchPlan {
            peers: if peers.is_empty() { PEERS.map(String::from).to_vec() } else { peers },
            spawn: args.spawn.map(usize::from),
            node_args: words.map(String::from).collect(),
            dir: dir.join(format!("nodesync-bench-{random:016x}")),
            kill_at,
            clients: args.clients,
            pipeline: args.pipeline,
            ratio: args.ratio,
            size: args.size,
            keys: args.keys,
            distribution: args.distribution,
            preload: args.preload,
            until: args.requests.map_or(Until::Time(seconds), Until::Requests),
            warmup: duration("--warmup", args.warmup, 0.0)?,
            rate: args.rate,
            to,
            modes: match args.consistency {
                MeasuredModes::Strong => vec![SessionMode::Strong],
                MeasuredModes::Eventual => vec![SessionMode::Eventual],
                MeasuredModes::Both => vec![SessionMode::Strong, SessionMode::Eventual],
                MeasuredModes::Default => vec![SessionMode::Default],
            },
            rounds: args.rounds,
            protocol: args.protocol,
            threads: args.threads.min(args.clients),
            seed: args.seed.unwrap_or(random >> 40),
            json: args.json.clone(),
            csv: args.csv.clone(),
            report: args.report.clone(),
            password: read_password(args.requirepass.clone(), args.requirepass_file.clone())?,
        })
    }

    /// True if there are reads as well as writes.
    pub fn is_mixed(&self) -> bool {
        self.ratio > 0.0 && self.ratio < 1.0
    }
}

/// Checks the ranges of single flags.
fn check(args: &BenchArgs) -> Result<(), String> {
    within("--clients", args.clients, CLIENTS_MAX)?;
    within("--pipeline", args.pipeline, PIPELINE_MAX)?;
    within("--threads", args.threads, THREADS_MAX)?;
    within("--size", args.size, SIZE_MAX)?;
    within("--keys", args.keys, KEYS_MAX)?;
    within("--requests", args.requests.unwrap_or(1), u64::MAX)?;
    if args.protocol == WireProtocol::Line && args.size > LINE_SIZE_MAX {
        return Err(format!("--protocol line takes a --size up to {LINE_SIZE_MAX}"));
    }
    if args.pipeline * args.size > BATCH_BYTES_MAX {
        return Err(format!("--pipeline times --size may be {BATCH_BYTES_MAX} at most"));
    }
    if !(0.0..=1.0).contains(&args.ratio) {
        return Err("--ratio takes a number from 0 to 1".into());
    }
    if args.rate.is_some_and(|rate| !(0.1..=RATE_MAX).contains(&rate)) {
        return Err(format!("--rate takes a number from 0.1 to {RATE_MAX}"));
    }
    Ok(())
}

/// The time to kill the leader, if it is to be killed.
fn kill_at(args: &BenchArgs, seconds: Duration) -> Result<Option<Duration>, String> {
    let kill_at = args.kill_leader_at.map(|at| duration("--kill-leader-at", at, 0.0));
    let kill_at = kill_at.transpose()?;
    if kill_at.is_some_and(|at| at >= seconds) {
        return Err("--kill-leader-at must lie within --seconds".into());
    }
    if kill_at.is_some() && args.spawn.is_some_and(|nodes| nodes < 3) {
        return Err("--kill-leader-at needs --spawn 3 or more: two nodes cannot lose one".into());
    }
    Ok(kill_at)
}

/// The nodes that clients connect to.
fn to(args: &BenchArgs) -> Result<To, String> {
    let to = args.to.unwrap_or(if args.kill_leader_at.is_some() { To::All } else { To::Leader });
    if to == To::Follower && (args.spawn == Some(1) || args.peers.len() == 1) {
        return Err("--to follower needs more than one node".into());
    }
    Ok(to)
}

fn within<T: PartialOrd + From<u8> + std::fmt::Display>(
    flag: &str,
    number: T,
    max: T,
) -> Result<(), String> {
    if number < T::from(1) || number > max {
        return Err(format!("{flag} takes a number from 1 to {max}"));
    }
    Ok(())
}

fn duration(flag: &str, seconds: f64, min: f64) -> Result<Duration, String> {
    if !(min..=SECONDS_MAX).contains(&seconds) {
        return Err(format!("{flag} takes a number from {min} to {SECONDS_MAX}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn plan(line: &str) -> Result<BenchPlan, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        BenchPlan::new(&line.args)
    }

    #[test]
    fn without_flags_both_modes_of_a_local_cluster_are_measured_at_the_leader() {
        let plan = plan("").unwrap();
        assert_eq!(plan.peers, PEERS);
        assert_eq!((plan.to, plan.until), (To::Leader, Until::Time(Duration::from_secs(10))));
        assert_eq!(plan.modes, [SessionMode::Strong, SessionMode::Eventual]);
        assert!(!plan.is_mixed());
    }

    #[test]
    fn with_a_killed_leader_clients_connect_to_all_nodes() {
        let killed = plan("--spawn 3 --kill-leader-at 3").unwrap();
        assert_eq!((killed.to, killed.kill_at), (To::All, Some(Duration::from_secs(3))));
        let plan = plan("--spawn 3 --kill-leader-at 3 --to leader --ratio 0.5").unwrap();
        assert!(plan.to == To::Leader && plan.is_mixed());
    }

    #[test]
    fn flags_for_nodes_may_come_together_or_one_by_one() {
        let words = ["bench", "--spawn", "3", "--node-args", "--log-level debug", "--node-args=-h"];
        let plan = BenchPlan::new(&Line::try_parse_from(words).unwrap().args).unwrap();
        assert_eq!(plan.node_args, ["--log-level", "debug", "-h"]);
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("--clients 0", "--clients takes"),
            ("--pipeline 10001", "--pipeline takes"),
            ("--ratio 1.5", "--ratio takes"),
            ("--ratio nan", "--ratio takes"),
            ("--rate 0", "--rate takes"),
            ("--seconds 0", "--seconds takes"),
            ("--seconds 1 --requests 5", "cannot be used with"),
            ("--requests 0", "--requests takes"),
            ("--kill-leader-at 1", "--spawn"),
            ("--spawn 3 --kill-leader-at 10", "within --seconds"),
            ("--spawn 2 --kill-leader-at 1", "cannot lose one"),
            ("--spawn 1 --to follower", "more than one node"),
            ("--spawn 3 --peers a:1", "cannot be used with"),
            ("--node-args x", "--spawn"),
            ("--protocol line --size 100000", "--size up to"),
            ("--pipeline 10000 --size 1000000", "times --size"),
            ("--keys 0", "--keys takes"),
            ("--peers nowhere", "HOST:PORT"),
        ];
        for (line, wanted) in cases {
            let error = plan(line).expect_err(line);
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }
}
