//! The eventual mode: a cluster takes writes while one node is left, and all nodes agree in the
//! end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::client::{Line, Reply, Resp};
use crate::common::cluster::{Cluster, Node};
use crate::common::{SOON, alone, eventually};

const EVENTUAL: &[&str] = &["CONSISTENCY", "eventual"];

/// Opens an eventual session.
#[track_caller]
fn eventual(node: &Node) -> Resp {
    let mut client = node.resp();
    assert!(client.call(EVENTUAL).unwrap().is_ok());
    client
}

/// Waits until every node has drained its eventual writes into the log.
#[track_caller]
fn wait_until_drained(cluster: &Cluster) {
    for node in &cluster.nodes {
        let mut client = node.resp();
        let what = format!("{} has drained", node.port);
        eventually(&what, SOON, || {
            let left = ["eventual_backlog_writes", "eventual_overlaid_keys"];
            left.iter().all(|field| client.info(field) == "0").then_some(())
        });
    }
}

/// Waits until the node knows that it is alone.
#[track_caller]
fn wait_until_alone(line: &mut Line, port: u16) {
    let alone = format!("LEADER {port}");
    eventually("the survivor reports itself as the leader", SOON, || {
        (line.ask("LEADER").unwrap() == alone).then_some(())
    });
}

#[test]
fn every_node_takes_eventual_writes_and_shows_them_at_once() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    cluster.wait_until_ready();
    let leader = cluster.nodes[2].port;
    for node in &mut cluster.nodes {
        let mut line = node.line();
        assert_eq!(line.ask("CONSISTENCY").unwrap(), "VALUE: strong");
        let answer = line.ask("CONSISTENCY eventual").unwrap();
        assert_eq!(answer, "OK: consistency set to eventual");
        assert_eq!(line.ask("CONSISTENCY lax").unwrap(), "ERROR: invalid consistency mode");
        let port = node.port;
        for round in 0..50 {
            let answer = line.ask(&format!("SET a {port} {round}")).unwrap();
            assert_eq!(answer, format!("OK: a set by leader {leader}"));
            assert_eq!(line.ask("GET a").unwrap(), format!("VALUE: {port} {round}"));
        }
        assert_eq!(line.ask("DEL a b").unwrap(), "OK: 1 deleted");
        assert_eq!(line.ask("GET a").unwrap(), "ERROR: Key not found");
    }
    wait_until_drained(&cluster);
    for node in &cluster.nodes {
        assert_eq!(node.resp().get("a"), None);
        assert!(node.resp().info("eventual_write_batches").parse::<u64>().unwrap() >= 51);
    }
}

#[test]
fn strong_commands_of_an_eventual_session_see_its_own_writes() {
    let _alone = alone();
    let cluster = Cluster::start(3, &[]);
    cluster.wait_until_ready();
    for node in &cluster.nodes {
        let mut client = eventual(node);
        for round in 0..100_i64 {
            let pipeline = [
                vec!["MSET".into(), "n".into(), round.to_string(), "s".into(), "x".into()],
                vec!["INCR".to_string(), "n".into()],
                vec!["APPEND".into(), "s".into(), "y".into()],
                vec!["GET".into(), "s".into()],
                vec!["DEL".into(), "s".into()],
                vec!["SETNX".into(), "s".into(), "new".into()],
            ];
            let replies = client.pipeline(&pipeline).unwrap();
            assert!(replies[0].is_ok(), "{replies:?}");
            assert_eq!(replies[1], Reply::Integer(round + 1));
            assert_eq!(replies[2], Reply::Integer(2));
            assert_eq!(replies[3], *"xy");
            assert_eq!(replies[4..], [Reply::Integer(1), Reply::Integer(1)]);
        }
    }
    wait_until_drained(&cluster);
    for node in &cluster.nodes {
        let mut client = node.resp();
        assert_eq!((client.get("n"), client.get("s")), (Some("100".into()), Some("new".into())));
    }
}

#[test]
fn a_last_survivor_goes_on_and_all_agree_when_the_others_return() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    cluster.wait_until_ready();
    let mut before = eventual(&cluster.nodes[1]);
    before.set("old", "everywhere");
    before.set("gone", "soon");
    wait_until_drained(&cluster);
    cluster.nodes[2].kill();
    cluster.nodes[1].kill();
    let survivor = cluster.nodes[0].port;
    let mut line = cluster.nodes[0].line();
    wait_until_alone(&mut line, survivor);
    assert_eq!(line.ask("SET strong no").unwrap(), "FAIL: quorum not reached");
    assert_eq!(line.ask("CONSISTENCY eventual").unwrap(), "OK: consistency set to eventual");
    assert_eq!(line.ask("GET old").unwrap(), "VALUE: everywhere");
    for round in 0..100 {
        let answer = line.ask(&format!("SET new {round}")).unwrap();
        assert_eq!(answer, format!("OK: new set by leader {survivor}"));
    }
    assert_eq!(line.ask("DEL gone").unwrap(), "OK: 1 deleted");
    assert_eq!(line.ask("INCR n").unwrap(), "FAIL: quorum not reached");
    let log = cluster.nodes[0].log();
    assert!(log.contains("takes eventual writes"), "{log}");
    assert!(log.matches("Campaigning").count() < 5, "repeated campaigns: {log}");
    assert_eq!(cluster.nodes[0].resp().info("raft_quorum_alive"), "no");
    cluster.nodes[1].start();
    cluster.nodes[2].start();
    cluster.wait_until_ready();
    wait_until_drained(&cluster);
    for node in &cluster.nodes {
        let mut client = node.resp();
        assert_eq!(client.get("new").as_deref(), Some("99"));
        assert_eq!(client.get("old").as_deref(), Some("everywhere"));
        assert_eq!(client.get("gone"), None);
        assert_eq!(client.get("strong"), None);
    }
}

#[test]
fn synced_writes_of_a_lone_node_survive_its_death() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    cluster.wait_until_ready();
    cluster.nodes[2].kill();
    cluster.nodes[1].kill();
    wait_until_alone(&mut cluster.nodes[0].line(), cluster.nodes[0].port);
    let mut client = eventual(&cluster.nodes[0]);
    for number in 0..500 {
        client.set(&format!("k{number}"), &number.to_string());
    }
    let mut info = cluster.nodes[0].resp();
    eventually("all writes are synced", SOON, || {
        (info.info("eventual_unsynced_writes") == "0").then_some(())
    });
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    let mut client = eventually("the node serves again", SOON, || {
        let mut client = Resp::connect(cluster.nodes[0].port).ok()?;
        client.call(EVENTUAL).ok()?.is_ok().then_some(client)
    });
    assert_eq!(client.get("k499").as_deref(), Some("499"));
    client.set("k0", "after");
    cluster.nodes[0].stop(); // An orderly stop syncs the last second, too.
    cluster.start_all();
    cluster.wait_until_ready();
    wait_until_drained(&cluster);
    for node in &cluster.nodes {
        let mut client = node.resp();
        assert_eq!(client.get("k0").as_deref(), Some("after"));
        for number in [1, 250, 499] {
            let value = client.get(&format!("k{number}"));
            assert_eq!(value, Some(number.to_string()));
        }
    }
}

/// Writes growing numbers to a key until `stop` is set; returns the last one acknowledged.
fn write_numbers(port: u16, key: &str, stop: &AtomicBool) -> u64 {
    let mut client = Resp::connect(port).unwrap();
    assert!(client.call(EVENTUAL).unwrap().is_ok());
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let pipeline = [vec!["SET", key, &number.to_string()], vec!["GET", key]]
            .map(|words| words.iter().map(ToString::to_string).collect::<Vec<_>>());
        let replies = client.pipeline(&pipeline).unwrap();
        assert!(replies[0].is_ok(), "SET {key} {number} on {port}: {replies:?}");
        assert_eq!(replies[1], *number.to_string().as_str(), "GET {key} on {port}");
    }
    number
}

#[test]
fn clients_of_the_others_lose_nothing_when_the_leader_is_killed() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    cluster.wait_until_ready();
    let stop = AtomicBool::new(false);
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
    let written: Vec<(String, u64)> = thread::scope(|scope| {
        let writer = |nth: usize| {
            let (key, port, stop) = (format!("own{nth}"), ports[nth % 2], &stop);
            scope.spawn(move || {
                let last = write_numbers(port, &key, stop);
                (key, last)
            })
        };
        let writers: Vec<_> = (0..6).map(writer).collect();
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(500)); // Load before the kill.
            cluster.nodes[2].kill();
            thread::sleep(Duration::from_millis(500));
            cluster.nodes[2].start();
            cluster.wait_until_led_by(ports[2]);
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    wait_until_drained(&cluster);
    println!("{written:?}");
    for node in &cluster.nodes {
        let mut client = node.resp();
        for (key, last) in &written {
            assert_eq!(client.get(key), Some(last.to_string()), "{key} on {}", node.port);
        }
    }
}

#[test]
fn a_mode_can_be_set_for_new_sessions_for_one_command_and_for_reads_alone() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &["--consistency", "eventual"]);
    cluster.wait_until_led_by(cluster.nodes[2].port);
    let mut client = cluster.nodes[0].resp();
    assert_eq!(client.call(&["CONSISTENCY"]).unwrap(), *"eventual");
    eventually("a strong write is served", SOON, || {
        client.call(&["WITH", "strong", "SET", "k", "1"]).unwrap().is_ok().then_some(())
    });
    cluster.nodes[1].kill();
    cluster.nodes[2].kill();
    wait_until_alone(&mut cluster.nodes[0].line(), cluster.nodes[0].port);
    assert_eq!(client.get("k").as_deref(), Some("1"));
    let refused = client.call(&["WITH", "strong", "GET", "k"]).unwrap();
    assert!(refused.error().is_some_and(|text| text.starts_with("CLUSTERDOWN")), "{refused:?}");
    assert!(client.call(&["CONSISTENCY", "strong"]).unwrap().is_ok());
    assert!(client.call(&["GET", "k"]).unwrap().error().is_some());
    assert!(client.call(&["READONLY"]).unwrap().is_ok());
    assert_eq!(client.get("k").as_deref(), Some("1"));
    assert!(client.call(&["SET", "k", "2"]).unwrap().error().is_some());
    assert!(client.call(&["READWRITE"]).unwrap().is_ok());
    assert!(client.call(&["GET", "k"]).unwrap().error().is_some());
    assert!(client.call(&["WITH", "eventual", "SET", "k", "3"]).unwrap().is_ok());
    assert_eq!(client.call(&["WITH", "eventual", "GET", "k"]).unwrap(), *"3");
}
