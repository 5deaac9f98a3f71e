//! Compared systems: the way each starts, its readiness, and its cases.
//!
//! Each system starts in an empty directory, runs its cases of a round, and is killed; so there is
//! only one at a time. Reads come before writes, and find the keys that were written before the
//! load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nodesync::client::{Client, Options, Reply};
use nodesync::tools::Port;

use crate::etcd;
use crate::load::{Case, Generator, Sample, Span};
use crate::machine::Machine;
use crate::processes::{Process, asked_to_stop, until};
use crate::results::Results;

const NODES: usize = 3;

/// System that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Redis without persistence.
    RedisPlain,
    /// Redis that syncs its AOF every second.
    RedisEverysec,
    /// Redis that syncs its AOF before it answers.
    RedisAlways,
    /// Three nodes of etcd.
    Etcd,
    /// Three nodes of NodeSync, strong sessions.
    Strong,
    /// Three nodes of NodeSync, eventual sessions.
    Eventual,
}

impl System {
    /// All systems, in the order of the tables.
    pub const ALL: [System; 6] = [
        System::RedisPlain,
        System::RedisEverysec,
        System::RedisAlways,
        System::Etcd,
        System::Strong,
        System::Eventual,
    ];

    /// Name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            System::RedisPlain => "Redis, plain",
            System::RedisEverysec => "Redis, AOF everysec",
            System::RedisAlways => "Redis, AOF always",
            System::Etcd => "etcd, 3 nodes",
            System::Strong => "NodeSync, 3 nodes, strong",
            System::Eventual => "NodeSync, 3 nodes, eventual",
        }
    }

    /// Cases of a round, in order.
    pub fn cases(self) -> Vec<Case> {
        let both = |clients| [Case::get(clients), Case::set(clients)];
        let piped = |clients| both(clients).map(|case| case.pipeline(16));
        match self {
            System::RedisPlain | System::Eventual => [both(50), piped(50)].concat(),
            System::RedisEverysec => {
                [Case::get(64), Case::set(64), Case::set(64).pipeline(16)].into()
            }
            System::RedisAlways => [Case::set(1), Case::set(64), Case::set(64).pipeline(16)].into(),
            System::Etcd => {
                let wide_and_narrow = |case: Case| [case, case.over(8)];
                let (reads, writes) = (Case::get(64), Case::set(64));
                let all = [wide_and_narrow(reads), wide_and_narrow(writes)].concat();
                [&all[..], &[Case::set(1)]].concat()
            }
            System::Strong => {
                let reads = [Case::get(64), Case::get(64).at_all(), Case::get(1000)];
                let writes = [Case::set(1), Case::set(64), Case::set(1000)];
                [&reads[..], &writes, &[Case::set(64).pipeline(16)]].concat()
            }
        }
    }
}

/// Settings that all runs share.
#[derive(Debug)]
pub struct Setup {
    /// Path of NodeSync's program.
    pub binary: PathBuf,
    /// Parent of the data directories, on the disk that is measured.
    pub dir: PathBuf,
    /// Duration of each case.
    pub span: Span,
    /// Flags for NodeSync's nodes.
    pub node_args: Vec<String>,
}

impl Setup {
    /// Starts a system, runs its cases, and removes its files. A problem is recorded, and does not
    /// keep the other systems from being measured.
    pub fn run(&self, system: System, results: &mut Results) {
        let scratch = match tempfile::Builder::new().prefix("rivals.").tempdir_in(&self.dir) {
            Ok(scratch) => scratch,
            Err(error) => return results.problem(system, &format!("no directory: {error}")),
        };
        let outcome = match system {
            System::Etcd => self.etcd(scratch.path(), results),
            System::Strong | System::Eventual => self.nodesync(system, scratch.path(), results),
            _ => self.redis(system, scratch.path(), results),
        };
        if let Err(problem) = outcome {
            results.problem(system, &problem);
        }
    }

    fn redis(&self, system: System, dir: &Path, results: &mut Results) -> Result<(), String> {
        let port = ports(1)?.remove(0);
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.number.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        match system {
            System::RedisEverysec => {
                command.args(["--appendonly", "yes", "--appendfsync", "everysec"])
            }
            System::RedisAlways => command.args(["--appendonly", "yes", "--appendfsync", "always"]),
            _ => command.args(["--appendonly", "no"]),
        };
        command.arg("--dir").arg(dir);
        let mut processes = vec![Process::start("redis", command, dir)?];
        until(&mut processes, || match ask(port.number, &["PING"])? {
            Reply::Simple(text) if text == "PONG" => Ok(()),
            reply => Err(format!("PING: {reply:?}")),
        })?;
        let generator = self.generator(vec![port.number], "default");
        cases(system, &mut processes, results, |case, first| generator.run(case, first))
    }

    fn etcd(&self, dir: &Path, results: &mut Results) -> Result<(), String> {
        let (clients, peers) = (ports(NODES)?, ports(NODES)?);
        let url = |port: &Port| format!("http://127.0.0.1:{}", port.number);
        let members: Vec<String> =
            peers.iter().enumerate().map(|(nth, peer)| format!("n{nth}={}", url(peer))).collect();
        let mut processes = Vec::new();
        for (nth, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let name = format!("n{nth}");
            let mut command = Command::new("etcd");
            command.args(["--name", &name, "--initial-cluster", &members.join(",")]);
            command.args(["--initial-cluster-state", "new", "--initial-cluster-token", "rivals"]);
            command.args(["--listen-client-urls", &url(client)]);
            command.args(["--advertise-client-urls", &url(client)]);
            command.args(["--listen-peer-urls", &url(peer)]);
            command.args(["--initial-advertise-peer-urls", &url(peer)]);
            command.arg("--data-dir").arg(dir.join(&name));
            processes.push(Process::start(&format!("etcd-{name}"), command, dir)?);
        }
        // All nodes must answer: one that is still starting takes time from the others.
        let leader = |_: ()| -> Result<u16, String> {
            let mut found = Err("no node leads".to_string());
            for client in &clients {
                if etcd::leads(client.number)? {
                    found = Ok(client.number);
                }
            }
            found
        };
        let port = until(&mut processes, || leader(()))?;
        etcd::preload(port)?;
        cases(System::Etcd, &mut processes, results, |case, _| {
            match etcd::measure(port, case, self.span) {
                Ok(sample) => (Some(sample), None),
                Err(problem) => (None, Some(problem)),
            }
        })?;
        if leader(())? != port {
            return Err("the leader changed under load".into());
        }
        Ok(())
    }

    fn nodesync(&self, system: System, dir: &Path, results: &mut Results) -> Result<(), String> {
        let ports = ports(NODES)?;
        let numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
        let mut processes = Vec::new();
        for port in &numbers {
            let mut command = Command::new(&self.binary);
            command.arg(port.to_string());
            let others = numbers.iter().filter(|other| *other != port);
            command.args(others.map(|other| format!("127.0.0.1:{other}")));
            command.arg("--dir").arg(dir.join(port.to_string())).args(&self.node_args);
            processes.push(Process::start(&format!("node-{port}"), command, dir)?);
        }
        let leader = Reply::Integer(numbers.iter().copied().max().unwrap_or(0).into());
        until(&mut processes, || {
            numbers.iter().try_for_each(|port| match ask(*port, &["LEADER"])? {
                reply if reply != leader => Err(format!("LEADER at {port}: {reply:?}")),
                _ => match ask(*port, &["SET", "ready", "1"])? {
                    reply if reply.is_ok() => Ok(()),
                    reply => Err(format!("SET at {port}: {reply:?}")),
                },
            })
        })?;
        let logged: Vec<usize> = processes.iter().map(|node| node.log().len()).collect();
        let consistency = if system == System::Strong { "strong" } else { "eventual" };
        let generator = self.generator(numbers, consistency);
        let mut machine = Machine::default();
        let outcome = cases(system, &mut processes, results, |case, first| {
            if case != Case::set(1) {
                return generator.run(case, first);
            }
            // Measure before and after the case: the machine's speed drifts.
            let before = machine.measure(dir);
            let (sample, problem) = generator.run(case, first);
            let measured = before.and_then(|()| machine.measure(dir));
            let trouble = measured.err().map(|error| format!("the machine's own times: {error}"));
            (sample, problem.or(trouble))
        });
        if let Some(medians) = machine.medians() {
            results.machine.push(medians);
        }
        // Log lines since the nodes were ready: elections, and peers that failed.
        for (node, from) in processes.iter().zip(logged) {
            let log = node.log();
            let lines = log.get(from..).unwrap_or_default().lines();
            let odd = |line: &&str| line.contains("[ELECTION") || line.contains("[FAILURE");
            lines.filter(odd).for_each(|line| results.note(system, line));
        }
        outcome
    }

    fn generator(&self, ports: Vec<u16>, consistency: &'static str) -> Generator {
        Generator { binary: self.binary.clone(), ports, consistency, span: self.span }
    }
}

/// Runs the cases of a system, as long as all its processes live.
fn cases(
    system: System,
    processes: &mut [Process],
    results: &mut Results,
    mut run: impl FnMut(Case, bool) -> (Option<Sample>, Option<String>),
) -> Result<(), String> {
    for (nth, case) in system.cases().into_iter().enumerate() {
        let (sample, problem) = run(case, nth == 0);
        // An interrupted case has no result.
        if asked_to_stop() {
            return Ok(());
        }
        if let Some(problem) = problem {
            results.problem(system, &format!("{case}: {problem}"));
        } else if let Some(sample) = sample {
            results.add(system, case, sample);
        } else {
            results.problem(system, &format!("{case}: nothing was measured"));
        }
        processes.iter_mut().try_for_each(Process::check)?;
    }
    Ok(())
}

fn ports(count: usize) -> Result<Vec<Port>, String> {
    Port::reserve(count).map_err(|error| format!("no port: {error}"))
}

fn ask(port: u16, words: &[&str]) -> Result<Reply, String> {
    let client = Client::connect(&format!("127.0.0.1:{port}"), &Options::default());
    client.and_then(|mut client| client.call(words)).map_err(|error| error.to_string())
}

/// First line of a program's version; `None` if the program does not run.
pub fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_string)
}

/// Creates the directory for data, if it does not exist.
pub fn make_dir(dir: &Path) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))
}
