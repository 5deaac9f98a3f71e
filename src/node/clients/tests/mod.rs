//! Hundreds of clients on real sockets at one loop (`rounds.rs` works without sockets). Each reply
//! is known to the byte, so that a reply too many, too few, misplaced or of another client shows.
//! At the end no client, no connection and no request may be left. (The integration tests cover
//! malicious clients in a whole cluster, and malformed requests.)

mod rounds;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};
use std::thread::scope;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::config::Config;
use crate::node::Node;
use crate::node::shared::Shared;
use crate::node::tests::harness::{config, start_as, wait_until_it_serves};
use crate::node::tests::time::eventually;
use crate::rng::Rng;

/// A client that waits for longer is taken to be forgotten by its loop.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a node with one loop, so that all clients meet there. A request is cancelled after
/// `timeout`.
fn start_loop(dir: &Path, timeout: Duration) -> Node {
    let config = config(dir, &["--io", "poll", "--io-loops", "1"]);
    let node = start_as(Config { request_timeout: timeout, ..config });
    wait_until_it_serves(&node.shared);
    node
}

fn connect(shared: &Shared) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", shared.port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Waits until no client is connected and no request waits.
fn wait_until_all_have_gone(shared: &Shared) {
    eventually("all have gone", || {
        let clients = &shared.clients;
        let gone = clients.count() == 0 && clients.connections() == 0;
        gone && clients.are_idle() && shared.core.is_idle()
    });
    assert_eq!(shared.core.status().pending, (0, 0));
}

fn request(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

fn bulk(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

/// A client's requests, each with the only right reply. No other client uses its keys.
fn script(name: &str, requests: usize, rng: &mut Rng) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (text, count) = (format!("text {name}"), format!("count {name}"));
    let (mut value, mut counted) = (None, 0);
    // Some clients make eventual writes.
    let mode = if rng.below(3) == 0 { "eventual" } else { "strong" };
    let mut script = vec![(request(&["CONSISTENCY", mode]), b"+OK\r\n".to_vec())];
    for number in 0..requests {
        script.push(match rng.below(4) {
            0 => {
                let now = value.insert(format!("{name} {number}"));
                (request(&["SET", &text, now]), b"+OK\r\n".to_vec())
            }
            1 => {
                counted += 1;
                (request(&["INCR", &count]), format!(":{counted}\r\n").into_bytes())
            }
            2 => {
                let right = value.as_ref().map_or(b"$-1\r\n".to_vec(), |value| bulk(value));
                (request(&["GET", &text]), right)
            }
            _ => {
                let word = format!("{name} says {number}");
                (request(&["PING", &word]), bulk(&word))
            }
        });
    }
    script
}

fn expect(stream: &mut TcpStream, right: &[u8], who: &str) {
    let mut got = vec![0; right.len()];
    stream.read_exact(&mut got).unwrap_or_else(|error| panic!("{who}: {error}"));
    let at = got.iter().zip(right).position(|(got, right)| got != right).unwrap_or(got.len());
    let (got, right) = (got[at..].escape_ascii(), right[at..].escape_ascii());
    let (got, right) = (got.take(200).collect::<Vec<_>>(), right.take(200).collect::<Vec<_>>());
    assert_eq!(String::from_utf8(got), String::from_utf8(right), "{who}, from byte {at} on");
}

fn expect_end(stream: &mut TcpStream, who: &str) {
    let mut more = Vec::new();
    stream.read_to_end(&mut more).unwrap_or_else(|error| panic!("{who}: {error}"));
    assert_eq!(String::from_utf8_lossy(&more), "", "{who}: more than was asked for");
}

/// Sends all requests and closes its half of the connection: all replies come, and then the end.
fn half_close(shared: &Shared, name: &str, rng: &mut Rng) {
    let (asked, right): (Vec<_>, Vec<_>) = script(name, 60, rng).into_iter().unzip();
    let mut stream = connect(shared);
    if rng.below(2) == 0 {
        // So that the loop has admitted the client before the end comes.
        stream.write_all(&request(&["PING"])).unwrap();
        expect(&mut stream, b"+PONG\r\n", name);
    }
    stream.write_all(&asked.concat()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    expect(&mut stream, &right.concat(), name);
    expect_end(&mut stream, name);
}

/// Sends a few requests byte by byte.
fn trickle(shared: &Shared, name: &str, rng: &mut Rng) {
    let mut stream = connect(shared);
    for (asked, right) in script(name, 3, rng) {
        for byte in asked {
            stream.write_all(&[byte]).unwrap();
            if rng.below(4) == 0 {
                std::thread::yield_now();
            }
        }
        expect(&mut stream, &right, name);
    }
}

/// Closes somewhere in the middle, mostly with open requests, often by a reset.
fn vanish(shared: &Shared, name: &str, rng: &mut Rng) {
    for time in 0..10 {
        let script = script(&format!("{name} {time}"), 8, rng);
        let asked = script.into_iter().flat_map(|(asked, _)| asked).collect::<Vec<u8>>();
        let mut stream = connect(shared);
        if rng.below(2) == 0 {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        let _ = stream.write_all(&asked[..rng.below(asked.len() as u64 + 1) as usize]);
        if rng.below(2) == 0 {
            // So that the loop has read the requests and asked the core.
            std::thread::sleep(Duration::from_micros(rng.below(2_000)));
        }
    }
}

/// Sends requests in pieces that end anywhere, and reads the replies once they are whole.
fn stay(shared: &Shared, name: &str, rng: &mut Rng) {
    let mut stream = connect(shared);
    for part in script(name, 60, rng).chunks(6) {
        let asked = part.iter().flat_map(|(asked, _)| asked.clone()).collect::<Vec<u8>>();
        let right = part.iter().flat_map(|(_, right)| right.clone()).collect::<Vec<u8>>();
        let (first, rest) = asked.split_at(rng.below(asked.len() as u64) as usize);
        stream.write_all(first).unwrap();
        std::thread::yield_now();
        stream.write_all(rest).unwrap();
        expect(&mut stream, &right, name);
    }
}

#[test]
fn every_client_gets_its_own_replies_in_order_beside_those_that_vanish_trickle_and_half_close() {
    const CLIENTS: u64 = 320;
    let scratch = tempfile::tempdir().unwrap();
    let node = start_loop(scratch.path(), PATIENCE);
    let shared = &node.shared;
    let together = Barrier::new(CLIENTS as usize);
    scope(|scope| {
        for me in 0..CLIENTS {
            let together = &together;
            scope.spawn(move || {
                let mut rng = Rng::new(me);
                together.wait();
                for time in 0..2 {
                    let name = format!("{me} {time}");
                    match me % 4 {
                        0 => half_close(shared, &name, &mut rng),
                        1 => trickle(shared, &name, &mut rng),
                        2 => vanish(shared, &name, &mut rng),
                        _ => stay(shared, &name, &mut rng),
                    }
                }
            });
        }
    });
    wait_until_all_have_gone(shared);
    node.stop().unwrap();
}

/// A connection with small buffers at both ends: the loop itself must hold back the replies that
/// the client does not read.
fn narrow(shared: &Arc<Shared>, listener: &TcpListener) -> TcpStream {
    const ROOM: usize = 16 << 10;
    let address: SocketAddr = listener.local_addr().unwrap();
    let near = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )
    .unwrap();
    near.set_recv_buffer_size(ROOM).unwrap();
    near.connect(&address.into()).unwrap();
    let (far, from) = listener.accept().unwrap();
    SockRef::from(&far).set_send_buffer_size(ROOM).unwrap();
    crate::node::clients::listener::hand_over(shared, far, from).unwrap();
    let near = TcpStream::from(near);
    near.set_read_timeout(Some(PATIENCE)).unwrap();
    near.set_write_timeout(Some(PATIENCE)).unwrap();
    near
}

#[test]
fn a_loop_holds_back_clients_that_do_not_read_and_serves_the_others_and_loses_no_reply() {
    const HOGS: usize = 64;
    const GETS: usize = 400;
    const VALUE: usize = 32 << 10;
    let scratch = tempfile::tempdir().unwrap();
    let node = start_loop(scratch.path(), PATIENCE);
    let shared = &node.shared;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let value = "v".repeat(VALUE);
    let mut polite = connect(shared);
    polite.write_all(&request(&["SET", "large", &value])).unwrap();
    expect(&mut polite, b"+OK\r\n", "the first");

    let reads = || shared.clients.reads.load(Ordering::Relaxed);
    let before = reads();
    let mut hogs: Vec<TcpStream> = (0..HOGS).map(|_| narrow(shared, &listener)).collect();
    for (number, hog) in hogs.iter_mut().enumerate() {
        hog.write_all(&request(&["GET", "large"]).repeat(GETS)).unwrap();
        if number % 2 == 0 {
            hog.shutdown(Shutdown::Write).unwrap();
        }
    }
    eventually("each hog is being served", || reads() >= before + HOGS as u64);
    // No reads here, so that the reads of the hogs can be counted.
    for number in 1..=200 {
        polite.write_all(&request(&["INCR", "polite"])).unwrap();
        expect(&mut polite, format!(":{number}\r\n").as_bytes(), "a polite client");
    }
    // A turn of reads ends when the output is full: 1 MiB, 32 replies.
    let turns = reads() - before;
    let bound = (HOGS * 2) as u64;
    println!("{turns} turns");
    assert!(turns <= bound, "{turns} turns: the loop holds more replies than it may");

    // A hog that has closed its half gets all replies, however late. Of the other hogs one half
    // reads a little and closes, the other half just closes.
    let right = bulk(&value).repeat(GETS);
    let mut patient = 0;
    for (number, mut hog) in hogs.into_iter().enumerate() {
        if number % 8 == 0 {
            expect(&mut hog, &right, "a hog");
            expect_end(&mut hog, "a hog");
            patient += 1;
        } else if number % 4 == 1 {
            expect(&mut hog, &right[..3 * VALUE], "a hog that goes");
        }
    }
    assert!(patient > 0);
    drop(polite);
    wait_until_all_have_gone(shared);
    node.stop().unwrap();
}

/// One reply line, or the text of a bulk.
fn reply(stream: &mut std::io::BufReader<TcpStream>) -> String {
    use std::io::BufRead;
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    if line.starts_with('$') && line != "$-1\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
    }
    line.trim_end().to_owned()
}

/// True for the reply to a cancelled request.
fn is_overdue(reply: &str) -> bool {
    ["-UNKNOWN ", "-CLUSTERDOWN ", "-TRYAGAIN "].iter().any(|code| reply.starts_with(code))
}

/// Counts up from `base` until `end`. Each request has one reply, served or cancelled, and the PING
/// behind it shows where that reply ends. Returns the numbers of served and cancelled requests.
fn count_on(shared: &Shared, base: u64, end: Instant) -> (u64, u64) {
    let mut stream = std::io::BufReader::new(connect(shared));
    let key = format!("from {base}");
    let first = request(&["SET", &key, &base.to_string()]);
    let (mut last, mut tried, mut served, mut overdue) = (base, base, 0, 0);
    while Instant::now() < end {
        stream.get_mut().write_all(&first).unwrap();
        match reply(&mut stream).as_str() {
            "+OK" => break,
            refused if is_overdue(refused) => overdue += 1,
            other => panic!("{other}"),
        }
    }
    while Instant::now() < end {
        tried += 1;
        let (incr, get) = (request(&["INCR", &key]), request(&["GET", &key]));
        let word = format!("{base} {tried}");
        let asked = [&incr[..], &request(&["PING", &word]), &get, &request(&["PING", &word])];
        stream.get_mut().write_all(&asked.concat()).unwrap();
        for sign in [":", ""] {
            let found = reply(&mut stream);
            assert_eq!(reply(&mut stream), word, "behind {found}");
            if is_overdue(&found) {
                overdue += 1;
                continue;
            }
            let number: u64 = found.strip_prefix(sign).unwrap().parse().unwrap();
            assert!((last..=tried).contains(&number), "{number}, not {last} to {tried}");
            assert!(sign.is_empty() || number > last, "{number} again");
            (last, served) = (number, served + 1);
        }
    }
    (served, overdue)
}

#[test]
fn each_request_has_one_reply_even_if_its_time_is_over_as_its_answer_comes() {
    const CLIENTS: u64 = 200;
    let (mut served, mut overdue) = (0, 0);
    for timeout in [0, 500, 3_000, 50_000].map(Duration::from_micros) {
        let scratch = tempfile::tempdir().unwrap();
        let node = start_loop(scratch.path(), timeout);
        let shared = &node.shared;
        let end = Instant::now() + Duration::from_millis(500);
        let all: Vec<(u64, u64)> = scope(|scope| {
            let count = |me| scope.spawn(move || count_on(shared, 1_000_000 * (1 + me), end));
            let clients: Vec<_> = (0..CLIENTS).map(count).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let sum = all.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        println!("{timeout:?}: {} served, {} cancelled", sum.0, sum.1);
        (served, overdue) = (served + sum.0, overdue + sum.1);
        wait_until_all_have_gone(shared);
        node.stop().unwrap();
    }
    assert!(served > CLIENTS && overdue > CLIENTS, "{served} served, {overdue} cancelled");
}
