//! The requests of this node's own clients for eventual writes, until they are stamped.
//!
//! A request may be handed to a peer again, who knows it again by its name. To *another* node it
//! goes only when the one before it cannot stamp it any more: its process is gone, or so much time
//! has passed that it would find the request too old. Otherwise it could stamp the request long
//! after somebody else has, and put an old write on top of newer ones.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::Now;
use crate::replica::pending::Cancelled;
use crate::types::{NodeId, Write};

/// One request.
#[derive(Debug)]
pub struct StampRequest {
    /// The writes, not stamped yet.
    pub writes: Vec<Write>,
    /// The room that they will take, in bytes.
    pub bytes: usize,
    /// To how many processes it was handed, at most. None: certainly not done.
    handed: u32,
    /// Who may still stamp it, and when it was last handed there.
    last: Option<(NodeId, Now)>,
    /// It may have got lost on its way there.
    due: bool,
    /// Who has just said that it takes nothing more.
    refused_by: Option<NodeId>,
}

impl StampRequest {
    /// True if only the last process that it was handed to can have stamped it.
    pub fn is_certain(&self) -> bool {
        self.handed <= 1
    }

    /// True if some node was asked to stamp it.
    pub fn was_handed(&self) -> bool {
        self.handed > 0
    }

    fn is_with(&self, node: NodeId) -> bool {
        self.last.is_some_and(|(last, _)| last == node)
    }

    /// True if it may be given to `node` now.
    fn may_go(&self, now: Now, node: NodeId, patience: Duration) -> bool {
        match self.last {
            _ if self.refused_by == Some(node) => false,
            None => true,
            Some((last, _)) if last == node => self.due,
            Some((_, at)) => now.since(at) > patience,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct StampRequests {
    items: BTreeMap<u64, StampRequest>,
    /// Those that may have to be given to somebody now. Few, however many wait for their answers.
    ready: BTreeSet<u64>,
    bytes: usize,
    next_seq: u64,
    /// How long a request is not given to another node than the one that has it.
    patience: Duration,
}

impl StampRequests {
    /// No requests.
    pub fn new(patience: Duration) -> StampRequests {
        let (items, ready) = (BTreeMap::new(), BTreeSet::new());
        StampRequests { items, ready, bytes: 0, next_seq: 1, patience }
    }

    /// The number of the next request.
    pub fn next_seq(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq - 1
    }

    /// Every request below this number has its answer.
    pub fn floor(&self) -> u64 {
        self.items.first_key_value().map_or(self.next_seq, |(seq, _)| *seq)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The room that their writes will take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a request in.
    pub fn insert(&mut self, seq: u64, writes: Vec<Write>, bytes: usize) {
        self.bytes += bytes;
        let ask =
            StampRequest { writes, bytes, handed: 0, last: None, due: false, refused_by: None };
        self.items.insert(seq, ask);
        self.ready.insert(seq);
    }

    /// Takes a request out.
    pub fn remove(&mut self, seq: u64) -> Option<StampRequest> {
        let ask = self.items.remove(&seq)?;
        self.bytes -= ask.bytes;
        self.ready.remove(&seq);
        Some(ask)
    }

    /// Takes out a request that `node` has, of those that may still stamp it.
    pub fn remove_from(&mut self, seq: u64, node: NodeId) -> Option<StampRequest> {
        self.items.get(&seq).filter(|ask| ask.is_with(node))?;
        self.remove(seq)
    }

    /// Gives a request up.
    pub fn cancel(&mut self, seq: u64) -> Cancelled {
        match self.remove(seq) {
            Some(StampRequest { handed: 0, .. }) => Cancelled::Unsent,
            Some(_) => Cancelled::Sent,
            None => Cancelled::Unknown,
        }
    }

    /// The first request that may be given to `node` now, and the room that it takes.
    pub fn first_for(&self, now: Now, node: NodeId) -> Option<(u64, usize)> {
        let ready = self.ready.iter().filter_map(|seq| Some((*seq, self.items.get(seq)?)));
        let mut free = ready.filter(|(_, ask)| ask.may_go(now, node, self.patience));
        free.next().map(|(seq, ask)| (seq, ask.bytes))
    }

    /// Hands requests to `node`, up to about `bytes_max` but at least one.
    pub fn hand_to(&mut self, now: Now, node: NodeId, bytes_max: usize) -> Vec<(u64, &[Write])> {
        let (mut handed, mut bytes) = (Vec::new(), 0);
        for &seq in &self.ready {
            let Some(ask) = self.items.get_mut(&seq) else { continue };
            if !ask.may_go(now, node, self.patience) {
                continue;
            }
            if !handed.is_empty() && bytes + ask.bytes > bytes_max {
                break;
            }
            bytes += ask.bytes;
            ask.handed += u32::from(ask.last.is_none_or(|(last, _)| last != node));
            (ask.last, ask.due) = (Some((node, now)), false);
            handed.push(seq);
        }
        self.ready.retain(|seq| handed.binary_search(seq).is_err());
        let writes = |seq: u64| Some((seq, &*self.items.get(&seq)?.writes));
        handed.into_iter().filter_map(writes).collect()
    }

    /// The link to `node` is new: what was handed over may be lost, or was handed to an earlier
    /// process of it.
    pub fn link_is_new(&mut self, node: NodeId) {
        for ask in self.items.values_mut().filter(|ask| ask.is_with(node)) {
            ask.due = true;
            ask.handed += 1;
        }
    }

    /// `node` has not stamped a request and never will: another one may have it at once.
    pub fn refuse(&mut self, seq: u64, node: NodeId) {
        if let Some(ask) = self.items.get_mut(&seq)
            && ask.is_with(node)
        {
            (ask.last, ask.refused_by) = (None, Some(node));
            ask.handed -= 1;
            self.ready.insert(seq);
        }
    }

    /// At each heartbeat: what was handed over before `since` and has no answer may be lost. About
    /// `bytes_max` of what may go to `node` now are given to it once more.
    pub fn ask_again(&mut self, now: Now, since: Now, node: Option<NodeId>, bytes_max: usize) {
        let mut bytes = 0;
        for (seq, ask) in &mut self.items {
            ask.refused_by = None;
            ask.due |= ask.last.is_some_and(|(_, at)| at < since);
            let may_go = |node| ask.may_go(now, node, self.patience);
            if bytes < bytes_max && node.is_some_and(may_go) && self.ready.insert(*seq) {
                bytes += ask.bytes;
            }
        }
    }

    /// The process of `node` is gone, and what it had not stamped with it.
    pub fn is_gone(&mut self, node: NodeId) {
        for (seq, ask) in self.items.iter_mut().filter(|(_, ask)| ask.is_with(node)) {
            ask.last = None;
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

    fn handed(requests: &mut StampRequests, now: u64, node: NodeId) -> Vec<u64> {
        requests.hand_to(Now(now), node, 1000).into_iter().map(|(seq, _)| seq).collect()
    }

    fn again(requests: &mut StampRequests, now: u64, since: u64, node: NodeId) {
        requests.ask_again(Now(now), Now(since), Some(node), 1000);
    }

    #[test]
    fn requests_are_handed_over_once_and_again_when_they_may_be_lost() {
        let mut requests = requests(3);
        assert_eq!(requests.hand_to(Now(0), ONE, 20).len(), 2);
        assert_eq!(handed(&mut requests, 1, ONE), [3]);
        assert_eq!(handed(&mut requests, 2, ONE), [0; 0]);
        again(&mut requests, 2, 1, ONE);
        assert_eq!(handed(&mut requests, 3, ONE), [1, 2]);
        assert!(requests.remove_from(1, TWO).is_none());
        assert!(requests.remove_from(1, ONE).is_some_and(|ask| ask.is_certain()));
        assert_eq!((requests.floor(), requests.bytes()), (2, 20));
    }

    #[test]
    fn behind_a_new_link_there_may_be_another_process() {
        let mut requests = requests(2);
        assert_eq!(handed(&mut requests, 0, ONE), [1, 2]);
        requests.link_is_new(ONE);
        again(&mut requests, 1, 0, ONE);
        assert_eq!(handed(&mut requests, 1, ONE), [1, 2]);
        assert!(requests.remove_from(1, ONE).is_some_and(|ask| !ask.is_certain()));
    }

    #[test]
    fn what_is_asked_again_is_bounded_each_time() {
        let mut requests = requests(5);
        handed(&mut requests, 0, ONE);
        requests.ask_again(Now(10), Now(5), Some(ONE), 20);
        assert_eq!(handed(&mut requests, 10, ONE), [1, 2]);
        requests.ask_again(Now(11), Now(5), Some(ONE), 20);
        assert_eq!(handed(&mut requests, 11, ONE), [3, 4]);
    }

    #[test]
    fn another_node_gets_a_request_only_when_the_first_cannot_stamp_it_any_more() {
        let mut requests = requests(2);
        assert_eq!(handed(&mut requests, 0, ONE), [1, 2]);
        again(&mut requests, 100, 1, TWO);
        assert_eq!(requests.first_for(Now(100), TWO), None);
        again(&mut requests, 101, 1, TWO);
        assert_eq!(requests.first_for(Now(101), TWO), Some((1, 10)));
        assert_eq!(handed(&mut requests, 101, TWO), [1, 2]);
        again(&mut requests, 150, 102, ONE);
        assert_eq!(handed(&mut requests, 150, ONE), [0; 0]);
        requests.is_gone(TWO);
        assert_eq!(handed(&mut requests, 151, ONE), [1, 2]);
        assert!(requests.remove(1).is_some_and(|ask| !ask.is_certain()));
    }

    #[test]
    fn a_node_that_turns_a_request_away_has_not_stamped_it() {
        let mut requests = requests(1);
        assert_eq!(handed(&mut requests, 0, ONE), [1]);
        requests.refuse(1, TWO);
        assert_eq!(handed(&mut requests, 1, TWO), [0; 0], "an answer of somebody else");
        requests.refuse(1, ONE);
        assert_eq!(handed(&mut requests, 1, ONE), [0; 0]);
        assert_eq!(handed(&mut requests, 1, TWO), [1]);
        assert!(requests.remove(1).is_some_and(|ask| ask.is_certain()));
    }

    #[test]
    fn a_request_that_was_ever_handed_over_may_be_done() {
        let mut requests = requests(2);
        handed(&mut requests, 0, ONE);
        requests.link_is_new(ONE);
        requests.is_gone(ONE);
        let seq = requests.next_seq();
        requests.insert(seq, Vec::new(), 10);
        assert_eq!(requests.cancel(1), Cancelled::Sent);
        assert_eq!(requests.cancel(3), Cancelled::Unsent);
        assert_eq!(requests.cancel(3), Cancelled::Unknown);
    }
}
