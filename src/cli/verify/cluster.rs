//! A throw-away cluster on this machine: processes of this very program, with a directory and a log
//! each, and a proxy in every link between them.
//!
//! Nothing outlives its value: processes are killed when it is dropped, also by a panic. They are
//! process groups of their own, so that Ctrl-C in a terminal reaches the verifier alone. (If the
//! verifier itself is killed by `kill -9`, its nodes stay.)

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};

use super::proxy::{Link, Mode};
use crate::rng::Rng;

/// The last lines of a log that a report shows.
const LOG_LINES_SHOWN: usize = 15;
/// Between two looks at a node that is stopping.
const POLL: Duration = Duration::from_millis(10);
/// Small logs, so that there are sealed segments and images to damage. Short time-outs, because
/// clients that wait learn nothing.
const FLAGS: [&str; 6] =
    ["--segment-size", "64kb", "--snapshot-log", "256kb", "--request-timeout", "3000"];

/// A member: its place on the machine, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    /// Its port, which is its id too.
    pub port: u16,
    dir: PathBuf,
    log: PathBuf,
    peers: Vec<String>,
    password: Option<String>,
    child: Option<Child>,
    /// Keeps the port ours. Bound and not listening: a node that reuses addresses can bind beside
    /// it, while the system gives the port to nobody else.
    _hold: Socket,
}

impl Node {
    /// Starts it, and does not wait until it is of any use.
    pub fn start(&mut self) -> io::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(self.port.to_string()).args(&self.peers);
        command.arg("--dir").arg(&self.dir).args(FLAGS);
        // The verifier's own settings are not the nodes'.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("NODESYNC_") {
                command.env_remove(name);
            }
        }
        if let Some(password) = &self.password {
            command.env("NODESYNC_REQUIREPASS", password);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Sends a signal, if it runs.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if let Some(child) = &self.child {
            kill_process(Pid::from_child(child), signal)?;
        }
        Ok(())
    }

    /// How its process has ended, if it has by itself. Told once.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// True if it was started and has not ended.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// The last lines of its log, over all its lives.
    pub fn last_lines(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        shown.iter().map(|line| format!("    {line}\n")).collect()
    }

    /// Removes its directory.
    pub fn wipe(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }

    /// Moves its directory away, as its own message tells after damage.
    pub fn set_aside(&self, number: usize) -> io::Result<()> {
        fs::rename(&self.dir, self.dir.with_extension(format!("damaged-{number}")))
    }

    /// Flips a bit of a sealed segment or of an image, and tells where; `None` if there is no such
    /// file yet. Bytes that are zero are passed over as far as possible: most of them mean nothing.
    pub fn corrupt(&self, rng: &mut Rng) -> io::Result<Option<String>> {
        const TRIES: usize = 64;
        let files = sealed(&self.dir)?;
        let Some(path) = files.get(rng.below(files.len() as u64) as usize) else {
            return Ok(None);
        };
        let file = File::options().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        let (mut at, mut byte) = (0, [0]);
        for _ in 0..TRIES {
            at = rng.below(len);
            file.read_exact_at(&mut byte, at)?;
            if byte != [0] {
                break;
            }
        }
        byte[0] ^= 1 << rng.below(8);
        file.write_all_at(&byte, at)?;
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        Ok(Some(format!("{name}, byte {at}")))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// All images, and all segments of the log but the last.
fn sealed(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.sort();
    let named = |path: &PathBuf, prefix: &str, suffix: &str| {
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        name.starts_with(prefix) && name.ends_with(suffix)
    };
    let mut files: Vec<_> =
        paths.iter().filter(|path| named(path, "wal-", ".log")).cloned().collect();
    files.pop();
    files.extend(paths.into_iter().filter(|path| named(path, "snapshot-", ".image")));
    Ok(files)
}

/// The members and the links between them.
#[derive(Debug)]
pub struct Cluster {
    /// The members, ascending by rank.
    pub nodes: Vec<Node>,
    /// From each to each other one.
    links: Vec<(usize, usize, Link)>,
    /// Where everything lies.
    pub dir: PathBuf,
}

impl Cluster {
    /// Members that have not been started, in a new directory.
    pub fn new(size: usize, dir: PathBuf, password: Option<&str>) -> io::Result<Cluster> {
        fs::create_dir_all(&dir)?;
        let mut ports = Vec::new();
        for _ in 0..size {
            ports.push(reserve()?);
        }
        ports.sort_by_key(|(port, _)| *port);
        let mut cluster = Cluster { nodes: Vec::new(), links: Vec::new(), dir };
        for from in 0..size {
            for to in (0..size).filter(|to| *to != from) {
                cluster.links.push((from, to, Link::new(ports[to].0)?));
            }
        }
        let numbers: Vec<u16> = ports.iter().map(|(port, _)| *port).collect();
        for (at, (port, hold)) in ports.into_iter().enumerate() {
            let links = cluster.links.iter().filter(|(from, _, _)| *from == at);
            let peer = |to: usize, link: &Link| format!("{}=127.0.0.1:{}", numbers[to], link.port);
            cluster.nodes.push(Node {
                port,
                dir: cluster.dir.join(port.to_string()),
                log: cluster.dir.join(format!("{port}.log")),
                peers: links.map(|(_, to, link)| peer(*to, link)).collect(),
                password: password.map(Into::into),
                child: None,
                _hold: hold,
            });
        }
        Ok(cluster)
    }

    /// Starts all members that do not run.
    pub fn start_all(&mut self) -> io::Result<()> {
        self.nodes.iter_mut().filter(|node| !node.runs()).try_for_each(Node::start)
    }

    /// Changes the link on which `from` dials `to`.
    pub fn set_link(&self, from: usize, to: usize, mode: Mode) {
        let found = self.links.iter().find(|(a, b, _)| (*a, *b) == (from, to));
        if let Some((_, _, link)) = found {
            link.set(mode);
        }
    }

    /// Lets everything pass again, wakes who sleeps and starts who was killed.
    pub fn heal(&mut self) -> io::Result<()> {
        self.links.iter().for_each(|(_, _, link)| link.set(Mode::Pass));
        for node in &self.nodes {
            node.signal(Signal::CONT)?;
        }
        self.start_all()
    }

    /// Stops all members in an orderly way. What is wrong with how they end.
    pub fn stop(&mut self, limit: Duration) -> io::Result<Vec<String>> {
        let mut complaints = Vec::new();
        let started = Instant::now();
        self.nodes.iter().try_for_each(|node| node.signal(Signal::TERM))?;
        for node in &mut self.nodes {
            let port = node.port;
            let status = loop {
                match node.ended()? {
                    Some(status) => break Some(status),
                    None if !node.runs() || started.elapsed() > limit => break None,
                    None => std::thread::sleep(POLL),
                }
            };
            if !status.is_some_and(|status| status.success()) {
                let how = status.map_or("not in time".into(), |status| status.to_string());
                let log = node.last_lines();
                complaints.push(format!("node {port} did not stop as asked: {how}; log:\n{log}"));
            }
        }
        Ok(complaints)
    }

    /// Removes everything that the cluster has written.
    pub fn remove(self) -> io::Result<()> {
        let dir = self.dir.clone();
        drop(self);
        fs::remove_dir_all(dir)
    }
}

fn reserve() -> io::Result<(u16, Socket)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into())?;
    let address = socket.local_addr()?.as_socket();
    let port = address.map(|address| address.port());
    port.map(|port| (port, socket)).ok_or_else(|| io::Error::other("a socket without a port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sealed_segments_and_images_are_damaged() {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["wal-1.log", "wal-2.log", "spare-3.log", "identity", "snapshot-1-1.image"] {
            fs::write(scratch.path().join(name), b"x").unwrap();
        }
        let names = |paths: Vec<PathBuf>| -> Vec<_> {
            paths.iter().map(|path| path.file_name().unwrap().to_owned()).collect()
        };
        assert_eq!(names(sealed(scratch.path()).unwrap()), ["wal-1.log", "snapshot-1-1.image"]);
        assert!(sealed(&scratch.path().join("nowhere")).is_err());
    }
}
