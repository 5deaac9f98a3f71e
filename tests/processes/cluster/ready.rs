//! Healthy clusters.

use std::time::{Duration, Instant};

use crate::common::alone;
use crate::common::cluster::Cluster;

#[test]
fn a_fresh_cluster_is_led_by_the_highest_port_and_read_at_once_on_every_node() {
    let _alone = alone();
    let cluster = Cluster::start(3, &[]);
    let mut clients: Vec<_> = cluster.nodes.iter().map(|node| node.resp()).collect();
    for round in 0..100 {
        let value = round.to_string();
        let writer = round % clients.len();
        clients[writer].set("greeting", &value);
        for client in &mut clients {
            assert_eq!(client.get("greeting").as_deref(), Some(&*value), "round {round}");
        }
    }
}

#[test]
fn the_line_protocol_gives_its_documented_answers() {
    let _alone = alone();
    let cluster = Cluster::start(3, &[]);
    let leader = cluster.nodes[2].port;
    for node in &cluster.nodes {
        let mut line = node.line();
        let mut says = |question: &str, answer: &str| {
            assert_eq!(line.ask(question).unwrap(), answer, "{question} to {}", node.port);
        };
        says("PING", "PONG");
        says("LEADER", &format!("LEADER {leader}"));
        says("SET k the rest of the line", &format!("OK: k set by leader {leader}"));
        says("GET k", "VALUE: the rest of the line");
        says("GET nothing", "ERROR: Key not found");
        says("NONSENSE", "ERROR: Invalid command");
    }
}

#[test]
fn one_node_alone_is_a_cluster_and_leads_at_once() {
    let _alone = alone();
    let mut cluster = Cluster::new(1, &[]);
    let started = Instant::now();
    cluster.start_all();
    cluster.wait_until_ready();
    println!("alone and ready after {:?}", started.elapsed());
    let node = &mut cluster.nodes[0];
    node.resp().set("k", "v");
    node.kill();
    node.start();
    cluster.wait_until_ready();
    assert_eq!(cluster.nodes[0].resp().get("k").as_deref(), Some("v"));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}
