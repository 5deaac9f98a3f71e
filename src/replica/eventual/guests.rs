//! The requests of peers' clients that this node was asked to stamp: those that wait for room, and
//! the versions of those that were stamped, because a request may come again.

use std::collections::BTreeMap;

use crate::types::{NodeId, RequestId, Version, Writes};

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
    stamped: BTreeMap<u64, Version>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Guests {
    rows: BTreeMap<NodeId, Row>,
}

impl Guests {
    /// Takes a request in, whose sender has the answers to all its requests below `floor`. The
    /// version, if it was stamped before.
    pub fn insert(
        &mut self,
        id: RequestId,
        writes: Writes,
        sent: u64,
        floor: u64,
    ) -> Option<Version> {
        let row = self.rows.entry(id.node).or_default();
        if id.boot > row.boot {
            *row = Row { boot: id.boot, ..Row::default() };
        }
        if floor > row.floor && id.boot == row.boot {
            row.floor = floor;
            row.waiting = row.waiting.split_off(&floor);
            row.stamped = row.stamped.split_off(&floor);
        }
        if id.boot < row.boot || id.seq < row.floor {
            return None;
        }
        let known = row.stamped.get(&id.seq).copied();
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
    pub fn settle(&mut self, id: RequestId, version: Option<Version>) {
        let Some(row) = self.rows.get_mut(&id.node).filter(|row| row.boot == id.boot) else {
            return;
        };
        row.waiting.remove(&id.seq);
        row.stamped.extend(version.map(|version| (id.seq, version)));
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

    fn insert(guests: &mut Guests, id: RequestId, floor: u64) -> Option<Version> {
        guests.insert(id, Writes::default(), 100, floor)
    }

    fn next(guests: &Guests, last: u32) -> Option<RequestId> {
        guests.next(NodeId(last), 0).map(|(id, _)| id)
    }

    #[test]
    fn a_request_that_comes_again_has_the_version_that_it_was_given() {
        let mut guests = Guests::default();
        assert_eq!(insert(&mut guests, id(1, 1, 1), 1), None);
        assert_eq!(next(&guests, 0), Some(id(1, 1, 1)));
        guests.settle(id(1, 1, 1), Some(Version(7)));
        assert!(guests.is_empty());
        assert_eq!(insert(&mut guests, id(1, 1, 1), 1), Some(Version(7)));
        assert_eq!(insert(&mut guests, id(1, 1, 3), 3), None);
        assert_eq!(insert(&mut guests, id(1, 1, 1), 1), None, "answered long ago");
        assert_eq!(next(&guests, 0), Some(id(1, 1, 3)));
    }

    #[test]
    fn an_earlier_process_of_a_peer_is_not_heard() {
        let mut guests = Guests::default();
        insert(&mut guests, id(1, 2, 5), 5);
        insert(&mut guests, id(1, 1, 9), 9);
        assert_eq!(next(&guests, 0), Some(id(1, 2, 5)));
        insert(&mut guests, id(1, 3, 1), 1);
        assert_eq!(next(&guests, 0), Some(id(1, 3, 1)));
    }

    #[test]
    fn peers_are_served_in_turn_and_old_requests_not_at_all() {
        let mut guests = Guests::default();
        for id in [id(1, 1, 1), id(1, 1, 2), id(2, 1, 1)] {
            insert(&mut guests, id, 1);
        }
        assert_eq!(next(&guests, 1), Some(id(2, 1, 1)));
        assert_eq!(next(&guests, 2), Some(id(1, 1, 1)));
        guests.settle(id(1, 1, 1), None);
        assert_eq!(next(&guests, 2), Some(id(1, 1, 2)));
        assert!(guests.next(NodeId(0), 101).is_none());
        guests.expire(100);
        assert!(!guests.is_empty());
        guests.expire(101);
        assert!(next(&guests, 0).is_none() && guests.is_empty());
    }
}
