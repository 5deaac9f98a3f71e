//! The eventual mode under trial: clients that write and read with it, and what must hold.
//!
//! What is known of every node's memory and disk says at each crash which acknowledged writes may
//! be lost: those that nobody else holds, and only within their first second. All others must win
//! over everything older when the world is calm again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Now;
use crate::replica::{Envelope, Message, WalRecord};
use crate::service::Taken;
use crate::testing::sim::cluster::World;
use crate::testing::sim::faults::Fault;
use crate::testing::sim::sessions::Connection;
use crate::testing::sim::workload::{End, Request};
use crate::types::{Command, Entry, Index, Key, Outcome, Payload, Version, Write};

/// An acknowledged write that no crash has lost is durable after this time.
const SYNCED_WITHIN: Duration = Duration::from_secs(1);

/// The highest version of each key.
pub type Versions = BTreeMap<Key, Version>;

/// What has been promised, and who holds what.
#[derive(Debug)]
pub struct Promises {
    acked: BTreeMap<Key, Vec<Version>>,
    /// In each node's memory.
    memory: Vec<Versions>,
    /// When each node took each version that it held.
    taken: Vec<BTreeMap<Version, Now>>,
    /// On each node's disk.
    disk: Vec<Versions>,
    committed: Versions,
    /// What each version wrote.
    values: BTreeMap<Version, (Key, Option<Vec<u8>>)>,
    /// Which process stamped each version, as its node's life.
    stampers: BTreeMap<Version, u64>,
    /// The latest version that wrote a value.
    writers: BTreeMap<Vec<u8>, Version>,
    deletions: Versions,
    /// The highest version of each node's own making that has left it.
    left: Vec<Version>,
    /// The newest of each key that has been applied anywhere.
    merged: Versions,
    digests: BTreeMap<Index, u64>,
}

impl Promises {
    pub fn new(size: usize) -> Promises {
        Promises {
            acked: BTreeMap::new(),
            memory: vec![Versions::new(); size],
            taken: vec![BTreeMap::new(); size],
            disk: vec![Versions::new(); size],
            committed: Versions::new(),
            values: BTreeMap::new(),
            stampers: BTreeMap::new(),
            writers: BTreeMap::new(),
            deletions: Versions::new(),
            left: vec![Version::default(); size],
            merged: Versions::new(),
            digests: BTreeMap::new(),
        }
    }

    /// How many writes of eventual sessions were acknowledged and not excused.
    pub fn acknowledged(&self) -> u64 {
        self.acked.values().map(|writes| writes.len() as u64).sum()
    }

    /// Entries with these writes are committed.
    pub fn commit(&mut self, payload: &Payload) {
        if let Payload::Merge(writes) = payload {
            raise(&mut self.committed, writes);
        }
    }

    /// True if this write, or a newer one to its key, is in the log.
    pub fn is_committed(&self, write: &Write) -> bool {
        version(&self.committed, &write.key) >= write.version
    }

    fn note(&mut self, write: &Write) {
        let value = write.value.as_ref().map(|value| value.to_vec());
        match &value {
            Some(value) => {
                let writer = self.writers.entry(value.clone()).or_default();
                *writer = write.version.max(*writer);
            }
            None => raise(&mut self.deletions, std::slice::from_ref(write)),
        }
        self.values.insert(write.version, (write.key.clone(), value));
    }
}

fn raise(versions: &mut Versions, writes: &[Write]) {
    for write in writes {
        let known = versions.entry(write.key.clone()).or_default();
        *known = write.version.max(*known);
    }
}

fn version(versions: &Versions, key: &Key) -> Version {
    versions.get(key).copied().unwrap_or_default()
}

impl World {
    /// What a session reads is not older than what it has written there.
    pub fn check_read(&mut self, connection: usize, key: &Key, outcome: &Outcome) {
        let connection = &self.connections[connection];
        let (node, written) = (connection.node, version(&connection.written, key));
        let seen = match outcome {
            Outcome::Value(value) => self.promises.writers.get(&value[..]).copied(),
            _ if key.starts_with(b"e") => Some(version(&self.promises.deletions, key)),
            _ => None,
        };
        if !self.forgets() && seen.is_some_and(|seen| seen < written) {
            let how = format!("#{node}, {key:?}: {outcome:?} of {seen:?} after {written:?}");
            self.fail("a session reads its own writes", how);
        }
    }

    /// A node holds stamped writes; they become visible there in a moment.
    pub fn note_taken(&mut self, node: usize, taken: &Taken) {
        let Some(life) = self.life(node) else { return };
        let writes = &taken.writes;
        let stamped_here = taken.by == Some(self.nodes[node].id);
        let own = writes.iter().map(|write| write.version);
        let own = own.filter(|version| usize::from(version.origin()) == node).min();
        let left = self.promises.left[node];
        if stamped_here && own.is_some_and(|version| version <= left) {
            let how = format!("#{node}: {own:?} after {left:?}");
            self.fail("a node's versions never fall", how);
        }
        raise(&mut self.promises.memory[node], writes);
        for write in writes.iter() {
            self.promises.taken[node].entry(write.version).or_insert(self.now);
            self.promises.note(write);
            if usize::from(write.version.origin()) == node {
                self.promises.stampers.entry(write.version).or_insert(life);
            }
        }
        self.note_stamped(node, taken);
    }

    /// A connection learns that its writes are stamped: they are newer than those before, readable
    /// on its node, and from now on acknowledged.
    pub fn check_stamped(&mut self, number: usize, writes: &[Write]) {
        let Connection { node, written, .. } = &self.connections[number];
        let falls = writes.iter().find(|write| version(written, &write.key) >= write.version);
        if let Some(write) = falls {
            let how = format!("#{node}: {write:?} after {:?}", version(written, &write.key));
            return self.fail("a session's later write is newer", how);
        }
        raise(&mut self.connections[number].written, writes);
        for write in writes {
            let acked = self.promises.acked.entry(write.key.clone()).or_default();
            acked.push(write.version);
        }
    }

    /// Versions leave their node.
    pub fn check_versions(&mut self, node: usize, envelope: &Envelope) {
        let versions: Vec<Version> = match &envelope.message {
            Message::Spread(writes) => writes.iter().map(|write| write.version).collect(),
            Message::Stamped(stamps) => stamps.iter().filter_map(|(_, stamp)| stamp.ok()).collect(),
            _ => return,
        };
        let own = versions.into_iter().filter(|version| usize::from(version.origin()) == node);
        let left = &mut self.promises.left[node];
        *left = own.max().unwrap_or_default().max(*left);
    }

    /// What the disk holds has changed.
    pub fn note_durable(&mut self, node: usize) {
        let mut durable = Versions::new();
        raise(&mut durable, &self.nodes[node].disk.synced.held);
        self.promises.disk[node] = durable;
    }

    /// The eventual writes that are on a disk and that these records leave out.
    pub fn left_out(&self, node: usize, records: &[WalRecord]) -> Vec<Write> {
        let last = records.iter().rev().find_map(|record| match record {
            WalRecord::Held(writes) => Some(writes),
            _ => None,
        });
        let (Some(writes), Some(process)) = (last, &self.nodes[node].process) else {
            return Vec::new();
        };
        let kept = |old: &&Write| {
            let newer = |new: &Write| new.key == old.key && new.version >= old.version;
            writes.iter().any(newer)
        };
        process.view.held.iter().filter(|old| !kept(old)).cloned().collect()
    }

    /// What a disk forgets of the eventual writes is in the log.
    pub fn check_left_out(&mut self, node: usize, writes: &[Write]) {
        let lost = writes.iter().find(|write| !self.promises.is_committed(write)).cloned();
        if let Some(lost) = lost {
            let how = format!("#{node}: {lost:?}");
            self.fail("a disk forgets only what is in the log", how);
        }
    }

    /// A node starts with what its disk held.
    pub fn note_start(&mut self, node: usize) {
        self.promises.memory[node] = self.promises.disk[node].clone();
    }

    /// A node has lost its memory, or its directory as well.
    pub fn note_loss(&mut self, node: usize, wiped: bool) {
        let mut lost = std::mem::take(&mut self.promises.memory[node]);
        let taken = std::mem::take(&mut self.promises.taken[node]);
        if wiped {
            lost.append(&mut self.promises.disk[node]);
            self.promises.left[node] = Version::default();
        }
        self.note_durable(node);
        let unhealthy = [Fault::SlowDisk, Fault::StallDisk, Fault::DiskFull, Fault::Pause];
        let strict = !wiped && !unhealthy.iter().any(|fault| self.plan.faults.contains(fault));
        let now = self.now;
        let mut late = None;
        for (key, held) in lost {
            let promises = &mut self.promises;
            let elsewhere = promises.memory.iter().chain(&promises.disk);
            let rest = elsewhere.map(|versions| version(versions, &key)).max().unwrap_or_default();
            let rest = rest.max(version(&promises.committed, &key));
            let Some(acked) = promises.acked.get_mut(&key) else { continue };
            acked.retain(|version| {
                let gone = *version <= held && *version > rest;
                let at = taken.get(version);
                if gone && at.is_some_and(|at| now.since(*at) > SYNCED_WITHIN) {
                    late = Some((key.clone(), *version));
                }
                !gone
            });
        }
        if let Some((key, version)) = late.filter(|_| strict) {
            let how = format!("#{node} {key:?}: {version:?}");
            self.fail("only a second of acknowledged writes can be lost", how);
        }
    }

    /// True if writes may come too late: tombstones end before writes are certain to be drained.
    fn forgets(&self) -> bool {
        self.plan.settings.tombstone_horizon < Duration::from_secs(60)
    }

    /// Before an entry is applied for the first time.
    pub fn check_merge(&mut self, node: usize, entry: &Entry) {
        let Payload::Merge(writes) = &entry.payload else { return };
        let Some(process) = &self.nodes[node].process else { return };
        let store = process.writer.store();
        for write in writes.iter() {
            let fresh = version(&self.promises.merged, &write.key) < write.version;
            raise(&mut self.promises.merged, std::slice::from_ref(write));
            let current = store.version(&write.key);
            if fresh && write.version <= current && current == store.floor() {
                if self.forgets() {
                    self.promises.acked.remove(&write.key);
                } else {
                    let how = format!("{write:?} at {}, floor {current:?}", entry.index);
                    self.fail("no write comes too late", how);
                    return;
                }
            }
        }
    }

    /// A node's state has this digest at a checkpoint.
    pub fn check_checkpoint(&mut self, node: usize, index: Index, digest: u64) {
        if *self.promises.digests.entry(index).or_insert(digest) != digest {
            self.fail("equal logs have equal digests", format!("#{node} at {index}"));
        }
    }

    /// True if every eventual write is in the log.
    pub fn all_drained(&self) -> bool {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).all(|process| {
            let backlog = process.shell.replica().status().backlog;
            backlog.0 == 0 && process.writer.store().overlaid() == 0
        })
    }

    /// Where a client alone writes a key, by way of one process, each write beats those that had
    /// their answers before it was asked for; and what was refused was not done.
    pub fn check_order(&mut self) {
        let Some(process) = self.nodes[0].process.as_ref().filter(|_| !self.forgets()) else {
            return;
        };
        let store = process.writer.store();
        let mut broken = None;
        for client in 0..self.load.clients.len() {
            let key: Key = format!("own{client}").into_bytes().into();
            let Outcome::Value(value) = store.read(&Command::Get { key: &key }) else { continue };
            let wrote = |request: &&Request| request.sets(&value);
            let Some(winner) = self.load.requests.iter().find(wrote) else { continue };
            let End::Done { at, .. } = winner.end else {
                if winner.end == End::NotDone {
                    broken = Some(format!("{key:?}: {winner:?} was refused"));
                }
                continue;
            };
            if self.was_stamped_by_the_dead(&value) {
                continue;
            }
            let later = |request: &&Request| {
                let own = request.client == client && request.is_of_same_process(winner);
                let done = matches!(request.end, End::Done { .. }) && request.invoked > at;
                own && done && self.is_promised(&key, request)
            };
            if let Some(loser) = self.load.requests.iter().find(later) {
                broken = Some(format!("{key:?}: {winner:?} heartbeats {loser:?}"));
            }
        }
        if let Some(how) = broken {
            self.fail("a client's later write wins", how);
        }
    }

    /// True if a request was stamped by a process that died before it could say so, and then by
    /// another: the first stamp may turn up later and, if that clock was ahead, win over what was
    /// written meanwhile.
    fn was_stamped_by_the_dead(&self, value: &[u8]) -> bool {
        let stamps = self.promises.values.iter().filter(|(_, (_, v))| v.as_deref() == Some(value));
        let stamps: Vec<Version> = stamps.map(|(version, _)| *version).collect();
        let alive = |version: &Version| {
            self.life(usize::from(version.origin())) == self.promises.stampers.get(version).copied()
        };
        stamps.len() > 1 && !stamps.iter().all(alive)
    }

    /// True if the request wrote this key and what it wrote must not be lost.
    fn is_promised(&self, key: &Key, request: &Request) -> bool {
        let Some(acked) = self.promises.acked.get(key) else { return false };
        let values =
            acked.iter().filter_map(|version| self.promises.values.get(version)?.1.as_ref());
        values.into_iter().any(|value| request.sets(value))
    }

    /// The newest acknowledged write of each key has won.
    pub fn check_newest(&mut self) {
        let Some(process) = &self.nodes[0].process else { return };
        let store = process.writer.store();
        let mut broken = None;
        for (key, acked) in &self.promises.acked {
            let Some(&newest) = acked.iter().max() else { continue };
            let current = store.version(key);
            let outcome = store.read(&Command::Get { key });
            let found = match &outcome {
                Outcome::Value(value) => Some(value.to_vec()),
                _ => None,
            };
            // (A key without a record has the version of the floor, which may be another key's.)
            let wrong = match self.promises.values.get(&current) {
                Some((written, value)) if written == key => *value != found,
                _ => false,
            };
            if current < newest || wrong {
                broken = Some(format!("{key:?}: {outcome:?} of {current:?}, promised {newest:?}"));
            }
        }
        if let Some(how) = broken {
            self.fail("the newest acknowledged write wins", how);
        }
    }
}
