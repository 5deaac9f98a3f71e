//! Settings and directories with which a node refuses to start. Each refusal has its exit code and
//! a message that says what to do, and changes no file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::common::cluster::{Cluster, Node, contents, run_to_end};
use crate::common::{Port, SOON, alone, binary, shared};

const USAGE: i32 = 2;
const DATA: i32 = 65;
const IO: i32 = 74;
const CONFIG: i32 = 78;

/// Command of a node with the directory `dir`.
fn nodesync<W: AsRef<str>>(dir: &Path, words: &[W]) -> Command {
    let mut command = Command::new(binary());
    command.args(words.iter().map(AsRef::as_ref)).arg("--dir").arg(dir);
    command
}

/// Runs a command that must end with `code`, print all of `parts`, and leave all files below `dir`
/// as they are.
#[track_caller]
fn refused(dir: &Path, command: Command, code: i32, parts: &[&str]) -> String {
    let shown = format!("{command:?}");
    let before = contents(dir);
    let (ended, errors) = run_to_end(command, SOON);
    assert_eq!(ended, Some(code), "{shown}: {errors}");
    for part in parts {
        assert!(errors.contains(part), "{shown}: no {part:?} in {errors}");
    }
    assert_eq!(names(&contents(dir)), names(&before), "{shown} made or removed files");
    assert!(contents(dir) == before, "{shown} changed a file");
    errors
}

fn names(files: &[(PathBuf, Vec<u8>)]) -> Vec<&PathBuf> {
    files.iter().map(|(path, _)| path).collect()
}

/// Runs [`refused`] with a directory that exists neither before nor after.
#[track_caller]
fn refused_before_any_directory<W: AsRef<str>>(words: &[W], code: i32, parts: &[&str]) {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("data");
    refused(scratch.path(), nodesync(&dir, words), code, parts);
    assert!(!dir.exists(), "made although {parts:?}");
}

/// Cluster of one node that acknowledged `writes` writes, one after the other, and was killed.
fn with_data(writes: usize) -> Cluster {
    let mut cluster = Cluster::start(1, &["--segment-size", "64kb"]);
    let mut client = cluster.nodes[0].resp();
    for write in 0..writes {
        client.set(&format!("key {write}"), &format!("value {write};"));
    }
    cluster.nodes[0].kill();
    cluster
}

#[test]
fn a_port_that_is_taken_ends_a_node_before_it_makes_a_directory() {
    let _alone = alone();
    let cluster = Cluster::start(1, &[]);
    let port = cluster.nodes[0].port.to_string();
    let address = format!("cannot listen on 127.0.0.1:{port}");
    refused_before_any_directory(&[&*port], IO, &[&address, "in use"]);
    cluster.nodes[0].resp().set("k", "v");
}

#[test]
fn a_malformed_peer_address_is_a_usage_error() {
    let _shared = shared();
    let peers = [
        "",
        "127.0.0.1",
        "localhost",
        ":5000",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "::1:5000",
        "x=127.0.0.1:5000",
        "=127.0.0.1:5000",
        "-",
    ];
    for peer in peers {
        refused_before_any_directory(&["4999", peer], USAGE, &["HOST:PORT", "--help"]);
    }
    refused_before_any_directory(&["65536"], USAGE, &["<PORT>", "--help"]);
}

#[test]
fn members_must_be_different() {
    let _shared = shared();
    let port = Port::take().number.to_string();
    let (own, local) = (format!("127.0.0.1:{port}"), format!("localhost:{port}"));
    let list_others = "list only the others";
    refused_before_any_directory(&[&*port, &own], CONFIG, &[&own, list_others]);
    refused_before_any_directory(&[&*port, &local], CONFIG, &[&local, list_others]);
    let elsewhere = format!("192.0.2.1:{port}");
    refused_before_any_directory(&[&*port, &elsewhere], CONFIG, &[&elsewhere, "this node's id"]);
    let peers = ["7=127.0.0.1:5001", "7=127.0.0.1:5002"];
    let says = ["127.0.0.1:5001 and 127.0.0.1:5002", "same id, 7", "ID=HOST:PORT"];
    refused_before_any_directory(&[&*port, peers[0], peers[1]], CONFIG, &says);
    let words = [&*port, "--id", "7", peers[0]];
    refused_before_any_directory(&words, CONFIG, &["this node's id, 7", "--id"]);
}

#[test]
fn a_bind_beyond_loopback_without_a_password_is_refused() {
    let _shared = shared();
    let port = Port::take().number.to_string();
    for bind in ["0.0.0.0", "192.0.2.1", "::"] {
        let says = [bind, "without a password", "--requirepass-file", "--protected-mode no"];
        refused_before_any_directory(&[&*port, "--bind", bind], CONFIG, &says);
    }
    let words = [&*port, "--requirepass-file", "/nonexistent/password"];
    refused_before_any_directory(&words, CONFIG, &["/nonexistent/password"]);
}

#[test]
fn the_directory_of_another_cluster_or_node_is_left_alone() {
    let _alone = alone();
    let mut cluster = with_data(3);
    let other = Port::take();
    let node = &mut cluster.nodes[0];
    let (port, dir) = (node.port.to_string(), node.dir.clone());
    let strangers = [
        (vec![port.clone(), "--cluster".into(), "theirs".into()], "cluster \"nodesync\""),
        // The members are part of a cluster's identity.
        (vec![port.clone(), format!("127.0.0.1:{}", other.number)], "members are fixed"),
        (vec![other.number.to_string()], "of nodes"),
    ];
    for (words, says) in strangers {
        let shown = dir.display().to_string();
        refused(&dir, nodesync(&dir, &words), CONFIG, &[&shown, says, &port, "--dir"]);
    }
    node.start();
    cluster.wait_until_ready();
    assert_eq!(cluster.nodes[0].resp().get("key 2").as_deref(), Some("value 2;"));
}

#[test]
fn the_directory_of_another_member_is_left_alone() {
    let _alone = alone();
    let mut cluster = Cluster::start(2, &[]);
    cluster.nodes.iter_mut().for_each(Node::kill);
    let [low, high] = &cluster.nodes[..] else { unreachable!() };
    let peer = format!("127.0.0.1:{}", low.port);
    let command = nodesync(&low.dir, &[high.port.to_string(), peer]);
    let says = format!("belongs to node {}, not to {}", low.port, high.port);
    refused(&low.dir, command, CONFIG, &[&says, "--dir"]);
    cluster.start_all();
    cluster.wait_until_ready();
}

#[test]
fn a_directory_in_use_is_refused() {
    let _alone = alone();
    let cluster = Cluster::start(1, &[]);
    let (node, other) = (&cluster.nodes[0], Port::take());
    node.resp().set("k", "v");
    let words = [other.number.to_string(), "--id".into(), node.port.to_string()];
    let shown = node.dir.display().to_string();
    let says = [&*shown, "in use by a running node", "--dir"];
    // The running node may be making a spare segment meanwhile, so only its identity is compared.
    let identity = || fs::read(node.dir.join("identity")).unwrap();
    let before = identity();
    let (code, errors) = run_to_end(nodesync(&node.dir, &words), SOON);
    assert_eq!(code, Some(CONFIG), "{errors}");
    assert!(says.iter().all(|part| errors.contains(part)), "{errors}");
    assert_eq!(identity(), before);
    node.resp().set("k", "w");
    assert_eq!(node.resp().get("k").as_deref(), Some("w"));
}

/// File below `dir` that holds `needle`, and the offset of `needle` in it.
fn find(dir: &Path, needle: &str) -> (PathBuf, usize) {
    let place = |bytes: &[u8]| bytes.windows(needle.len()).position(|w| w == needle.as_bytes());
    let files = contents(dir).into_iter();
    let found: Vec<_> = files.filter_map(|(path, bytes)| Some((path, place(&bytes)?))).collect();
    assert_eq!(found.len(), 1, "{needle}: {found:?}");
    found.into_iter().next().unwrap()
}

#[test]
fn a_flipped_bit_in_synced_data_is_reported_with_its_offset_and_the_remedy() {
    let _alone = alone();
    let mut cluster = with_data(50);
    let (dir, command) = (cluster.nodes[0].dir.clone(), || cluster.nodes[0].command());
    for write in [0, 25, 48] {
        let (path, at) = find(&dir, &format!("value {write};"));
        let sound = fs::read(&path).unwrap();
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let says = [name, "damaged at offset ", "data directory", "away", "learns from its peers"];
        let errors = refused(&dir, command(), DATA, &says);
        let (_, offset) = errors.rsplit_once("damaged at offset ").unwrap();
        let digits = offset.split(|c: char| !c.is_ascii_digit()).next().unwrap();
        let offset: usize = digits.parse().unwrap();
        assert!((at.saturating_sub(300)..=at).contains(&offset), "{offset}, flipped at {at}");
        fs::write(&path, &sound).unwrap();
    }
    cluster.start_all();
    cluster.wait_until_ready();
    let mut client = cluster.nodes[0].resp();
    for write in 0..50 {
        let value = client.get(&format!("key {write}"));
        assert_eq!(value, Some(format!("value {write};")));
    }
}

#[test]
fn a_directory_of_a_later_version_is_left_alone() {
    let _alone = alone();
    let cluster = with_data(3);
    let node = &cluster.nodes[0];
    let path = node.dir.join("identity");
    let text = fs::read_to_string(&path).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    assert_eq!(first, "format = 1");
    fs::write(&path, format!("format = 2\n{rest}")).unwrap();
    let shown = node.dir.display().to_string();
    refused(&node.dir, node.command(), DATA, &[&shown, "format 2", "up to 1", "upgrade"]);
}
