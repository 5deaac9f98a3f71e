//! The retention of segments. A segment is retained for two reasons: it holds entries
//! that no snapshot record covers, or eventual writes that no later
//! [`WalRecord::Held`](crate::replica::WalRecord::Held) has replaced. Only the oldest segment is
//! ever dropped: a younger one may hold the record that supersedes something in an older one, which
//! would come back without it.

use std::collections::VecDeque;

use crate::types::{Index, Write};

/// The effect of successive records on the retention of their own segment and of earlier ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// The highest index of an entry, superseded ones included; 0 if there is none.
    highest: Index,
    /// True if a `Held` among the records replaces all eventual writes before it.
    replaces_eventual: bool,
    /// True if there are eventual writes that nothing later in the run replaces.
    has_eventual: bool,
}

impl Contents {
    pub(super) fn entry(&mut self, index: Index) {
        self.highest = self.highest.max(index);
    }

    pub(super) fn stamped(&mut self, writes: &[Write]) {
        self.has_eventual |= !writes.is_empty();
    }

    pub(super) fn held(&mut self, writes: &[Write]) {
        // A `Held` lists all eventual writes that are left, so those before it, in this run too, no
        // longer count.
        self.replaces_eventual = true;
        self.has_eventual = !writes.is_empty();
    }
}

/// A segment on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub number: u64,
    /// The file's length in bytes.
    pub len: u64,
    /// The highest index of an entry in it, superseded ones included; 0 if there is none.
    highest: Index,
    /// True if recovery takes eventual writes from here.
    has_eventual: bool,
}

impl Segment {
    /// A segment without records.
    pub(super) fn new(number: u64, len: u64) -> Segment {
        Segment { number, len, highest: 0, has_eventual: false }
    }

    /// True if recovery needs something of the segment, given the index of the durable snapshot
    /// record.
    pub(super) fn is_retained(&self, snapshot: Index) -> bool {
        // Entries up to the snapshot's index are in its image (Raft §7). Superseded entries count
        // too: to keep a segment too long is harmless.
        self.has_eventual || self.highest > snapshot
    }
}

/// Notes records that have become durable in the last of `segments`.
pub(super) fn note_durable(segments: &mut VecDeque<Segment>, contents: Contents) {
    if contents.replaces_eventual {
        segments.iter_mut().for_each(|segment| segment.has_eventual = false);
    }
    if let Some(last) = segments.back_mut() {
        last.highest = last.highest.max(contents.highest);
        last.has_eventual |= contents.has_eventual;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Version;

    fn a_write() -> [Write; 1] {
        [Write { version: Version(1), key: b"k".as_slice().into(), value: None }]
    }

    /// Tells for each of three segments if it is retained after `contents` came into the last one.
    fn retained(contents: Contents) -> [bool; 3] {
        let mut segments: VecDeque<Segment> = VecDeque::new();
        for number in 1..=3 {
            segments.push_back(Segment::new(number, 0));
            // No eventual write was stamped while the second one was written.
            if number != 2 {
                let mut before = Contents::default();
                before.stamped(&a_write());
                note_durable(&mut segments, before);
            }
        }
        note_durable(&mut segments, contents);
        [0, 1, 2].map(|at| segments[at].is_retained(10))
    }

    #[test]
    fn a_held_frees_all_before_it_and_is_retained_itself_if_it_has_writes() {
        let mut contents = Contents::default();
        assert_eq!(retained(contents), [true, false, true]);
        contents.stamped(&[]);
        assert_eq!(retained(contents), [true, false, true]);
        contents.stamped(&a_write());
        contents.held(&[]);
        assert_eq!(retained(contents), [false, false, false], "also of its own run and segment");
        contents.held(&a_write());
        assert_eq!(retained(contents), [false, false, true]);
        contents.held(&[]);
        contents.stamped(&a_write());
        assert_eq!(retained(contents), [false, false, true]);
    }

    #[test]
    fn a_segment_with_entries_is_retained_until_the_mark_covers_the_highest() {
        let mut segments = VecDeque::from([Segment::new(1, 0)]);
        let mut contents = Contents::default();
        [12, 13, 9].into_iter().for_each(|index| contents.entry(index));
        note_durable(&mut segments, contents);
        note_durable(&mut segments, Contents::default());
        assert!(segments[0].is_retained(12));
        assert!(!segments[0].is_retained(13));
    }
}
