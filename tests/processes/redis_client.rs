//! Third-party clients on a real cluster: the `redis` crate, and `redis-cli` and `redis-benchmark`
//! where they are installed (Redis 7 or later). Where one is missing, its tests say so and pass.
//!
//! These clients see no difference from Redis in the commands that NodeSync serves; any other
//! command gets a clean error.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::common::client::request;
use crate::common::cluster::{Cluster, Node};
use crate::common::{SOON, shared};
use redis::{Commands, Connection, ExistenceCheck, FromRedisValue, SetOptions, Value};

/// Connects to a node, with RESP3 if `three`.
fn connect(node: &Node, three: bool) -> Connection {
    try_connect(node, three, node.password.as_deref()).unwrap()
}

fn try_connect(node: &Node, three: bool, password: Option<&str>) -> redis::RedisResult<Connection> {
    let secret = password.map(|password| format!(":{password}@")).unwrap_or_default();
    let protocol = if three { "resp3" } else { "resp2" };
    let url = format!("redis://{secret}127.0.0.1:{}/?protocol={protocol}", node.port);
    let connection = redis::Client::open(url)?.get_connection()?;
    connection.set_read_timeout(Some(SOON))?;
    Ok(connection)
}

/// Uses the commands of strings and keys, each with the type that the client makes of the reply.
fn use_all_commands(client: &mut Connection) {
    let _: () = redis::cmd("FLUSHALL").exec(client).unwrap();
    let _: () = client.set("text", "héllo\r\nworld").unwrap();
    assert_eq!(client.get::<_, String>("text").unwrap(), "héllo\r\nworld");
    assert_eq!(client.strlen::<_, usize>("text").unwrap(), 13);
    assert_eq!(client.get::<_, Option<String>>("nothing").unwrap(), None);
    let bytes: Vec<u8> = (0..=255).collect();
    let _: () = client.set(&bytes[..], &bytes[..]).unwrap();
    assert_eq!(client.get::<_, Vec<u8>>(&bytes[..]).unwrap(), bytes);

    assert_eq!(client.incr::<_, _, i64>("count", 1).unwrap(), 1);
    assert_eq!(client.incr::<_, _, i64>("count", 41).unwrap(), 42);
    assert_eq!(client.decr::<_, _, i64>("count", 50).unwrap(), -8);
    let error = client.incr::<_, _, i64>("text", 1).unwrap_err();
    assert_eq!(error.code(), Some("ERR"), "{error}");
    assert!(error.to_string().contains("not an integer"), "{error}");

    let _: () = client.mset(&[("a", "1"), ("b", "2"), ("c", "")]).unwrap();
    let values: Vec<Option<String>> = client.mget(&["a", "nothing", "b", "c"]).unwrap();
    assert_eq!(values, [Some("1".into()), None, Some("2".into()), Some(String::new())]);

    assert_eq!(client.append::<_, _, usize>("a", "23").unwrap(), 3);
    assert_eq!(client.get_del::<_, Option<String>>("a").unwrap().as_deref(), Some("123"));
    assert_eq!(client.get_del::<_, Option<String>>("a").unwrap(), None);
    assert_eq!(client.getset::<_, _, Option<String>>("b", "new").unwrap().as_deref(), Some("2"));
    assert!(client.set_nx::<_, _, bool>("a", "again").unwrap());
    assert!(!client.set_nx::<_, _, bool>("a", "and again").unwrap());
    let if_absent = SetOptions::default().conditional_set(ExistenceCheck::NX);
    assert_eq!(client.set_options::<_, _, Value>("a", "x", if_absent).unwrap(), Value::Nil);
    let if_present = SetOptions::default().conditional_set(ExistenceCheck::XX).get(true);
    let old: Option<String> = client.set_options("a", "y", if_present).unwrap();
    assert_eq!(old.as_deref(), Some("again"));

    assert!(client.exists::<_, bool>("a").unwrap());
    assert_eq!(client.del::<_, usize>(&["a", "b", "nothing"]).unwrap(), 2);
    assert!(!client.exists::<_, bool>("a").unwrap());
    let kind: String = redis::cmd("TYPE").arg("c").query(client).unwrap();
    assert_eq!(kind, "string");
}

#[test]
fn the_redis_crate_is_served_by_any_node_in_both_protocols() {
    let _shared = shared();
    let cluster = Cluster::start(3, &[]);
    for node in &cluster.nodes {
        for three in [false, true] {
            let mut client = connect(node, three);
            use_all_commands(&mut client);
            pipelines(&mut client);
            scans(&mut client);
            replies_of_resp3(&mut client, three);
        }
    }
}

/// A lone client on one node sees the same replies in an eventual session.
#[test]
fn a_lone_eventual_session_gets_the_replies_of_a_strong_one() {
    let _shared = shared();
    let cluster = Cluster::start(3, &["--consistency", "eventual"]);
    cluster.wait_until_ready();
    for round in 0..3 {
        for node in &cluster.nodes {
            let mut client = connect(node, round % 2 == 1);
            let mode: String = redis::cmd("CONSISTENCY").query(&mut client).unwrap();
            assert_eq!(mode, "eventual");
            use_all_commands(&mut client);
            pipelines(&mut client);
            scans(&mut client);
        }
    }
}

/// A value that one client writes is read by the others, on any node.
#[test]
fn clients_of_different_nodes_share_one_keyspace() {
    let _shared = shared();
    let cluster = Cluster::start(3, &[]);
    let mut clients: Vec<Connection> =
        cluster.nodes.iter().enumerate().map(|(i, node)| connect(node, i % 2 == 1)).collect();
    for round in 0..30usize {
        let _: () = clients[round % 3].set("shared", round).unwrap();
        assert_eq!(clients[(round + 1) % 3].get::<_, usize>("shared").unwrap(), round);
        assert_eq!(clients[(round + 2) % 3].incr::<_, _, usize>("total", 1).unwrap(), round + 1);
    }
}

/// Replies to a pipeline come in order, and an error in the middle belongs to its command alone.
fn pipelines(client: &mut Connection) {
    let mut pipe = redis::pipe();
    pipe.set("p", 7).ignore().incr("p", 3).get("p").del("p").get("p");
    let replies: (i64, String, usize, Option<String>) = pipe.query(client).unwrap();
    assert_eq!(replies, (10, "10".into(), 1, None));

    let mut pipe = redis::pipe();
    for number in 0..1000 {
        pipe.set(format!("many:{number}"), number).ignore();
    }
    for number in 0..1000 {
        pipe.get(format!("many:{number}"));
    }
    let values: Vec<usize> = pipe.query(client).unwrap();
    assert!(values.into_iter().eq(0..1000));

    let _: () = client.set("word", "x").unwrap();
    let mut pipe = redis::pipe();
    pipe.ignore_errors().set("n", 1).incr("word", 1).incr("n", 1);
    let replies: Vec<Value> = pipe.query(client).unwrap();
    assert_eq!(replies.len(), 3, "{replies:?}");
    assert!(matches!(replies[1], Value::ServerError(_)), "{replies:?}");
    assert_eq!(i64::from_redis_value(replies[2].clone()).unwrap(), 2);
}

/// SCAN returns each of the keys that [`pipelines`] left, over as many cursors as it takes.
fn scans(client: &mut Connection) {
    let keys: Vec<String> =
        client.scan_match::<_, String>("many:*").unwrap().map(Result::unwrap).collect();
    let expected: BTreeSet<String> = (0..1000).map(|number| format!("many:{number}")).collect();
    assert!(keys.iter().cloned().collect::<BTreeSet<_>>() == expected, "{} keys", keys.len());
    let all = client.scan::<Vec<u8>>().unwrap().map(Result::unwrap).collect::<BTreeSet<_>>();
    let size: usize = redis::cmd("DBSIZE").query(client).unwrap();
    assert_eq!(all.len(), size);
    let listed: BTreeSet<String> = client.keys("many:99?").unwrap();
    assert_eq!(listed.len(), 10);
}

/// Checks the types that only RESP3 has, and the error for an unsupported command.
fn replies_of_resp3(client: &mut Connection, three: bool) {
    let hello: Value = redis::cmd("HELLO").query(client).unwrap();
    assert_eq!(matches!(hello, Value::Map(_)), three, "{hello:?}");
    let config: Value = redis::cmd("CONFIG").arg(&["GET", "maxclients"]).query(client).unwrap();
    assert_eq!(matches!(config, Value::Map(_)), three, "{config:?}");
    let info: Value = redis::cmd("INFO").query(client).unwrap();
    assert_eq!(matches!(info, Value::VerbatimString { .. }), three, "{info:?}");
    let info: redis::InfoDict = redis::cmd("INFO").query(client).unwrap();
    assert_eq!(info.get::<String>("loading").as_deref(), Some("0"));

    let error = redis::cmd("LPUSH").arg("k").arg("v").exec(client).unwrap_err();
    assert!(error.to_string().contains("unknown command 'LPUSH'"), "{error}");
    assert_eq!(redis::cmd("PING").query::<String>(client).unwrap(), "PONG");
}

#[test]
fn the_redis_crate_says_the_password() {
    let _shared = shared();
    let mut cluster = Cluster::new(1, &[]);
    cluster.nodes[0].password = Some("sesame".into());
    cluster.start_all();
    cluster.wait_until_ready();
    let node = &cluster.nodes[0];
    for three in [false, true] {
        let mut client = connect(node, three);
        let _: () = client.set("k", "v").unwrap();
        assert_eq!(client.get::<_, String>("k").unwrap(), "v");
        let error = try_connect(node, three, Some("barley")).err().expect("a wrong password");
        // The client translates AUTH's errors, and passes on HELLO's unchanged.
        let expected = if three { "WRONGPASS" } else { "AuthenticationFailed" };
        assert!(error.to_string().contains(expected), "{error}");
        // In RESP2 the client sends nothing before its first command, so only that can fail.
        let refused = try_connect(node, three, None).and_then(|mut stranger| stranger.get("k"));
        let error = refused.map(|value: Option<String>| value).unwrap_err();
        assert!(format!("{error:?}").contains("NOAUTH"), "{error:?}");
    }
}

/// Runs one of Redis's programs with `input`. Returns `None`, and says so, if it is not installed.
fn run(program: &str, node: &Node, args: &[&str], input: &[u8]) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &node.port.to_string()]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("SKIPPED: {program} cannot be run here: {error}");
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    Some(output)
}

/// Output of redis-cli.
fn cli(node: &Node, args: &[&str], input: &[u8]) -> Option<String> {
    let output = run("redis-cli", node, args, input)?;
    Some(String::from_utf8(output.stdout).unwrap().trim_end().to_string())
}

#[test]
fn redis_cli_works() {
    let _shared = shared();
    let cluster = Cluster::start(3, &[]);
    let node = &cluster.nodes[0];
    let dialogue: &[(&[&str], &str)] = &[
        (&["PING"], "PONG"),
        (&["SET", "k", "a b"], "OK"),
        (&["GET", "k"], "a b"),
        (&["--no-raw", "GET", "k"], "\"a b\""),
        (&["--no-raw", "GET", "nothing"], "(nil)"),
        (&["-3", "--no-raw", "GET", "nothing"], "(nil)"),
        (&["INCR", "n"], "1"),
        (&["-3", "--no-raw", "INCR", "n"], "(integer) 2"),
        (&["MSET", "x:1", "1", "x:2", "2"], "OK"),
        (&["MGET", "x:1", "x:2"], "1\n2"),
        (&["-3", "CONFIG", "GET", "appendonly"], "appendonly yes"),
        (&["-n", "0", "DEL", "x:1", "x:2"], "2"),
        (&["-r", "3", "INCR", "n"], "3\n4\n5"),
    ];
    for (args, expected) in dialogue {
        let Some(printed) = cli(node, args, b"") else { return };
        assert_eq!(printed, *expected, "{args:?}");
    }
    let many: String = (0..1000).map(|number| format!("SET mass:{number} {number}\r\n")).collect();
    let printed = cli(node, &[], many.as_bytes()).unwrap();
    assert_eq!(printed.lines().filter(|line| *line == "OK").count(), 1000);
    let words: Vec<u8> =
        (0..1000).flat_map(|number| request(&["INCR", &format!("piped:{number}")])).collect();
    let printed = cli(node, &["--pipe"], &words).unwrap();
    assert!(printed.contains("errors: 0, replies: 1000"), "{printed}");
    let printed = cli(node, &["--scan", "--pattern", "mass:*"], b"").unwrap();
    assert_eq!(printed.lines().collect::<BTreeSet<_>>().len(), 1000);
    let printed = cli(node, &["INFO", "server"], b"").unwrap();
    assert!(printed.contains("tcp_port"), "{printed}");
    let printed = cli(node, &["NOSUCH", "thing"], b"").unwrap();
    assert!(printed.starts_with("ERR unknown command 'NOSUCH'"), "{printed}");
}

#[test]
fn redis_cli_says_the_password() {
    let _shared = shared();
    let mut cluster = Cluster::new(1, &[]);
    cluster.nodes[0].password = Some("sesame".into());
    cluster.start_all();
    cluster.wait_until_ready();
    let node = &cluster.nodes[0];
    let Some(printed) = cli(node, &["--no-auth-warning", "-a", "sesame", "PING"], b"") else {
        return;
    };
    assert_eq!(printed, "PONG");
    let three = ["-3", "--no-auth-warning", "-a", "sesame", "PING"];
    assert_eq!(cli(node, &three, b"").unwrap(), "PONG");
    let printed = cli(node, &["GET", "k"], b"").unwrap();
    assert!(printed.starts_with("NOAUTH "), "{printed}");
}

#[test]
fn redis_benchmark_runs_to_its_end_on_each_node() {
    let _shared = shared();
    let cluster = Cluster::start(3, &[]);
    for node in &cluster.nodes {
        let args = ["-t", "set,get,incr,mset", "-n", "2000", "-c", "20", "-P", "4", "-q"];
        let Some(output) = run("redis-benchmark", node, &args, b"") else { return };
        let printed = String::from_utf8(output.stdout).unwrap().replace('\r', "\n");
        for name in ["SET: ", "GET: ", "INCR: ", "MSET (10 keys): "] {
            let done = |line: &str| line.starts_with(name) && line.contains("requests per second");
            assert!(printed.lines().any(done), "{name}: {printed}");
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!printed.contains("rror") && !errors.contains("rror"), "{printed}{errors}");
    }
    let mut client = cluster.nodes[0].resp();
    assert_eq!(client.get("counter:__rand_int__").as_deref(), Some("6000"));
}
