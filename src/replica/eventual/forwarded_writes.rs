//! The requests that peers have forwarded to this node to be stamped: the ones that wait for room,
//! and the decisions on the others, because a request may be sent again.

use std::collections::BTreeMap;

use crate::types::{NodeId, Rejected, RequestId, Version, Writes};

/// The first version of a stamped request, or the reason for refusing it.
pub type Decision = Result<Version, Rejected>;

/// A forwarded request that waits for room.
#[derive(Debug)]
struct ForwardedRequest {
    writes: Writes,
    /// The moment at which it was last sent, by its sender's wall clock, in microseconds.
    sent: u64,
}

/// The requests of one peer.
#[derive(Debug, Default)]
struct PeerRequests {
    /// The peer's process lifetime.
    boot: u64,
    /// The peer has the answers to its requests below this number.
    floor: u64,
    waiting: BTreeMap<u64, ForwardedRequest>,
    decided: BTreeMap<u64, Decision>,
}

/// The forwarded requests of all peers.
#[derive(Debug, Default)]
pub struct ForwardedWrites {
    peers: BTreeMap<NodeId, PeerRequests>,
}

impl ForwardedWrites {
    /// Adds a request, or returns the decision on it if it has come before. Its sender has the
    /// answers to all its requests below `floor`.
    pub fn insert(
        &mut self,
        id: RequestId,
        writes: Writes,
        sent: u64,
        floor: u64,
    ) -> Option<Decision> {
        let peer = self.peers.entry(id.node).or_default();
        // A new process of the peer has forgotten the requests of the former one.
        if id.boot > peer.boot {
            *peer = PeerRequests { boot: id.boot, ..PeerRequests::default() };
        }
        if floor > peer.floor && id.boot == peer.boot {
            peer.floor = floor;
            peer.waiting = peer.waiting.split_off(&floor);
            peer.decided = peer.decided.split_off(&floor);
        }
        // A late copy: its sender has the answer, or is gone.
        if id.boot < peer.boot || id.seq < peer.floor {
            return None;
        }
        let decision = peer.decided.get(&id.seq).copied();
        if decision.is_none() {
            peer.waiting.insert(id.seq, ForwardedRequest { writes, sent });
        }
        decision
    }

    /// Drops the requests sent before `since`: their senders may have sent them to another node.
    pub fn expire(&mut self, since: u64) {
        for peer in self.peers.values_mut() {
            peer.waiting.retain(|_, request| request.sent >= since);
        }
    }

    /// The next waiting request, of each peer in turn after `last`, that was not sent before
    /// `since`.
    pub fn next(&self, last: NodeId, since: u64) -> Option<(RequestId, Writes)> {
        let after = self.peers.range(NodeId(last.0.saturating_add(1))..);
        after.chain(self.peers.range(..=last)).find_map(|(&node, peer)| {
            let mut waiting = peer.waiting.iter();
            let (&seq, request) = waiting.find(|(_, request)| request.sent >= since)?;
            Some((RequestId { node, boot: peer.boot, seq }, request.writes.clone()))
        })
    }

    /// Records the decision on a request.
    pub fn decide(&mut self, id: RequestId, decision: Decision) {
        let Some(peer) = self.peers.get_mut(&id.node).filter(|peer| peer.boot == id.boot) else {
            return;
        };
        peer.waiting.remove(&id.seq);
        peer.decided.insert(id.seq, decision);
    }

    /// True if no request waits.
    pub fn is_empty(&self) -> bool {
        self.peers.values().all(|peer| peer.waiting.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(node: u32, boot: u64, seq: u64) -> RequestId {
        RequestId { node: NodeId(node), boot, seq }
    }

    fn insert(forwarded: &mut ForwardedWrites, id: RequestId, floor: u64) -> Option<Decision> {
        forwarded.insert(id, Writes::default(), 100, floor)
    }

    fn next(forwarded: &ForwardedWrites, last: u32) -> Option<RequestId> {
        forwarded.next(NodeId(last), 0).map(|(id, _)| id)
    }

    #[test]
    fn a_request_that_comes_again_gets_the_same_decision() {
        let mut forwarded = ForwardedWrites::default();
        assert_eq!(insert(&mut forwarded, id(1, 1, 1), 1), None);
        assert_eq!(next(&forwarded, 0), Some(id(1, 1, 1)));
        forwarded.decide(id(1, 1, 1), Ok(Version(7)));
        assert!(forwarded.is_empty());
        assert_eq!(insert(&mut forwarded, id(1, 1, 1), 1), Some(Ok(Version(7))));
        assert_eq!(insert(&mut forwarded, id(1, 1, 3), 3), None);
        assert_eq!(insert(&mut forwarded, id(1, 1, 1), 1), None, "answered long ago");
        assert_eq!(next(&forwarded, 0), Some(id(1, 1, 3)));
    }

    #[test]
    fn an_earlier_process_of_a_peer_is_not_heard() {
        let mut forwarded = ForwardedWrites::default();
        insert(&mut forwarded, id(1, 2, 5), 5);
        insert(&mut forwarded, id(1, 1, 9), 9);
        assert_eq!(next(&forwarded, 0), Some(id(1, 2, 5)));
        insert(&mut forwarded, id(1, 3, 1), 1);
        assert_eq!(next(&forwarded, 0), Some(id(1, 3, 1)));
    }

    #[test]
    fn peers_are_served_in_turn_and_old_requests_not_at_all() {
        let mut forwarded = ForwardedWrites::default();
        for id in [id(1, 1, 1), id(1, 1, 2), id(2, 1, 1)] {
            insert(&mut forwarded, id, 1);
        }
        assert_eq!(next(&forwarded, 1), Some(id(2, 1, 1)));
        assert_eq!(next(&forwarded, 2), Some(id(1, 1, 1)));
        forwarded.decide(id(1, 1, 1), Err(Rejected::DiskFull));
        assert_eq!(insert(&mut forwarded, id(1, 1, 1), 1), Some(Err(Rejected::DiskFull)));
        assert_eq!(next(&forwarded, 2), Some(id(1, 1, 2)));
        assert!(forwarded.next(NodeId(0), 101).is_none());
        forwarded.expire(100);
        assert!(!forwarded.is_empty());
        forwarded.expire(101);
        assert!(next(&forwarded, 0).is_none() && forwarded.is_empty());
    }
}
