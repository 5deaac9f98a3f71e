//! A full disk: a small file system of the node's own, in a mount namespace of its own. The system
//! allows that to root only; for other users the test is skipped, and says so.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::client::Reply;
use crate::common::cluster::{Cluster, Node};
use crate::common::{SOON, alone, eventually};

/// Shell command that mounts a file system of 4 MB on the directory `$0`, and becomes the command
/// behind it.
const WITH_SMALL_DISK: &str = r#"mount -t tmpfs -o size=4m none "$0" && exec "$@""#;

const FLAGS: [&str; 6] =
    ["--segment-size", "64kb", "--snapshot-log", "256kb", "--request-timeout", "1000"];

/// True if this user may mount file systems.
fn may_mount(scratch: &Path) -> bool {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", WITH_SMALL_DISK]).arg(scratch).arg("true");
    command.output().is_ok_and(|output| output.status.success())
}

/// Reports the skip past the capture of the test's output.
fn skipped() {
    let _ = std::io::stderr()
        .write_all(b"SKIPPED: only root can make a small disk, with unshare(1) and mount(8)\n");
}

/// Starts a node whose directory is a file system of its own.
fn start_on_small_disk(node: &mut Node) {
    fs::create_dir(&node.dir).unwrap();
    let plain = node.command();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", WITH_SMALL_DISK]).arg(&node.dir);
    command.arg(plain.get_program()).args(plain.get_args());
    node.start_by(command);
}

/// Directory of a node as the node itself sees it.
fn inside(node: &Node) -> PathBuf {
    format!("/proc/{}/root{}", node.pid(), node.dir.display()).into()
}

/// Fills a file until the disk has no room for another byte.
fn fill(path: &Path) {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    for len in [1 << 16, 1 << 12, 1] {
        let error = loop {
            if let Err(error) = file.write_all(&vec![1; len]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }
}

#[test]
fn on_a_full_disk_writes_are_refused_and_reads_served_until_there_is_room() {
    let _alone = alone();
    let mut cluster = Cluster::new(1, &FLAGS);
    if !may_mount(cluster.scratch.path()) {
        return skipped();
    }
    start_on_small_disk(&mut cluster.nodes[0]);
    cluster.wait_until_ready();
    let node = &mut cluster.nodes[0];
    let ballast = inside(node).join("ballast");
    let mut client = node.resp();
    client.set("before", "kept");
    let value = "x".repeat(2000);
    let (mut acknowledged, mut number) = (0, 0);
    for round in 1..=3 {
        let refusal = eventually("a write is refused", SOON, || {
            // Fill before each write: an older snapshot that is removed makes room.
            fill(&ballast);
            number += 1;
            let reply = client.call(&["SET", &format!("k{number}"), &value]).unwrap();
            acknowledged += usize::from(reply.is_ok());
            let error = reply.error()?.to_string();
            // A write in progress when the disk filled up may still be done.
            (!error.starts_with("UNKNOWN ")).then_some(error)
        });
        println!("round {round}: {acknowledged} of {number} writes acknowledged, then: {refusal}");
        assert!(refusal.starts_with("MISCONF "), "{refusal}");
        assert!(refusal.contains("disk full"), "{refusal}");
        let log = node.log();
        assert!(log.contains("Disk full"), "the log does not report it: {log}");
        for _ in 0..50 {
            assert_eq!(client.get("before").as_deref(), Some("kept"));
            let reply = client.call(&["SET", "before", "lost"]).unwrap();
            assert_eq!(reply.error(), Some(&*refusal));
        }
        assert_eq!(node.resp().get("before").as_deref(), Some("kept"));
        let answer = node.line().ask("SET before lost").unwrap();
        assert_eq!(answer, "FAIL: disk full");

        fs::remove_file(&ballast).unwrap();
        eventually("writes are taken again", SOON, || {
            let reply = client.call(&["SET", "again", &round.to_string()]).unwrap();
            reply.is_ok().then_some(())
        });
        // Enough writes that the log needs further segments.
        for key in 0..100 {
            client.set(&format!("round {round} {key}"), &value);
        }
        assert_eq!(client.get("before").as_deref(), Some("kept"));
        assert_eq!(client.get("again"), Some(round.to_string()));
        let back = node.log().matches("The disk has room again").count();
        assert!(back >= round, "{back} messages that the disk has room");
    }
    assert!(acknowledged > 0);
    node.stop();
}

#[test]
fn a_follower_with_a_full_disk_delays_no_client_and_catches_up_when_there_is_room() {
    let _alone = alone();
    let mut cluster = Cluster::new(3, &FLAGS);
    if !may_mount(cluster.scratch.path()) {
        return skipped();
    }
    start_on_small_disk(&mut cluster.nodes[0]);
    cluster.start_all();
    cluster.wait_until_ready();
    let [full, other, _] = &cluster.nodes[..] else { unreachable!() };
    let ballast = inside(full).join("ballast");
    let mut client = other.resp();
    let value = "x".repeat(2000);
    for round in 0..3 {
        fill(&ballast);
        for key in 0..150 {
            client.set(&format!("k{key}"), &format!("{round} {value}"));
        }
        let log = full.log();
        assert!(log.matches("Disk full").count() > round, "the follower has not noticed: {log}");
        fs::remove_file(&ballast).unwrap();
        let mut behind = full.resp();
        eventually("the follower has caught up", SOON, || {
            match behind.call(&["GET", "k149"]).unwrap() {
                Reply::Bulk(bytes) => {
                    bytes.starts_with(format!("{round} ").as_bytes()).then_some(())
                }
                _ => None,
            }
        });
        behind.set("back", "again");
    }
}
