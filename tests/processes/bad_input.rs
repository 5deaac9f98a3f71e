//! Malformed and hostile input, sent to the port of a real node: false lengths, truncated requests,
//! noise, HTTP, strangers that pose as peers, and clients that do not read, send byte by byte or
//! exceed the limit. After each of them the same process serves a new client at once.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::common::client::{Line, Reply, Resp, request};
use crate::common::cluster::{Cluster, Node};
use crate::common::{SOON, alone, eventually, shared};
use nodesync::rng::Rng;
use nodesync::types::NodeId;
use nodesync::wire::handshake::{self, Credentials, Dialer, HandshakeError, cluster_id};

/// Time limit of a node for the answer to a new client's PING, and for closing a connection that it
/// refuses.
const PROMPT: Duration = Duration::from_secs(10);

/// Plain connection whose every wait has a limit.
fn dial(port: u16) -> TcpStream {
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let stream = TcpStream::connect_timeout(&address, PROMPT).unwrap();
    stream.set_read_timeout(Some(PROMPT)).unwrap();
    stream.set_write_timeout(Some(PROMPT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Checks that the node still runs, and answers PING to a new client of either protocol in time.
#[track_caller]
fn check_still_serves(node: &mut Node, after: &str) {
    assert!(node.runs(), "the node has ended after {after}: {}", node.log());
    assert!(!node.log().contains("panicked"), "{after}: {}", node.log());
    let started = Instant::now();
    assert_eq!(node.resp().call(&["PING"]).unwrap(), *"PONG", "after {after}");
    if node.password.is_none() {
        assert_eq!(node.line().ask("PING").unwrap(), "PONG", "after {after}");
    }
    let took = started.elapsed();
    assert!(took < PROMPT, "{took:?} after {after}");
}

/// Reads until the node closes. A reset counts as a close: it says that the node has not read
/// everything.
#[track_caller]
fn read_to_close(stream: &mut TcpStream, what: &str) -> String {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(len) => all.extend_from_slice(&chunk[..len]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{what}: not closed: {error}, after {}", all.escape_ascii()),
        }
        assert!(all.len() < 1 << 20, "{what}: endless output");
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Sends `bytes`, and returns the output of the node until it closes. The node may stop reading
/// before the end.
#[track_caller]
fn send_and_read(node: &Node, bytes: &[u8], what: &str) -> String {
    let mut stream = dial(node.port);
    let _ = stream.write_all(bytes);
    read_to_close(&mut stream, what)
}

fn single(flags: &[&str]) -> Cluster {
    Cluster::start(1, flags)
}

#[test]
fn malformed_requests_are_answered_with_a_reason_and_closed() {
    let _shared = shared();
    let mut cluster = single(&[]);
    let node = &mut cluster.nodes[0];
    let long_line = vec![b'a'; 70_000];
    let too_many_digits = format!("*1\r\n${}\r\n", "9".repeat(200));
    let zeros = format!("*{}1\r\n", "0".repeat(100));
    let cases: &[(&str, &[u8], &str)] = &[
        ("an oversized line", &long_line, "ERROR: Protocol error: too big inline request\n"),
        ("10^9 arguments", b"*1000000000\r\n", "invalid multibulk length"),
        ("2^31 arguments", b"*2147483648\r\n", "invalid multibulk length"),
        ("2^63 arguments", b"*9223372036854775808\r\n", "invalid multibulk length"),
        ("a count of words", b"*three\r\n", "invalid multibulk length"),
        ("no count", b"*\r\n", "invalid multibulk length"),
        ("a count with zeros", zeros.as_bytes(), "too big mbulk count string"),
        ("a negative length", b"*1\r\n$-5\r\n", "invalid bulk length"),
        ("a null as an argument", b"*1\r\n$-1\r\n", "invalid bulk length"),
        ("the least length", b"*1\r\n$-9223372036854775808\r\n", "invalid bulk length"),
        ("the largest length", b"*2\r\n$9223372036854775807\r\n", "invalid bulk length"),
        ("a length beyond 64 bits", b"*1\r\n$18446744073709551617\r\n", "invalid bulk length"),
        ("one byte beyond 512 MB", b"*1\r\n$536870913\r\n", "invalid bulk length"),
        ("a length of 200 digits", too_many_digits.as_bytes(), "too big bulk count string"),
        ("a length with a sign", b"*1\r\n$+4\r\nPING\r\n", "invalid bulk length"),
        ("an integer as an argument", b"*1\r\n:4\r\n", "expected '$', got ':'"),
        ("a string longer than it says", b"*1\r\n$4\r\nPINGPONG\r\n", "expected CRLF"),
        ("a line feed alone", b"*1\n$4\nPING\n", "invalid multibulk length"),
        ("an array within an array", b"*1\r\n*1\r\n", "expected '$', got '*'"),
        ("noise behind a request", b"*1\r\n$4\r\nPING\r\n\0\x01\x02", "expected '*', got '"),
    ];
    for (what, bytes, reason) in cases {
        let words = send_and_read(node, bytes, what);
        assert!(words.contains(reason), "{what}: {words:?}");
        assert!(words.contains("Protocol error"), "{what}: {words:?}");
        check_still_serves(node, what);
    }
}

#[test]
fn well_formed_requests_that_are_invalid_are_refused_and_the_client_goes_on() {
    let _shared = shared();
    let mut cluster = single(&["--max-value-size", "1mb"]);
    let node = &mut cluster.nodes[0];
    let mut client = node.resp();
    let key = "k".repeat((64 << 10) + 1);
    let requests: &[&[&str]] = &[
        &["SET", &key, "v"],
        &["GET", &key],
        &["DEL", "a", &key],
        &["MSET", "a", "1", &key, "2"],
        &["MSET", "a", "1", "b"],
        &["SET"],
        &["GET", "a", "b"],
        &["SET", "a", "v", "NX", "XX"],
        &[""],
        &["\0\u{1}\r\n"],
        &["SCAN", "-1"],
        &["INCRBY", "n", "9223372036854775808"],
        &["CLIENT", "SETNAME", "a b\n"],
    ];
    for words in requests {
        let reply = client.call(words).unwrap();
        let shown: String = words.join(" ").chars().take(40).collect();
        assert!(reply.error().is_some(), "{shown}: {reply:?}");
        assert!(format!("{reply:?}").len() < 500, "{shown}: an overlong error");
        assert_eq!(client.call(&["PING"]).unwrap(), *"PONG", "after {shown}");
    }
    assert_eq!(client.get("a"), None);
    client.send_bytes(b"*0\r\n*-1\r\n\r\n\r\n").unwrap();
    assert_eq!(client.call(&["PING"]).unwrap(), *"PONG");
    let longest = "k".repeat(64 << 10);
    client.set(&longest, "v");
    assert_eq!(client.get(&longest).as_deref(), Some("v"));
    let large = "v".repeat(1 << 20);
    client.set("large", &large);
    let words = send_and_read(node, &request(&["SET", "k", &(large + "v")]), "a large value");
    assert!(words.contains("invalid bulk length"), "{words}");
    check_still_serves(node, "what was refused");
}

#[test]
fn half_a_request_changes_nothing() {
    let _shared = shared();
    let mut cluster = single(&[]);
    let node = &mut cluster.nodes[0];
    let whole = request(&["SET", "half", "value"]);
    for len in 1..whole.len() {
        let mut stream = dial(node.port);
        stream.write_all(&whole[..len]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let words = read_to_close(&mut stream, "half a request");
        assert_eq!(words, "", "{len} bytes");
    }
    let mut stream = dial(node.port);
    stream.write_all(b"SET half value").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_close(&mut stream, "half a line"), "");
    // A value that is announced and does not arrive costs nothing.
    let before = resident_bytes(node);
    let announced: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = dial(node.port);
            stream.write_all(b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$536870912\r\nx").unwrap();
            stream
        })
        .collect();
    check_still_serves(node, "announced values");
    let grown = resident_bytes(node).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for 50 announcements");
    drop(announced);
    assert_eq!(node.resp().get("half"), None);
    check_still_serves(node, "half requests");
}

#[test]
fn a_node_survives_noise() {
    let _shared = shared();
    let mut cluster = single(&[]);
    let node = &mut cluster.nodes[0];
    let mut rng = Rng::new(7);
    let firsts: [&[u8]; 5] = [b"", b"*", b"*3\r\n$3\r\n", b"\xF5", b"\xF5\x01\x54\x00"];
    for round in 0..60 {
        let mut bytes = firsts[round % firsts.len()].to_vec();
        bytes.extend((0..rng.below(3000)).map(|_| rng.below(256) as u8));
        let mut stream = dial(node.port);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        // Any answer to noise is acceptable, as long as the connection ends.
        read_to_close(&mut stream, &format!("noise {round}"));
    }
    check_still_serves(node, "noise");
}

#[test]
fn http_gets_no_answer_and_executes_nothing() {
    let _shared = shared();
    let mut cluster = single(&[]);
    let node = &mut cluster.nodes[0];
    let requests = [
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nSET smuggled yes\r\n",
        "GET smuggled HTTP/1.0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\nSET smuggled yes\r\n",
        "POST /\r\nSET smuggled yes\r\n",
        "PUT / HTTP/1.1\r\n\r\nSET smuggled yes\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\nSET smuggled yes\r\n",
        "host: x\r\nSET smuggled yes\r\n",
    ];
    for text in requests {
        assert_eq!(send_and_read(node, text.as_bytes(), text), "", "{text:?}");
        check_still_serves(node, text);
    }
    assert_eq!(node.resp().get("smuggled"), None);
}

/// Reads the next message of a handshake.
fn read_message(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; handshake::HEAD_LEN];
    stream.read_exact(&mut head).unwrap();
    let mut message = head.to_vec();
    message.resize(handshake::message_len(&head).unwrap(), 0);
    stream.read_exact(&mut message[head.len()..]).unwrap();
    message
}

/// Members of a cluster whose nodes all have their port as id.
fn members(cluster: &Cluster) -> Vec<NodeId> {
    cluster.nodes.iter().map(|node| NodeId(node.port.into())).collect()
}

fn credentials(node: NodeId, name: &str, members: &[NodeId], password: &str) -> Credentials {
    let cluster = cluster_id(name, members);
    Credentials { cluster, node, boot: 1, password: password.into() }
}

/// Says hello, and returns the reason of the refusal.
#[track_caller]
fn refusal(node: &Node, own: Credentials, to: NodeId, change: impl Fn(&mut [u8])) -> String {
    let mut stream = dial(node.port);
    let (dialer, mut hello) = Dialer::hello(own, to, [7; 16]);
    change(&mut hello);
    stream.write_all(&hello).unwrap();
    match dialer.welcome(&read_message(&mut stream)) {
        Err(HandshakeError::Refused(reason)) => {
            assert_eq!(read_to_close(&mut stream, &reason), "", "{reason}");
            reason
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn noise_behind_a_peers_first_byte_is_closed() {
    let _shared = shared();
    let mut cluster = single(&[]);
    let node = &mut cluster.nodes[0];
    let far_too_long = [0xF5, 1, 0xFF, 0xFF];
    let unknown = [0xF5, 99, 0, 0];
    let hello_without_body = [0xF5, 1, 0, 0];
    let proof_first = [&[0xF5, 3, 32, 0][..], &[0; 32]].concat();
    let noise = [0xF5; 5000];
    let cases: [&[u8]; 5] = [&far_too_long, &unknown, &hello_without_body, &proof_first, &noise];
    for bytes in cases {
        let started = Instant::now();
        send_and_read(node, bytes, "noise of a peer");
        assert!(started.elapsed() < PROMPT);
        check_still_serves(node, "noise of a peer");
    }
    // The node does not wait for a peer that stays silent.
    let started = Instant::now();
    assert_eq!(send_and_read(node, &[0xF5], "a silent peer"), "");
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    check_still_serves(node, "a silent peer");
}

#[test]
fn a_node_of_a_foreign_cluster_is_told_why_it_is_refused() {
    let _shared = shared();
    let mut cluster = single(&[]);
    let own = members(&cluster);
    let node = &mut cluster.nodes[0];
    let stranger = NodeId(1);
    let foreign = credentials(stranger, "elsewhere", &own, "");
    let reason = refusal(node, foreign, own[0], |_| ());
    assert!(reason.contains("another cluster"), "{reason}");
    let other_members = credentials(stranger, "nodesync", &[own[0], stranger], "");
    let reason = refusal(node, other_members, own[0], |_| ());
    assert!(reason.contains("another cluster"), "{reason}");
    let insider = |id| credentials(id, "nodesync", &own, "");
    let reason = refusal(node, insider(stranger), own[0], |_| ());
    assert!(reason.contains("no member"), "{reason}");
    let reason = refusal(node, insider(stranger), NodeId(2), |_| ());
    assert!(reason.contains("looks for node 2"), "{reason}");
    let reason = refusal(node, insider(own[0]), own[0], |_| ());
    assert!(reason.contains("own id"), "{reason}");
    let next_version = |hello: &mut [u8]| hello[handshake::HEAD_LEN] = handshake::VERSION + 1;
    let reason = refusal(node, insider(stranger), own[0], next_version);
    assert!(reason.contains("wire format"), "{reason}");
    check_still_serves(node, "strangers");
}

/// Completes a handshake as the member that does not run; returns the stream behind the handshake.
fn pose_as(cluster: &Cluster, absent: usize, password: &str) -> Result<TcpStream, HandshakeError> {
    let all = members(cluster);
    let node = &cluster.nodes[1 - absent];
    let mut stream = dial(node.port);
    let own = credentials(all[absent], "nodesync", &all, password);
    let (dialer, hello) = Dialer::hello(own, all[1 - absent], [7; 16]);
    stream.write_all(&hello).unwrap();
    let (_, mut proof) = match dialer.welcome(&read_message(&mut stream)) {
        Ok(welcomed) => welcomed,
        // Without the password the dialer cannot check the node's proof, and goes on with a guess.
        Err(HandshakeError::Unsuitable(_)) => (0, [&[0xF5, 3, 32, 0][..], &[9; 32]].concat()),
        Err(error) => return Err(error),
    };
    if password == "flipped" {
        *proof.last_mut().unwrap() ^= 1;
    }
    stream.write_all(&proof).unwrap();
    Dialer::finish(&read_message(&mut stream))?;
    Ok(stream)
}

#[test]
fn an_impostor_without_the_password_is_refused() {
    let _shared = shared();
    let mut cluster = Cluster::new(2, &[]);
    for node in &mut cluster.nodes {
        node.password = Some("flipped".into());
    }
    cluster.nodes[0].start();
    eventually("the node listens", SOON, || Resp::connect(cluster.nodes[0].port).ok());
    for wrong in ["guess", "", "flipped"] {
        match pose_as(&cluster, 1, wrong) {
            Err(HandshakeError::Refused(reason)) => {
                assert!(reason.contains("another password"), "{wrong:?}: {reason}");
            }
            other => panic!("{wrong:?}: {other:?}"),
        }
        check_still_serves(&mut cluster.nodes[0], "an impostor");
    }
}

#[test]
fn noise_in_a_peers_frames_closes_that_link_only() {
    let _shared = shared();
    let mut cluster = Cluster::new(2, &[]);
    cluster.nodes[0].start();
    eventually("the node listens", SOON, || Resp::connect(cluster.nodes[0].port).ok());
    let mut rng = Rng::new(11);
    let noise: Vec<u8> = (0..4000).map(|_| rng.below(256) as u8).collect();
    let mut wrong_sum = 64u32.to_le_bytes().to_vec();
    wrong_sum.extend([0; 68]);
    let too_long = [0xFF; 64];
    for bytes in [&noise[..], &wrong_sum, &too_long] {
        let mut stream = pose_as(&cluster, 1, "").unwrap();
        let _ = stream.write_all(bytes);
        assert_eq!(read_to_close(&mut stream, "noise in frames"), "");
        check_still_serves(&mut cluster.nodes[0], "noise in frames");
    }
}

/// Resident memory of the process; 0 where the system does not report it.
fn resident_bytes(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid()));
    let Ok(status) = status else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap() << 10
}

#[test]
fn clients_that_do_not_read_cost_little_and_delay_no_other_client() {
    const REQUESTS: usize = 2000;
    const GROWTH_MAX: u64 = 48 << 20;
    let _alone = alone();
    let mut cluster = single(&[]);
    let node = &mut cluster.nodes[0];
    let mut client = node.resp();
    let value = "v".repeat(1 << 20);
    client.set("large", &value);
    assert_eq!(client.get("large").unwrap().len(), value.len());
    let before = resident_bytes(node);

    let gets: Vec<u8> = (0..REQUESTS).flat_map(|_| request(&["GET", "large"])).collect();
    let mut lazy: Vec<Resp> = (0..4).map(|_| node.resp()).collect();
    for lazy in &mut lazy {
        lazy.send_bytes(&gets).unwrap();
    }
    // This client also sends, until the node takes no more.
    let mut sender = dial(node.port);
    sender.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let echo = request(&["ECHO", &value]);
    let sent = (0..200).take_while(|_| sender.write_all(&echo).is_ok()).count();
    assert!(sent < 200, "the node never stops reading");

    for number in 0..200 {
        client.set("other", &number.to_string());
        assert_eq!(client.get("other"), Some(number.to_string()));
        // Checked each time, so that a failure does not fill the machine's memory.
        let grown = resident_bytes(node).saturating_sub(before);
        assert!(grown < GROWTH_MAX, "{grown} bytes for 5 clients that do not read");
    }
    check_still_serves(node, "clients that do not read");
    // A client that begins to read at last gets the replies to its requests.
    for _ in 0..20 {
        assert!(matches!(lazy[0].receive().unwrap(), Reply::Bulk(v) if v.len() == value.len()));
    }
    drop((lazy, sender));
    eventually("clients that left are no longer counted", SOON, || {
        (client.info("connected_clients") == "1").then_some(())
    });
    check_still_serves(node, "clients that have left");
}

#[test]
fn requests_sent_byte_by_byte_are_served() {
    let _shared = shared();
    let mut cluster = single(&[]);
    let node = &mut cluster.nodes[0];
    let mut resp = node.resp();
    let mut all = request(&["SET", "slow", "a\r\nb"]);
    all.extend(request(&["GET", "slow"]));
    for byte in all {
        resp.send_bytes(&[byte]).unwrap();
    }
    assert!(resp.receive().unwrap().is_ok());
    assert_eq!(resp.receive().unwrap(), *"a\r\nb");
    let mut line = dial(node.port);
    for byte in *b"SET slow line\r\nGET slow\r\nQUIT\r\n" {
        line.write_all(&[byte]).unwrap();
    }
    let answers = read_to_close(&mut line, "QUIT");
    let leader = node.port;
    assert_eq!(answers, format!("OK: slow set by leader {leader}\nVALUE: line\nOK\n"));
    check_still_serves(node, "a slow client");
}

#[test]
fn clients_beyond_the_limit_get_an_error_and_are_served_when_others_leave() {
    let _shared = shared();
    const MAX: usize = 4;
    const SILENT: usize = 100;
    const ERROR: &str = "-ERR max number of clients reached\r\n";
    let mut cluster = single(&["--maxclients", "4"]);
    let node = &mut cluster.nodes[0];
    let port = node.port;
    // Clients that waited for the cluster to be ready may not have left yet.
    let enter = || {
        let mut client = Resp::connect(port).ok()?;
        (client.call(&["PING"]).ok()? == *"PONG").then_some(client)
    };
    let mut clients: Vec<Resp> = (0..MAX).map(|_| eventually("served", SOON, enter)).collect();
    for words in [&b"PING\n"[..], &request(&["PING"]), &request(&["SET", "k", "v"])] {
        assert_eq!(send_and_read(node, words, "one too many"), ERROR);
    }
    for client in &mut clients {
        assert_eq!(client.call(&["GET", "k"]).unwrap(), Reply::Nil);
    }
    clients.pop();
    clients.push(eventually("served when one has left", SOON, enter));

    // Silent clients are let in while there is room; the others get the error without a request.
    clients.clear();
    let mut silent: Vec<TcpStream> = (0..SILENT).map(|_| dial(port)).collect();
    let mut last = silent.pop().unwrap();
    assert_eq!(read_to_close(&mut last, "one of very many"), ERROR);
    drop((silent, last));
    let mut fresh = eventually("served when one has left", SOON, enter);
    eventually("all have left", SOON, || (fresh.info("connected_clients") == "1").then_some(()));
    let mut line = Line::connect(port).unwrap();
    assert_eq!(line.ask("PING").unwrap(), "PONG");
    drop(line);
    check_still_serves(node, "a crowd");
}

#[test]
fn requests_behind_a_wait_in_a_pipeline_are_served_without_other_clients() {
    let _shared = shared();
    for io in ["poll", "threads"] {
        let mut cluster = Cluster::start(3, &["--io", io]);
        cluster.nodes[0].kill();
        let mut client = cluster.nodes[2].resp();
        client.set("wait", "1");
        // The killed node never acknowledges, so WAIT lasts until its time-out.
        let pipeline = ["WAIT 2 200", "SET wait 2", "GET wait"];
        let requests: Vec<Vec<&str>> = pipeline.iter().map(|r| r.split(' ').collect()).collect();
        let replies = client.pipeline(&requests).unwrap();
        assert_eq!(replies[0].number(), Some(1), "{io}");
        assert!(replies[1].is_ok(), "{io}: {replies:?}");
        assert_eq!(replies[2], Reply::Bulk(b"2".to_vec()), "{io}");
    }
}

#[test]
fn repeated_walks_over_the_whole_store_delay_no_other_client() {
    let _shared = shared();
    let cluster = single(&["--consistency", "eventual", "--io", "poll"]);
    let node = &cluster.nodes[0];
    let (mut greedy, mut other) = (node.resp(), node.resp());
    let sets = (0..10_000).map(|key| vec!["SET".to_string(), format!("key {key}"), "v".into()]);
    for reply in greedy.pipeline(&sets.collect::<Vec<_>>()).unwrap() {
        assert!(reply.is_ok(), "{reply:?}");
    }
    let keys = request(&["KEYS", "nomatch"]).repeat(600);
    let started = Instant::now();
    greedy.send_bytes(&keys).unwrap();
    assert_eq!(other.call(&["PING"]).unwrap(), *"PONG");
    let prompt = started.elapsed();
    for _ in 0..600 {
        assert_eq!(greedy.receive().unwrap(), Reply::Array(Vec::new()));
    }
    let all = started.elapsed();
    assert!(prompt < all / 2, "{prompt:?} of {all:?}");
}
