//! The records of one slot that the log has applied: a map, and a *delta* of the writes made while
//! the map was shared.
//!
//! An image shares the maps of all slots, and a walk over names shares that of one. Copying a map
//! before its first write would take as many steps as it has records, and after an image has begun
//! every writer would pay that in the same moments. A write to a shared map therefore goes into the
//! delta. The first write after the last share is dropped folds the delta into the map.
//!
//! Left out: removals in the delta. Only tombstones are ever removed, when a checkpoint makes them
//! superfluous, and for that a shared map is copied.

use std::sync::Arc;

use super::record::Map;
use crate::types::Record;

/// A map with room for fewer keys than this is not worth shrinking.
const SHRINK_CAPACITY_MIN: usize = 64;

/// The records of one slot that the log has applied, copied on write.
#[derive(Debug, Default)]
pub(super) struct Base {
    /// Changes only while no image and no reader shares it.
    map: Arc<Map>,
    /// Records that replace those of the same keys in `map`. Never an empty map.
    delta: Option<Box<Map>>,
}

impl Base {
    /// The record of a key.
    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        let newer = self.delta.as_ref().and_then(|delta| delta.get(key));
        newer.or_else(|| self.map.get(key))
    }

    /// The record of every key.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        let delta = self.delta.as_deref();
        let is_replaced = move |key| delta.is_some_and(|delta| delta.contains(key));
        let kept = self.map.iter().filter(move |record| !is_replaced(record.key()));
        kept.chain(delta.into_iter().flat_map(Map::iter))
    }

    /// A share of the map as it is now, and the delta.
    pub fn parts(&self) -> (Arc<Map>, impl Iterator<Item = &Record>) {
        (Arc::clone(&self.map), self.delta.iter().flat_map(|delta| delta.iter()))
    }

    /// All records as one map, which stays as it is while it is shared.
    pub fn share(&mut self, freed: &mut Vec<Record>) -> Arc<Map> {
        // An earlier image may still share the map: then this copies it.
        if self.delta.is_some() {
            self.make_unique(freed);
        }
        Arc::clone(&self.map)
    }

    /// Puts a record in; returns the record of its key that it replaces. Other records that are
    /// replaced now go to `freed`.
    pub fn put(&mut self, record: Record, freed: &mut Vec<Record>) -> Option<Record> {
        // Not shared, or no longer: an image that held the map has been written. The slot's write
        // lock keeps new shares away, so the count cannot rise under us.
        if let Some(map) = Arc::get_mut(&mut self.map) {
            fold(map, &mut self.delta, freed);
            return map.put(record);
        }
        // All empty slots share one empty map for good, and copying it costs nothing.
        if self.map.is_empty() {
            return Arc::make_mut(&mut self.map).put(record);
        }
        // An image shares the map: it must not see this write. The delta's record is the key's
        // present one; the map's only if the delta has none.
        let shared = self.map.get(record.key()).cloned();
        self.delta.get_or_insert_default().put(record).or(shared)
    }

    /// Removes the record of a key.
    pub fn remove(&mut self, key: &[u8], freed: &mut Vec<Record>) -> Option<Record> {
        let map = self.make_unique(freed);
        let removed = map.remove(key);
        // A map does not give memory back by itself. An eighth full, it is shrunk to half full: at
        // least an eighth of the room must be filled or emptied before the next move.
        if map.capacity() > SHRINK_CAPACITY_MIN && map.len() < map.capacity() / 8 {
            map.shrink_to(map.len() * 2);
        }
        removed
    }

    /// All records as one map that this slot alone owns: a copy if it was shared.
    fn make_unique(&mut self, freed: &mut Vec<Record>) -> &mut Map {
        if Arc::get_mut(&mut self.map).is_none() {
            // The copy raises each record's count, so each record is needed in the cache.
            self.map.prefetch();
        }
        let map = Arc::make_mut(&mut self.map);
        fold(map, &mut self.delta, freed);
        map
    }
}

/// Moves the delta into the map; the records that it replaces go to `freed`.
fn fold(map: &mut Map, delta: &mut Option<Box<Map>>, freed: &mut Vec<Record>) {
    if let Some(delta) = delta.take() {
        freed.extend(delta.into_records().filter_map(|record| map.put(record)));
    }
}

impl From<Arc<Map>> for Base {
    fn from(map: Arc<Map>) -> Base {
        Base { map, delta: None }
    }
}

#[cfg(test)]
impl Base {
    /// True if the map is shared: a write would go into the delta.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.map) > 1
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::types::Version;

    fn record(key: u8, version: u64) -> Record {
        Record::new(Version(version), &[key], Some(&[key; 3]))
    }

    fn versions<'r>(records: impl Iterator<Item = &'r Record>) -> BTreeMap<u8, u64> {
        records.map(|record| (record.key()[0], record.version().0)).collect()
    }

    #[test]
    fn a_shared_map_is_not_copied_for_a_write_and_takes_it_in_later() {
        let (mut base, mut freed) = (Base::default(), Vec::new());
        for key in 0..9 {
            assert!(base.put(record(key, 1), &mut freed).is_none());
        }
        let shared = base.share(&mut freed);
        assert_eq!(base.put(record(3, 2), &mut freed).unwrap().version(), Version(1));
        assert_eq!(base.put(record(3, 3), &mut freed).unwrap().version(), Version(2));
        assert!(base.put(record(9, 4), &mut freed).is_none());
        assert!(base.is_shared() && Arc::ptr_eq(&shared, &base.map));
        assert_eq!(versions(shared.iter()), (0..9).map(|key| (key, 1)).collect());
        assert!(freed.is_empty());
        drop(shared);

        assert!(base.put(record(0, 5), &mut freed).is_some());
        assert!(base.delta.is_none());
        let new = BTreeMap::from([(0, 5), (3, 3), (9, 4)]);
        assert_eq!(versions(base.map.iter()), (1..9).map(|key| (key, 1)).chain(new).collect());
        assert_eq!(versions(freed.iter()), BTreeMap::from([(3, 1)]));
    }

    #[test]
    fn a_map_that_empties_gives_its_memory_back() {
        let (mut base, mut freed) = (Base::default(), Vec::new());
        for i in 0..10_000_u32 {
            let tombstone = Record::new(Version(1), &i.to_le_bytes(), None);
            assert!(base.put(tombstone, &mut freed).is_none());
        }
        for i in 0..10_000_u32 {
            assert!(base.remove(&i.to_le_bytes(), &mut freed).is_some());
        }
        assert!(base.map.capacity() <= SHRINK_CAPACITY_MIN);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8),
        Remove(u8),
        Share,
        /// Lets go of one of the shared maps.
        Drop(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..8_u8).prop_map(Step::Put),
            1 => (0..8_u8).prop_map(Step::Remove),
            2 => Just(Step::Share),
            2 => any::<usize>().prop_map(Step::Drop),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_what_was_shared_stays(steps in prop::collection::vec(step(), 0..60)) {
            let (mut base, mut plain) = (Base::default(), BTreeMap::new());
            let (mut shared, mut freed) = (Vec::new(), Vec::new());
            for (version, step) in (1..).zip(steps) {
                let (was, is) = match step {
                    Step::Put(key) => {
                        (base.put(record(key, version), &mut freed), plain.insert(key, version))
                    }
                    Step::Remove(key) => (base.remove(&[key], &mut freed), plain.remove(&key)),
                    Step::Share => {
                        shared.push((base.share(&mut freed), plain.clone()));
                        (None, None)
                    }
                    Step::Drop(_) if shared.is_empty() => (None, None),
                    Step::Drop(which) => {
                        shared.swap_remove(which % shared.len());
                        (None, None)
                    }
                };
                prop_assert_eq!(was.map(|record| record.version().0), is);
                for key in 0..8 {
                    let held = base.get(&[key]).map(|record| record.version().0);
                    prop_assert_eq!(held.as_ref(), plain.get(&key));
                }
                let (map, delta) = base.parts();
                let mut seen = versions(map.iter());
                seen.extend(versions(delta));
                prop_assert_eq!(&seen, &plain);
                prop_assert_eq!(&versions(base.iter()), &plain);
                prop_assert_eq!(base.iter().count(), plain.len());
                for (map, then) in &shared {
                    prop_assert_eq!(&versions(map.iter()), then);
                }
            }
        }
    }
}
