//! What a segment is needed for: entries that no snapshot mark covers, and eventual writes that no
//! later [`WalRecord::Held`](crate::replica::Record::Held) takes the place of. A segment that is
//! needed for neither may be dropped, if it is the oldest one: then nothing that it replaces is
//! left to come back.

use std::collections::VecDeque;

use crate::types::{Index, Write};

/// What a run of records, one after the other, means for the segments that hold it and what came
/// before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// The highest index of an entry, superseded ones included; 0 if there is none.
    highest: Index,
    /// Takes the place of all eventual writes before it.
    replaces: bool,
    /// Has eventual writes that nothing in it takes the place of.
    holds: bool,
}

impl Contents {
    pub(super) fn entry(&mut self, index: Index) {
        self.highest = self.highest.max(index);
    }

    pub(super) fn accepted(&mut self, writes: &[Write]) {
        self.holds |= !writes.is_empty();
    }

    pub(super) fn held(&mut self, writes: &[Write]) {
        self.replaces = true;
        self.holds = !writes.is_empty();
    }
}

/// A segment on the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub number: u64,
    /// The file's length in bytes.
    pub len: u64,
    highest: Index,
    /// Recovery takes eventual writes from here.
    holds: bool,
}

impl Segment {
    /// A segment without records.
    pub(super) fn new(number: u64, len: u64) -> Segment {
        Segment { number, len, highest: 0, holds: false }
    }

    /// True if recovery needs something of it, given the durable snapshot mark.
    pub(super) fn is_needed(&self, mark: Index) -> bool {
        self.holds || self.highest > mark
    }
}

/// Notes records that have become durable in the last of `segments`.
pub(super) fn note(segments: &mut VecDeque<Segment>, contents: Contents) {
    if contents.replaces {
        segments.iter_mut().for_each(|segment| segment.holds = false);
    }
    if let Some(last) = segments.back_mut() {
        last.highest = last.highest.max(contents.highest);
        last.holds |= contents.holds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Version;

    fn a_write() -> [Write; 1] {
        [Write { version: Version(1), key: b"k".as_slice().into(), value: None }]
    }

    /// Which of three segments are needed after `contents` came into the last one.
    fn needed(contents: Contents) -> [bool; 3] {
        let mut segments: VecDeque<Segment> = VecDeque::new();
        for number in 1..=3 {
            segments.push_back(Segment::new(number, 0));
            // Nobody accepted anything while the second one was written.
            if number != 2 {
                let mut before = Contents::default();
                before.accepted(&a_write());
                note(&mut segments, before);
            }
        }
        note(&mut segments, contents);
        [0, 1, 2].map(|at| segments[at].is_needed(10))
    }

    #[test]
    fn a_held_frees_all_before_it_and_is_needed_itself_if_it_has_writes() {
        let mut contents = Contents::default();
        assert_eq!(needed(contents), [true, false, true]);
        contents.accepted(&[]);
        assert_eq!(needed(contents), [true, false, true]);
        contents.accepted(&a_write());
        contents.held(&[]);
        assert_eq!(needed(contents), [false, false, false], "also of its own run and segment");
        contents.held(&a_write());
        assert_eq!(needed(contents), [false, false, true]);
        contents.held(&[]);
        contents.accepted(&a_write());
        assert_eq!(needed(contents), [false, false, true]);
    }

    #[test]
    fn a_segment_with_entries_is_needed_until_the_mark_covers_the_highest() {
        let mut segments = VecDeque::from([Segment::new(1, 0)]);
        let mut contents = Contents::default();
        [12, 13, 9].into_iter().for_each(|index| contents.entry(index));
        note(&mut segments, contents);
        note(&mut segments, Contents::default());
        assert!(segments[0].is_needed(12));
        assert!(!segments[0].is_needed(13));
    }
}
