//! Which proposals have been applied, so that each is applied at most once.
//!
//! A node that loses its leader hands its unanswered proposals to the next one, and the log may
//! come to hold two copies of one of them. The state machine therefore remembers the names it has
//! applied and drops the second copy (Raft §8; thesis §6.3, where a client's session plays the part
//! that a node's process lifetime, its *boot*, plays here). The table is part of the state: every
//! replica decides alike at every index, and snapshots carry it.
//!
//! # Memory
//! One row a node: its newest boot and, for that boot, the applied numbers as ranges. Numbers below
//! the `floor`, which every proposal carries, are settled and need no memory. Above it a gap
//! between two ranges is a number that its origin still waits for, or has given up on and will soon
//! pass with its floor. So there is at most one range more than the origin has requests in flight,
//! and it bounds those. One slow request does hold back the floor, but however many others finish
//! meanwhile, they melt into one range.
//!
//! Left out: rows of nodes that never come back stay, some fifty bytes each.

use std::collections::BTreeMap;

use bytes::BufMut;

use crate::codec::{Malformed, Reader};
use crate::types::{NodeId, RequestId};

/// What the table says to a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Not seen before: apply it. The table has taken note.
    Fresh,
    /// Applied before, or so old that its origin has its answer; or it contradicts itself.
    Duplicate,
    /// From a process of its node that a newer one has followed; nobody waits for it.
    Stale,
}

/// The applied proposals of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    rows: BTreeMap<NodeId, Row>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    boot: u64,
    floor: u64,
    /// First → last of each range of applied numbers. None reaches below `floor`, none touches the
    /// next: the same set always has the same form.
    ranges: BTreeMap<u64, u64>,
}

impl Requests {
    const ROW_LEN_MIN: usize = 4 + 8 + 8 + 4;
    const RANGE_LEN: usize = 8 + 8;

    /// Judges the proposal `id`, and notes it as applied if it is fresh.
    ///
    /// It is judged by what earlier proposals said; only then its own `floor` is taken in. A floor
    /// above the proposal's own number would settle the proposal itself: no sound node sends that,
    /// and it changes nothing here.
    pub fn admit(&mut self, id: RequestId, floor: u64) -> Admission {
        let known_boot = self.rows.get(&id.node).map_or(0, |row| row.boot);
        if id.boot < known_boot {
            return Admission::Stale;
        }
        if floor > id.seq {
            return Admission::Duplicate;
        }
        let row = self.rows.entry(id.node).or_default();
        if id.boot > known_boot {
            *row = Row { boot: id.boot, ..Row::default() };
        }
        let known = row.contains(id.seq);
        if !known {
            row.insert(id.seq);
        }
        row.raise_floor(floor);
        if known { Admission::Duplicate } else { Admission::Fresh }
    }

    /// True if the proposal was applied, as far as it is known: of a node's newest boot everything
    /// is, except that a number below the floor counts as applied whatever became of it. Of an
    /// older boot, nothing is known.
    pub fn contains(&self, id: RequestId) -> bool {
        self.rows.get(&id.node).is_some_and(|row| row.boot == id.boot && row.contains(id.seq))
    }

    /// Appends the byte form: rows u32, then for each row, by ascending node, node u32, boot u64,
    /// floor u64, ranges u32, and for each range, ascending, its first and last number as u64.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(count(self.rows.len()));
        for (node, row) in &self.rows {
            out.put_u32_le(node.0);
            out.put_u64_le(row.boot);
            out.put_u64_le(row.floor);
            out.put_u32_le(count(row.ranges.len()));
            for (&first, &last) in &row.ranges {
                out.put_u64_le(first);
                out.put_u64_le(last);
            }
        }
    }

    /// Reads a table; anything but the one byte form of a table is refused.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Requests, Malformed> {
        let mut rows = BTreeMap::new();
        for _ in 0..reader.count(Requests::ROW_LEN_MIN, "request rows")? {
            let node = NodeId(reader.u32("request node")?);
            let mut row = Row {
                boot: reader.u64("request boot")?,
                floor: reader.u64("request floor")?,
                ranges: BTreeMap::new(),
            };
            // The first number that the next range may start with.
            let mut next = Some(row.floor);
            for _ in 0..reader.count(Requests::RANGE_LEN, "request ranges")? {
                let first = reader.u64("first request")?;
                let last = reader.u64("last request")?;
                if first > last || next.is_none_or(|next| first < next) {
                    return Err(Malformed("request ranges"));
                }
                row.ranges.insert(first, last);
                next = last.checked_add(2);
            }
            if rows.last_key_value().is_some_and(|(&before, _)| before >= node) {
                return Err(Malformed("request rows"));
            }
            rows.insert(node, row);
        }
        Ok(Requests { rows })
    }
}

impl Row {
    fn contains(&self, seq: u64) -> bool {
        seq < self.floor
            || self.ranges.range(..=seq).next_back().is_some_and(|(_, &last)| seq <= last)
    }

    /// Adds a number that is not contained yet.
    fn insert(&mut self, seq: u64) {
        let mut last = seq;
        if let Some(next) = seq.checked_add(1)
            && let Some(last_of_next) = self.ranges.remove(&next)
        {
            last = last_of_next;
        }
        match self.ranges.range_mut(..seq).next_back() {
            Some((_, last_of_previous)) if *last_of_previous + 1 == seq => *last_of_previous = last,
            _ => {
                self.ranges.insert(seq, last);
            }
        }
    }

    fn raise_floor(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        while let Some(range) = self.ranges.first_entry()
            && *range.key() < self.floor
        {
            let last = range.remove();
            if last >= self.floor {
                self.ranges.insert(self.floor, last);
            }
        }
    }
}

fn count(items: usize) -> u32 {
    u32::try_from(items).expect("nodes and their requests in flight are far fewer than 2^32")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn id(node: u32, boot: u64, seq: u64) -> RequestId {
        RequestId { node: NodeId(node), boot, seq }
    }

    fn ranges(requests: &Requests, node: u32) -> Vec<(u64, u64)> {
        requests.rows[&NodeId(node)].ranges.iter().map(|(&first, &last)| (first, last)).collect()
    }

    #[test]
    fn a_second_copy_is_a_duplicate() {
        let mut requests = Requests::default();
        assert_eq!(requests.admit(id(1, 1, 1), 1), Admission::Fresh);
        assert_eq!(requests.admit(id(1, 1, 1), 1), Admission::Duplicate);
        assert_eq!(requests.admit(id(2, 1, 1), 1), Admission::Fresh);
        assert!(requests.contains(id(1, 1, 1)) && !requests.contains(id(1, 1, 2)));
    }

    #[test]
    fn a_newer_boot_begins_afresh_and_makes_the_older_one_stale() {
        let mut requests = Requests::default();
        assert_eq!(requests.admit(id(1, 5, 9), 8), Admission::Fresh);
        assert_eq!(requests.admit(id(1, 6, 1), 1), Admission::Fresh);
        assert_eq!(requests.admit(id(1, 5, 10), 8), Admission::Stale);
        assert!(requests.contains(id(1, 6, 1)));
        assert!(!requests.contains(id(1, 5, 9)) && !requests.contains(id(1, 6, 9)));
    }

    #[test]
    fn what_lies_below_the_floor_is_settled_and_forgotten() {
        let mut requests = Requests::default();
        for seq in [1, 2, 4, 5, 6] {
            assert_eq!(requests.admit(id(1, 1, seq), 1), Admission::Fresh);
        }
        assert_eq!(ranges(&requests, 1), [(1, 2), (4, 6)]);
        assert_eq!(requests.admit(id(1, 1, 9), 5), Admission::Fresh);
        assert_eq!(ranges(&requests, 1), [(5, 6), (9, 9)]);
        assert_eq!(requests.admit(id(1, 1, 3), 1), Admission::Duplicate, "given up long ago");
    }

    #[test]
    fn a_late_proposal_is_judged_before_its_own_floor_counts() {
        let mut requests = Requests::default();
        assert_eq!(requests.admit(id(1, 1, 7), 7), Admission::Fresh);
        assert_eq!(requests.admit(id(1, 1, 7), 7), Admission::Duplicate);
    }

    #[test]
    fn one_slow_request_costs_one_gap_however_many_others_finish() {
        let mut requests = Requests::default();
        for seq in 2..=10_000 {
            requests.admit(id(1, 1, seq), 1);
        }
        assert_eq!(ranges(&requests, 1), [(2, 10_000)]);
        assert_eq!(requests.admit(id(1, 1, 1), 1), Admission::Fresh);
        assert_eq!(ranges(&requests, 1), [(1, 10_000)]);
    }

    #[test]
    fn a_floor_above_the_own_number_changes_nothing() {
        let mut requests = Requests::default();
        requests.admit(id(1, 1, 1), 1);
        let before = requests.clone();
        assert_eq!(requests.admit(id(1, 1, 2), 3), Admission::Duplicate);
        assert_eq!(requests.admit(id(1, 2, 2), 3), Admission::Duplicate);
        assert_eq!(requests.admit(id(2, 2, 2), u64::MAX), Admission::Duplicate);
        assert_eq!(requests, before);
    }

    #[test]
    fn the_ends_of_the_number_range_are_numbers_like_others() {
        let mut requests = Requests::default();
        for seq in [u64::MAX, 0, u64::MAX - 1, 1] {
            assert_eq!(requests.admit(id(1, u64::MAX, seq), 0), Admission::Fresh);
            assert_eq!(requests.admit(id(1, u64::MAX, seq), 0), Admission::Duplicate);
        }
        assert_eq!(ranges(&requests, 1), [(0, 1), (u64::MAX - 1, u64::MAX)]);
        let mut bytes = Vec::new();
        requests.encode(&mut bytes);
        assert_eq!(Requests::decode(&mut Reader::new(&bytes)), Ok(requests));
    }

    #[test]
    fn ranges_that_touch_overlap_or_run_backwards_are_refused() {
        let decode = |ranges: &[(u64, u64)]| {
            let ranges = ranges.iter().copied().collect();
            let row = Row { boot: 1, floor: 2, ranges };
            let mut bytes = Vec::new();
            Requests { rows: [(NodeId(1), row)].into() }.encode(&mut bytes);
            Requests::decode(&mut Reader::new(&bytes)).is_ok()
        };
        assert!(decode(&[(2, 3), (5, 5)]));
        for ranges in [[(2, 3), (4, 5)], [(2, 3), (3, 5)], [(2, 9), (4, 5)], [(2, 3), (5, 4)]] {
            assert!(!decode(&ranges), "{ranges:?}");
        }
        assert!(!decode(&[(1, 3)]), "below the floor");
        assert!(!decode(&[(2, u64::MAX), (5, 6)]), "nothing can follow the largest number");
    }

    /// The rules, word for word, with a plain set.
    #[derive(Default)]
    struct Model {
        rows: BTreeMap<u32, (u64, u64, BTreeSet<u64>)>,
    }

    impl Model {
        fn admit(&mut self, id: RequestId, floor: u64) -> Admission {
            let row = self.rows.entry(id.node.0).or_default();
            if id.boot < row.0 {
                return Admission::Stale;
            }
            if floor > id.seq {
                return Admission::Duplicate;
            }
            if id.boot > row.0 {
                *row = (id.boot, 0, BTreeSet::new());
            }
            let fresh = id.seq >= row.1 && row.2.insert(id.seq);
            row.1 = row.1.max(floor);
            row.2.retain(|&seq| seq >= floor);
            if fresh { Admission::Fresh } else { Admission::Duplicate }
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_plain_set_in_any_order(
            steps in prop::collection::vec((0..3_u32, 0..3_u64, 0..24_u64, 0..20_u64), 0..80),
        ) {
            let (mut requests, mut model) = (Requests::default(), Model::default());
            for (node, boot, seq, floor) in steps {
                let id = id(node, boot, seq);
                prop_assert_eq!(requests.admit(id, floor), model.admit(id, floor));
                for (&node, (boot, floor, applied)) in &model.rows {
                    for seq in 0..26 {
                        let id = RequestId { node: NodeId(node), boot: *boot, seq };
                        let known = requests.rows.contains_key(&id.node);
                        let expected = known && (seq < *floor || applied.contains(&seq));
                        prop_assert_eq!(requests.contains(id), expected);
                    }
                }
                let mut bytes = Vec::new();
                requests.encode(&mut bytes);
                let mut reader = Reader::new(&bytes);
                prop_assert_eq!(&Requests::decode(&mut reader).unwrap(), &requests);
                prop_assert!(reader.is_empty());
            }
        }

        #[test]
        fn only_the_one_byte_form_of_a_table_is_read(
            rows in prop::collection::vec(
                (0..4_u32, 0..3_u64, prop::collection::vec((0..9_u64, 0..9_u64), 0..3)), 0..3,
            ),
        ) {
            let mut bytes = Vec::new();
            bytes.put_u32_le(rows.len() as u32);
            for (node, floor, ranges) in &rows {
                bytes.put_u32_le(*node);
                bytes.put_u64_le(1);
                bytes.put_u64_le(*floor);
                bytes.put_u32_le(ranges.len() as u32);
                for &(first, last) in ranges {
                    bytes.put_u64_le(first);
                    bytes.put_u64_le(last);
                }
            }
            let sound = rows.is_sorted_by(|(before, ..), (node, ..)| before < node)
                && rows.iter().all(|(_, floor, ranges)| {
                    ranges.iter().all(|(first, last)| floor <= first && first <= last)
                        && ranges.is_sorted_by(|(_, last), (first, _)| last + 1 < *first)
                });
            let decoded = Requests::decode(&mut Reader::new(&bytes));
            prop_assert_eq!(decoded.is_ok(), sound);
            if let Ok(requests) = decoded {
                let mut again = Vec::new();
                requests.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120), rows in 0..3_u8,
        ) {
            if let Some(head) = bytes.first_chunk_mut() {
                *head = [rows, 0, 0, 0];
            }
            let _ = Requests::decode(&mut Reader::new(&bytes));
        }
    }
}
