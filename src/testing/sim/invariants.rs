//! What must hold, whatever happens. The oracle sees all nodes at once and remembers what no node
//! remembers: who led, what was committed, who voted for whom, what was applied and executed.

use std::collections::{BTreeMap, HashMap};

use crate::replica::{Envelope, Input, Message, Status, WalRecord};
use crate::service::{
    Answers, ApplyWork, Consequence, RequestHandle, Superseded, consequence, own_request,
};
use crate::store::Applied;
use crate::testing::sim::cluster::World;
use crate::testing::sim::process::Process;
use crate::testing::sim::trace::{mix, mix_bytes};
use crate::types::{
    Command, Entry, Index, Key, NodeId, Outcome, Payload, RequestId, SnapshotMeta, Term, Version,
    encode_writes,
};

/// A committed entry.
#[derive(Clone, Copy, Debug)]
struct Committed {
    term: Term,
    hash: u64,
    /// The term in which somebody first knew that it is committed.
    since: Term,
    /// The digest of everything applied up to it, once somebody has applied it.
    digest: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Oracle {
    majority: usize,
    leaders: BTreeMap<Term, NodeId>,
    votes: HashMap<(NodeId, Term), NodeId>,
    /// The latest term in which each node's vote has left it.
    voted: BTreeMap<NodeId, Term>,
    /// Of each entry that ever was in a log: its hash, and the term before it.
    entries: HashMap<(Index, Term), (u64, Term)>,
    /// From index 1 on.
    committed: Vec<Committed>,
    executed: HashMap<RequestId, Index>,
    /// Of each node the latest life of which something was executed, and where.
    boots: BTreeMap<NodeId, (u64, Index)>,
    images: BTreeMap<Index, u64>,
    /// How many images were put in place of a store.
    pub restored: u64,
    /// The longest image, in bytes.
    image_bytes: u64,
}

impl Oracle {
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

    /// How many entries are committed.
    pub fn commits(&self) -> u64 {
        self.committed.len() as u64
    }

    /// How many terms had a leader.
    pub fn terms_led(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// How many images of different indexes were taken.
    pub fn images(&self) -> u64 {
        self.images.len() as u64
    }

    fn committed(&self, index: Index) -> Option<&Committed> {
        self.committed.get(usize::try_from(index.checked_sub(1)?).ok()?)
    }
}

impl World {
    /// A vote that leaves its node must be that node's only one in its term, in all its lives.
    pub fn check_vote(&mut self, envelope: &Envelope) {
        let vote = match &envelope.message {
            Message::Vote(request) if !request.pre => envelope.from,
            Message::VoteReply(reply) if !reply.pre && reply.granted => envelope.to,
            _ => return,
        };
        let (voter, term) = (envelope.from, envelope.term);
        let first = *self.oracle.votes.entry((voter, term)).or_insert(vote);
        let latest = self.oracle.voted.entry(voter).or_default();
        *latest = term.max(*latest);
        if first != vote {
            let how = format!("{voter} voted in term {term} for {first}, then for {vote}");
            self.fail("a node votes once in a term", how);
        }
        self.after_vote(self.position(voter));
    }

    /// A node that has lost its directory need not remember that it once stood for election: its
    /// candidacy is lost too, and nobody else counts on that vote.
    pub fn forget_candidacies(&mut self, node: usize) {
        let id = self.nodes[node].id;
        self.oracle.votes.retain(|(voter, _), vote| *voter != id || *vote != id);
        let terms = self.oracle.votes.keys().filter(|(voter, _)| *voter == id).map(|key| key.1);
        let latest = terms.max().unwrap_or(0);
        self.oracle.voted.insert(id, latest);
    }

    /// A node that starts finds its votes again, unless its directory was lost and it has not
    /// caught up since.
    pub fn check_found(&mut self, node: usize) {
        let machine = &self.nodes[node];
        let hard = &machine.disk.synced.hard;
        let voted = self.oracle.voted.get(&machine.id).copied().unwrap_or(0);
        let spent = hard.term > voted || (hard.term == voted && hard.vote.is_some());
        if voted > 0 && machine.ghosts.is_empty() && !spent {
            let how = format!("{} voted in term {voted} and finds {hard:?}", machine.id);
            self.fail("a vote that has left its node is found again", how);
        }
    }

    /// Log matching: an index and a term name one entry with one past, everywhere. (An only member
    /// leads before its term is durable, as nobody else can see it; after a crash it may begin the
    /// same term again.)
    pub fn check_records(&mut self, node: usize, records: &[WalRecord]) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let (mut broken, mut told) = (None, None);
        for record in records {
            if let WalRecord::Hard(hard) = record {
                told = (hard.term < process.view.hard.term).then_some(hard.term);
            }
            if let Err(how) = process.view.apply(record) {
                broken.get_or_insert(("records make sense", how));
                break;
            }
            let WalRecord::Entry(entry) = record else { continue };
            let before = process.view.term_at(entry.index - 1).unwrap_or(0);
            let seen = (hash(entry), before);
            let key = (entry.index, entry.term);
            let first = *self.oracle.entries.entry(key).or_insert(seen);
            if first != seen && self.oracle.majority > 1 {
                broken.get_or_insert(("log matching", format!("{entry:?} after term {before}")));
            }
        }
        if let Some(term) = told {
            broken.get_or_insert(("a term never falls", format!("to {term}")));
        }
        if let Some((invariant, how)) = broken {
            self.fail(invariant, format!("#{node}: {how}"));
        }
    }

    /// What is handed to apply is committed: the same everywhere, for ever, and durable on a
    /// majority when it is first known.
    pub fn check_apply(&mut self, node: usize, work: &ApplyWork) {
        match work {
            ApplyWork::Entries(entries) => {
                entries.iter().for_each(|entry| self.check_committed(node, entry));
            }
            ApplyWork::Restore(image) => {
                let meta = image.meta();
                let known = self.oracle.committed(meta.index).map(|known| known.term);
                if known != Some(meta.term) {
                    let how = format!("#{node} restores {meta:?}, committed is {known:?}");
                    self.fail("an image holds only what is committed", how);
                }
                self.oracle.restored += 1;
                if let Some(process) = &mut self.nodes[node].process {
                    process.handed = meta.index;
                }
            }
            ApplyWork::Snapshot(_) | ApplyWork::Read(..) => {}
        }
    }

    fn check_committed(&mut self, node: usize, entry: &Entry) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let (index, term, since) = (entry.index, entry.term, process.view.hard.term);
        if index != process.handed + 1 {
            let how = format!("#{node}: {index} after {}", process.handed);
            return self.fail("entries are applied in order", how);
        }
        process.handed = index;
        let (is, hash) = (self.oracle.committed(index).copied(), hash(entry));
        let Some(known) = is else {
            self.promises.commit(&entry.payload);
            self.oracle.committed.push(Committed { term, hash, since, digest: None });
            return self.check_majority(index, term);
        };
        if (known.term, known.hash) != (term, hash) {
            let how =
                format!("{index} was committed in term {}, #{node} has {entry:?}", known.term);
            self.fail("what is committed never changes", how);
        }
    }

    fn check_majority(&mut self, index: Index, term: Term) {
        let holds = |node: &&crate::testing::sim::cluster::Node| {
            node.disk.synced.holds(index, term)
                || node.ghosts.iter().any(|ghost| ghost.holds(index, term))
        };
        let holders = self.nodes.iter().filter(holds).count();
        if holders < self.oracle.majority {
            let how = format!("entry {index} of term {term} is on {holders} disks");
            self.fail("what is committed is durable on a majority", how);
        }
    }

    /// After each step of a replica.
    pub fn check_step(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let status = process.shell.replica().status();
        let leads = process.shell.replica().is_leader();
        let began = leads && !std::mem::replace(&mut process.led, leads);
        process.led = leads;
        if began {
            process.led_from = status.last;
        }
        let term_start = process.led_from;
        let before = std::mem::replace(&mut process.reached, (status.term, status.commit));
        let text = || format!("#{node}: {status:?}");
        let is_write = |handle: &&RequestHandle| matches!(handle, RequestHandle::Write(_));
        let waiting = process.shell.waiting().filter(is_write).count();
        let broken = if status.term < before.0 || status.commit < before.1 {
            Some("term and commit never fall")
        } else if status.commit != process.handed {
            Some("all that is committed is applied")
        } else if status.pending.0 > waiting {
            Some("only what is waited for is pending")
        } else if (status.term, status.last) != (process.view.hard.term, process.view.last_index())
        {
            Some("all that is decided is written")
        } else {
            None
        };
        if let Some(failure) = broken.map(|invariant| (invariant, text())) {
            self.fail(failure.0, failure.1);
        }
        self.check_bounds(node, &status);
        if leads {
            self.check_leader(node, status.term, began);
            if status.commit > before.1 && before.1 < term_start {
                self.after_leading(node);
            }
        }
    }

    /// What waits, in memory and for the disk, stays within its limits. Each admits one more than
    /// fits, because the first is always taken.
    fn check_bounds(&mut self, node: usize, status: &Status) {
        const ONE: usize = 4_096;
        let settings = &self.plan.settings;
        // Peers may hand over what they hold: each is bounded, and so is the sum.
        let backlog_max = (settings.backlog_bytes_max + ONE) * self.nodes.len();
        let used = self.nodes[node].disk.files.used_bytes();
        let images = self.oracle.image_bytes * 8;
        let segments = 16 * self.plan.segment_bytes.max(ONE as u64);
        let log =
            16 * (settings.snapshot_log_bytes + settings.backlog_bytes_max.min(1 << 15)) as u64;
        let disk_max = images + segments + log;
        let broken = if status.pending.1 > settings.pending_bytes_max + ONE {
            Some(format!("{} bytes pending", status.pending.1))
        } else if status.backlog.1 > backlog_max {
            Some(format!("{} bytes of eventual writes", status.backlog.1))
        } else if used > disk_max {
            Some(format!("{used} bytes on the disk, expected at most {disk_max}"))
        } else {
            None
        };
        if let Some(how) = broken {
            self.fail("nothing grows without bound", format!("#{node}: {how}"));
        }
    }

    fn check_leader(&mut self, node: usize, term: Term, began: bool) {
        let id = self.nodes[node].id;
        let first = *self.oracle.leaders.entry(term).or_insert(id);
        if first != id {
            let how = format!("{first} and {id} lead term {term}");
            return self.fail("a term has one leader", how);
        }
        if began {
            self.after_leading(node);
        }
        let Some(process) = self.nodes[node].process.as_ref().filter(|_| began) else { return };
        let view = &process.view;
        let missing = self
            .oracle
            .committed
            .iter()
            .zip(1..)
            .find(|(known, index)| known.since < term && !view.holds(*index, known.term));
        if let Some((known, index)) = missing {
            let how = format!("{id} leads term {term} without entry {index} of {}", known.term);
            self.fail("a leader holds all that is committed", how);
        }
    }

    /// The store of one node applies one entry.
    pub fn apply_entry(&mut self, node: usize, entry: &Entry, answers: &mut Answers) {
        self.check_merge(node, entry);
        let spoilt = self.spoil_entry(node, entry);
        let id = self.nodes[node].id;
        let Some(process) = &mut self.nodes[node].process else { return };
        let store = process.writer.store();
        let least = versions_before(entry, |key| store.version(key));
        let applied = match process.writer.apply(spoilt.as_ref().unwrap_or(entry), true) {
            Ok(applied) => applied,
            Err(error) => return self.fail("committed entries can be applied", error.to_string()),
        };
        process.digest = Process::digest(process.digest, entry, hash_applied(&applied));
        let (digest, life) = (process.digest, process.life);
        if matches!(applied, Applied::Done(_))
            && let Some((key, version)) =
                least.iter().find(|(key, least)| store.version(key) < *least)
        {
            let how = format!("#{node}: {key:?} at {}, after {version:?}", entry.index);
            return self.fail("versions do not fall", how);
        }
        self.check_digest(node, entry.index, digest);
        if let (Payload::Batch { proposal, .. }, Applied::Done(_)) = (&entry.payload, &applied) {
            self.check_executed(proposal.id, entry.index);
        }
        let own = own_request(entry, id, life);
        let copy = matches!(applied, Applied::Duplicate | Applied::Stale);
        if let Some(own) = own.filter(|own| copy && self.is_waited_for(node, *own)) {
            let how = format!("{own:?} at {}", entry.index);
            return self.fail("the first copy of a request is answered", how);
        }
        match consequence(entry.index, own, applied) {
            Ok(Some(Consequence::Outcomes(own, outcomes))) => {
                if self.is_waited_for(node, own) {
                    self.check_majority(entry.index, entry.term);
                }
                if let Some(process) = &mut self.nodes[node].process {
                    process.shell.applied([(own, outcomes)], answers);
                }
            }
            Ok(Some(Consequence::Tell(input))) => {
                if let Input::CheckpointApplied { index, digest } = input {
                    self.check_checkpoint(node, index, digest);
                }
                self.step(node, vec![input]);
            }
            Ok(None) => {}
            Err(Superseded) => self.exit(node, "a later process of this node was here"),
        }
    }

    /// True if a client of the node waits for this request.
    fn is_waited_for(&self, node: usize, id: RequestId) -> bool {
        let process = self.nodes[node].process.as_ref();
        process.is_some_and(|process| process.shell.waits_for(RequestHandle::Write(id)))
    }

    /// The digest of the state as of `index`, which somebody has applied.
    pub fn digest_at(&self, index: Index) -> u64 {
        self.oracle.committed(index).and_then(|known| known.digest).unwrap_or_default()
    }

    fn check_digest(&mut self, node: usize, index: Index, digest: u64) {
        let at = (index as usize).wrapping_sub(1);
        let Some(known) = self.oracle.committed.get_mut(at) else {
            return self.fail("only what is committed is applied", format!("{index}"));
        };
        if *known.digest.get_or_insert(digest) != digest {
            self.fail("equal logs give equal states", format!("#{node} differs at {index}"));
        }
    }

    fn check_executed(&mut self, id: RequestId, index: Index) {
        let (boot, since) = *self.oracle.boots.entry(id.node).or_default();
        if id.boot > boot {
            self.oracle.boots.insert(id.node, (id.boot, index));
        } else if id.boot < boot && index > since {
            let how = format!("{id:?} at {index}, after one of boot {boot} at {since}");
            self.fail("nothing of an earlier life is executed after a later one's", how);
        }
        let first = *self.oracle.executed.entry(id).or_insert(index);
        if first != index {
            let how = format!("{id:?} at {first} and at {index}");
            self.fail("a request is executed once", how);
        }
    }

    /// Images of one index are equal byte for byte.
    pub fn check_image(&mut self, meta: SnapshotMeta, bytes: &[u8]) {
        let hash = mix_bytes(0, bytes);
        self.oracle.image_bytes = self.oracle.image_bytes.max(bytes.len() as u64);
        if *self.oracle.images.entry(meta.index).or_insert(hash) != hash {
            self.fail("equal states have equal images", format!("{meta:?}"));
        }
    }
}

/// Of each key that a batch names: the version that it has, or that the batch itself brings.
fn versions_before(entry: &Entry, known: impl Fn(&[u8]) -> Version) -> Vec<(Key, Version)> {
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

fn hash(entry: &Entry) -> u64 {
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

fn hash_applied(applied: &Applied) -> u64 {
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
