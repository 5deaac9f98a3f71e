//! The configuration of a node: its command line, and the checked settings that follow from it.
//!
//! All checks happen here, before the node touches a file or a socket. Every limit and time-out of
//! a node is a field of [`Config`].

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::types::{Consistency, NodeId};

/// The command line of a node. An environment variable `NODESYNC_<FLAG>` can stand for each flag;
/// the command line wins.
#[derive(Clone, Debug, Parser)]
#[command(name = "nodesync", version, about, max_term_width = 100)]
#[command(after_help = "Tools: nodesync sim --help, nodesync verify --help, nodesync bench --help")]
pub struct NodeArgs {
    /// Port for clients and peers; also the node's id, which is its rank
    #[arg(value_name = "PORT")]
    pub port: u16,

    /// The other members of the cluster, as HOST:PORT or ID=HOST:PORT
    #[arg(value_name = "PEER")]
    pub peers: Vec<PeerAddress>,

    /// Id of this node, if it differs from the port; the alive node with the highest id leads
    #[arg(long, env = "NODESYNC_ID")]
    pub id: Option<u32>,

    /// Address to listen on
    #[arg(long, env = "NODESYNC_BIND", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub bind: IpAddr,

    /// Data directory [default: ./nodesync-data/PORT]
    #[arg(long, env = "NODESYNC_DIR")]
    pub dir: Option<PathBuf>,

    /// Name of the cluster; nodes of different clusters do not talk to each other
    #[arg(long, env = "NODESYNC_CLUSTER", default_value = "nodesync")]
    pub cluster: String,

    /// Password of clients and peers (visible to other users of the machine: prefer the file)
    #[arg(long, env = "NODESYNC_REQUIREPASS", hide_env_values = true)]
    pub requirepass: Option<String>,

    /// File whose first line is the password
    #[arg(long, env = "NODESYNC_REQUIREPASS_FILE", conflicts_with = "requirepass")]
    pub requirepass_file: Option<PathBuf>,

    /// Refuse to listen beyond loopback without a password
    #[arg(long, env = "NODESYNC_PROTECTED_MODE", default_value = "yes")]
    pub protected_mode: Switch,

    /// Most client connections at the same time
    #[arg(long, env = "NODESYNC_MAXCLIENTS", default_value_t = 10_000)]
    pub maxclients: usize,

    /// Milliseconds between heartbeats
    #[arg(long, env = "NODESYNC_HEARTBEAT_INTERVAL", value_name = "MS", default_value_t = 50)]
    pub heartbeat_interval: u64,

    /// Milliseconds of silence before a node is suspected and a leader replaced
    #[arg(long, env = "NODESYNC_ELECTION_TIMEOUT", value_name = "MS", default_value_t = 300)]
    pub election_timeout: u64,

    /// Milliseconds before a waiting request of a client gets an error
    #[arg(long, env = "NODESYNC_REQUEST_TIMEOUT", value_name = "MS", default_value_t = 10_000)]
    pub request_timeout: u64,

    /// Milliseconds before a leader steps down whose disk does not answer
    #[arg(long, env = "NODESYNC_DISK_TIMEOUT", value_name = "MS", default_value_t = 1_000)]
    pub disk_timeout: u64,

    /// Take a snapshot after this much log; with a large state after a quarter of the last
    /// snapshot, but at most eight times as much log
    #[arg(long, env = "NODESYNC_SNAPSHOT_LOG", value_name = "BYTES", default_value = "64mb")]
    pub snapshot_log: ByteSize,

    /// Size of a log segment
    #[arg(long, env = "NODESYNC_SEGMENT_SIZE", value_name = "BYTES", default_value = "16mb")]
    pub segment_size: ByteSize,

    /// Longest key
    #[arg(long, env = "NODESYNC_MAX_KEY_SIZE", value_name = "BYTES", default_value = "64kb")]
    pub max_key_size: ByteSize,

    /// Longest value
    #[arg(long, env = "NODESYNC_MAX_VALUE_SIZE", value_name = "BYTES", default_value = "512mb")]
    pub max_value_size: ByteSize,

    /// Most bytes of writes from this node's clients that wait for a quorum
    #[arg(long, env = "NODESYNC_MAX_PENDING", value_name = "BYTES", default_value = "256mb")]
    pub max_pending: ByteSize,

    /// Consistency mode of new sessions
    #[arg(long, env = "NODESYNC_CONSISTENCY", value_name = "MODE", default_value = "strong")]
    pub consistency: ConsistencyArg,

    /// Largest difference between two nodes' clocks, in milliseconds, before eventual writes are
    /// refused
    #[arg(long, env = "NODESYNC_MAX_CLOCK_OFFSET", value_name = "MS", default_value_t = 500)]
    pub max_clock_offset: u64,

    /// Most bytes of eventual writes that are not in the log yet; beyond that, sessions wait
    #[arg(long, env = "NODESYNC_MAX_BACKLOG", value_name = "BYTES", default_value = "64mb")]
    pub max_backlog: ByteSize,

    /// Longest time in seconds to remember a deletion while a member may hold older eventual writes
    #[arg(long, env = "NODESYNC_TOMBSTONE_HORIZON", value_name = "S", default_value_t = 86_400)]
    pub tombstone_horizon: u64,

    /// How to serve clients
    #[arg(long, env = "NODESYNC_IO", value_enum, default_value = "poll")]
    pub io: Io,

    /// Number of loops of `--io poll`; 0 for one for every two cores, at most 4
    #[arg(long, env = "NODESYNC_IO_LOOPS", value_name = "N", default_value_t = 0)]
    pub io_loops: usize,

    /// Least severe level of log messages: error, warn, info, debug or trace
    #[arg(long, env = "NODESYNC_LOG_LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,
}

/// A member as named on the command line: `HOST:PORT` or `ID=HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its id.
    pub id: NodeId,
    /// Its host, a name or an address (IPv6 in brackets).
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl PeerAddress {
    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<PeerAddress, String> {
        const EXPECTED: &str = "expected HOST:PORT or ID=HOST:PORT";
        let (id, address) = match text.split_once('=') {
            Some((id, address)) => {
                (Some(id.parse().map_err(|_| format!("bad id: {EXPECTED}"))?), address)
            }
            None => (None, text),
        };
        let (host, port) = address.rsplit_once(':').ok_or(EXPECTED)?;
        let port: u16 = port.parse().map_err(|_| format!("bad port: {EXPECTED}"))?;
        let bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if host.is_empty() || port == 0 || bare_ipv6 || host.contains(char::is_whitespace) {
            return Err(EXPECTED.into());
        }
        Ok(PeerAddress { id: NodeId(id.unwrap_or(port.into())), host: host.into(), port })
    }
}

/// A number of bytes with an optional unit: `512`, `64kb`, `16mb`, `1gb` (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub usize);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match &lower[digits.len()..] {
            "" | "b" => 0,
            "k" | "kb" => 10,
            "m" | "mb" => 20,
            "g" | "gb" => 30,
            unit => return Err(format!("unknown unit {unit:?}: use b, kb, mb or gb")),
        };
        let number: usize = digits.parse().map_err(|_| "expected a number of bytes".to_string())?;
        number.checked_mul(1 << shift).map(ByteSize).ok_or_else(|| "too large".into())
    }
}

/// `yes` or `no`, as Redis writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    Yes,
    /// Off.
    No,
}

/// A consistency mode on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConsistencyArg {
    /// Writes on a majority, linearizable reads
    Strong,
    /// One node answers, and the newest version of a key wins
    Eventual,
}

/// The front end that serves clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Io {
    /// A blocking thread for each client
    Threads,
    /// A few loops, each of which serves many clients
    Poll,
}

impl Io {
    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Io::Threads => "threads",
            Io::Poll => "poll",
        }
    }
}

/// The checked settings of a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// The address to listen on.
    pub bind: IpAddr,
    /// The port to listen on; 0 takes a free one (for tests, which learn it by other means).
    pub port: u16,
    /// The other members, in ascending order of id.
    pub peers: Vec<PeerAddress>,
    /// The cluster's name.
    pub cluster: String,
    /// The data directory.
    pub dir: PathBuf,
    /// The password of clients and peers.
    pub password: Option<String>,
    /// Most client connections.
    pub maxclients: usize,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// Time of silence before a node is suspected and a leader replaced.
    pub election_timeout: Duration,
    /// Time before a waiting request of a client gets an error.
    pub request_timeout: Duration,
    /// Time before a leader steps down whose disk does not answer.
    pub disk_timeout: Duration,
    /// Bytes of log before a snapshot.
    pub snapshot_log_bytes: usize,
    /// Size of a log segment, in bytes.
    pub segment_bytes: usize,
    /// Longest key, in bytes.
    pub key_bytes_max: usize,
    /// Longest value, in bytes.
    pub value_bytes_max: usize,
    /// Most bytes of writes from this node's clients that wait for a quorum.
    pub pending_bytes_max: usize,
    /// The consistency of new sessions.
    pub consistency: Consistency,
    /// Largest difference between two nodes' clocks before eventual writes are refused.
    pub clock_offset_max: Duration,
    /// Most bytes of eventual writes that are not in the log yet.
    pub backlog_bytes_max: usize,
    /// Longest time to remember a deletion while a member may hold older eventual writes.
    pub tombstone_horizon: Duration,
    /// The front end that serves clients.
    pub io: Io,
    /// Number of loops of the front end `poll`; 0 for one for every two cores, at most 4.
    pub io_loops: usize,
}

impl Config {
    /// Checks the command line. The error is a sentence for the operator.
    pub fn new(args: NodeArgs) -> Result<Config, String> {
        let id = NodeId(args.id.unwrap_or(args.port.into()));
        let mut peers = args.peers;
        peers.sort_by_key(|peer| peer.id);
        check_members(id, args.port, args.bind, &peers)?;
        let password = read_password(args.requirepass, args.requirepass_file)?;
        // Protected mode, as in Redis: without a password only this machine may connect.
        if args.protected_mode == Switch::Yes && !args.bind.is_loopback() && password.is_none() {
            return Err(format!(
                "refusing to listen on {} without a password: set --requirepass-file, or \
                 --protected-mode no if only trusted hosts reach the network",
                args.bind
            ));
        }
        // Two lost heartbeats must not look like a failure.
        if args.heartbeat_interval == 0 || args.election_timeout < 3 * args.heartbeat_interval {
            return Err("--election-timeout must be at least three --heartbeat-interval".into());
        }
        if args.segment_size.0 < 64 << 10 || args.segment_size.0 > 1 << 30 {
            return Err("--segment-size must lie between 64kb and 1gb".into());
        }
        if args.max_value_size.0 > 512 << 20 || args.max_key_size.0 > 64 << 10 {
            return Err("--max-value-size is at most 512mb, --max-key-size at most 64kb".into());
        }
        if args.max_key_size.0 == 0 || args.maxclients == 0 || args.request_timeout == 0 {
            return Err("--max-key-size, --maxclients and --request-timeout must not be 0".into());
        }
        if args.max_backlog.0 > 1 << 30 {
            return Err("--max-backlog is at most 1gb".into());
        }
        if args.io_loops > IO_LOOPS_MAX {
            return Err(format!("--io-loops is at most {IO_LOOPS_MAX}"));
        }
        if args.max_clock_offset == 0 || args.tombstone_horizon == 0 {
            return Err("--max-clock-offset and --tombstone-horizon must not be 0".into());
        }
        let default_dir = || PathBuf::from("nodesync-data").join(args.port.to_string());
        Ok(Config {
            id,
            bind: args.bind,
            port: args.port,
            peers,
            cluster: args.cluster,
            dir: args.dir.unwrap_or_else(default_dir),
            password,
            maxclients: args.maxclients,
            heartbeat_interval: Duration::from_millis(args.heartbeat_interval),
            election_timeout: Duration::from_millis(args.election_timeout),
            request_timeout: Duration::from_millis(args.request_timeout),
            disk_timeout: Duration::from_millis(args.disk_timeout.max(args.election_timeout)),
            snapshot_log_bytes: args.snapshot_log.0,
            segment_bytes: args.segment_size.0,
            key_bytes_max: args.max_key_size.0,
            value_bytes_max: args.max_value_size.0,
            pending_bytes_max: args.max_pending.0,
            consistency: match args.consistency {
                ConsistencyArg::Strong => Consistency::Strong,
                ConsistencyArg::Eventual => Consistency::Eventual,
            },
            clock_offset_max: Duration::from_millis(args.max_clock_offset),
            backlog_bytes_max: args.max_backlog.0,
            tombstone_horizon: Duration::from_secs(args.tombstone_horizon),
            io: args.io,
            io_loops: args.io_loops,
        })
    }

    /// All members in ascending order of id.
    pub fn members(&self) -> Vec<NodeId> {
        let mut members: Vec<NodeId> = self.peers.iter().map(|peer| peer.id).collect();
        members.push(self.id);
        members.sort_unstable();
        members
    }

    /// The settings of CONFIG GET, under Redis's names where there are any.
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let millis = |duration: Duration| duration.as_millis().to_string();
        vec![
            ("appendfsync", "always".into()),
            ("appendonly", "yes".into()),
            ("bind", self.bind.to_string()),
            ("cluster", self.cluster.clone()),
            ("consistency", self.consistency.as_str().into()),
            ("databases", "1".into()),
            ("dir", self.dir.display().to_string()),
            ("disk-timeout", millis(self.disk_timeout)),
            ("election-timeout", millis(self.election_timeout)),
            ("heartbeat-interval", millis(self.heartbeat_interval)),
            ("id", self.id.to_string()),
            ("io", self.io.as_str().into()),
            ("io-loops", self.io_loops.to_string()),
            ("max-backlog", self.backlog_bytes_max.to_string()),
            ("max-clock-offset", millis(self.clock_offset_max)),
            ("max-key-size", self.key_bytes_max.to_string()),
            ("max-pending", self.pending_bytes_max.to_string()),
            ("max-value-size", self.value_bytes_max.to_string()),
            ("maxclients", self.maxclients.to_string()),
            ("maxmemory", "0".into()),
            ("port", self.port.to_string()),
            ("proto-max-bulk-len", self.value_bytes_max.to_string()),
            ("request-timeout", millis(self.request_timeout)),
            ("save", String::new()),
            ("segment-size", self.segment_bytes.to_string()),
            ("snapshot-log", self.snapshot_log_bytes.to_string()),
            ("timeout", "0".into()),
            ("tombstone-horizon", self.tombstone_horizon.as_secs().to_string()),
        ]
    }
}

/// Most loops; more loops than cores gain nothing.
const IO_LOOPS_MAX: usize = 64;

/// Most members: the origin of a version is one byte, and one of its values is reserved.
const MEMBERS_MAX: usize = 255;

fn check_members(id: NodeId, port: u16, bind: IpAddr, peers: &[PeerAddress]) -> Result<(), String> {
    if peers.len() >= MEMBERS_MAX {
        return Err(format!("a cluster has at most {MEMBERS_MAX} members"));
    }
    for peer in peers {
        let same_host =
            peer.host.parse() == Ok(bind) || (peer.host == "localhost" && bind.is_loopback());
        if peer.port == port && same_host {
            return Err(format!(
                "{} is this node's own address: list only the others",
                peer.address()
            ));
        }
        if peer.id == id {
            return Err(format!(
                "peer {} has this node's id, {id}: give the nodes other ids (--id, ID=HOST:PORT)",
                peer.address()
            ));
        }
    }
    for pair in peers.windows(2) {
        if pair[0].id == pair[1].id {
            return Err(format!(
                "peers {} and {} have the same id, {}: write one of them as ID=HOST:PORT",
                pair[0].address(),
                pair[1].address(),
                pair[0].id
            ));
        }
    }
    Ok(())
}

/// The password from the command line, or the first line of its file.
pub fn read_password(
    typed: Option<String>,
    file: Option<PathBuf>,
) -> Result<Option<String>, String> {
    let password = match (typed, file) {
        (Some(password), _) => password,
        (None, Some(file)) => std::fs::read_to_string(&file)
            .map_err(|error| format!("cannot read the password file {}: {error}", file.display()))?
            .lines()
            .next()
            .unwrap_or_default()
            .to_string(),
        (None, None) => return Ok(None),
    };
    if password.is_empty() { Err("the password is empty".into()) } else { Ok(Some(password)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str) -> Result<Config, String> {
        let args = std::iter::once("nodesync").chain(line.split_whitespace());
        NodeArgs::try_parse_from(args).map_err(|error| error.to_string()).and_then(Config::new)
    }

    #[test]
    fn a_port_and_two_peers_make_a_cluster_of_three() {
        let config = config("5000 127.0.0.1:5001 127.0.0.1:5002").unwrap();
        assert_eq!(config.id, NodeId(5000));
        assert_eq!(config.members(), [NodeId(5000), NodeId(5001), NodeId(5002)]);
        assert_eq!(config.dir, PathBuf::from("nodesync-data/5000"));
        assert_eq!(config.bind.to_string(), "127.0.0.1");
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "PORT"),
            ("70000", "70000"),
            ("5000 somewhere", "HOST:PORT"),
            ("5000 h:0", "HOST:PORT"),
            ("5000 ::1:5001", "HOST:PORT"),
            ("5000 127.0.0.1:5000", "own address"),
            ("5000 localhost:5000", "own address"),
            ("5000 10.0.0.2:5000", "this node's id, 5000"),
            ("5000 a:5001 b:5001", "same id, 5001"),
            ("5000 --bind 0.0.0.0", "without a password"),
            ("5000 --election-timeout 100", "three --heartbeat-interval"),
            ("5000 --snapshot-log 1tb", "unknown unit"),
            ("5000 --consistency weak", "weak"),
            ("5000 --max-backlog 2gb", "at most 1gb"),
            ("5000 --max-clock-offset 0", "must not be 0"),
            ("5000 --requirepass-file /nowhere/at/all", "/nowhere/at/all"),
        ];
        for (line, wanted) in cases {
            let error = config(line).unwrap_err();
            assert!(error.contains(wanted), "{line:?}: {error}");
        }
    }

    #[test]
    fn ids_and_addresses_have_many_forms() {
        let config =
            config("5000 --id 1 2=10.0.0.2:5000 3=[::1]:5000 --bind 0.0.0.0 --requirepass x");
        let config = config.unwrap();
        assert_eq!(config.members(), [NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(config.peers[1].address(), "[::1]:5000");
        assert_eq!(ByteSize::from_str("64kb"), Ok(ByteSize(65536)));
        assert!(self::config("5000 --bind 0.0.0.0 --protected-mode no").is_ok());
    }
}
