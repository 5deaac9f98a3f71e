//! The measured nodes: a live or a temporary cluster, its leader, and the preload of its keys.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::client::{Client, Error, Options, Reply, encode};
use crate::tools::Port;
use crate::tools::bench::args::{BenchPlan, To};
use crate::tools::bench::keys::{KEY_BYTES, write_key};
use crate::tools::bench::request::value;
use crate::tools::exit::{IO, ToolError, USAGE};
use crate::tools::process::{self, NodeProcess};
use crate::tools::watch::Watch;

/// Longest time until a new cluster, or one with a killed node, serves at all nodes.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Longest time for an orderly stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(20);
/// Most keys of one MSET, and bytes of requests sent at once.
const PRELOAD_KEYS: u64 = 100;
const PRELOAD_BYTES: usize = 1 << 20;

/// The nodes, by their places in a list.
#[derive(Debug)]
pub struct Nodes {
    /// Their names, `HOST:PORT`.
    pub names: Vec<String>,
    /// Their addresses.
    pub addresses: Vec<SocketAddr>,
    password: Option<String>,
    spawned: Option<(Vec<NodeProcess>, PathBuf)>,
}

impl Nodes {
    /// The nodes of the plan, ready to serve.
    pub fn new(plan: &BenchPlan, watch: &Watch) -> Result<Nodes, ToolError> {
        let nodes = match plan.spawn {
            Some(count) => Nodes::spawn(plan, count, watch)?,
            None => Nodes::live(plan)?,
        };
        if plan.to == To::Follower && nodes.names.len() < 2 {
            return Err((USAGE, "--to follower needs more than one node".into()));
        }
        Ok(nodes)
    }

    /// A live cluster. Prints and leaves out nodes that do not answer.
    fn live(plan: &BenchPlan) -> Result<Nodes, ToolError> {
        let mut nodes = Nodes {
            names: Vec::new(),
            addresses: Vec::new(),
            password: plan.password.clone(),
            spawned: None,
        };
        for name in &plan.peers {
            let address = name.to_socket_addrs().map(|mut addresses| addresses.next());
            let found = address.map_err(|error| error.to_string());
            let found = found.and_then(|address| address.ok_or("no such host".into()));
            match found.and_then(|address| nodes.ping(name).map(|()| address)) {
                Ok(address) => {
                    nodes.names.push(name.clone());
                    nodes.addresses.push(address);
                }
                Err(error) => eprintln!("nodesync bench: cannot talk to {name}: {error}"),
            }
        }
        if nodes.names.is_empty() {
            return Err((IO, "no node to measure; `--spawn 3` starts some".into()));
        }
        Ok(nodes)
    }

    fn spawn(plan: &BenchPlan, count: usize, watch: &Watch) -> Result<Nodes, ToolError> {
        let dir = plan.dir.clone();
        let trouble = |error: std::io::Error| (IO, format!("{}: {error}", plan.dir.display()));
        fs::create_dir_all(&dir).map_err(trouble)?;
        let ports = Port::reserve(count).map_err(trouble)?;
        let numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
        let mut members = Vec::new();
        for port in ports {
            let others = numbers.iter().filter(|number| **number != port.number);
            let peers = others.map(|number| format!("127.0.0.1:{number}")).collect();
            let password = plan.password.as_deref();
            members.push(NodeProcess::new(port, &dir, peers, &plan.node_args, password));
        }
        let mut nodes = Nodes {
            names: numbers.iter().map(|port| format!("127.0.0.1:{port}")).collect(),
            addresses: numbers.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect(),
            password: plan.password.clone(),
            spawned: Some((members, dir)),
        };
        nodes.heal(watch)?;
        Ok(nodes)
    }

    fn options(&self, timeout: Duration) -> Options {
        Options {
            password: self.password.clone(),
            connect_timeout: timeout,
            timeout,
            ..Options::default()
        }
    }

    fn ping(&self, name: &str) -> Result<(), String> {
        let timeout = self.options(Duration::from_secs(2));
        let reply = Client::connect(name, &timeout).and_then(|mut client| client.call(&["PING"]));
        let reply = reply.map_err(|error| error.to_string())?;
        reply.error().map_or(Ok(()), |text| Err(text.into()))
    }

    /// The node that claims to lead, if any.
    pub fn leader(&self) -> Option<usize> {
        let options = self.options(Duration::from_millis(200));
        self.names.iter().position(|name| {
            let role =
                || -> Result<Reply, Error> { Client::connect(name, &options)?.call(&["ROLE"]) };
            let Ok(Reply::Array(role)) = role() else { return false };
            matches!(role.first(), Some(Reply::Bulk(word)) if word == b"master")
        })
    }

    /// Waits until a node leads.
    pub fn wait_for_leader(&self, watch: &Watch) -> Result<usize, ToolError> {
        self.within(watch, || self.leader().ok_or("no node leads".into()))
    }

    fn within<T>(
        &self,
        watch: &Watch,
        mut attempt: impl FnMut() -> Result<T, String>,
    ) -> Result<T, ToolError> {
        let started = Instant::now();
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(error) if started.elapsed() > READY_LIMIT || watch.must_stop() => {
                    return Err((IO, format!("the cluster is not ready: {error}")));
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
    }

    /// The nodes that clients may connect to while `leader` leads.
    pub fn targets(&self, to: To, leader: usize, killed: Option<usize>) -> Vec<usize> {
        let alive = (0..self.names.len()).filter(|node| Some(*node) != killed);
        alive
            .filter(|node| match to {
                To::Leader => *node == leader,
                To::Follower => *node != leader,
                To::All => true,
            })
            .collect()
    }

    /// Kills a node of a temporary cluster.
    pub fn kill(&mut self, node: usize) -> Result<(), ToolError> {
        let Some((members, _)) = &mut self.spawned else { return Ok(()) };
        members[node].kill().map_err(|error| (IO, format!("cannot kill a node: {error}")))
    }

    /// Restarts the killed nodes of a temporary cluster. Waits until all nodes take writes and the
    /// one with the highest port leads, to which the leadership returns in the end.
    pub fn heal(&mut self, watch: &Watch) -> Result<(), ToolError> {
        let Some((members, _)) = &mut self.spawned else { return Ok(()) };
        let start =
            members.iter_mut().filter(|node| !node.is_running()).try_for_each(NodeProcess::start);
        start.map_err(|error| (IO, format!("cannot start a node: {error}")))?;
        let leads = i64::from(members.last().map_or(0, |node| node.port));
        let ready = self.within(watch, || self.all_follow(leads));
        ready.map_err(|(code, text)| {
            let nodes = self.spawned.iter().flat_map(|(members, _)| members);
            let logs: String =
                nodes.map(|node| format!("\nnode {}:\n{}", node.port, node.last_lines())).collect();
            (code, text + &logs)
        })
    }

    fn all_follow(&self, leads: i64) -> Result<(), String> {
        let options = self.options(Duration::from_secs(2));
        for name in &self.names {
            let trouble = |error: Error| format!("{name}: {error}");
            let mut client = Client::connect(name, &options).map_err(trouble)?;
            let leader = client.call(&["LEADER"]).map_err(trouble)?;
            let set = client.call(&["SET", "ready", "1"]).map_err(trouble)?;
            if leader != Reply::Integer(leads) || !set.is_ok() {
                return Err(format!("{name}: leader {leader:?}, SET {set:?}"));
            }
        }
        Ok(())
    }

    /// Writes every key once.
    pub fn preload(&self, plan: &BenchPlan, watch: &mut Watch) -> Result<(), ToolError> {
        let leader = self.wait_for_leader(watch)?;
        watch.begin_to_count(plan.keys, "keys");
        let trouble = |error: String| (IO, format!("preload: {error}"));
        let options = self.options(Duration::from_secs(60));
        let mut client = Client::connect(&self.names[leader], &options)
            .map_err(|error| trouble(error.to_string()))?;
        let value = value(plan.size);
        let (mut next, mut bytes) = (0, Vec::new());
        while next < plan.keys && !watch.must_stop() {
            bytes.clear();
            let mut requests = 0;
            while next < plan.keys && (requests == 0 || bytes.len() < PRELOAD_BYTES) {
                // Large values: one key for each request.
                let most = (PRELOAD_BYTES / value.len()).clamp(1, PRELOAD_KEYS as usize) as u64;
                let end = plan.keys.min(next + most);
                put_mset(next..end, value.as_bytes(), &mut bytes);
                next = end;
                requests += 1;
            }
            client.send(&bytes).map_err(|error| trouble(error.to_string()))?;
            for _ in 0..requests {
                let reply = client.receive().map_err(|error| trouble(error.to_string()))?;
                if !reply.is_ok() {
                    return Err(trouble(format!("{reply:?}")));
                }
            }
            watch.show_at(next, "written".into());
        }
        Ok(())
    }

    /// Stops the throw-away cluster, and removes all that it has written. What is wrong with how
    /// its nodes end.
    pub fn finish(mut self) -> Result<Vec<String>, ToolError> {
        let Some((mut members, dir)) = self.spawned.take() else { return Ok(Vec::new()) };
        let trouble = |error: std::io::Error| (IO, format!("{}: {error}", dir.display()));
        members.retain(NodeProcess::is_running);
        let complaints = process::stop(&mut members, STOP_LIMIT).map_err(trouble)?;
        drop(members);
        fs::remove_dir_all(&dir).map_err(trouble)?;
        Ok(complaints)
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // After a failure: the processes end first.
        if let Some((members, dir)) = self.spawned.take() {
            drop(members);
            let _ = fs::remove_dir_all(dir);
        }
    }
}

fn put_mset(keys: std::ops::Range<u64>, value: &[u8], out: &mut Vec<u8>) {
    let mut names = Vec::new();
    for number in keys {
        let mut name = [0; KEY_BYTES];
        write_key(number, &mut name);
        names.push(name);
    }
    let mut words: Vec<&[u8]> = vec![b"MSET"];
    names.iter().for_each(|name| words.extend([&name[..], value]));
    encode(&words, out);
}
