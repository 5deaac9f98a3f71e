//! The requests of peers' clients that this node was asked to stamp: those that wait for room, and
//! what was decided about the others, because a request may come again.

use std::collections::BTreeMap;

use crate::types::{NodeId, Rejected, RequestId, Version, Writes};

/// The version that a request was given, or why it was given none.
pub type Decision = Result<Version, Rejected>;

/// A request that waits.
#[derive(Debug)]
struct Waiting {
    writes: Writes,
    /// When it was last handed over, by its sender's wall clock, in microseconds.
    sent: u64,
}

/// What one peer has asked for.
#[derive(Debug, Default)]
struct Row {
    /// Its process lifetime.
    boot: u64,
    /// Its requests below this number have their answers.
    floor: u64,
    waiting: BTreeMap<u64, Waiting>,
    decided: BTreeMap<u64, Decision>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct ForwardedWrites {
    rows: BTreeMap<NodeId, Row>,
}

impl ForwardedWrites {
    /// Takes a request in, whose sender has the answers to all its requests below `floor`. What was
    /// decided, if it has come before.
    pub fn insert(
        &mut self,
        id: RequestId,
        writes: Writes,
        sent: u64,
        floor: u64,
    ) -> Option<Decision> {
        let row = self.rows.entry(id.node).or_default();
        if id.boot > row.boot {
            *row = Row { boot: id.boot, ..Row::default() };
        }
        if floor > row.floor && id.boot == row.boot {
            row.floor = floor;
            row.waiting = row.waiting.split_off(&floor);
            row.decided = row.decided.split_off(&floor);
        }
        if id.boot < row.boot || id.seq < row.floor {
            return None;
        }
        let known = row.decided.get(&id.seq).copied();
        if known.is_none() {
            row.waiting.insert(id.seq, Waiting { writes, sent });
        }
        known
    }

    /// Drops the requests handed over before `since`: their senders may have taken them elsewhere.
    pub fn expire(&mut self, since: u64) {
        for row in self.rows.values_mut() {
            row.waiting.retain(|_, waiting| waiting.sent >= since);
        }
    }

    /// The next request that waits, of each peer in turn after `last`, and was not handed over
    /// before `since`.
    pub fn next(&self, last: NodeId, since: u64) -> Option<(RequestId, Writes)> {
        let after = self.rows.range(NodeId(last.0.saturating_add(1))..);
        after.chain(self.rows.range(..=last)).find_map(|(&node, row)| {
            let mut waiting = row.waiting.iter();
            let (&seq, waiting) = waiting.find(|(_, waiting)| waiting.sent >= since)?;
            Some((RequestId { node, boot: row.boot, seq }, waiting.writes.clone()))
        })
    }

    /// A request was stamped, or refused for good.
    pub fn decide(&mut self, id: RequestId, decision: Decision) {
        let Some(row) = self.rows.get_mut(&id.node).filter(|row| row.boot == id.boot) else {
            return;
        };
        row.waiting.remove(&id.seq);
        row.decided.insert(id.seq, decision);
    }

    /// True if none waits.
    pub fn is_empty(&self) -> bool {
        self.rows.values().all(|row| row.waiting.is_empty())
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
    fn what_was_decided_of_a_request_is_said_again_when_it_comes_again() {
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
