//! Cost of each consistency mode, on a cluster of three real processes on this machine.
//!
//! `cargo bench -p nodesync-benches --bench consistency` prints two tables. The first shows the
//! latency of one client that waits for each answer. PING, eventual SET and strong SET take turns,
//! so a drift of the machine's speed affects all of them alike. The second shows the rate and the
//! backlog, second by second, of 64 clients that write in eventual sessions for 30 seconds.
//!
//! `NODESYNC_SECONDS=5` shortens the second part.

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::client::{Resp, request};
use common::cluster::Cluster;

const ROUNDS: usize = 10;
const REQUESTS: usize = 2_000;
const CLIENTS: u64 = 64;
const KEYS: u64 = 100_000;
const VALUE: [u8; 64] = [b'x'; 64];

/// Key that looks random.
fn key(nth: u64) -> Vec<u8> {
    format!("key:{:012}", nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS).into_bytes()
}

fn main() {
    let cluster = Cluster::start(3, &[]);
    cluster.wait_until_ready();
    let leader = &cluster.nodes[2];
    latencies(&mut leader.resp());
    throughput(leader.port);
}

/// Measures one client with one request at a time. PING and eventual SET alternate on one
/// connection: the scheduler's choice of one core or two for client and server matters more than
/// the requests themselves, so both must meet the same choice. Strong SETs follow, in a round of
/// their own.
fn latencies(client: &mut Resp) {
    let mut times: [Vec<Duration>; 3] = Default::default();
    let [ping, eventual, strong] = &mut times;
    for round in 0..ROUNDS {
        let numbers = (round * REQUESTS) as u64..((round + 1) * REQUESTS) as u64;
        choose(client, "eventual");
        for nth in numbers.clone() {
            ping.push(timed(client, &[b"PING"]));
            eventual.push(timed(client, &[b"SET", &key(nth), &VALUE]));
        }
        choose(client, "strong");
        for nth in numbers {
            strong.push(timed(client, &[b"SET", &key(nth), &VALUE]));
        }
    }
    println!("1 client at the leader, 64-byte values, {} requests each, ms", ROUNDS * REQUESTS);
    println!("| {:<14} | {:>8} | {:>8} | {:>8} |", "", "median", "p99", "max");
    println!("|{}|---------:|---------:|---------:|", "-".repeat(16));
    let mut medians = Vec::new();
    for (name, times) in ["PING", "eventual SET", "strong SET"].iter().zip(&mut times) {
        times.sort_unstable();
        let at = |per_mille: usize| millis(times[(times.len() - 1) * per_mille / 1000]);
        medians.push(at(500));
        println!("| {name:<14} | {:>8.3} | {:>8.3} | {:>8.3} |", at(500), at(990), at(1000));
    }
    println!("median of an eventual SET: {:.2} of a PING\n", medians[1] / medians[0]);
}

fn choose(client: &mut Resp, mode: &str) {
    assert!(client.call(&["CONSISTENCY", mode]).expect("the node answers").is_ok());
}

/// Time until the node answers.
fn timed(client: &mut Resp, words: &[&[u8]]) -> Duration {
    let bytes = request(words);
    let started = Instant::now();
    client.send_bytes(&bytes).expect("the node reads");
    let reply = client.receive().expect("the node answers");
    let time = started.elapsed();
    assert!(reply.is_ok() || reply == *"PONG", "{reply:?}");
    time
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn throughput(port: u16) {
    let seconds = std::env::var("NODESYNC_SECONDS").ok().and_then(|text| text.parse().ok());
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut info = Resp::connect(port).expect("the node listens");
    println!("{CLIENTS} clients at the leader, eventual SET, 64-byte values");
    println!("| {:>6} | {:>8} | {:>14} |", "second", "SET/s", "backlog writes");
    println!("|-------:|---------:|---------------:|");
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (stop, done) = (&stop, &done);
            scope.spawn(move || {
                let mut resp = Resp::connect(port).expect("the node listens");
                choose(&mut resp, "eventual");
                let mut nth = client << 32;
                while !stop.load(Ordering::Relaxed) {
                    let reply = resp.call(&[&b"SET"[..], &key(nth), &VALUE]);
                    assert!(reply.as_ref().is_ok_and(common::client::Reply::is_ok), "{reply:?}");
                    done.fetch_add(1, Ordering::Relaxed);
                    nth += 1;
                }
            });
        }
        let mut before = 0;
        for second in 1..=seconds.unwrap_or(30) {
            thread::sleep(Duration::from_secs(1));
            let now = done.load(Ordering::Relaxed);
            let writes = info.info("eventual_backlog_writes");
            println!("| {second:>6} | {:>8} | {writes:>14} |", now - before);
            before = now;
        }
        stop.store(true, Ordering::Relaxed);
    });
}
