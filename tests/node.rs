//! Nodes within the test process, by the library's public interface: a stopped node gives back
//! every thread and descriptor that it took.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::scope;
use std::time::{Duration, Instant};

use clap::Parser;
use nodesync::config::{Config, NodeArgs};
use nodesync::node::{Node, Stop};
use nodesync::rng::Rng;

use common::client::{Reply, Resp};
use common::cluster::Cluster;
use common::load::{Load, Plan, Tolerance};
use common::rude::{self, Crowd};
use common::{SOON, alone, eventually, long};

/// Settings of a node on `port` whose `peers` are on this machine.
fn config(port: u16, peers: &[u16], dir: &Path) -> Config {
    let mut words = vec!["nodesync".to_string(), port.to_string()];
    words.extend(peers.iter().map(|peer| format!("127.0.0.1:{peer}")));
    words.extend(["--dir".into(), dir.display().to_string()]);
    words.extend(["--segment-size", "64kb", "--snapshot-log", "1mb"].map(Into::into));
    Config::new(NodeArgs::try_parse_from(words).unwrap()).unwrap()
}

/// Threads of this process by id, with their names, and descriptors with their targets.
#[derive(Debug)]
struct Resources {
    threads: BTreeMap<String, String>,
    descriptors: BTreeMap<String, String>,
}

impl Resources {
    fn now() -> Resources {
        let names = |dir: &str| -> Vec<String> {
            let entries = fs::read_dir(dir).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        // A thread or descriptor that has gone since its name was read does not count.
        let thread = |id: String| {
            let name = fs::read_to_string(format!("/proc/self/task/{id}/comm")).ok()?;
            Some((id, name.trim_end().to_string()))
        };
        let descriptor = |id: String| {
            let target = fs::read_link(format!("/proc/self/fd/{id}")).ok()?;
            Some((id, target.display().to_string()))
        };
        Resources {
            threads: names("/proc/self/task").into_iter().filter_map(thread).collect(),
            descriptors: names("/proc/self/fd").into_iter().filter_map(descriptor).collect(),
        }
    }

    /// Waits until this process holds no new thread and no more descriptors than before.
    #[track_caller]
    fn wait_until_restored(&self) {
        let mut more = String::new();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            let now = Resources::now();
            let new: Vec<_> =
                now.threads.iter().filter(|(id, _)| !self.threads.contains_key(*id)).collect();
            // A descriptor's number may be reused, so only their count is compared. Both counts
            // include the descriptor of the listing itself.
            if new.is_empty() && now.descriptors.len() <= self.descriptors.len() {
                return;
            }
            more = format!("threads {new:?}, descriptors {:#?}", now.descriptors);
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("left over: {more}, before: {:#?}", self.descriptors);
    }
}

/// Starts a node that is alone in its cluster, increments a counter, and stops the node.
fn run_once(dir: &Path, life: u64) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // The directory fixes the id, and so the membership; the port is new each time.
    let mut config = config(port, &[], dir);
    config.id = nodesync::types::NodeId(7);
    let node = Node::start_on(listener, config, std::sync::Arc::default()).unwrap();
    assert_eq!(node.port(), port);
    let mut client = Resp::connect(port).unwrap();
    let mut idle = Resp::connect(port).unwrap();
    // Repeat only a request that was certainly not done.
    let count = eventually("the node leads", SOON, || {
        let reply = client.call(&["INCR", "lives"]).unwrap();
        let not_yet = |text: &str| ["CLUSTERDOWN ", "LOADING "].iter().any(|c| text.starts_with(c));
        (!reply.error().is_some_and(not_yet)).then_some(reply)
    });
    assert_eq!(count, Reply::Integer(life as i64));
    let started = Instant::now();
    node.stop().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(idle.call(&["PING"]).is_err(), "a stopped node answered");
    assert!(Resp::connect(port).is_err(), "a stopped node still listens");
}

#[test]
fn a_node_that_is_started_and_stopped_a_hundred_times_leaves_nothing_behind() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("data");
    run_once(&dir, 1);
    let before = Resources::now();
    let started = Instant::now();
    for life in 2..=101 {
        run_once(&dir, life);
    }
    println!("100 starts and stops in {:?}", started.elapsed());
    before.wait_until_restored();
}

/// Kind of a round under load.
#[derive(Clone, Copy, Debug)]
enum Round {
    /// All nodes serve for a while, then stop at once: some have no peer left to hand over to.
    Serve,
    /// Each node is stopped at a random moment, often while it starts.
    Hasty,
    /// One node has lost its directory, and all stop while an image is on its way to it.
    Wiped,
}

const ROUNDS: [Round; 4] = [Round::Serve, Round::Hasty, Round::Wiped, Round::Hasty];

/// Three nodes in this process, on the ports and in the directories of a cluster.
struct Trio {
    cluster: Cluster,
    ports: Vec<u16>,
}

impl Trio {
    fn new() -> Trio {
        let cluster = Cluster::new(3, &[]);
        let ports = cluster.nodes.iter().map(|node| node.port).collect();
        Trio { cluster, ports }
    }

    fn start(&self, at: usize, stop: Arc<Stop>) -> Node {
        let port = self.ports[at];
        let peers: Vec<u16> = self.ports.iter().copied().filter(|peer| *peer != port).collect();
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        Node::start_on(listener, config(port, &peers, &self.cluster.nodes[at].dir), stop).unwrap()
    }

    fn start_all(&self) -> Vec<Node> {
        (0..3).map(|at| self.start(at, Arc::default())).collect()
    }

    #[track_caller]
    fn wait_until_all_serve(&self) {
        for node in &self.cluster.nodes {
            let mut client = node.resp();
            eventually(&format!("{} serves", node.port), SOON, || {
                client.call(&["SET", "served", "yes"]).unwrap().is_ok().then_some(())
            });
        }
    }

    /// Writes enough data that sending an image takes a moment.
    fn fill(&self) {
        let mut client = self.cluster.nodes[0].resp();
        client.set(rude::LARGE, &"x".repeat(256 << 10));
        let value = "x".repeat(32 << 10);
        for key in 0..256 {
            client.set(&format!("fill:{key}"), &value);
        }
    }

    /// Number of partly received images in the directory of a node.
    fn parts(&self, at: usize) -> usize {
        let Ok(entries) = fs::read_dir(&self.cluster.nodes[at].dir) else { return 0 };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("from-")).count()
    }

    /// Stops all nodes at once. No client may delay a stop.
    fn stop_all(&self, nodes: Vec<Node>) {
        let started = Instant::now();
        scope(|scope| {
            for node in nodes {
                scope.spawn(|| node.stop().unwrap());
            }
        });
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }

    /// Starts all nodes, and stops each at a random moment.
    fn stop_at_random_moments(&self, rng: &mut Rng) {
        scope(|scope| {
            for at in 0..3 {
                let longest = if rng.below(2) == 0 { 20 } else { 400 };
                let delay = Duration::from_millis(rng.below(longest));
                scope.spawn(move || {
                    let stop = Arc::<Stop>::default();
                    let shared_stop = Arc::clone(&stop);
                    let stopper = std::thread::spawn(move || {
                        std::thread::sleep(delay);
                        shared_stop.ask();
                        Instant::now()
                    });
                    self.start(at, stop).run_until_stopped().unwrap();
                    let took = stopper.join().unwrap().elapsed();
                    assert!(took < Duration::from_secs(5), "{delay:?}: {took:?}");
                });
            }
        });
    }

    /// Runs with one node whose directory was removed: always the same one, because the others hold
    /// every acknowledged write. True if it was stopped while an image was on its way to it.
    fn run_with_one_wiped(&self) -> bool {
        fs::remove_dir_all(&self.cluster.nodes[0].dir).unwrap();
        let nodes = self.start_all();
        let mut client = self.cluster.nodes[0].resp();
        let receiving = eventually("the wiped node receives an image or serves", SOON, || {
            if self.parts(0) > 0 {
                return Some(true);
            }
            client.call(&["SET", "served", "yes"]).unwrap().is_ok().then_some(false)
        });
        self.stop_all(nodes);
        receiving
    }
}

#[test]
fn three_nodes_stop_and_start_repeatedly_under_load() {
    let _alone = alone();
    let before = Resources::now();
    {
        let trio = Trio::new();
        let mut rng = Rng::new(1);
        let nodes = trio.start_all();
        trio.wait_until_all_serve();
        trio.fill();
        let plan = Plan { clients_per_node: 8, rest: Duration::from_millis(1) };
        let tolerance = |at| if at == 0 { Tolerance::Rejoins } else { Tolerance::Outages };
        let load = Load::start(&trio.cluster, plan, tolerance);
        let crowd = Crowd::start(16, &trio.ports, Duration::from_millis(500));
        load.go_on(Duration::from_millis(500));
        trio.stop_all(nodes);
        let mut interrupted = 0;
        for round in 0..if long() { 100 } else { 8 } {
            let (kind, started) = (ROUNDS[round % ROUNDS.len()], Instant::now());
            match kind {
                Round::Serve => {
                    let nodes = trio.start_all();
                    trio.wait_until_all_serve();
                    load.go_on(Duration::from_millis(300));
                    trio.stop_all(nodes);
                }
                Round::Hasty => trio.stop_at_random_moments(&mut rng),
                Round::Wiped => interrupted += u32::from(trio.run_with_one_wiped()),
            }
            println!("round {round}, {kind:?}: {:?}", started.elapsed());
            load.check();
        }
        let counts = crowd.finish();
        let tally = load.finish();
        println!("{} served, {} refused, {counts:?}", tally.served, tally.refused);
        println!("{interrupted} stops while an image was on its way");
        assert!(tally.served > 100 && interrupted > 0, "{tally:?}");
        let nodes = trio.start_all();
        trio.wait_until_all_serve();
        for node in &trio.cluster.nodes {
            tally.verify(&mut node.resp());
        }
        trio.stop_all(nodes);
        assert_eq!([0, 1, 2].map(|at| trio.parts(at)), [0; 3], "a part of an image is left");
    }
    before.wait_until_restored();
}
