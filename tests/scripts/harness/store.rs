//! A node's store, as a value: a base that only the log changes, and an overlay of stamped eventual
//! writes. Keeps versions, tombstones and the floor as the real store does.

use std::collections::{BTreeMap, BTreeSet};

use nodesync::types::{Entry, Index, NodeId, Payload, RequestId, Version, Write};

/// The state of a key; without a value it is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub version: Version,
    pub value: Option<String>,
}

type Map = BTreeMap<String, Held>;

/// A state machine of `key=value` lines that drops the copies of requests.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub applied: Index,
    pub base: Map,
    pub overlay: Map,
    /// Tombstones up to here were dropped.
    pub floor: Version,
    /// The highest version that the log has held.
    pub latest: Version,
    /// Merged writes that came behind the floor.
    pub late: u64,
    seen: BTreeMap<NodeId, Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    boot: u64,
    floor: u64,
    seqs: BTreeSet<u64>,
}

/// The outcome of applying an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    Noop,
    Done(RequestId),
    Copy(RequestId),
    /// A checkpoint, with the digest of the state there.
    Checkpoint(u64),
}

impl Store {
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        assert_eq!(entry.index, self.applied + 1, "applied out of order");
        self.applied = entry.index;
        match &entry.payload {
            Payload::Noop => Applied::Noop,
            Payload::Batch { stamp, proposal } => {
                if !self.admit(proposal.id, proposal.floor) {
                    return Applied::Copy(proposal.id);
                }
                let text = String::from_utf8_lossy(&proposal.commands);
                let (key, value) = text.split_once('=').expect("scripts propose key=value");
                let version = (*stamp).max(self.latest.next_of_log());
                self.put(key.to_owned(), Held { version, value: Some(value.to_owned()) });
                Applied::Done(proposal.id)
            }
            Payload::Merge(writes) => {
                writes.iter().for_each(|write| self.merge(write));
                Applied::Noop
            }
            Payload::Checkpoint { floor } => {
                self.floor = self.floor.max(*floor);
                self.latest = self.latest.max(*floor);
                let floor = self.floor;
                self.base.retain(|_, held| held.value.is_some() || held.version > floor);
                Applied::Checkpoint(self.digest())
            }
        }
    }

    fn admit(&mut self, id: RequestId, request_floor: u64) -> bool {
        let seen = self.seen.entry(id.node).or_default();
        if id.boot > seen.boot {
            *seen = Seen { boot: id.boot, ..Seen::default() };
        }
        if id.boot < seen.boot || id.seq < seen.floor || !seen.seqs.insert(id.seq) {
            return false;
        }
        seen.floor = seen.floor.max(request_floor);
        let floor = seen.floor;
        seen.seqs.retain(|seq| *seq >= floor);
        true
    }

    fn merge(&mut self, write: &Write) {
        self.latest = self.latest.max(write.version);
        let (key, held) = held(write);
        let base = self.base.get(&key).map(|base| base.version);
        if held.version > base.unwrap_or(self.floor) {
            return self.put(key, held);
        }
        self.late += u64::from(base.is_none());
        self.forget(&key, base.unwrap_or(held.version).max(held.version));
    }

    fn put(&mut self, key: String, held: Held) {
        self.latest = self.latest.max(held.version);
        self.forget(&key, held.version);
        self.base.insert(key, held);
    }

    fn forget(&mut self, key: &str, version: Version) {
        if self.overlay.get(key).is_some_and(|overlaid| overlaid.version <= version) {
            self.overlay.remove(key);
        }
    }

    /// Puts stamped writes into the overlay.
    pub fn put_overlay(&mut self, writes: &[Write]) {
        for write in writes {
            let (key, held) = held(write);
            if held.version > self.newest(&key).map_or(self.floor, |newest| newest.version) {
                self.overlay.insert(key, held);
            }
        }
    }

    /// The newest value of a key, as an eventual read sees it.
    pub fn newest(&self, key: &str) -> Option<&Held> {
        let known = self.base.get(key).into_iter().chain(self.overlay.get(key));
        known.max_by_key(|held| held.version)
    }

    /// An image: the store without the overlay.
    pub fn image(&self) -> Store {
        Store { overlay: Map::new(), ..self.clone() }
    }

    /// Replaces everything but the overlay by an image.
    pub fn restore(&mut self, image: Store) {
        let overlay = std::mem::take(&mut self.overlay);
        *self = image;
        for (key, held) in overlay {
            if held.version > self.base.get(&key).map_or(self.floor, |base| base.version) {
                self.overlay.insert(key, held);
            }
        }
    }

    /// FNV-1a over the base.
    fn digest(&self) -> u64 {
        let text = format!("{:?} {:?}", self.base, self.floor);
        let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
    }
}

fn held(write: &Write) -> (String, Held) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let value = write.value.as_deref().map(text);
    (text(&write.key), Held { version: write.version, value })
}
