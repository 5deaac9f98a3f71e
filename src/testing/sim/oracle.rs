//! The facts that the checks of Raft remember, and no node does: leaders, votes, committed entries,
//! executed requests.

use std::collections::{BTreeMap, HashMap};

use crate::store::Applied;
use crate::testing::sim::trace::{mix, mix_bytes};
use crate::types::{
    Command, Entry, Index, Key, NodeId, Outcome, Payload, RequestId, Term, Version, encode_writes,
};

/// A committed entry.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub term: Term,
    pub hash: u64,
    /// The term in which the first node learnt that it is committed.
    pub since: Term,
    /// The digest of everything applied up to it, once a node has applied it.
    pub digest: Option<u64>,
}

/// The history of the whole cluster. No result depends on the order of its hash tables.
#[derive(Debug)]
pub struct Oracle {
    pub majority: usize,
    pub leaders: BTreeMap<Term, NodeId>,
    /// For each voter and term: the candidate.
    pub votes: HashMap<(NodeId, Term), NodeId>,
    /// The latest term in which each node's vote has left it.
    pub voted: BTreeMap<NodeId, Term>,
    /// For each entry that ever was in a log: its hash, and the term before it.
    pub entries: HashMap<(Index, Term), (u64, Term)>,
    /// The committed entries, from index 1 on.
    pub committed: Vec<Committed>,
    pub executed: HashMap<RequestId, Index>,
    /// For each node: its latest life of which a request was executed, and the index of the first
    /// one.
    pub boots: BTreeMap<NodeId, (u64, Index)>,
    /// The hash of the image of each index.
    pub images: BTreeMap<Index, u64>,
    /// The number of stores that an image has replaced.
    pub restored: u64,
    /// The length of the longest image.
    pub image_bytes: u64,
}

impl Oracle {
    /// No history yet, of a cluster of `size` nodes.
    pub fn new(size: usize) -> Oracle {
        Oracle {
            majority: size / 2 + 1,
            leaders: BTreeMap::new(),
            votes: HashMap::new(),
            voted: BTreeMap::new(),
            entries: HashMap::new(),
            committed: Vec::new(),
            executed: HashMap::new(),
            boots: BTreeMap::new(),
            images: BTreeMap::new(),
            restored: 0,
            image_bytes: 0,
        }
    }

    /// The number of committed entries.
    pub fn commits(&self) -> u64 {
        self.committed.len() as u64
    }

    /// The number of terms that had a leader.
    pub fn terms_led(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// The number of images of different indexes.
    pub fn images(&self) -> u64 {
        self.images.len() as u64
    }

    /// The committed entry of this index.
    pub fn committed(&self, index: Index) -> Option<&Committed> {
        self.committed.get(usize::try_from(index.checked_sub(1)?).ok()?)
    }
}

/// The version of each key that a batch writes: the one `known` now, or a newer one that the batch
/// itself brings.
pub fn versions_before(entry: &Entry, known: impl Fn(&[u8]) -> Version) -> Vec<(Key, Version)> {
    let Payload::Batch { proposal, .. } = &entry.payload else { return Vec::new() };
    let commands = Command::decode_all(&proposal.commands).map_while(Result::ok);
    let of = |command| match command {
        Command::Merge { version, key, .. } => Some((key.into(), version.max(known(key)))),
        Command::Set { key, .. } | Command::Increment { key, .. } | Command::Take { key } => {
            Some((key.into(), known(key)))
        }
        _ => None,
    };
    commands.filter_map(of).collect()
}

/// Hash of an entry.
pub fn hash(entry: &Entry) -> u64 {
    let start = mix(entry.index, entry.term);
    match &entry.payload {
        Payload::Noop => start,
        Payload::Merge(writes) => {
            let mut bytes = Vec::new();
            encode_writes(writes, &mut bytes);
            mix_bytes(mix(start, 1), &bytes)
        }
        Payload::Checkpoint { floor } => mix(mix(start, 2), floor.0),
        Payload::Batch { proposal, .. } => {
            let id = proposal.id;
            let numbers = [u64::from(id.node.0), id.boot, id.seq, proposal.floor];
            mix_bytes(numbers.into_iter().fold(start, mix), &proposal.commands)
        }
    }
}

/// Hash of the results of an entry.
pub fn hash_applied(applied: &Applied) -> u64 {
    match applied {
        Applied::Nothing => 1,
        Applied::Duplicate => 2,
        Applied::Stale => 3,
        Applied::Merged { taken, late } => mix(mix(5, *taken), *late),
        Applied::Checkpoint { digest } => mix(6, *digest),
        Applied::Done(outcomes) => outcomes.iter().fold(4, |hash, outcome| match outcome {
            Outcome::Done => mix(hash, 1),
            Outcome::Nil => mix(hash, 2),
            Outcome::Integer(number) => mix(mix(hash, 3), number.cast_unsigned()),
            Outcome::Value(value) => mix_bytes(mix(hash, 4), value),
            _ => mix(hash, 5),
        }),
    }
}
