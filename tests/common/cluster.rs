//! Clusters of real processes on this machine. A test starts, kills, pauses and stops the nodes;
//! each has a directory of its own, and a log that a failing test prints.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::client::{Line, Reply, Resp};
use super::{Port, SOON, binary, eventually};

/// Number of log lines that a failing test prints for each node.
const LOG_LINES_SHOWN: usize = 80;

/// Member of a cluster: its port and directory, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    /// Port, which is also the node's id.
    pub port: u16,
    /// Data directory.
    pub dir: PathBuf,
    /// Password of the node, with which clients made here authenticate.
    pub password: Option<String>,
    /// Further flags of its command line, behind port, peers and directory.
    pub flags: Vec<String>,
    peers: Vec<u16>,
    log: PathBuf,
    child: Option<Child>,
    _port: Port,
}

impl Node {
    /// Command that starts the node.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg(self.port.to_string());
        command.args(self.peers.iter().map(|peer| format!("127.0.0.1:{peer}")));
        command.arg("--dir").arg(&self.dir).args(&self.flags);
        if let Some(password) = &self.password {
            command.args(["--requirepass", password]);
        }
        command
    }

    /// Starts the node without waiting until it serves.
    pub fn start(&mut self) {
        let command = self.command();
        self.start_by(command);
    }

    /// Starts the node with another command, which becomes its process.
    pub fn start_by(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "{} runs already", self.port);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Kills the process without warning, as `kill -9` does.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the node runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().expect("the node runs")), signal).unwrap();
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// True while the process runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Waits until the process has ended.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        let port = self.port;
        eventually(&format!("node {port} ends"), limit, || child.try_wait().unwrap())
    }

    /// Stops the node with SIGTERM and requires exit code 0.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(SOON);
        assert_eq!(status.code(), Some(0), "{}: {}", self.port, self.log());
    }

    /// Opens a RESP client of this node.
    #[track_caller]
    pub fn resp(&self) -> Resp {
        Resp::connect_as(self.port, self.password.as_deref()).unwrap()
    }

    /// Opens a client of this node with the line protocol.
    #[track_caller]
    pub fn line(&self) -> Line {
        Line::connect(self.port).unwrap()
    }

    /// Log of this node, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Leader that this node reports, if it answers and knows one.
    pub fn leader(&self) -> Option<u16> {
        let mut client = Resp::connect_as(self.port, self.password.as_deref()).ok()?;
        client.call(&["LEADER"]).ok()?.number().and_then(|port| port.try_into().ok())
    }

    /// Total size of the files in the data directory, in bytes.
    pub fn disk_bytes(&self) -> u64 {
        fs::read_dir(&self.dir).unwrap().map(|file| bytes_of(&file.unwrap().path())).sum()
    }

    fn show_log(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        eprintln!("--- log of node {}\n{}", self.port, shown.join("\n"));
    }
}

/// Size of a file; 0 if it was removed meanwhile.
fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            self.show_log();
        }
    }
}

/// Cluster of nodes in ascending order of rank; the last one leads while all are healthy.
#[derive(Debug)]
pub struct Cluster {
    /// Members, by ascending port.
    pub nodes: Vec<Node>,
    /// Scratch directory that holds the data directories and the logs.
    pub scratch: TempDir,
}

impl Cluster {
    /// Members with `flags`, not yet started. Every second one serves its clients with threads, the
    /// others with loops, unless the environment or a flag decides.
    pub fn new(size: usize, flags: &[&str]) -> Cluster {
        let scratch = tempfile::tempdir().unwrap();
        let ports = Port::take_many(size);
        let numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
        let by_threads =
            |port| numbers.iter().position(|p| *p == port).is_some_and(|at| at % 2 == 1);
        let io = |port| if by_threads(port) { "--io=threads" } else { "--io=poll" };
        let decided = std::env::var_os("NODESYNC_IO").is_some() || flags.contains(&"--io");
        let undecided = !decided;
        let flags_of = |port| {
            let io = undecided.then(|| io(port));
            flags.iter().copied().chain(io).map(ToString::to_string).collect()
        };
        let node = |port: Port| Node {
            port: port.number,
            dir: scratch.path().join(port.number.to_string()),
            password: None,
            flags: flags_of(port.number),
            peers: numbers.iter().copied().filter(|peer| *peer != port.number).collect(),
            log: scratch.path().join(format!("{}.log", port.number)),
            child: None,
            _port: port,
        };
        let nodes = ports.into_iter().map(node).collect();
        Cluster { nodes, scratch }
    }

    /// Starts a cluster and waits until it is ready.
    pub fn start(size: usize, flags: &[&str]) -> Cluster {
        let mut cluster = Cluster::new(size, flags);
        cluster.start_all();
        cluster.wait_until_ready();
        cluster
    }

    /// Starts all members that are not running.
    pub fn start_all(&mut self) {
        self.nodes.iter_mut().filter(|node| node.child.is_none()).for_each(Node::start);
    }

    /// Waits until all members follow the one with the highest port and serve writes and reads. A
    /// node that has a leader may answer `LOADING` until it has caught up; any other error fails
    /// the test.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        let highest = self.nodes.last().expect("a cluster has members").port;
        self.wait_until_led_by(highest);
        for node in &self.nodes {
            let mut client = node.resp();
            let what = format!("{} takes part", node.port);
            eventually(&what, SOON, || match client.call(&["SET", "ready", "yes"]).unwrap() {
                Reply::Error(text) if text.starts_with("LOADING ") => None,
                reply => {
                    assert!(reply.is_ok(), "SET on {}: {reply:?}", node.port);
                    Some(())
                }
            });
            assert_eq!(client.get("ready").as_deref(), Some("yes"));
        }
    }

    /// Waits until all running members follow `leader`.
    #[track_caller]
    pub fn wait_until_led_by(&self, leader: u16) {
        for node in self.nodes.iter().filter(|node| node.child.is_some()) {
            let what = format!("{} follows {leader}", node.port);
            eventually(&what, SOON, || (node.leader() == Some(leader)).then_some(()));
        }
    }
}

/// Files below `dir` with their contents; empty if `dir` does not exist.
pub fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

/// Runs a command to its end; returns its exit code and its standard error.
#[track_caller]
pub fn run_to_end(mut command: Command, limit: Duration) -> (Option<i32>, String) {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let errors = File::options().append(true).open(scratch.path()).unwrap();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn();
    let mut child = KillOnDrop(spawned.unwrap());
    let status = eventually("the command ends", limit, || child.0.try_wait().unwrap());
    (status.code(), fs::read_to_string(scratch.path()).unwrap())
}

/// Process that is killed when the value is dropped.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
