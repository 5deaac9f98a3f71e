//! Death and stall of the leader; clients of the other nodes see no error.

use std::time::Duration;

use rustix::process::Signal;

use crate::common::cluster::Cluster;
use crate::common::load::{Load, Plan, Tolerance};
use crate::common::{alone, long};

/// Short load, or 64 clients for 30 seconds in the long version.
fn plan() -> (Plan, Duration) {
    let millis = Duration::from_millis;
    if long() {
        (Plan { clients_per_node: 22, rest: Duration::ZERO }, millis(4000))
    } else {
        (Plan { clients_per_node: 8, rest: millis(2) }, millis(700))
    }
}

#[test]
fn a_leader_killed_three_times_costs_the_others_clients_a_pause_and_no_error() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    let leader = cluster.nodes[2].port;
    let (plan, stretch) = plan();
    let load = Load::start(&cluster, plan, |node| match node {
        2 => Tolerance::Disconnects,
        _ => Tolerance::Nothing,
    });
    for _ in 0..3 {
        load.go_on(stretch);
        cluster.nodes[2].kill();
        load.go_on(stretch);
        cluster.nodes[2].start();
        cluster.wait_until_led_by(leader);
        load.check();
    }
    load.go_on(stretch);
    let tally = load.finish();
    println!("longest pause {:?} in {} requests", tally.longest_pause, tally.served);
    assert!(tally.disconnects > 0, "no client of the killed leader lost its connection");
    for node in &cluster.nodes {
        tally.verify(&mut node.resp());
    }
}

#[test]
fn a_leader_that_was_frozen_serves_nothing_stale_and_loses_nothing() {
    let _alone = alone();
    let cluster = Cluster::start(3, &[]);
    let [first, second, leader] = &cluster.nodes[..] else { panic!("three nodes") };
    let plan = Plan { clients_per_node: 4, rest: Duration::from_millis(2) };
    let load = Load::start(&cluster, plan, |_| Tolerance::Nothing);
    for round in 0..3 {
        let (mut reader, mut writer) = (leader.resp(), leader.resp());
        let old = format!("old {round}");
        writer.set("k", &old);
        assert_eq!(reader.get("k"), Some(old));
        leader.signal(Signal::STOP);
        let new = format!("new {round}");
        second.resp().set("k", &new);
        assert_eq!(first.resp().get("k").as_ref(), Some(&new));
        // The frozen leader still believes that it leads; it answers when it wakes up.
        reader.send(&["GET", "k"]).unwrap();
        writer.send(&["SET", &format!("from frozen {round}"), "yes"]).unwrap();
        leader.signal(Signal::CONT);
        assert_eq!(reader.receive().unwrap(), *new, "round {round}");
        assert!(writer.receive().unwrap().is_ok());
        cluster.wait_until_led_by(leader.port);
        load.check();
    }
    let tally = load.finish();
    println!("longest pause {:?} in {} requests", tally.longest_pause, tally.served);
    for node in &cluster.nodes {
        let mut client = node.resp();
        tally.verify(&mut client);
        for round in 0..3 {
            assert_eq!(client.get(&format!("from frozen {round}")).as_deref(), Some("yes"));
        }
    }
}
