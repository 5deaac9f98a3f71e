//! Nodes in this process, by the library's own interface: what they take, they give back.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use nodesync::config::{Args, Config};
use nodesync::node::Node;

use common::client::{Reply, Resp};
use common::cluster::Cluster;
use common::load::{Load, Plan, Tolerance};
use common::{SOON, alone, eventually};

/// The settings of a node on `port` that has `peers` on this machine.
fn config(port: u16, peers: &[u16], dir: &Path) -> Config {
    let mut words = vec!["nodesync".to_string(), port.to_string()];
    words.extend(peers.iter().map(|peer| format!("127.0.0.1:{peer}")));
    words.extend(["--dir".into(), dir.display().to_string()]);
    words.extend(["--segment-size".into(), "64kb".into()]);
    Config::new(Args::try_parse_from(words).unwrap()).unwrap()
}

/// What this process has open: threads by their numbers with their names, and descriptors.
#[derive(Debug)]
struct Holdings {
    threads: BTreeMap<String, String>,
    descriptors: BTreeMap<String, String>,
}

impl Holdings {
    fn now() -> Holdings {
        let names = |dir: &str| -> Vec<String> {
            let entries = fs::read_dir(dir).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        // What has gone since its name was read is not held.
        let thread = |id: String| {
            let name = fs::read_to_string(format!("/proc/self/task/{id}/comm")).ok()?;
            Some((id, name.trim_end().to_string()))
        };
        let descriptor = |id: String| {
            let target = fs::read_link(format!("/proc/self/fd/{id}")).ok()?;
            Some((id, target.display().to_string()))
        };
        Holdings {
            threads: names("/proc/self/task").into_iter().filter_map(thread).collect(),
            descriptors: names("/proc/self/fd").into_iter().filter_map(descriptor).collect(),
        }
    }

    /// Waits until this process holds nothing that it did not hold before.
    #[track_caller]
    fn wait_until_restored(&self) {
        let mut more = String::new();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            let now = Holdings::now();
            let new: Vec<_> =
                now.threads.iter().filter(|(id, _)| !self.threads.contains_key(*id)).collect();
            // A number may be given anew, and the directory that is being listed has one of its
            // own.
            if new.is_empty() && now.descriptors.len() <= self.descriptors.len() {
                return;
            }
            more = format!("threads {new:?}, descriptors {:#?}", now.descriptors);
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("left over: {more}, before: {:#?}", self.descriptors);
    }
}

/// Starts a node that is alone in its cluster, has it count, and stops it.
fn live_and_die(dir: &Path, life: u64) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    // The id, and so the membership, is that of the directory; the port is new each time.
    let mut config = config(port, &[], dir);
    config.id = nodesync::types::NodeId(7);
    let node = Node::start_on(listener, config, std::sync::Arc::default()).unwrap();
    assert_eq!(node.port(), port);
    let mut client = Resp::connect(port).unwrap();
    let mut idle = Resp::connect(port).unwrap();
    // Only what was certainly not done is asked again.
    let count = eventually("it leads", SOON, || {
        let reply = client.call(&["INCR", "lives"]).unwrap();
        let not_yet = |text: &str| ["CLUSTERDOWN ", "LOADING "].iter().any(|c| text.starts_with(c));
        (!reply.error().is_some_and(not_yet)).then_some(reply)
    });
    assert_eq!(count, Reply::Integer(life as i64));
    let started = Instant::now();
    node.stop().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(idle.call(&["PING"]).is_err(), "a stopped node has answered");
    assert!(Resp::connect(port).is_err(), "a stopped node still listens");
}

#[test]
fn a_node_that_is_started_and_stopped_a_hundred_times_leaves_nothing_behind() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("data");
    live_and_die(&dir, 1);
    let before = Holdings::now();
    let started = Instant::now();
    for life in 2..=101 {
        live_and_die(&dir, life);
    }
    println!("100 lives in {:?}", started.elapsed());
    before.wait_until_restored();
}

#[test]
fn three_nodes_stop_and_start_again_and_again_under_load() {
    let _alone = alone();
    let before = Holdings::now();
    {
        // Its ports and directories, for nodes in this process.
        let cluster = Cluster::new(3, &[]);
        let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
        let start = |at: usize| {
            let peers: Vec<u16> = ports.iter().copied().filter(|p| *p != ports[at]).collect();
            let listener = TcpListener::bind(("127.0.0.1", ports[at])).unwrap();
            Node::start_on(
                listener,
                config(ports[at], &peers, &cluster.nodes[at].dir),
                std::sync::Arc::default(),
            )
            .unwrap()
        };
        let plan = Plan { clients_per_node: 8, rest: Duration::from_millis(1) };
        let mut load = None;
        for round in 0..5 {
            let nodes: Vec<Node> = (0..3).map(start).collect();
            for node in &cluster.nodes {
                let mut client = node.resp();
                let what = format!("round {round}: {} serves", node.port);
                eventually(&what, SOON, || {
                    client.call(&["SET", "served", "yes"]).unwrap().is_ok().then_some(())
                });
            }
            let load =
                load.get_or_insert_with(|| Load::start(&cluster, plan, |_| Tolerance::Outages));
            load.go_on(Duration::from_millis(500));
            // All at once: some of them have nobody left to hand over to.
            let started = Instant::now();
            std::thread::scope(|scope| {
                for node in nodes {
                    scope.spawn(|| node.stop().unwrap());
                }
            });
            println!("round {round}: stopped within {:?}", started.elapsed());
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
            load.check();
        }
        let tally = load.unwrap().finish();
        println!("{} served, {} refused", tally.served, tally.refused);
        assert!(tally.served > 100, "{tally:?}");
        let nodes: Vec<Node> = (0..3).map(start).collect();
        for node in &cluster.nodes {
            let mut client = node.resp();
            eventually("it serves again", SOON, || {
                client.call(&["SET", "served", "yes"]).unwrap().is_ok().then_some(())
            });
            tally.verify(&mut client);
        }
        nodes.into_iter().for_each(|node| node.stop().unwrap());
    }
    before.wait_until_restored();
}
