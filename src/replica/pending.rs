//! The pending proposals of this node's own clients.
//!
//! A proposal stays pending until it is committed, even if the leader changes: each new leader, and
//! each new link to the leader, gets all of them again, in order and under their old ids. The state
//! machine drops the copies (thesis §6.3, with the node as the client). So a client of a surviving
//! node sees a pause at a failover, and no error.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Now;
use crate::types::{NodeId, Proposal, Rejected, RequestId, Unknown, Unserved};

#[derive(Clone, Debug)]
struct PendingProposal {
    commands: Bytes,
    /// The number of times that it was sent to a leader; 0 means certainly not done.
    sent_count: u32,
    /// The moment at which it was last sent.
    sent_at: Now,
}

/// The state in which a request was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// It was never sent: certainly not done.
    Unsent,
    /// It was sent to the node that serves it: it may still be done.
    Sent,
    /// It is not pending: answered already, or never known.
    NotPending,
}

impl Cancelled {
    /// The session's answer to its cancelled request. `server` is the node that would have served
    /// it, if one was known.
    pub fn outcome(self, server: Option<NodeId>) -> Unserved {
        match (self, server) {
            (Cancelled::Unsent, None) => Rejected::NoLeader.into(),
            // A server was known, but the request was never sent: there was no room for it.
            (Cancelled::Unsent, Some(_)) => Rejected::Busy.into(),
            // The request may be in a log by now, so "not done" would be a lie.
            (Cancelled::Sent | Cancelled::NotPending, _) => Unknown::TimedOut.into(),
        }
    }
}

/// All pending proposals of one process lifetime, by number.
#[derive(Clone, Debug)]
pub struct PendingProposals {
    node: NodeId,
    boot: u64,
    proposals: BTreeMap<u64, PendingProposal>,
    bytes: usize,
    next_seq: u64,
    /// Proposals from this number on have not been sent to the present leader.
    unsent_from: u64,
}

impl PendingProposals {
    /// No proposals, in the process lifetime `boot` of `node`.
    pub fn new(node: NodeId, boot: u64) -> PendingProposals {
        let proposals = BTreeMap::new();
        PendingProposals { node, boot, proposals, bytes: 0, next_seq: 1, unsent_from: 1 }
    }

    /// The id of the next request. An id may stay unused.
    pub fn next_id(&mut self) -> RequestId {
        let seq = self.next_seq;
        self.next_seq += 1;
        RequestId { node: self.node, boot: self.boot, seq }
    }

    /// The bytes of all pending commands.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of pending requests.
    pub fn len(&self) -> usize {
        self.proposals.len()
    }

    /// True if nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.proposals.is_empty()
    }

    /// Adds a request that was not sent yet.
    pub fn insert(&mut self, id: RequestId, commands: Bytes) {
        self.bytes += commands.len();
        let proposal = PendingProposal { commands, sent_count: 0, sent_at: Now(0) };
        self.proposals.insert(id.seq, proposal);
    }

    /// True if a request waits to be sent to the present leader.
    pub fn has_unsent(&self) -> bool {
        self.proposals.range(self.unsent_from..).next().is_some()
    }

    /// The proposals that the present leader has not had, in order, up to about `bytes_max` but at
    /// least one. They count as sent.
    pub fn take_unsent(&mut self, now: Now, bytes_max: usize) -> Vec<Proposal> {
        // All requests below the floor are answered, so the state machine may forget their ids.
        let Some((&floor, _)) = self.proposals.first_key_value() else { return Vec::new() };
        let (mut proposals, mut bytes) = (Vec::new(), 0);
        for (&seq, pending) in self.proposals.range_mut(self.unsent_from..) {
            if !proposals.is_empty() && bytes + pending.commands.len() > bytes_max {
                break;
            }
            bytes += pending.commands.len();
            pending.sent_count += 1;
            pending.sent_at = now;
            self.unsent_from = seq + 1;
            let id = RequestId { node: self.node, boot: self.boot, seq };
            proposals.push(Proposal { id, floor, commands: pending.commands.clone() });
        }
        proposals
    }

    /// Marks all requests as not sent, because the leader or the link to it is new.
    pub fn send_again(&mut self) {
        self.unsent_from = 0;
    }

    /// True if the oldest request was sent longer than `patience` ago.
    pub fn is_overdue(&self, now: Now, patience: Duration) -> bool {
        let oldest = self.proposals.first_key_value();
        oldest.is_some_and(|(&seq, pending)| {
            seq < self.unsent_from && now.since(pending.sent_at) > patience
        })
    }

    /// Notes that `id` is committed. Returns true if it was pending here.
    pub fn committed(&mut self, id: RequestId) -> bool {
        if id.node != self.node || id.boot != self.boot {
            return false;
        }
        self.remove(id.seq).is_some()
    }

    /// Notes that a leader did not append `id`. Returns true if the request is certainly not done;
    /// it is no longer pending then.
    pub fn refused(&mut self, id: RequestId) -> bool {
        let ours = id.node == self.node && id.boot == self.boot;
        // A request that was sent twice may have another copy in a log.
        let was_sent_once =
            self.proposals.get(&id.seq).is_some_and(|pending| pending.sent_count <= 1);
        ours && was_sent_once && self.remove(id.seq).is_some()
    }

    /// Removes the request `seq`, for which no session waits any longer.
    pub fn cancel(&mut self, seq: u64) -> Cancelled {
        match self.remove(seq) {
            Some(PendingProposal { sent_count: 0, .. }) => Cancelled::Unsent,
            Some(_) => Cancelled::Sent,
            None => Cancelled::NotPending,
        }
    }

    fn remove(&mut self, seq: u64) -> Option<PendingProposal> {
        let removed = self.proposals.remove(&seq)?;
        self.bytes -= removed.commands.len();
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(3);

    fn pending(count: u64) -> PendingProposals {
        let mut pending = PendingProposals::new(NODE, 7);
        for _ in 0..count {
            let id = pending.next_id();
            pending.insert(id, Bytes::from_static(b"0123456789"));
        }
        pending
    }

    fn id(seq: u64) -> RequestId {
        RequestId { node: NODE, boot: 7, seq }
    }

    /// The numbers and the floor of the proposals that are sent.
    fn taken(pending: &mut PendingProposals, bytes_max: usize) -> (Vec<u64>, Option<u64>) {
        let proposals = pending.take_unsent(Now(0), bytes_max);
        let floors: Vec<u64> = proposals.iter().map(|p| p.floor).collect();
        assert!(floors.windows(2).all(|pair| pair[0] == pair[1]));
        (proposals.iter().map(|p| p.id.seq).collect(), floors.first().copied())
    }

    #[test]
    fn requests_are_sent_in_order_by_the_bytes_and_at_least_one() {
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
    fn a_cancelled_request_was_either_sent_or_not() {
        let mut pending = pending(2);
        taken(&mut pending, 1);
        assert_eq!(pending.cancel(1), Cancelled::Sent);
        assert_eq!(pending.cancel(2), Cancelled::Unsent);
        assert_eq!(pending.cancel(2), Cancelled::NotPending);
        assert!(pending.is_empty() && !pending.has_unsent());
        assert_eq!(pending.bytes(), 0);
    }

    #[test]
    fn only_a_sent_request_can_be_overdue() {
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
