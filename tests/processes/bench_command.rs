//! `nodesync bench` as users run it: its figures fit together, a failover costs a gap and no error,
//! and no file or process stays behind. Its parts have unit tests in `src/tools/bench/`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::cluster::Cluster;
use crate::common::tool::{self, result_of};
use crate::common::{Port, SOON, alone, eventually, shared};
use nodesync::client::{Client, Options, Reply};
use rustix::process::{Pid, Signal, kill_process};

fn command(line: &str) -> Command {
    tool::command(&format!("bench {line}"))
}

/// Exit code, standard output and standard error of a run.
fn run(line: &str) -> (Option<i32>, String, String) {
    tool::run(&format!("bench {line}"))
}

/// Numbers that a JSON page has under this name, in order.
fn numbers(json: &str, name: &str) -> Vec<f64> {
    let name = format!("\"{name}\": ");
    let parts = json.split(&name).skip(1);
    let number = |part: &str| part.split([',', '}', '\n']).next().unwrap().parse().unwrap();
    parts.map(number).collect()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn both_modes_are_measured_and_reported_and_the_figures_fit_together() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    fs::create_dir(path("nodes")).unwrap();
    let (code, page, lines) = run(&format!(
        "--spawn 3 --seconds 2 --warmup 0.2 --consistency both --clients 8 --ratio 0.5 --dir {} \
         --report {} --json {} --csv {}",
        path("nodes").display(),
        path("report").display(),
        path("json").display(),
        path("csv").display()
    ));
    assert_eq!(code, Some(0), "{page}\n{lines}");
    assert!(page.lines().any(|line| line == "======== RESULTS ========"), "{page}");
    for mode in ["Strong", "Eventual"] {
        assert!(page.contains(&format!("{mode} consistency average latency: ")), "{page}");
        assert!(page.contains(&format!("{mode} consistency max latency: ")), "{page}");
    }

    let json = fs::read_to_string(path("json")).unwrap();
    let column = |name: &str| {
        let numbers = numbers(&json, name);
        assert_eq!(numbers.len(), 6, "{name}: SET, GET and all of two modes: {json}");
        numbers
    };
    let (requests, rates) = (column("requests"), column("per_second"));
    let names = ["p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms"];
    let (percentiles, means) = (names.map(column), column("mean_ms"));
    for row in 0..6 {
        assert!(requests[row] > 0.0, "{json}");
        let seconds = requests[row] / rates[row];
        assert!((2.0..6.0).contains(&seconds), "row {row}: {seconds} s: {json}");
        let percentiles = percentiles.each_ref().map(|column| column[row]);
        assert!(percentiles[0] > 0.0 && percentiles.is_sorted(), "row {row}: {percentiles:?}");
        assert!(means[row] > 0.0 && means[row] <= percentiles[4], "row {row}: {json}");
    }
    for mode in [0, 3] {
        assert_eq!(requests[mode] + requests[mode + 1], requests[mode + 2]);
    }
    let runs = json.split("\"runs\"").nth(1).unwrap();
    assert_eq!(runs.matches("\"errors\": []").count(), 2, "{json}");

    let report = fs::read_to_string(path("report").join("RESULTS.md")).unwrap();
    for part in ["| strong ", "| eventual ", "latency.svg", "throughput.svg", "kernel", "--spawn 3"]
    {
        assert!(report.contains(part), "{part}: {report}");
    }
    for chart in ["latency.svg", "throughput.svg"] {
        let svg = fs::read_to_string(path("report").join(chart)).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert_eq!(svg.matches("<polyline").count(), 2, "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
    assert_eq!(fs::read_to_string(path("csv")).unwrap().lines().count(), 7);
    assert!(is_empty(&path("nodes")), "the cluster left files behind");
}

#[test]
fn clients_of_survivors_see_a_gap_and_no_error_when_the_leader_is_killed() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let json = scratch.path().join("json");
    let report = scratch.path().join("report");
    let (code, page, lines) = run(&format!(
        "--spawn 3 --seconds 3 --warmup 0.2 --clients 9 --consistency strong --kill-leader-at 1 \
         --json {} --report {}",
        json.display(),
        report.display()
    ));
    assert_eq!(code, Some(0), "{page}\n{lines}");
    assert!(page.contains("killed at 1."), "{page}");
    assert!(page.contains("errors on survivors: none"), "{page}");
    let json = fs::read_to_string(json).unwrap();
    let gap = numbers(&json, "longest_gap_ms")[0];
    assert!(gap > 0.0 && json.contains("\"errors\": 0, "), "{json}");
    // The clients of the dead leader reconnected to the other nodes.
    assert!(numbers(&json, "reconnects")[0] >= 3.0, "{json}");
    let svg = fs::read_to_string(report.join("throughput.svg")).unwrap();
    assert!(svg.contains("leader killed, longest gap: strong "), "{svg}");
}

#[test]
fn a_live_cluster_gets_exactly_the_requested_operations() {
    let _alone = alone();
    let cluster = Cluster::start(3, &[]);
    let peers: Vec<_> =
        cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let (code, csv, lines) = run(&format!(
        "--peers {} --requests 501 --rate 1000 --warmup 0 --to follower --protocol line \
         --ratio 0.5 --keys 100 --preload --distribution zipfian --clients 5 --pipeline 2 \
         --threads 2 --rounds 2 --csv -",
        peers.join(",")
    ));
    assert_eq!(code, Some(0), "{csv}\n{lines}");
    let all: Vec<&str> = csv.lines().filter(|line| line.contains(",all,")).collect();
    assert_eq!(all.len(), 2, "{csv}");
    for (line, mode) in all.iter().zip(["strong", "eventual"]) {
        assert!(line.starts_with(&format!("{mode},all,1002,")), "{csv}");
    }
    let mut client = cluster.nodes[0].resp();
    assert!(client.get("key:000000000099").is_some_and(|value| value.len() == 64));
    assert_eq!(client.get("key:000000000100"), None);
}

#[test]
fn a_signal_ends_a_run_early_with_results_and_without_its_nodes() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().display();
    let line = format!("--spawn 1 --seconds 600 --warmup 0 --consistency strong --dir {dir}");
    let child = command(&line).spawn().unwrap();
    let port = eventually("a node has its log", SOON, || {
        let run = fs::read_dir(scratch.path()).ok()?.next()?.ok()?.path();
        let mut files = fs::read_dir(run).ok()?.map(|file| file.unwrap().path());
        let log = files.find(|file| file.extension().is_some_and(|end| end == "log"))?;
        log.file_stem()?.to_str()?.parse::<u16>().ok()
    });
    eventually("the load runs", SOON, || {
        let mut client = Client::connect(&format!("127.0.0.1:{port}"), &Options::default()).ok()?;
        matches!(client.call(&["DBSIZE"]), Ok(Reply::Integer(10..))).then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let (code, page, lines) = result_of(child.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{page}\n{lines}");
    assert!(page.contains("strong: asked to stop"), "{page}");
    assert!(page.contains("Strong consistency average latency: "), "{page}");
    assert!(is_empty(scratch.path()), "the node left files behind");
}

#[test]
fn unreachable_peers_and_mistakes_are_reported() {
    let _shared = shared();
    let free = Port::take();
    let (code, _, lines) = run(&format!("--peers 127.0.0.1:{} --seconds 1", free.number));
    assert_eq!(code, Some(74), "{lines}");
    assert!(lines.contains(&format!("cannot talk to 127.0.0.1:{}", free.number)), "{lines}");
    let (code, _, lines) = run("--spawn 3 --kill-leader-at 99");
    assert_eq!(code, Some(2), "{lines}");
    assert!(lines.contains("--kill-leader-at must lie within --seconds"), "{lines}");
}
