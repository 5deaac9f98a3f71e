//! Requests to all nodes before and after the load: health checks, final reads, and the removal of
//! the run's keys from a live cluster.
//!
//! The final strong reads are part of the history: they reveal a lost acknowledged write.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::client::{Client, Error, Options, Reply, encode};
use crate::testing::linearizability::Action;
use crate::tools::verify::history::{Fate, StrongRecord, seen};
use crate::tools::verify::judge::Ends;
use crate::tools::verify::workload::Board;
use crate::tools::watch::Watch;

/// Longest time after healing until all nodes serve again and show the same values.
pub const RECOVERY: Duration = Duration::from_secs(60);
/// Time-out of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(50);
/// Number of requests in a pipeline.
const CHUNK: usize = 64;
/// The key of health checks, whose writes belong to no history.
const PROBE: &str = "probe";

fn connect(board: &Board, node: usize) -> Result<Client, Error> {
    Client::connect(
        &board.addresses[node],
        &Options { timeout: REQUEST_TIMEOUT, ..board.options.clone() },
    )
}

/// Checks that all nodes take writes and name the same leader.
pub fn all_well(board: &Board) -> Result<(), String> {
    let mut leaders = BTreeSet::new();
    for node in 0..board.addresses.len() {
        leaders.insert(well(board, node)?);
    }
    if leaders.len() > 1 { Err(format!("the nodes name leaders {leaders:?}")) } else { Ok(()) }
}

/// Checks that a node takes writes. Returns the leader that it names.
pub fn well(board: &Board, node: usize) -> Result<i64, String> {
    let trouble = |cause: String| format!("{}: {cause}", board.addresses[node]);
    let mut client = connect(board, node).map_err(|error| trouble(error.to_string()))?;
    let probe = board.full(PROBE);
    match client.call(&["SET", &probe, "1"]) {
        Ok(reply) if reply.is_ok() => {}
        other => return Err(trouble(format!("SET: {other:?}"))),
    }
    match client.call(&["LEADER"]) {
        Ok(Reply::Integer(leader)) => Ok(leader),
        other => Err(trouble(format!("LEADER: {other:?}"))),
    }
}

/// The leader that the first reachable node names.
pub fn leader(board: &Board) -> Option<i64> {
    let options = Options { timeout: Duration::from_millis(200), ..board.options.clone() };
    (0..board.addresses.len()).find_map(|node| {
        let mut client = Client::connect(&board.addresses[node], &options).ok()?;
        match client.call(&["LEADER"]) {
            Ok(Reply::Integer(leader)) => Some(leader),
            _ => None,
        }
    })
}

/// Repeats an attempt until it succeeds. Returns the last error once the time is over, or after the
/// second signal.
pub fn within<T>(
    watch: &Watch,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if started.elapsed() > limit || watch.must_abort() => return Err(error),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// The boot number of each node, which changes with every start of its process.
pub fn boots(board: &Board) -> Result<Vec<String>, String> {
    let boot_of = |node: usize| {
        let mut client = connect(board, node)?;
        let Reply::Bulk(info) = client.call(&["INFO", "server"])? else { return Ok(None) };
        let info = String::from_utf8_lossy(&info);
        let boot = info.lines().find_map(|line| line.strip_prefix("boot:")).map(str::to_string);
        Ok::<_, Error>(boot)
    };
    let boots = (0..board.addresses.len()).map(|node| match boot_of(node) {
        Ok(Some(boot)) => Ok(boot),
        Ok(None) => Err(format!("{}: INFO has no boot number", board.addresses[node])),
        Err(error) => Err(format!("{}: {error}", board.addresses[node])),
    });
    boots.collect()
}

/// Reads these keys at one node in a strong session.
pub fn read_strong(board: &Board, node: usize, keys: &[&str]) -> Result<Vec<StrongRecord>, String> {
    let mut records = Vec::new();
    for keys in keys.chunks(CHUNK) {
        let mut bytes = Vec::new();
        keys.iter().for_each(|key| encode(&["GET", &board.full(key)], &mut bytes));
        let trouble = |cause: String| format!("{}: final reads: {cause}", board.addresses[node]);
        let mut client = connect(board, node).map_err(|error| trouble(error.to_string()))?;
        let invoked: Vec<u64> = keys.iter().map(|_| board.tickets.draw()).collect();
        client.send(&bytes).map_err(|error| trouble(error.to_string()))?;
        for (key, invoked) in keys.iter().zip(invoked) {
            let answer = client.receive();
            match Fate::of(answer, |reply| seen(&Action::Get, reply)) {
                Fate::Done(seen) => records.push(StrongRecord {
                    client: board.clients,
                    node,
                    key: (*key).into(),
                    action: Action::Get,
                    invoked,
                    returned: Some(board.tickets.draw()),
                    seen: Some(seen),
                }),
                other => return Err(trouble(format!("GET {key}: {other:?}"))),
            }
        }
    }
    Ok(records)
}

/// The values of these keys at each node, in eventual sessions and then in strong ones. Waits until
/// all agree; once the time is over, returns the last values.
pub fn read_ends(board: &Board, watch: &Watch, keys: &BTreeSet<&str>) -> Result<Ends, String> {
    let mut last = Err("nothing was read".to_string());
    let keys: Vec<&str> = keys.iter().copied().collect();
    let agreed = within(watch, RECOVERY, || {
        let mut ends = Ends::new();
        for mode in ["eventual", "strong"] {
            for node in 0..board.addresses.len() {
                let values = read_values(board, node, mode, &keys);
                let values = values.inspect_err(|error| last = Err(error.clone()))?;
                for (key, value) in keys.iter().zip(values) {
                    ends.entry((*key).into()).or_default().push(value);
                }
            }
        }
        let differs = |values: &Vec<Option<Vec<u8>>>| values.iter().any(|v| *v != values[0]);
        let agree = !ends.values().any(differs);
        last = Ok(ends);
        if agree { Ok(()) } else { Err("the nodes differ".into()) }
    });
    match agreed {
        Err(_) if watch.must_abort() => Err("interrupted".into()),
        _ => last,
    }
}

/// The values of these keys at one node, in this consistency mode.
fn read_values(
    board: &Board,
    node: usize,
    mode: &str,
    keys: &[&str],
) -> Result<Vec<Option<Vec<u8>>>, String> {
    let trouble = |cause: String| format!("{}: final {mode} reads: {cause}", board.addresses[node]);
    let mut client = connect(board, node).map_err(|error| trouble(error.to_string()))?;
    let mut values = Vec::new();
    for keys in keys.chunks(CHUNK) {
        let requests: Vec<Vec<String>> = keys
            .iter()
            .map(|key| vec!["WITH".into(), mode.into(), "GET".into(), board.full(key)])
            .collect();
        for reply in client.pipeline(&requests).map_err(|error| trouble(error.to_string()))? {
            values.push(match reply {
                Reply::Bulk(value) => Some(value),
                Reply::Nil => None,
                other => return Err(trouble(format!("{other:?}"))),
            });
        }
    }
    Ok(values)
}

/// Deletes these keys, and the key of health checks.
pub fn delete(board: &Board, keys: &BTreeSet<&str>) -> Result<(), String> {
    let mut client = connect(board, 0).map_err(|error| error.to_string())?;
    let keys: Vec<String> = keys.iter().chain([&PROBE]).map(|key| board.full(key)).collect();
    for keys in keys.chunks(CHUNK) {
        let words = ["WITH", "strong", "DEL"].into_iter().chain(keys.iter().map(String::as_str));
        match client.call(&words.collect::<Vec<_>>()) {
            Ok(Reply::Integer(_)) => {}
            other => return Err(format!("DEL: {other:?}")),
        }
    }
    Ok(())
}
