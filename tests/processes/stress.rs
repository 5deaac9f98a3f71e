//! Many clients at once on a healthy cluster: every request is served and the sums add up, also
//! beside hundreds of misbehaving clients that come and go.

use std::fs;
use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::thread::scope;
use std::time::{Duration, Instant};

use crate::common::client::{Reply, Resp};
use crate::common::cluster::Cluster;
use crate::common::rude::{self, Crowd};
use crate::common::{SOON, alone, eventually, long};
use nodesync::rng::Rng;

const CLIENTS: usize = 256;

/// Number of counters that all clients share; few, so that clients contend.
const COUNTERS: usize = 8;

/// Totals of one client.
#[derive(Debug, Default)]
struct ClientTotals {
    /// Increments of each shared counter.
    counted: [u64; COUNTERS],
    /// Last value written to the client's own text; 0 for none.
    text: u64,
    requests: u64,
    slowest: Duration,
}

/// Sends requests until `end`, and checks each reply against the values that this client knows.
fn work(me: usize, client: &mut Resp, end: Instant) -> ClientTotals {
    let mut rng = Rng::new(me as u64);
    let mut done = ClientTotals::default();
    // Value of each counter as this client last saw it; a counter never decreases.
    let mut seen = [0; COUNTERS];
    let text_key = format!("text:{me}");
    while Instant::now() < end {
        let at = rng.below(COUNTERS as u64) as usize;
        let key = format!("sum:{at}");
        let sent = Instant::now();
        match rng.below(4) {
            0 => {
                let reply = client.call(&["INCR", &key]).unwrap();
                let Reply::Integer(now) = reply else { panic!("client {me}: INCR {reply:?}") };
                assert!(now > seen[at], "client {me}: {key} is {now} after {}", seen[at]);
                (seen[at], done.counted[at]) = (now, done.counted[at] + 1);
            }
            1 => {
                let value = (done.text + 1).to_string();
                let reply = client.call(&["SET", &text_key, &value]).unwrap();
                assert!(reply.is_ok(), "client {me}: SET {reply:?}");
                done.text += 1;
            }
            2 => {
                let reply = client.call(&["GET", &text_key]).unwrap();
                assert_eq!(reply.number(), Some(done.text), "client {me}: {reply:?}");
            }
            _ => {
                let reply = client.call(&["GET", &key]).unwrap();
                let now = reply.number().and_then(|now| i64::try_from(now).ok());
                assert!(now >= Some(seen[at]), "client {me}: {key} is {reply:?}, was {}", seen[at]);
                seen[at] = now.unwrap_or_default();
            }
        }
        done.requests += 1;
        done.slowest = done.slowest.max(sent.elapsed());
    }
    done
}

/// Runs clients on all nodes for a while.
fn run_clients(cluster: &Cluster, clients: usize, duration: Duration) -> Vec<ClientTotals> {
    let together = Barrier::new(clients);
    let all: Vec<ClientTotals> = scope(|scope| {
        let client = |me: usize| {
            let (node, together) = (&cluster.nodes[me % cluster.nodes.len()], &together);
            scope.spawn(move || {
                let mut client = node.resp();
                together.wait();
                work(me, &mut client, Instant::now() + duration)
            })
        };
        let clients: Vec<_> = (0..clients).map(client).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let requests: u64 = all.iter().map(|done| done.requests).sum();
    let slowest = all.iter().map(|done| done.slowest).max();
    println!("{requests} requests in {duration:?}, the slowest took {slowest:?}");
    all
}

/// Compares the contents of each node with the totals.
fn check(cluster: &Cluster, all: &[ClientTotals]) {
    for node in &cluster.nodes {
        let mut client = node.resp();
        for at in 0..COUNTERS {
            let sum: u64 = all.iter().map(|done| done.counted[at]).sum();
            let reply = client.call(&["GET", &format!("sum:{at}")]).unwrap();
            assert_eq!(reply.number(), Some(sum), "sum:{at} on {}", node.port);
        }
        for (me, done) in all.iter().enumerate() {
            let reply = client.call(&["GET", &format!("text:{me}")]).unwrap();
            assert_eq!(reply.number(), Some(done.text), "text:{me} on {}", node.port);
        }
    }
}

#[test]
fn increments_of_256_clients_on_three_nodes_add_up() {
    let _alone = alone();
    let cluster = Cluster::start(3, &[]);
    let duration = Duration::from_secs(if long() { 30 } else { 3 });
    let all = run_clients(&cluster, CLIENTS, duration);
    let idle = all.iter().filter(|done| done.requests < 10).count();
    assert_eq!(idle, 0, "clients with fewer than 10 requests");
    check(&cluster, &all);
}

#[test]
fn clients_get_correct_answers_beside_384_misbehaving_ones() {
    let _alone = alone();
    let cluster = Cluster::start(1, &[]);
    let node = &cluster.nodes[0];
    let mut client = node.resp();
    client.set(rude::LARGE, &"x".repeat(256 << 10));
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count();
    let before = descriptors();
    let crowd = Crowd::start(384, &[node.port], Duration::from_millis(200));
    let duration = Duration::from_secs(if long() { 30 } else { 3 });
    let all = run_clients(&cluster, 128, duration);
    let counts = crowd.finish();
    let idle = all.iter().filter(|done| done.requests == 0).count();
    assert_eq!(idle, 0, "clients without an answer");
    check(&cluster, &all);
    // The node has noticed that all other clients left, and has closed their descriptors.
    eventually("one client is left", SOON, || {
        (client.info("connected_clients") == "1" && descriptors() <= before).then_some(())
    });
    let counted = client.call(&["GET", rude::COUNTER]).unwrap().number();
    let (least, most) =
        (counts.acknowledged.load(Ordering::Relaxed), counts.sent.load(Ordering::Relaxed));
    println!("{counts:?}, counted {counted:?}");
    assert!(
        counted.is_some_and(|count| (least..=most).contains(&count)),
        "{counted:?}, {counts:?}"
    );
    assert!(least > 0 && counts.connections.load(Ordering::Relaxed) > 384, "{counts:?}");
}
