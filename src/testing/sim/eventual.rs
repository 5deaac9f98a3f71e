//! The promises of the eventual mode, checked as its writes move through the cluster.
//!
//! The simulator knows every node's memory and disk. So at each crash it knows the acknowledged
//! writes that are lost: those that no other node holds. A loss is allowed only within a write's
//! first second. At the end every other acknowledged write must have won over all older ones.

use std::time::Duration;

use crate::replica::{Envelope, Message, WalRecord};
use crate::service::Taken;
use crate::testing::sim::cluster::World;
use crate::testing::sim::connection::SimConnection;
use crate::testing::sim::faults::Fault;
use crate::testing::sim::promises::{Versions, raise, version};
use crate::testing::sim::workload::{RequestState, SimRequest};
use crate::types::{Command, Entry, Index, Key, Outcome, Payload, Version, Write};

/// An acknowledged write is durable after this time, on each node that holds it.
const SYNCED_WITHIN: Duration = Duration::from_secs(1);

impl World {
    /// A session reads its own writes, or newer ones.
    pub fn check_read(&mut self, connection: usize, key: &Key, outcome: &Outcome) {
        let connection = &self.connections[connection];
        let (node, written) = (connection.node, version(&connection.written, key));
        // Each value is written once, so a value tells its version. An absent key tells one only if
        // nothing but eventual sessions deletes it.
        let seen = match outcome {
            Outcome::Value(value) => self.promises.writers.get(&value[..]).copied(),
            _ if key.starts_with(b"e") => Some(version(&self.promises.deletions, key)),
            _ => None,
        };
        if !self.tombstones_end_early() && seen.is_some_and(|seen| seen < written) {
            let how = format!("#{node}, {key:?}: {outcome:?} of {seen:?} after {written:?}");
            self.fail("a session reads its own writes", how);
        }
    }

    /// A node takes stamped writes into its memory. They become readable there a little later.
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

    /// A client learns that its writes are stamped. They are newer than its earlier ones, and from
    /// now on acknowledged.
    pub fn check_stamped(&mut self, number: usize, writes: &[Write]) {
        let SimConnection { node, written, .. } = &self.connections[number];
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

    /// A message leaves a node: notes the highest version of the node's own that it carries.
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

    /// Notes the eventual writes that a node's disk holds now.
    pub fn note_durable(&mut self, node: usize) {
        let mut durable = Versions::new();
        raise(&mut durable, &self.nodes[node].disk.synced.held);
        self.promises.disk[node] = durable;
    }

    /// The eventual writes on a node's disk that these records drop.
    pub fn dropped_writes(&self, node: usize, records: &[WalRecord]) -> Vec<Write> {
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
        process.log_model.held.iter().filter(|old| !kept(old)).cloned().collect()
    }

    /// A disk drops an eventual write only once it, or a newer one, is in the log.
    pub fn check_dropped(&mut self, node: usize, writes: &[Write]) {
        let lost = writes.iter().find(|write| !self.promises.is_committed(write)).cloned();
        if let Some(lost) = lost {
            let how = format!("#{node}: {lost:?}");
            self.fail("a disk forgets only what is in the log", how);
        }
    }

    /// A node starts: its memory holds the writes of its disk.
    pub fn note_start(&mut self, node: usize) {
        self.promises.memory[node] = self.promises.disk[node].clone();
    }

    /// A node has lost its memory, and if `wiped` its directory as well. Excuses the acknowledged
    /// writes that are lost with it, if they are young enough.
    pub fn note_loss(&mut self, node: usize, wiped: bool) {
        let mut lost = std::mem::take(&mut self.promises.memory[node]);
        let taken = std::mem::take(&mut self.promises.taken[node]);
        if wiped {
            lost.append(&mut self.promises.disk[node]);
            self.promises.left[node] = Version::default();
        }
        self.note_durable(node);
        // A slow, full or paused node may need more than a second for a sync.
        let unhealthy = [Fault::SlowDisk, Fault::StallDisk, Fault::DiskFull, Fault::Pause];
        let strict = !wiped && !unhealthy.iter().any(|fault| self.plan.faults.contains(fault));
        let now = self.now;
        let mut late = None;
        // An acknowledged write is lost if no memory, no disk and no committed entry has it or a
        // newer one to its key.
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

    /// True if an eventual write may come too late: the seed lets tombstones end before all writes
    /// are certain to have drained.
    fn tombstones_end_early(&self) -> bool {
        self.plan.settings.tombstone_horizon < Duration::from_secs(60)
    }

    /// An entry is about to be applied. The store must not refuse a new write as too old: the
    /// floor, the version of all keys without a record, must not have passed it.
    pub fn check_merge(&mut self, node: usize, entry: &Entry) {
        let Payload::Merge(writes) = &entry.payload else { return };
        let Some(process) = &self.nodes[node].process else { return };
        let store = process.writer.store();
        for write in writes.iter() {
            let fresh = version(&self.promises.merged, &write.key) < write.version;
            raise(&mut self.promises.merged, std::slice::from_ref(write));
            let current = store.version(&write.key);
            // The floor refuses it. Only the first node to apply a write can tell: afterwards the
            // key has a record.
            if fresh && write.version <= current && current == store.floor() {
                if self.tombstones_end_early() {
                    self.promises.acked.remove(&write.key);
                } else {
                    let how = format!("{write:?} at {}, floor {current:?}", entry.index);
                    self.fail("no write comes too late", how);
                    return;
                }
            }
        }
    }

    /// The digest of a state at a checkpoint is the same on every node.
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

    /// A client that alone writes a key, through one process, sees its later write win over each
    /// that had its answer before. And a refused write was not done.
    pub fn check_order(&mut self) {
        let Some(process) = self.nodes[0].process.as_ref().filter(|_| !self.tombstones_end_early())
        else {
            return;
        };
        let store = process.writer.store();
        let mut broken = None;
        for client in 0..self.load.clients.len() {
            let key: Key = format!("own{client}").into_bytes().into();
            let Outcome::Value(value) = store.read(&Command::Get { key: &key }) else { continue };
            let wrote = |request: &&SimRequest| request.sets(&value);
            let Some(winner) = self.load.requests.iter().find(wrote) else { continue };
            let RequestState::Done { at, .. } = winner.state else {
                if winner.state == RequestState::NotDone {
                    broken = Some(format!("{key:?}: {winner:?} was refused"));
                }
                continue;
            };
            if self.has_a_stamp_of_a_dead_process(&value) {
                continue;
            }
            let later = |request: &&SimRequest| {
                let own = request.client == client && request.is_of_same_process(winner);
                let done =
                    matches!(request.state, RequestState::Done { .. }) && request.invoked > at;
                own && done && self.is_promised(&key, request)
            };
            if let Some(loser) = self.load.requests.iter().find(later) {
                broken = Some(format!("{key:?}: {winner:?} beats {loser:?}"));
            }
        }
        if let Some(how) = broken {
            self.fail("a client's later write wins", how);
        }
    }

    /// True if a write was stamped by a process that died before it could answer, and then again by
    /// another one. The first stamp may turn up later. If its clock was ahead, it wins over the
    /// writes made in between, which is allowed.
    fn has_a_stamp_of_a_dead_process(&self, value: &[u8]) -> bool {
        let stamps = self.promises.values.iter().filter(|(_, (_, v))| v.as_deref() == Some(value));
        let stamps: Vec<Version> = stamps.map(|(version, _)| *version).collect();
        let alive = |version: &Version| {
            self.life(usize::from(version.origin())) == self.promises.stampers.get(version).copied()
        };
        stamps.len() > 1 && !stamps.iter().all(alive)
    }

    /// True if the request wrote this key and its write must not be lost.
    fn is_promised(&self, key: &Key, request: &SimRequest) -> bool {
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
            // A key without a record has the version of the floor, which may be another key's.
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
