//! Clusters of real processes on this machine: started, killed, paused and asked to stop, each with
//! a directory of its own and a log that is shown when the test fails.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::client::{Line, Reply, Resp};
use super::{Port, SOON, binary, eventually};

/// The lines of a node's log that a failing test shows.
const LOG_LINES_SHOWN: usize = 80;

/// A member: its place on the machine, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    /// Its port, which is its id too.
    pub port: u16,
    /// Its data directory.
    pub dir: PathBuf,
    /// The password that it is given, and that clients made here say.
    pub password: Option<String>,
    /// What it is started with, behind its port, its peers and its directory.
    pub flags: Vec<String>,
    peers: Vec<u16>,
    log: PathBuf,
    child: Option<Child>,
    _port: Port,
}

impl Node {
    /// The command that starts it.
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

    /// Starts it, and does not wait until it is of any use.
    pub fn start(&mut self) {
        let command = self.command();
        self.start_by(command);
    }

    /// Starts it by another command that becomes its process.
    pub fn start_by(&mut self, mut command: Command) {
        assert!(self.child.is_none(), "{} runs already", self.port);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Ends it without a warning, as `kill -9` does.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().expect("it runs")), signal).unwrap();
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// True if its process runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// Waits until its process has ended.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let port = self.port;
        eventually(&format!("node {port} ends"), limit, || child.try_wait().unwrap())
    }

    /// Stops it in an orderly way.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(SOON);
        assert_eq!(status.code(), Some(0), "{}: {}", self.port, self.log());
    }

    /// A new RESP client of it.
    #[track_caller]
    pub fn resp(&self) -> Resp {
        Resp::connect_as(self.port, self.password.as_deref()).unwrap()
    }

    /// A new client of it with the line protocol.
    #[track_caller]
    pub fn line(&self) -> Line {
        Line::connect(self.port).unwrap()
    }

    /// What it has written to its log, over all its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The leader that it names, if it can be asked and knows one.
    pub fn leader(&self) -> Option<u16> {
        let mut client = Resp::connect_as(self.port, self.password.as_deref()).ok()?;
        client.call(&["LEADER"]).ok()?.number().and_then(|port| port.try_into().ok())
    }

    /// The bytes of the files in its directory.
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

/// 0 for a file that has gone meanwhile.
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

/// Members, ascending by rank; the last one leads when all are well.
#[derive(Debug)]
pub struct Cluster {
    /// The members.
    pub nodes: Vec<Node>,
    /// Holds the directories and logs.
    pub scratch: TempDir,
}

impl Cluster {
    /// Members that have not been started, each with `flags`. Every second one serves its clients
    /// by threads, the others by loops, unless the environment decides.
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

    /// A cluster that is ready.
    pub fn start(size: usize, flags: &[&str]) -> Cluster {
        let mut cluster = Cluster::new(size, flags);
        cluster.start_all();
        cluster.wait_until_ready();
        cluster
    }

    /// Starts all members that do not run.
    pub fn start_all(&mut self) {
        self.nodes.iter_mut().filter(|node| node.child.is_none()).for_each(Node::start);
    }

    /// Waits until all members follow the one with the highest port, and can write and read. No
    /// error is expected from a node that has a leader, but that it has yet to catch up.
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

    /// Waits until all members that run follow `leader`.
    #[track_caller]
    pub fn wait_until_led_by(&self, leader: u16) {
        for node in self.nodes.iter().filter(|node| node.child.is_some()) {
            let what = format!("{} follows {leader}", node.port);
            eventually(&what, SOON, || (node.leader() == Some(leader)).then_some(()));
        }
    }
}

/// The files below `dir` with their contents; empty if it does not exist.
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

/// Runs a command to its end: its exit code, and what it wrote to standard error.
#[track_caller]
pub fn run_to_end(mut command: Command, limit: Duration) -> (Option<i32>, String) {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let errors = File::options().append(true).open(scratch.path()).unwrap();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn();
    let mut child = Ended(spawned.unwrap());
    let status = eventually("the command ends", limit, || child.0.try_wait().unwrap());
    (status.code(), fs::read_to_string(scratch.path()).unwrap())
}

/// A process that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
