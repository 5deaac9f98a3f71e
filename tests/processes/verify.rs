//! `nodesync verify` as users run it: a cluster of its own under faults, a live cluster, and runs
//! that fail. Unit tests beside the judge, in `src/tools/verify/judge.rs`, show that it can reject
//! a history.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use crate::common::cluster::Cluster;
use crate::common::tool::{self, result_of};
use crate::common::{SOON, alone, eventually, shared};
use rustix::process::{Pid, Signal, kill_process};

fn command(line: &str) -> Command {
    tool::command(&format!("verify {line}"))
}

/// Exit code, standard output and standard error of a run.
fn run(line: &str) -> (Option<i32>, String, String) {
    tool::run(&format!("verify {line}"))
}

/// Ports and logs of the nodes of a run in `dir`.
fn logs(dir: &str) -> Option<Vec<(u16, String)>> {
    let run = fs::read_dir(dir).ok()?.next()?.ok()?.path();
    let files = fs::read_dir(run).ok()?.map(|file| file.unwrap().path());
    let logs = files.filter(|file| file.extension().is_some_and(|end| end == "log"));
    let log = |path: PathBuf| {
        let port = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        (port, fs::read_to_string(path).unwrap_or_default())
    };
    Some(logs.map(log).collect())
}

#[test]
fn a_cluster_of_its_own_is_proven_linearizable_under_faults() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().to_str().unwrap();
    let line = format!("--spawn 3 --seconds 8 --seed 5 --requirepass secret --dir {dir}");
    let (code, verdict, lines) = run(&line);
    assert_eq!(code, Some(0), "{verdict}\n{lines}");
    for part in ["3 nodes, 12 clients", "seed 5", "longest gap", "faults", "\nlinearizable"] {
        assert!(verdict.contains(part), "{part}: {verdict}");
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "the run left files behind");
}

#[test]
fn a_live_cluster_is_judged_and_left_as_it_was() {
    let _alone = alone();
    let cluster = Cluster::start(3, &[]);
    let mut client = cluster.nodes[0].resp();
    client.set("theirs", "untouched");
    let before = client.call(&["DBSIZE"]).unwrap();
    let peers: Vec<_> =
        cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let (code, verdict, lines) = run(&format!("--peers {} --seconds 2", peers.join(",")));
    assert_eq!(code, Some(0), "{verdict}\n{lines}");
    assert!(verdict.contains("\nlinearizable") && !verdict.contains("faults"), "{verdict}");
    assert_eq!(client.call(&["DBSIZE"]).unwrap(), before);
    assert_eq!(client.get("theirs").as_deref(), Some("untouched"));
}

#[test]
fn a_signal_ends_a_run_early_with_a_verdict_and_without_its_nodes() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().to_str().unwrap();
    let line = format!("--spawn 3 --seconds 600 --faults pause,cut --dir {dir}");
    let child = command(&line).spawn().unwrap();
    // The signal must meet a cluster that runs.
    let ports: Vec<u16> = eventually("there is a leader", SOON, || {
        let logs = logs(dir)?;
        let led = logs.iter().any(|(_, log)| log.contains("New leader elected"));
        led.then(|| logs.into_iter().map(|(port, _)| port).collect())
    });
    assert_eq!(ports.len(), 3);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let (code, verdict, lines) = result_of(child.wait_with_output().unwrap());
    // The exit code is 3 if the signal came before the first write.
    assert!(matches!(code, Some(0 | 3)), "{code:?} {verdict}\n{lines}");
    assert!(verdict.contains("asked to stop"), "{verdict}\n{lines}");
    for port in ports {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "node {port} is still there");
    }
}

#[test]
fn peers_that_cannot_be_reached_are_named() {
    let _shared = shared();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (code, _, lines) = run(&format!("--peers {free} --seconds 1"));
    assert_eq!(code, Some(74), "{lines}");
    assert!(lines.contains(&format!("cannot talk to {free}: ")), "{lines}");
}

#[test]
fn a_missing_password_is_reported() {
    let _shared = shared();
    let mut cluster = Cluster::new(1, &[]);
    cluster.nodes[0].password = Some("secret".into());
    cluster.start_all();
    cluster.wait_until_ready();
    let peer = format!("127.0.0.1:{}", cluster.nodes[0].port);
    let (code, _, lines) = run(&format!("--peers {peer} --seconds 1"));
    assert_eq!(code, Some(74), "{lines}");
    assert!(lines.contains("NOAUTH"), "{lines}");
    let (code, _, lines) = run(&format!("--peers {peer} --seconds 1 --requirepass secret"));
    assert_eq!(code, Some(0), "{lines}");
}

#[test]
fn mistakes_on_the_command_line_are_named() {
    let _shared = shared();
    let cases = [
        ("", "--peers"),
        ("--spawn 0", "0"),
        ("--spawn 3 --peers 127.0.0.1:5000", "cannot be used with"),
        ("--peers nowhere", "HOST:PORT"),
        ("--peers 127.0.0.1:5000 --faults kill", "cannot be used with"),
        ("--spawn 3 --faults fire", "fire"),
        ("--spawn 2 --faults wipe", "wipe needs more nodes"),
        ("--spawn 3 --faults none,kill", "stands alone"),
        ("--spawn 3 --clients 0", "--clients"),
        ("--spawn 3 --requirepass-file /nowhere/at/all", "/nowhere/at/all"),
    ];
    for (line, wanted) in cases {
        let (code, _, lines) = run(line);
        assert_eq!(code, Some(2), "{line:?}: {lines}");
        assert!(lines.contains(wanted), "{line:?}: {lines}");
    }
}

#[test]
fn logs_and_data_are_kept_on_request_and_their_directory_is_named() {
    let _shared = shared();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().to_str().unwrap();
    let line = format!("--spawn 1 --seconds 1 --clients 2 --faults none --keep --dir {dir}");
    let (code, verdict, lines) = run(&line);
    assert_eq!(code, Some(0), "{verdict}\n{lines}");
    assert!(verdict.contains("faults                  0"), "{verdict}");
    let kept = fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    assert!(verdict.contains(&format!("logs and data: {}", kept.display())), "{verdict}");
    let logs = logs(dir).unwrap();
    assert!(logs.len() == 1 && logs[0].1.contains("Stopped"), "{logs:?}");
}
