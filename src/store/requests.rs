//! The applied proposals of all nodes, so that each proposal is applied at most once.
//!
//! A node that loses its leader forwards its unanswered proposals to the next one, so the log may
//! hold two copies of a proposal. The state machine therefore remembers the ids that it has applied
//! and drops the second copy (Raft §8; thesis §6.3, where a client's session has the role that a
//! node's process lifetime, its *boot*, has here). The table is part of the state: every replica
//! decides alike at every index, and snapshots carry it.
//!
//! # Memory
//! One item a node: its newest boot and, for that boot, the applied numbers as ranges. Numbers
//! below the `floor`, which every proposal carries, are settled and need no memory. Above the
//! floor, a gap between two ranges is a number that its origin still waits for, or has cancelled
//! and will soon pass with its floor. There is therefore at most one range more than the origin has
//! requests in flight, and the origin bounds those. One slow request holds back the floor, but all
//! requests that finish meanwhile merge into one range.
//!
//! Left out: items of nodes that never come back stay, some fifty bytes each.

use std::collections::BTreeMap;

use bytes::BufMut;

use crate::codec::{Malformed, Reader};
use crate::types::{NodeId, RequestId};

/// The table's decision about a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Not seen before: apply it. The table now counts it as applied.
    Fresh,
    /// Applied before, or settled at its origin, or inconsistent in itself: drop it.
    Duplicate,
    /// From an earlier process of its node, which no longer waits for it: drop it.
    Stale,
}

/// The applied proposals of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedRequests {
    nodes: BTreeMap<NodeId, NodeRequests>,
}

/// The applied proposals of one node's newest boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NodeRequests {
    boot: u64,
    floor: u64,
    /// First → last of each range of applied numbers. No range reaches below `floor` or touches the
    /// next one, so equal sets have equal forms.
    ranges: BTreeMap<u64, u64>,
}

impl AppliedRequests {
    const NODE_LEN_MIN: usize = 4 + 8 + 8 + 4;
    const RANGE_LEN: usize = 8 + 8;

    /// Judges the proposal `id`, and counts it as applied if it is fresh.
    pub fn admit(&mut self, id: RequestId, floor: u64) -> Admission {
        let known_boot = self.nodes.get(&id.node).map_or(0, |node| node.boot);
        // The process that proposed this has ended: no client waits for it, and its applied numbers
        // are forgotten, so that nothing could tell a second copy.
        if id.boot < known_boot {
            return Admission::Stale;
        }
        // A floor above the proposal's own number would settle the proposal itself. No sound node
        // sends that; it must not move the floor.
        if floor > id.seq {
            return Admission::Duplicate;
        }
        let node = self.nodes.entry(id.node).or_default();
        // Numbers begin again with each boot.
        if id.boot > known_boot {
            *node = NodeRequests { boot: id.boot, ..NodeRequests::default() };
        }
        // At most once (§8): the first copy in the log is applied, any later one is dropped.
        let was_applied = node.contains(id.seq);
        if !was_applied {
            node.insert(id.seq);
        }
        node.raise_floor(floor);
        if was_applied { Admission::Duplicate } else { Admission::Fresh }
    }

    /// True if the proposal is known to be applied. Everything is known of a node's newest boot,
    /// except that a number below the floor counts as applied in any case. Of an older boot nothing
    /// is known.
    pub fn contains(&self, id: RequestId) -> bool {
        self.nodes.get(&id.node).is_some_and(|node| node.boot == id.boot && node.contains(id.seq))
    }

    /// Appends the byte form: number of nodes u32, then for each node, ascending, node u32, boot
    /// u64, floor u64, number of ranges u32, and for each range, ascending, its first and last
    /// number as u64.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(count(self.nodes.len()));
        for (id, node) in &self.nodes {
            out.put_u32_le(id.0);
            out.put_u64_le(node.boot);
            out.put_u64_le(node.floor);
            out.put_u32_le(count(node.ranges.len()));
            for (&first, &last) in &node.ranges {
                out.put_u64_le(first);
                out.put_u64_le(last);
            }
        }
    }

    /// Reads a table; refuses anything but the one byte form of a table, so that equal states have
    /// equal images.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<AppliedRequests, Malformed> {
        let mut nodes: BTreeMap<NodeId, NodeRequests> = BTreeMap::new();
        for _ in 0..reader.count(AppliedRequests::NODE_LEN_MIN, "request nodes")? {
            let id = NodeId(reader.u32("request node")?);
            let mut node = NodeRequests {
                boot: reader.u64("request boot")?,
                floor: reader.u64("request floor")?,
                ranges: BTreeMap::new(),
            };
            // The lowest number that the next range may start with; `None` behind the largest.
            let mut next = Some(node.floor);
            for _ in 0..reader.count(AppliedRequests::RANGE_LEN, "request ranges")? {
                let first = reader.u64("first request")?;
                let last = reader.u64("last request")?;
                if first > last || next.is_none_or(|next| first < next) {
                    return Err(Malformed("request ranges"));
                }
                node.ranges.insert(first, last);
                // Two beyond: a range that touches the one before it would be part of it.
                next = last.checked_add(2);
            }
            if nodes.last_key_value().is_some_and(|(&before, _)| before >= id) {
                return Err(Malformed("request nodes"));
            }
            nodes.insert(id, node);
        }
        Ok(AppliedRequests { nodes })
    }
}

impl NodeRequests {
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

    fn ranges(requests: &AppliedRequests, node: u32) -> Vec<(u64, u64)> {
        requests.nodes[&NodeId(node)].ranges.iter().map(|(&first, &last)| (first, last)).collect()
    }

    #[test]
    fn a_second_copy_is_a_duplicate() {
        let mut requests = AppliedRequests::default();
        assert_eq!(requests.admit(id(1, 1, 1), 1), Admission::Fresh);
        assert_eq!(requests.admit(id(1, 1, 1), 1), Admission::Duplicate);
        assert_eq!(requests.admit(id(2, 1, 1), 1), Admission::Fresh);
        assert!(requests.contains(id(1, 1, 1)) && !requests.contains(id(1, 1, 2)));
    }

    #[test]
    fn a_newer_boot_begins_afresh_and_makes_the_older_one_stale() {
        let mut requests = AppliedRequests::default();
        assert_eq!(requests.admit(id(1, 5, 9), 8), Admission::Fresh);
        assert_eq!(requests.admit(id(1, 6, 1), 1), Admission::Fresh);
        assert_eq!(requests.admit(id(1, 5, 10), 8), Admission::Stale);
        assert!(requests.contains(id(1, 6, 1)));
        assert!(!requests.contains(id(1, 5, 9)) && !requests.contains(id(1, 6, 9)));
    }

    #[test]
    fn what_lies_below_the_floor_is_settled_and_forgotten() {
        let mut requests = AppliedRequests::default();
        for seq in [1, 2, 4, 5, 6] {
            assert_eq!(requests.admit(id(1, 1, seq), 1), Admission::Fresh);
        }
        assert_eq!(ranges(&requests, 1), [(1, 2), (4, 6)]);
        assert_eq!(requests.admit(id(1, 1, 9), 5), Admission::Fresh);
        assert_eq!(ranges(&requests, 1), [(5, 6), (9, 9)]);
        assert_eq!(requests.admit(id(1, 1, 3), 1), Admission::Duplicate, "settled long ago");
    }

    #[test]
    fn a_late_proposal_is_judged_before_its_own_floor_counts() {
        let mut requests = AppliedRequests::default();
        assert_eq!(requests.admit(id(1, 1, 7), 7), Admission::Fresh);
        assert_eq!(requests.admit(id(1, 1, 7), 7), Admission::Duplicate);
    }

    #[test]
    fn one_slow_request_costs_one_gap_however_many_others_finish() {
        let mut requests = AppliedRequests::default();
        for seq in 2..=10_000 {
            requests.admit(id(1, 1, seq), 1);
        }
        assert_eq!(ranges(&requests, 1), [(2, 10_000)]);
        assert_eq!(requests.admit(id(1, 1, 1), 1), Admission::Fresh);
        assert_eq!(ranges(&requests, 1), [(1, 10_000)]);
    }

    #[test]
    fn a_floor_above_the_own_number_changes_nothing() {
        let mut requests = AppliedRequests::default();
        requests.admit(id(1, 1, 1), 1);
        let before = requests.clone();
        assert_eq!(requests.admit(id(1, 1, 2), 3), Admission::Duplicate);
        assert_eq!(requests.admit(id(1, 2, 2), 3), Admission::Duplicate);
        assert_eq!(requests.admit(id(2, 2, 2), u64::MAX), Admission::Duplicate);
        assert_eq!(requests, before);
    }

    #[test]
    fn the_ends_of_the_number_range_are_numbers_like_others() {
        let mut requests = AppliedRequests::default();
        for seq in [u64::MAX, 0, u64::MAX - 1, 1] {
            assert_eq!(requests.admit(id(1, u64::MAX, seq), 0), Admission::Fresh);
            assert_eq!(requests.admit(id(1, u64::MAX, seq), 0), Admission::Duplicate);
        }
        assert_eq!(ranges(&requests, 1), [(0, 1), (u64::MAX - 1, u64::MAX)]);
        let mut bytes = Vec::new();
        requests.encode(&mut bytes);
        assert_eq!(AppliedRequests::decode(&mut Reader::new(&bytes)), Ok(requests));
    }

    #[test]
    fn ranges_that_touch_overlap_or_run_backwards_are_refused() {
        let decode = |ranges: &[(u64, u64)]| {
            let ranges = ranges.iter().copied().collect();
            let node = NodeRequests { boot: 1, floor: 2, ranges };
            let mut bytes = Vec::new();
            AppliedRequests { nodes: [(NodeId(1), node)].into() }.encode(&mut bytes);
            AppliedRequests::decode(&mut Reader::new(&bytes)).is_ok()
        };
        assert!(decode(&[(2, 3), (5, 5)]));
        for ranges in [[(2, 3), (4, 5)], [(2, 3), (3, 5)], [(2, 9), (4, 5)], [(2, 3), (5, 4)]] {
            assert!(!decode(&ranges), "{ranges:?}");
        }
        assert!(!decode(&[(1, 3)]), "below the floor");
        assert!(!decode(&[(2, u64::MAX), (5, 6)]), "nothing can follow the largest number");
    }

    /// The same rules with a plain set.
    #[derive(Default)]
    struct Model {
        nodes: BTreeMap<u32, (u64, u64, BTreeSet<u64>)>,
    }

    impl Model {
        fn admit(&mut self, id: RequestId, floor: u64) -> Admission {
            let known = self.nodes.entry(id.node.0).or_default();
            if id.boot < known.0 {
                return Admission::Stale;
            }
            if floor > id.seq {
                return Admission::Duplicate;
            }
            if id.boot > known.0 {
                *known = (id.boot, 0, BTreeSet::new());
            }
            let fresh = id.seq >= known.1 && known.2.insert(id.seq);
            known.1 = known.1.max(floor);
            known.2.retain(|&seq| seq >= floor);
            if fresh { Admission::Fresh } else { Admission::Duplicate }
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_plain_set_in_any_order(
            steps in prop::collection::vec((0..3_u32, 0..3_u64, 0..24_u64, 0..20_u64), 0..80),
        ) {
            let (mut requests, mut model) = (AppliedRequests::default(), Model::default());
            for (node, boot, seq, floor) in steps {
                let id = id(node, boot, seq);
                prop_assert_eq!(requests.admit(id, floor), model.admit(id, floor));
                for (&node, (boot, floor, applied)) in &model.nodes {
                    for seq in 0..26 {
                        let id = RequestId { node: NodeId(node), boot: *boot, seq };
                        let is_known = requests.nodes.contains_key(&id.node);
                        let expected = is_known && (seq < *floor || applied.contains(&seq));
                        prop_assert_eq!(requests.contains(id), expected);
                    }
                }
                let mut bytes = Vec::new();
                requests.encode(&mut bytes);
                let mut reader = Reader::new(&bytes);
                prop_assert_eq!(&AppliedRequests::decode(&mut reader).unwrap(), &requests);
                prop_assert!(reader.is_empty());
            }
        }

        #[test]
        fn only_the_one_byte_form_of_a_table_is_read(
            nodes in prop::collection::vec(
                (0..4_u32, 0..3_u64, prop::collection::vec((0..9_u64, 0..9_u64), 0..3)), 0..3,
            ),
        ) {
            let mut bytes = Vec::new();
            bytes.put_u32_le(nodes.len() as u32);
            for (node, floor, ranges) in &nodes {
                bytes.put_u32_le(*node);
                bytes.put_u64_le(1);
                bytes.put_u64_le(*floor);
                bytes.put_u32_le(ranges.len() as u32);
                for &(first, last) in ranges {
                    bytes.put_u64_le(first);
                    bytes.put_u64_le(last);
                }
            }
            let sound = nodes.is_sorted_by(|(before, ..), (node, ..)| before < node)
                && nodes.iter().all(|(_, floor, ranges)| {
                    ranges.iter().all(|(first, last)| floor <= first && first <= last)
                        && ranges.is_sorted_by(|(_, last), (first, _)| last + 1 < *first)
                });
            let decoded = AppliedRequests::decode(&mut Reader::new(&bytes));
            prop_assert_eq!(decoded.is_ok(), sound);
            if let Ok(requests) = decoded {
                let mut again = Vec::new();
                requests.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120), nodes in 0..3_u8,
        ) {
            if let Some(head) = bytes.first_chunk_mut() {
                *head = [nodes, 0, 0, 0];
            }
            let _ = AppliedRequests::decode(&mut Reader::new(&bytes));
        }
    }
}
