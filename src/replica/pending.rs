//! The proposals of this node's own clients that have no answer yet.
//!
//! They stay here until they are committed, whoever leads: each new leader, and each new link to the
//! leader, gets all of them again, in order and under their old names. The state machine drops the
//! copies. So a client of a surviving node sees a pause at a failover, and no error.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Now;
use crate::types::{NodeId, Proposal, RequestId};

#[derive(Clone, Debug)]
struct Item {
    commands: Bytes,
    /// How often it was handed to a leader. Never handed over: certainly not done.
    sent_count: u32,
}

/// What became of a request that nobody waits for any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// It never left this node's hands: certainly not done.
    Unsent,
    /// A leader has had it: it may still be done.
    Sent,
    /// It is not pending: answered, or never known.
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Pending {
    node: NodeId,
    boot: u64,
    items: BTreeMap<u64, Item>,
    bytes: usize,
    next_seq: u64,
    /// Items from this number on have not been handed to the present leader.
    unsent_from: u64,
    /// When something was last handed over while nothing was under way, or an answer came.
    moved: Now,
}

impl Pending {
    /// Nothing pending, in the process lifetime `boot` of `node`.
    pub fn new(node: NodeId, boot: u64) -> Pending {
        Pending {
            node,
            boot,
            items: BTreeMap::new(),
            bytes: 0,
            next_seq: 1,
            unsent_from: 1,
            moved: Now(0),
        }
    }

    /// The name of the next request. Two calls without an [`insert`](Self::insert) between them give
    /// two names, and the first may stay unused.
    pub fn next_id(&mut self) -> RequestId {
        let seq = self.next_seq;
        self.next_seq += 1;
        RequestId { node: self.node, boot: self.boot, seq }
    }

    /// Bytes of commands pending.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Requests pending.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True if nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Takes a request in, not handed over yet.
    pub fn insert(&mut self, id: RequestId, commands: Bytes) {
        self.bytes += commands.len();
        self.items.insert(id.seq, Item { commands, sent_count: 0 });
    }

    /// True if something waits to be handed to the leader.
    pub fn has_unsent(&self) -> bool {
        self.items.range(self.unsent_from..).next().is_some()
    }

    /// Hands over what has not been handed to the present leader, in order, up to about `bytes_max`
    /// but at least one.
    pub fn take_unsent(&mut self, now: Now, bytes_max: usize) -> Vec<Proposal> {
        let Some((&floor, _)) = self.items.first_key_value() else { return Vec::new() };
        if self.unsent_from <= floor {
            self.moved = now;
        }
        let (mut proposals, mut bytes) = (Vec::new(), 0);
        for (&seq, item) in self.items.range_mut(self.unsent_from..) {
            if !proposals.is_empty() && bytes + item.commands.len() > bytes_max {
                break;
            }
            bytes += item.commands.len();
            item.sent_count += 1;
            self.unsent_from = seq + 1;
            let id = RequestId { node: self.node, boot: self.boot, seq };
            proposals.push(Proposal { id, floor, commands: item.commands.clone() });
        }
        proposals
    }

    /// Whoever leads now, or whatever link leads there, has had nothing of this yet.
    pub fn send_again(&mut self) {
        self.unsent_from = 0;
    }

    /// True if the leader has had something for longer than `patience` without one answer.
    pub fn is_overdue(&self, now: Now, patience: Duration) -> bool {
        let oldest = self.items.first_key_value();
        oldest.is_some_and(|(&seq, _)| seq < self.unsent_from) && now.since(self.moved) > patience
    }

    /// `id` is committed. Returns true if it was pending here.
    pub fn committed(&mut self, now: Now, id: RequestId) -> bool {
        if id.node != self.node || id.boot != self.boot {
            return false;
        }
        self.moved = now;
        self.remove(id.seq).is_some()
    }

    /// The leader did not append `id`. Returns true if that makes it certain that it is not done:
    /// only this leader, and only once, has had it. It is no longer pending then.
    pub fn refused(&mut self, id: RequestId) -> bool {
        let ours = id.node == self.node && id.boot == self.boot;
        let once = self.items.get(&id.seq).is_some_and(|item| item.sent_count <= 1);
        ours && once && self.remove(id.seq).is_some()
    }

    /// Nobody waits for `seq` any longer.
    pub fn withdraw(&mut self, seq: u64) -> Withdrawn {
        match self.remove(seq) {
            Some(Item { sent_count: 0, .. }) => Withdrawn::Unsent,
            Some(_) => Withdrawn::Sent,
            None => Withdrawn::Unknown,
        }
    }

    fn remove(&mut self, seq: u64) -> Option<Item> {
        let item = self.items.remove(&seq)?;
        self.bytes -= item.commands.len();
        Some(item)
    }
}
