//! The unstamped requests of this node's own clients for eventual writes.
//!
//! A request may be sent to the same peer again; the peer recognizes it by its id. It goes to
//! *another* node only when the former one cannot stamp it any more: its process is gone, or the
//! request is too old for it by now. Otherwise the former node could stamp the request long after
//! the other one did, and put an old write on top of newer ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Now;
use crate::replica::pending::Cancelled;
use crate::types::{NodeId, Write};

/// One unstamped request.
#[derive(Debug)]
pub struct StampRequest {
    /// The writes, not stamped yet.
    pub writes: Vec<Write>,
    /// The room that they will take in the outbox, in bytes.
    pub bytes: usize,
    /// The number of processes that it was sent to, at most; 0 means certainly not done.
    sent_count: u32,
    /// The node that may still stamp it, and the moment at which it was last sent there.
    sent_to: Option<(NodeId, Now)>,
    /// True if the request, or its answer, may be lost.
    may_be_lost: bool,
    /// The node that has just refused it because it is stopping.
    refused_by: Option<NodeId>,
}

impl StampRequest {
    /// True if only one process can have stamped it, so that a refusal from there is certain.
    pub fn is_refusal_certain(&self) -> bool {
        self.sent_count <= 1
    }

    /// True if it was ever sent to a peer.
    pub fn was_sent(&self) -> bool {
        self.sent_count > 0
    }

    fn is_with(&self, node: NodeId) -> bool {
        self.sent_to.is_some_and(|(last, _)| last == node)
    }

    /// True if it may be sent to `node` now, or stamped here if that is this node.
    fn may_go(&self, now: Now, node: NodeId, patience: Duration) -> bool {
        match self.sent_to {
            _ if self.refused_by == Some(node) => false,
            None => true,
            // The same node recognizes the request, so sending it again is safe.
            Some((last, _)) if last == node => self.may_be_lost,
            // Another node stamped or forgot it by now: it would find the request too old.
            Some((_, at)) => now.since(at) > patience,
        }
    }
}

/// All unstamped requests of this process, by number.
#[derive(Debug)]
pub struct StampRequests {
    requests: BTreeMap<u64, StampRequest>,
    /// The requests that may be ready to be sent or stamped: few, even if many wait for answers.
    ready: BTreeSet<u64>,
    bytes: usize,
    next_seq: u64,
    /// The time after which a request may go to another node than the one that has it.
    patience: Duration,
}

impl StampRequests {
    /// No requests.
    pub fn new(patience: Duration) -> StampRequests {
        let (requests, ready) = (BTreeMap::new(), BTreeSet::new());
        StampRequests { requests, ready, bytes: 0, next_seq: 1, patience }
    }

    /// The number of the next request.
    pub fn next_seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq - 1
    }

    /// Every request below this number has its answer.
    pub fn floor(&self) -> u64 {
        self.requests.first_key_value().map_or(self.next_seq, |(seq, _)| *seq)
    }

    /// True if there are no requests.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// The room that their writes will take in the outbox, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a request.
    pub fn insert(&mut self, seq: u64, writes: Vec<Write>, bytes: usize) {
        self.bytes += bytes;
        let request = StampRequest {
            writes,
            bytes,
            sent_count: 0,
            sent_to: None,
            may_be_lost: false,
            refused_by: None,
        };
        self.requests.insert(seq, request);
        self.ready.insert(seq);
    }

    /// Removes a request.
    pub fn remove(&mut self, seq: u64) -> Option<StampRequest> {
        let request = self.requests.remove(&seq)?;
        self.bytes -= request.bytes;
        self.ready.remove(&seq);
        Some(request)
    }

    /// Removes a request if `node` is the one that may still stamp it.
    pub fn remove_from(&mut self, seq: u64, node: NodeId) -> Option<StampRequest> {
        self.requests.get(&seq).filter(|request| request.is_with(node))?;
        self.remove(seq)
    }

    /// Removes a request whose session no longer waits.
    pub fn cancel(&mut self, seq: u64) -> Cancelled {
        match self.remove(seq) {
            Some(StampRequest { sent_count: 0, .. }) => Cancelled::Unsent,
            Some(_) => Cancelled::Sent,
            None => Cancelled::NotPending,
        }
    }

    /// The first request that may go to `node` now, and its size.
    pub fn first_for(&self, now: Now, node: NodeId) -> Option<(u64, usize)> {
        let ready = self.ready.iter().filter_map(|seq| Some((*seq, self.requests.get(seq)?)));
        let mut free = ready.filter(|(_, request)| request.may_go(now, node, self.patience));
        free.next().map(|(seq, request)| (seq, request.bytes))
    }

    /// The requests to send to `node`, up to about `bytes_max` but at least one. They count as
    /// sent.
    pub fn send_to(&mut self, now: Now, node: NodeId, bytes_max: usize) -> Vec<(u64, &[Write])> {
        let (mut sent, mut bytes) = (Vec::new(), 0);
        for &seq in &self.ready {
            let Some(request) = self.requests.get_mut(&seq) else { continue };
            if !request.may_go(now, node, self.patience) {
                continue;
            }
            if !sent.is_empty() && bytes + request.bytes > bytes_max {
                break;
            }
            bytes += request.bytes;
            request.sent_count += u32::from(!request.is_with(node));
            (request.sent_to, request.may_be_lost) = (Some((node, now)), false);
            sent.push(seq);
        }
        self.ready.retain(|seq| sent.binary_search(seq).is_err());
        let writes = |seq: u64| Some((seq, &*self.requests.get(&seq)?.writes));
        sent.into_iter().filter_map(writes).collect()
    }

    /// Notes that the link to `node` is new: its requests may be lost, or another process may have
    /// had them.
    pub fn link_is_new(&mut self, node: NodeId) {
        for request in self.requests.values_mut().filter(|request| request.is_with(node)) {
            request.may_be_lost = true;
            request.sent_count += 1;
        }
    }

    /// Notes that `node` has not stamped a request and never will: another node may have it at
    /// once.
    pub fn refuse(&mut self, seq: u64, node: NodeId) {
        if let Some(request) = self.requests.get_mut(&seq)
            && request.is_with(node)
        {
            (request.sent_to, request.refused_by) = (None, Some(node));
            request.sent_count -= 1;
            self.ready.insert(seq);
        }
    }

    /// At each heartbeat: requests sent before `since` may be lost. About `bytes_max` of those that
    /// may go to `node` become ready again.
    pub fn send_again(&mut self, now: Now, since: Now, node: Option<NodeId>, bytes_max: usize) {
        let mut bytes = 0;
        for (seq, request) in &mut self.requests {
            request.refused_by = None;
            request.may_be_lost |= request.sent_to.is_some_and(|(_, at)| at < since);
            let may_go = |node| request.may_go(now, node, self.patience);
            if bytes < bytes_max && node.is_some_and(may_go) && self.ready.insert(*seq) {
                bytes += request.bytes;
            }
        }
    }

    /// Notes that the process of `node` is gone: it stamps none of its requests any more.
    pub fn node_gone(&mut self, node: NodeId) {
        let with_node = self.requests.iter_mut().filter(|(_, request)| request.is_with(node));
        for (seq, request) in with_node {
            request.sent_to = None;
            self.ready.insert(*seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_micros(100);
    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    fn requests(count: u64) -> StampRequests {
        let mut requests = StampRequests::new(PATIENCE);
        for _ in 0..count {
            let seq = requests.next_seq();
            requests.insert(seq, Vec::new(), 10);
        }
        requests
    }

    fn sent(requests: &mut StampRequests, now: u64, node: NodeId) -> Vec<u64> {
        requests.send_to(Now(now), node, 1000).into_iter().map(|(seq, _)| seq).collect()
    }

    fn again(requests: &mut StampRequests, now: u64, since: u64, node: NodeId) {
        requests.send_again(Now(now), Now(since), Some(node), 1000);
    }

    #[test]
    fn requests_are_sent_once_and_again_when_they_may_be_lost() {
        let mut requests = requests(3);
        assert_eq!(requests.send_to(Now(0), ONE, 20).len(), 2);
        assert_eq!(sent(&mut requests, 1, ONE), [3]);
        assert_eq!(sent(&mut requests, 2, ONE), [0; 0]);
        again(&mut requests, 2, 1, ONE);
        assert_eq!(sent(&mut requests, 3, ONE), [1, 2]);
        assert!(requests.remove_from(1, TWO).is_none());
        assert!(requests.remove_from(1, ONE).is_some_and(|request| request.is_refusal_certain()));
        assert_eq!((requests.floor(), requests.bytes()), (2, 20));
    }

    #[test]
    fn behind_a_new_link_there_may_be_another_process() {
        let mut requests = requests(2);
        assert_eq!(sent(&mut requests, 0, ONE), [1, 2]);
        requests.link_is_new(ONE);
        again(&mut requests, 1, 0, ONE);
        assert_eq!(sent(&mut requests, 1, ONE), [1, 2]);
        assert!(requests.remove_from(1, ONE).is_some_and(|request| !request.is_refusal_certain()));
    }

    #[test]
    fn the_bytes_sent_again_are_bounded_each_time() {
        let mut requests = requests(5);
        sent(&mut requests, 0, ONE);
        requests.send_again(Now(10), Now(5), Some(ONE), 20);
        assert_eq!(sent(&mut requests, 10, ONE), [1, 2]);
        requests.send_again(Now(11), Now(5), Some(ONE), 20);
        assert_eq!(sent(&mut requests, 11, ONE), [3, 4]);
    }

    #[test]
    fn another_node_gets_a_request_only_when_the_first_cannot_stamp_it_any_more() {
        let mut requests = requests(2);
        assert_eq!(sent(&mut requests, 0, ONE), [1, 2]);
        again(&mut requests, 100, 1, TWO);
        assert_eq!(requests.first_for(Now(100), TWO), None);
        again(&mut requests, 101, 1, TWO);
        assert_eq!(requests.first_for(Now(101), TWO), Some((1, 10)));
        assert_eq!(sent(&mut requests, 101, TWO), [1, 2]);
        again(&mut requests, 150, 102, ONE);
        assert_eq!(sent(&mut requests, 150, ONE), [0; 0]);
        requests.node_gone(TWO);
        assert_eq!(sent(&mut requests, 151, ONE), [1, 2]);
        assert!(requests.remove(1).is_some_and(|request| !request.is_refusal_certain()));
    }

    #[test]
    fn a_node_that_refuses_a_request_has_not_stamped_it() {
        let mut requests = requests(1);
        assert_eq!(sent(&mut requests, 0, ONE), [1]);
        requests.refuse(1, TWO);
        assert_eq!(sent(&mut requests, 1, TWO), [0; 0], "an answer of another node");
        requests.refuse(1, ONE);
        assert_eq!(sent(&mut requests, 1, ONE), [0; 0]);
        assert_eq!(sent(&mut requests, 1, TWO), [1]);
        assert!(requests.remove(1).is_some_and(|request| request.is_refusal_certain()));
    }

    #[test]
    fn a_request_that_was_ever_sent_may_be_done() {
        let mut requests = requests(2);
        sent(&mut requests, 0, ONE);
        requests.link_is_new(ONE);
        requests.node_gone(ONE);
        let seq = requests.next_seq();
        requests.insert(seq, Vec::new(), 10);
        assert_eq!(requests.cancel(1), Cancelled::Sent);
        assert_eq!(requests.cancel(3), Cancelled::Unsent);
        assert_eq!(requests.cancel(3), Cancelled::NotPending);
    }
}
