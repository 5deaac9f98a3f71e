//! The facts that the checks of the eventual mode remember: acknowledged writes, and the nodes that
//! hold them.

use std::collections::BTreeMap;

use crate::clock::Now;
use crate::types::{Index, Key, Payload, Version, Write};

/// The highest version of each key.
pub type Versions = BTreeMap<Key, Version>;

/// Acknowledged eventual writes, and the places that hold them.
#[derive(Debug)]
pub struct Promises {
    /// Acknowledged writes that must not be lost.
    pub acked: BTreeMap<Key, Vec<Version>>,
    /// The newest writes in each node's memory.
    pub memory: Vec<Versions>,
    /// For each node: the time at which it took each version.
    pub taken: Vec<BTreeMap<Version, Now>>,
    /// The newest writes on each node's disk.
    pub disk: Vec<Versions>,
    /// The newest committed writes.
    pub committed: Versions,
    /// The key and the value of each version.
    pub values: BTreeMap<Version, (Key, Option<Vec<u8>>)>,
    /// The process that stamped each version, as the life of its node.
    pub stampers: BTreeMap<Version, u64>,
    /// The latest version that wrote each value.
    pub writers: BTreeMap<Vec<u8>, Version>,
    /// The newest deletions.
    pub deletions: Versions,
    /// For each node: the highest version that it has stamped and sent.
    pub left: Vec<Version>,
    /// The newest writes that any node has applied.
    pub merged: Versions,
    /// The digest of the state at each checkpoint.
    pub digests: BTreeMap<Index, u64>,
}

impl Promises {
    /// No promise yet, in a cluster of `size` nodes.
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

    /// The number of acknowledged writes that must not be lost.
    pub fn acknowledged(&self) -> u64 {
        self.acked.values().map(|writes| writes.len() as u64).sum()
    }

    /// Notes that an entry is committed.
    pub fn commit(&mut self, payload: &Payload) {
        if let Payload::Merge(writes) = payload {
            raise(&mut self.committed, writes);
        }
    }

    /// True if this write, or a newer one to its key, is in the log.
    pub fn is_committed(&self, write: &Write) -> bool {
        version(&self.committed, &write.key) >= write.version
    }

    /// Notes the value of a stamped write.
    pub fn note(&mut self, write: &Write) {
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

/// Raises the version of each written key to that of its write.
pub fn raise(versions: &mut Versions, writes: &[Write]) {
    for write in writes {
        let known = versions.entry(write.key.clone()).or_default();
        *known = write.version.max(*known);
    }
}

/// The version of a key; zero if it has none.
pub fn version(versions: &Versions, key: &Key) -> Version {
    versions.get(key).copied().unwrap_or_default()
}
