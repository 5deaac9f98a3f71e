//! Random histories of a log, and a plain model of the state that they add up to.

mod crash;
mod damage;
mod eventual;
mod space;

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::replica::Standing;
use crate::rng::Rng;
use crate::testing::MemoryDisk;
use crate::types::{
    Entry, Index, NodeId, Payload, Proposal, RequestId, Term, Version, Write, Writes,
};

const LOG_ID: u64 = 0x5eed;

fn options(segment_bytes: u64) -> WalOptions {
    WalOptions { segment_bytes, ..WalOptions::new(LOG_ID) }
}

fn open(disk: &Arc<MemoryDisk>, segment_bytes: u64) -> (Wal<MemoryDisk>, Recovered) {
    Wal::open(Arc::clone(disk), options(segment_bytes)).expect("the log is sound")
}

fn entry(index: Index, term: Term, len: usize) -> WalRecord {
    let id = RequestId { node: NodeId(5002), boot: 1, seq: index };
    let commands = Bytes::from(vec![index as u8; len]);
    let proposal = Proposal { id, floor: index, commands };
    let payload = Payload::Batch { stamp: Version::default(), proposal };
    WalRecord::Entry(Entry { index, term, payload })
}

fn hard(term: Term) -> WalRecord {
    let standing = if term.is_multiple_of(2) {
        Standing::CatchingUp
    } else {
        Standing::Voter { founders: [(NodeId(5000), term), (NodeId(5001), 7)].into() }
    };
    WalRecord::Hard(HardState { term, vote: Some(NodeId(term as u32 % 3)), standing })
}

/// A write to one of ten keys, with a value of `len` bytes or, without a length, none.
fn write(version: u64, len: Option<usize>) -> Write {
    let key = [b'a' + (version % 10) as u8].as_slice().into();
    let value = len.map(|len| vec![version as u8; len].into());
    Write { version: Version(version), key, value }
}

/// `count` writes from `version` on, of which some delete.
fn writes(version: u64, count: u64, len: usize) -> Writes {
    (version..version + count).map(|v| write(v, (v % 4 != 0).then_some(len))).collect()
}

/// The meaning of a record, as plainly as possible: the model that recovery is compared with.
fn apply(state: &mut Recovered, record: &WalRecord) {
    match record {
        WalRecord::Hard(hard) => state.hard = hard.clone(),
        WalRecord::Entry(entry) => {
            state.entries.retain(|old| old.index < entry.index);
            state.entries.push(entry.clone());
        }
        WalRecord::Snapshot(meta) => {
            let same = |entry: &Entry| (entry.index, entry.term) == (meta.index, meta.term);
            if *meta != state.snapshot && !state.entries.iter().any(same) {
                state.entries.clear();
            }
            state.entries.retain(|entry| entry.index > meta.index);
            state.snapshot = *meta;
        }
        WalRecord::Stamped(writes) => state.held.extend(writes.iter().cloned()),
        WalRecord::Held(writes) => state.held = writes.iter().cloned().collect(),
        WalRecord::Clock(clock) => state.clock = state.clock.max(*clock),
    }
}

#[derive(Clone, Debug)]
enum Action {
    Append(Vec<WalRecord>),
    Commit,
    /// Close the log, or with `false` drop it with its uncommitted batch; then open it again.
    Reopen(bool),
    Spare,
}

/// A random history that begins at `state`.
fn history(rng: &mut Rng, mut state: Recovered, len: usize) -> Vec<Action> {
    let mut committed = state.clone();
    let mut actions = Vec::new();
    while actions.len() < len {
        actions.push(match rng.below(20) {
            0..12 => {
                let records = random_records(rng, &state);
                records.iter().for_each(|record| apply(&mut state, record));
                Action::Append(records)
            }
            12..18 => {
                committed = state.clone();
                Action::Commit
            }
            18 => {
                let clean = rng.chance(1, 2);
                if clean {
                    committed = state.clone();
                } else {
                    state = committed.clone();
                }
                Action::Reopen(clean)
            }
            _ => Action::Spare,
        });
    }
    actions
}

fn random_records(rng: &mut Rng, state: &Recovered) -> Vec<WalRecord> {
    let base = state.snapshot.index;
    let last = state.entries.last().map_or(base, |entry| entry.index);
    let last_term = state.entries.last().map_or(state.snapshot.term, |entry| entry.term);
    let term = last_term.max(state.hard.term) + 1;
    match rng.below(13) {
        0 => vec![hard(term)],
        1 if last > base => {
            let from = base + 1 + rng.below(last - base);
            vec![hard(term), entry(from, term, 20), entry(from + 1, term, 0)]
        }
        2 | 3 if last > base => {
            let meta = &state.entries[rng.below(last - base) as usize];
            vec![WalRecord::Snapshot(SnapshotMeta { index: meta.index, term: meta.term })]
        }
        4 if rng.chance(1, 3) => {
            // An installed snapshot: beyond the log, or within it and in contradiction to it.
            let index = base + 1 + rng.below(last - base + 3);
            vec![WalRecord::Snapshot(SnapshotMeta { index, term })]
        }
        5 if rng.chance(1, 4) => vec![entry(last + 1, last_term.max(1), 3000)],
        10..13 => random_eventual_records(rng, state),
        _ => {
            let len = rng.below(150) as usize;
            let count = 1 + rng.below(4);
            (1..=count).map(|i| entry(last + i, last_term.max(1), len)).collect()
        }
    }
}

fn random_eventual_records(rng: &mut Rng, state: &Recovered) -> Vec<WalRecord> {
    let clock = state.clock.0;
    let stamped =
        |rng: &mut Rng| WalRecord::Stamped(writes(clock, rng.below(5), rng.below(100) as usize));
    match rng.below(8) {
        0..3 => vec![WalRecord::Clock(Version(clock + 50)), stamped(rng)],
        3 => vec![stamped(rng), WalRecord::Clock(Version(clock.saturating_sub(rng.below(9))))],
        4 => vec![WalRecord::Held([].into())],
        5 => vec![stamped(rng), WalRecord::Held(writes(clock, 2, 30)), stamped(rng)],
        6 => vec![WalRecord::Held(state.held.iter().skip(1).cloned().collect())],
        _ => {
            vec![WalRecord::Held(writes(clock, 4, 800)), WalRecord::Held([].into()), stamped(rng)]
        }
    }
}

/// The states of a history as far as it ran.
struct Run {
    /// The state after each batch that was begun, and before the first.
    states: Vec<Recovered>,
    /// The number of acknowledged batches.
    acknowledged: usize,
}

impl Run {
    /// True if recovery may find this state: everything acknowledged, and at most the batch in
    /// flight.
    fn allows(&self, recovered: &Recovered) -> bool {
        self.states[self.acknowledged..].contains(recovered)
    }
}

/// Plays `actions` until they end or the disk stops.
fn play(disk: &Arc<MemoryDisk>, start: Recovered, segment_bytes: u64, actions: &[Action]) -> Run {
    let mut run = Run { states: vec![start.clone()], acknowledged: 0 };
    // Errors end the history; the caller judges the disk that they leave behind.
    let _ = try_play(disk, start, segment_bytes, actions, &mut run);
    run
}

fn try_play(
    disk: &Arc<MemoryDisk>,
    mut state: Recovered,
    segment_bytes: u64,
    actions: &[Action],
    run: &mut Run,
) -> Result<(), WalError> {
    let begin = |run: &mut Run, state: &Recovered, wal: &Wal<MemoryDisk>| {
        if wal.pending_bytes() > 0 {
            run.states.push(state.clone());
        }
    };
    let (mut wal, recovered) = Wal::open(Arc::clone(disk), options(segment_bytes))?;
    assert_eq!(recovered, state);
    for action in actions {
        match action {
            Action::Append(records) => {
                records.iter().for_each(|record| apply(&mut state, record));
                wal.append(records);
            }
            Action::Commit => {
                begin(run, &state, &wal);
                wal.commit()?;
                run.acknowledged = run.states.len() - 1;
            }
            Action::Reopen(clean) => {
                if *clean {
                    begin(run, &state, &wal);
                    wal.close()?;
                    run.acknowledged = run.states.len() - 1;
                } else {
                    drop(wal);
                }
                let (again, recovered) = Wal::open(Arc::clone(disk), options(segment_bytes))?;
                wal = again;
                state = run.states[run.acknowledged].clone();
                assert_eq!(recovered, state);
            }
            Action::Spare => {
                if let Some(job) = wal.spare_wanted() {
                    job.run()?;
                }
            }
        }
    }
    Ok(())
}
