//! Nodes that are stopped by signals.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::cluster::Cluster;
use crate::common::load::{Load, Plan, Tolerance};
use crate::common::{SOON, alone, eventually};

#[test]
fn a_leader_that_is_asked_to_stop_hands_over_and_ends_within_a_second() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    let (next, leader) = (cluster.nodes[1].port, cluster.nodes[2].port);
    let plan = Plan { clients_per_node: 4, rest: Duration::from_millis(2) };
    let load = Load::start(&cluster, plan, |node| match node {
        2 => Tolerance::Outages,
        _ => Tolerance::Nothing,
    });
    for signal in [Signal::TERM, Signal::INT] {
        load.go_on(Duration::from_millis(300));
        let started = Instant::now();
        cluster.nodes[2].signal(signal);
        let status = cluster.nodes[2].wait(SOON);
        println!("ended after {:?}", started.elapsed());
        assert_eq!(status.code(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        cluster.wait_until_led_by(next);
        let log = cluster.nodes[2].log();
        assert!(log.contains(&format!("Handing the leadership to {next}")), "{log}");
        load.go_on(Duration::from_millis(300));
        cluster.nodes[2].start();
        cluster.wait_until_led_by(leader);
    }
    let tally = load.finish();
    println!("longest pause {:?} in {} requests", tally.longest_pause, tally.served);
    assert!(tally.longest_pause < Duration::from_secs(3), "{:?}", tally.longest_pause);
    for node in &cluster.nodes {
        tally.verify(&mut node.resp());
    }
}

#[test]
fn a_follower_that_is_asked_to_stop_disturbs_no_other_client() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.nodes[2].port;
    let plan = Plan { clients_per_node: 4, rest: Duration::from_millis(2) };
    let load = Load::start(&cluster, plan, |node| match node {
        0 => Tolerance::Outages,
        _ => Tolerance::Nothing,
    });
    for _ in 0..2 {
        load.go_on(Duration::from_millis(300));
        cluster.nodes[0].stop();
        load.go_on(Duration::from_millis(300));
        cluster.nodes[0].start();
        cluster.wait_until_led_by(leader);
    }
    load.go_on(Duration::from_millis(300));
    let tally = load.finish();
    for node in &cluster.nodes {
        tally.verify(&mut node.resp());
    }
}

#[test]
fn a_second_signal_ends_a_node_at_once() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    // The write cannot finish and no node can take the leadership, so the leader's stop waits.
    cluster.nodes[0].signal(Signal::STOP);
    cluster.nodes[1].signal(Signal::STOP);
    let leader = &mut cluster.nodes[2];
    let mut client = leader.resp();
    client.send(&["SET", "k", "v"]).unwrap();
    let mut other = leader.resp();
    eventually("the write waits", SOON, || (other.info("blocked_clients") == "1").then_some(()));
    leader.signal(Signal::TERM);
    eventually("the node logs that it stops", SOON, || {
        leader.log().contains("Stopping (").then_some(())
    });
    leader.signal(Signal::TERM);
    let status = leader.wait(SOON);
    assert_eq!(status.code(), Some(1));
    cluster.nodes[0].signal(Signal::CONT);
    cluster.nodes[1].signal(Signal::CONT);
    cluster.start_all();
    cluster.wait_until_ready();
}
