//! Clusters of three real processes that differ only in the front end of the measured node: the one
//! with the highest port, which leads.

use std::env;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::SERVE;
use crate::common::client::request;
use crate::common::cluster::{Cluster, Node};
use crate::common::{Port, SOON, eventually};
use crate::load::{self, Operation};
use crate::process::resident_kib;

/// Way in which a node waits for its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// `--io threads`
    Threads,
    /// `--io poll`
    Poll,
    /// The async twin
    Tokio,
}

impl Front {
    /// All front ends, in the order of the tables.
    pub const ALL: [Front; 3] = [Front::Threads, Front::Poll, Front::Tokio];

    /// Name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Front::Threads => "threads",
            Front::Poll => "poll",
            Front::Tokio => "tokio",
        }
    }
}

/// Cluster whose leader is measured.
pub struct Server {
    /// Front end of the leader.
    pub front: Front,
    cluster: Cluster,
    port: u16,
    _twin: Option<Port>,
}

impl Server {
    /// Starts a cluster, and waits until it is ready. The twin is this program, started again.
    pub fn start(front: Front) -> Server {
        let io = if front == Front::Poll { "poll" } else { "threads" };
        let mut cluster = Cluster::new(3, &["--io", io, "--log-level", "warn"]);
        let twin = (front == Front::Tokio).then(Port::take);
        let (leader, followers) = cluster.nodes.split_last_mut().expect("there are three");
        followers.iter_mut().for_each(Node::start);
        match &twin {
            None => leader.start(),
            Some(port) => {
                let mut again = Command::new(env::current_exe().expect("this program has a path"));
                again.args([SERVE, &port.number.to_string()]).args(leader.command().get_args());
                leader.start_by(again);
            }
        }
        cluster.wait_until_ready();
        let leader = &cluster.nodes[2];
        let port = twin.as_ref().map_or(leader.port, |port| port.number);
        let listens = || TcpStream::connect(("127.0.0.1", port)).ok();
        eventually("the front end listens", SOON, listens);
        Server { front, cluster, port, _twin: twin }
    }

    /// Address of the measured front end.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Process id of the measured node.
    pub fn pid(&self) -> u32 {
        self.cluster.nodes[2].pid()
    }

    /// Resident KiB of one connection that was used and is idle. Must be called before any load,
    /// which leaves free memory behind that connections could use again.
    pub fn connection_kib(&self, connections: usize) -> f64 {
        let before = resident_kib(self.pid());
        let mut streams = Vec::new();
        for number in 0..connections {
            let mut stream =
                TcpStream::connect(("127.0.0.1", self.port)).expect("the node listens");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out can be set");
            let key = format!("connection:{number}");
            ask(&mut stream, &["SET", &key, "value"], b"+OK\r\n");
            ask(&mut stream, &["GET", &key], b"$5\r\nvalue\r\n");
            streams.push(stream);
        }
        let after = resident_kib(self.pid());
        after.saturating_sub(before) as f64 / connections as f64
    }

    /// Writes every key once.
    pub fn preload(&self) {
        let mut bench = load::command(&self.address(), Operation::Set);
        bench.args(["--preload", "--requests", "1000", "--clients", "1"]);
        let status = bench.stdout(Stdio::null()).status().expect("the load can be started");
        assert!(status.success(), "the keys cannot be written");
    }
}

fn ask(stream: &mut TcpStream, words: &[&str], expected: &[u8]) {
    stream.write_all(&request(words)).expect("the node reads");
    let mut reply = vec![0; expected.len()];
    stream.read_exact(&mut reply).expect("the node answers");
    assert_eq!(reply, expected);
}
