//! Nodes that return after an absence, and the bound of the log on disk.

use std::fs;

use crate::common::client::Resp;
use crate::common::cluster::{Cluster, Node};
use crate::common::{SOON, alone, eventually};

/// Small logs, so that snapshots are taken soon.
const SMALL: [&str; 4] = ["--snapshot-log", "256kb", "--segment-size", "64kb"];

/// Overwrites `keys` keys with values of 1 KiB, `rounds` times.
fn overwrite(client: &mut Resp, keys: usize, rounds: usize, name: &str) {
    for round in 0..rounds {
        let value = format!("{name} {round} {}", "x".repeat(1000));
        let requests: Vec<Vec<String>> =
            (0..keys).map(|key| vec!["SET".into(), format!("k{key}"), value.clone()]).collect();
        let replies = client.pipeline(&requests).unwrap();
        assert!(replies.iter().all(|reply| reply.is_ok()), "{:?}", replies[0]);
    }
}

fn check(node: &Node, keys: usize, name: &str, round: usize) {
    let mut client = node.resp();
    for key in 0..keys {
        let value = client.get(&format!("k{key}")).unwrap_or_default();
        assert!(value.starts_with(&format!("{name} {round} ")), "k{key} on {}", node.port);
    }
}

#[test]
fn a_node_that_was_away_for_long_gets_a_snapshot() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &SMALL);
    for away in [0, 2] {
        let name = format!("without {away}");
        cluster.nodes[away].kill();
        let mut client = cluster.nodes[1].resp();
        overwrite(&mut client, 100, 20, &name);
        cluster.nodes[away].start();
        cluster.wait_until_ready();
        check(&cluster.nodes[away], 100, &name, 19);
        let log = cluster.nodes[away].log();
        assert!(log.contains(" received from "), "no snapshot was sent: {log}");
    }
    // The state of an installed snapshot survives the process.
    for node in &mut cluster.nodes {
        node.kill();
    }
    cluster.start_all();
    cluster.wait_until_ready();
    cluster.nodes.iter().for_each(|node| check(node, 100, "without 2", 19));
}

#[test]
fn a_log_of_many_overwrites_takes_a_bounded_part_of_the_disk() {
    let _alone = alone();
    let cluster = Cluster::start(3, &SMALL);
    let mut client = cluster.nodes[1].resp();
    let mut highest = 0;
    for round in 0..40 {
        overwrite(&mut client, 20, 20, &format!("part {round}"));
        let bytes = cluster.nodes.iter().map(Node::disk_bytes).max();
        highest = highest.max(bytes.unwrap());
    }
    println!("at most {highest} bytes of disk for 16 MB of overwrites");
    // The bound holds the log up to a snapshot, the part retained for followers, entries that come
    // while an image is written, one current segment, spares and images.
    let bound = 2 << 20;
    for node in &cluster.nodes {
        let what = format!("{} has dropped its old log", node.port);
        eventually(&what, SOON, || (node.disk_bytes() < bound).then_some(()));
    }
    assert!(highest < 2 * bound, "{highest} bytes");
}

#[test]
fn a_node_whose_directory_was_wiped_becomes_a_full_member_again() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &SMALL);
    for wiped in [2, 0] {
        let name = format!("wiped {wiped}");
        overwrite(&mut cluster.nodes[1].resp(), 100, 10, &name);
        cluster.nodes[wiped].kill();
        fs::remove_dir_all(&cluster.nodes[wiped].dir).unwrap();
        cluster.nodes[wiped].start();
        cluster.wait_until_ready();
        assert!(cluster.nodes[wiped].log().contains("Caught up: a full member again"));
        // The node counts again: with another one dead there is still a majority, which holds
        // everything.
        cluster.nodes[1].kill();
        let mut client = cluster.nodes[wiped].resp();
        client.set(&name, "a majority");
        check(&cluster.nodes[wiped], 100, &name, 9);
        cluster.nodes[1].start();
        cluster.wait_until_ready();
        check(&cluster.nodes[1], 100, &name, 9);
        assert_eq!(cluster.nodes[1].resp().get(&name).as_deref(), Some("a majority"));
    }
}

#[test]
fn a_large_snapshot_reaches_a_node_that_takes_a_while_to_verify_it() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &["--snapshot-log", "16mb", "--segment-size", "4mb"]);
    cluster.nodes[0].kill();
    let mut client = cluster.nodes[1].resp();
    let value = "x".repeat(100_000);
    for round in 0..50 {
        let set = |key: i32| vec!["SET".into(), format!("large {round} {key}"), value.clone()];
        let replies = client.pipeline(&(0..20).map(set).collect::<Vec<_>>()).unwrap();
        assert!(replies.iter().all(|reply| reply.is_ok()), "{:?}", replies[0]);
    }
    cluster.nodes[0].start();
    cluster.wait_until_ready();
    let mut client = cluster.nodes[0].resp();
    for round in 0..50 {
        let value = client.get(&format!("large {round} 19")).unwrap_or_default();
        assert_eq!(value.len(), 100_000, "round {round}");
    }
    let log = cluster.nodes[2].log();
    let sent = log.matches("Sending the snapshot").count();
    assert_eq!(sent, 1, "the snapshot was sent more than once");
}

#[test]
fn followers_that_are_up_need_no_snapshot_however_large_an_entry_is() {
    let _alone = alone();
    let cluster = Cluster::start(3, &SMALL);
    let mut clients = [cluster.nodes[0].resp(), cluster.nodes[1].resp()];
    let value = "x".repeat(300_000);
    for round in 0..100 {
        for client in &mut clients {
            client.set(&format!("k{}", round % 5), &value);
        }
    }
    for node in &cluster.nodes {
        assert!(!node.log().contains("Sending the snapshot"), "{} has sent one", node.port);
    }
}
