//! Loss of more nodes than the cluster can tolerate.

use std::time::{Duration, Instant};

use crate::common::client::{Line, Resp};
use crate::common::cluster::Cluster;
use crate::common::load::{Load, Plan, Tolerance};
use crate::common::{SOON, alone, eventually};

#[test]
fn acknowledged_writes_survive_the_death_of_all_nodes_at_once() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    let plan = Plan { clients_per_node: 6, rest: Duration::from_millis(1) };
    let load = Load::start(&cluster, plan, |_| Tolerance::Outages);
    for _ in 0..3 {
        load.go_on(Duration::from_millis(700));
        for node in &mut cluster.nodes {
            node.kill();
        }
        cluster.start_all();
        cluster.wait_until_ready();
    }
    load.go_on(Duration::from_millis(300));
    for node in &mut cluster.nodes {
        node.kill();
    }
    let tally = load.finish();
    cluster.start_all();
    cluster.wait_until_ready();
    println!("{} requests served, {} disconnects", tally.served, tally.disconnects);
    for node in &cluster.nodes {
        tally.verify(&mut node.resp());
    }
}

/// Waits until the node knows that it is alone; returns its mean time to refuse a request.
fn refusal_time(resp: &mut Resp, line: &mut Line) -> Duration {
    eventually("the node knows that it is alone", SOON, || {
        let answer = line.ask("SET k lost").unwrap();
        (answer == "FAIL: quorum not reached").then_some(())
    });
    let started = Instant::now();
    for _ in 0..10 {
        assert_eq!(line.ask("SET k lost").unwrap(), "FAIL: quorum not reached");
        assert_eq!(line.ask("GET k").unwrap(), "FAIL: quorum not reached");
        for words in [&["SET", "k", "lost"][..], &["GET", "k"], &["DEL", "k"], &["INCR", "n"]] {
            let reply = resp.call(words).unwrap();
            let text = reply.error().unwrap_or_default();
            assert!(text.starts_with("CLUSTERDOWN "), "{words:?}: {reply:?}");
        }
    }
    started.elapsed() / 60
}

#[test]
fn without_a_quorum_requests_are_refused_at_once_and_service_resumes_with_it() {
    let _alone = alone();
    let mut cluster = Cluster::start(3, &[]);
    let mut resp = cluster.nodes[0].resp();
    let mut line = cluster.nodes[0].line();
    resp.set("k", "kept");
    for round in 0..2 {
        cluster.nodes[2].kill();
        cluster.nodes[1].kill();
        let each = refusal_time(&mut resp, &mut line);
        println!("refused within {each:?}");
        assert!(each < Duration::from_millis(500), "{each:?}");
        cluster.nodes[1].start();
        let key = format!("again {round}");
        eventually("service resumes", SOON, || {
            resp.call(&["SET", &key, "yes"]).unwrap().is_ok().then_some(())
        });
        assert_eq!(resp.get("k").as_deref(), Some("kept"));
        cluster.nodes[2].start();
        cluster.wait_until_ready();
        for node in &cluster.nodes {
            assert_eq!(node.resp().get(&key).as_deref(), Some("yes"));
        }
    }
}
