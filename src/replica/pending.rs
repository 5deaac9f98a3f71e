//! The proposals of this node's own clients that have no answer yet.
//!
//! They stay here until they are committed, whoever leads: each new leader, and each new link to
//! the leader, gets all of them again, in order and under their old names. The state machine drops
//! the copies. So a client of a surviving node sees a pause at a failover, and no error.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Now;
use crate::types::{NodeId, Proposal, Rejected, RequestId, Unknown, Unserved};

#[derive(Clone, Debug)]
struct Item {
    commands: Bytes,
    /// How often it was handed to a leader. Never handed over: certainly not done.
    sent_count: u32,
    /// When it was handed to the present leader.
    sent_at: Now,
}

/// What became of a request that nobody waits for any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It never left this node's hands: certainly not done.
    Unsent,
    /// A leader has had it: it may still be done.
    Sent,
    /// It is not pending: answered, or never known.
    Unknown,
}

/// What a session is told whose request was given up; `server` is who would have served it.
pub fn cancelled_outcome(cancelled: Option<Cancelled>, server: Option<NodeId>) -> Unserved {
    match (cancelled, server) {
        (Some(Cancelled::Unsent), None) => Rejected::NoLeader.into(),
        (Some(Cancelled::Unsent), Some(_)) => Rejected::Busy.into(),
        _ => Unknown::TimedOut.into(),
    }
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
}

impl Pending {
    /// Nothing pending, in the process lifetime `boot` of `node`.
    pub fn new(node: NodeId, boot: u64) -> Pending {
        Pending { node, boot, items: BTreeMap::new(), bytes: 0, next_seq: 1, unsent_from: 1 }
    }

    /// The name of the next request. Two calls without an [`insert`](Self::insert) between them
    /// give two names, and the first may stay unused.
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
        self.items.insert(id.seq, Item { commands, sent_count: 0, sent_at: Now(0) });
    }

    /// True if something waits to be handed to the leader.
    pub fn has_unsent(&self) -> bool {
        self.items.range(self.unsent_from..).next().is_some()
    }

    /// Hands over what has not been handed to the present leader, in order, up to about `bytes_max`
    /// but at least one.
    pub fn take_unsent(&mut self, now: Now, bytes_max: usize) -> Vec<Proposal> {
        let Some((&floor, _)) = self.items.first_key_value() else { return Vec::new() };
        let (mut proposals, mut bytes) = (Vec::new(), 0);
        for (&seq, item) in self.items.range_mut(self.unsent_from..) {
            if !proposals.is_empty() && bytes + item.commands.len() > bytes_max {
                break;
            }
            bytes += item.commands.len();
            item.sent_count += 1;
            item.sent_at = now;
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

    /// True if the leader has had the oldest request for longer than `patience`.
    pub fn is_overdue(&self, now: Now, patience: Duration) -> bool {
        let oldest = self.items.first_key_value();
        oldest.is_some_and(|(&seq, item)| {
            seq < self.unsent_from && now.since(item.sent_at) > patience
        })
    }

    /// `id` is committed. Returns true if it was pending here.
    pub fn committed(&mut self, id: RequestId) -> bool {
        if id.node != self.node || id.boot != self.boot {
            return false;
        }
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
    pub fn cancel(&mut self, seq: u64) -> Cancelled {
        match self.remove(seq) {
            Some(Item { sent_count: 0, .. }) => Cancelled::Unsent,
            Some(_) => Cancelled::Sent,
            None => Cancelled::Unknown,
        }
    }

    fn remove(&mut self, seq: u64) -> Option<Item> {
        let item = self.items.remove(&seq)?;
        self.bytes -= item.commands.len();
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(3);

    fn pending(count: u64) -> Pending {
        let mut pending = Pending::new(NODE, 7);
        for _ in 0..count {
            let id = pending.next_id();
            pending.insert(id, Bytes::from_static(b"0123456789"));
        }
        pending
    }

    fn id(seq: u64) -> RequestId {
        RequestId { node: NODE, boot: 7, seq }
    }

    /// The numbers and the floor of what is handed over.
    fn taken(pending: &mut Pending, bytes_max: usize) -> (Vec<u64>, Option<u64>) {
        let proposals = pending.take_unsent(Now(0), bytes_max);
        let floors: Vec<u64> = proposals.iter().map(|p| p.floor).collect();
        assert!(floors.windows(2).all(|pair| pair[0] == pair[1]));
        (proposals.iter().map(|p| p.id.seq).collect(), floors.first().copied())
    }

    #[test]
    fn requests_are_handed_over_in_order_by_the_bytes_and_at_least_one() {
        let mut pending = pending(4);
        assert_eq!(taken(&mut pending, 25), (vec![1, 2], Some(1)));
        assert_eq!(taken(&mut pending, 1), (vec![3], Some(1)));
        assert_eq!(taken(&mut pending, 1000), (vec![4], Some(1)));
        assert_eq!(taken(&mut pending, 1000), (vec![], None));
        pending.send_again();
        assert_eq!(taken(&mut pending, 1000), (vec![1, 2, 3, 4], Some(1)));
    }

    #[test]
    fn the_floor_is_the_oldest_request_without_an_answer() {
        let mut pending = pending(4);
        assert!(pending.committed(id(2)));
        assert_eq!(taken(&mut pending, 1000), (vec![1, 3, 4], Some(1)));
        assert!(pending.committed(id(1)));
        assert!(!pending.committed(id(1)));
        pending.send_again();
        assert_eq!(taken(&mut pending, 1000), (vec![3, 4], Some(3)));
        assert_eq!((pending.len(), pending.bytes()), (2, 20));
    }

    #[test]
    fn requests_of_another_node_or_boot_are_not_ours() {
        let mut pending = pending(1);
        taken(&mut pending, 1000);
        let strangers = [RequestId { node: NodeId(4), ..id(1) }, RequestId { boot: 6, ..id(1) }];
        for stranger in strangers {
            assert!(!pending.committed(stranger));
            assert!(!pending.refused(stranger));
        }
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn a_refusal_is_certain_only_while_one_leader_has_had_the_request_once() {
        let mut pending = pending(2);
        assert_eq!(taken(&mut pending, 1).0, [1]);
        assert!(pending.refused(id(1)));
        assert!(!pending.refused(id(1)));
        assert_eq!(taken(&mut pending, 1).0, [2]);
        pending.send_again();
        assert_eq!(taken(&mut pending, 1).0, [2]);
        assert!(!pending.refused(id(2)));
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn a_withdrawn_request_was_either_handed_over_or_not() {
        let mut pending = pending(2);
        taken(&mut pending, 1);
        assert_eq!(pending.cancel(1), Cancelled::Sent);
        assert_eq!(pending.cancel(2), Cancelled::Unsent);
        assert_eq!(pending.cancel(2), Cancelled::Unknown);
        assert!(pending.is_empty() && !pending.has_unsent());
        assert_eq!(pending.bytes(), 0);
    }

    #[test]
    fn only_what_was_handed_over_can_be_overdue() {
        let patience = Duration::from_micros(100);
        let mut pending = pending(2);
        assert!(!pending.is_overdue(Now(1000), patience));
        pending.take_unsent(Now(1000), 1);
        assert!(!pending.is_overdue(Now(1100), patience));
        assert!(pending.is_overdue(Now(1101), patience));
        assert!(pending.committed(id(1)));
        assert!(!pending.is_overdue(Now(9000), patience));
    }
}
