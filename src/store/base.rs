//! What the log says of one slot's keys: a map, and beside it what was written while the map was
//! shared. An image shares the maps of all slots, and a walk over names that of one; to copy a map
//! before each first write would cost as many steps as it has records, and all writers pay that at
//! once when an image begins. So a write to a shared map goes beside it, and the first write that
//! finds the map its own again moves there what has gathered.
//!
//! Left out: removals beside the map. Only tombstones are ever removed, when a mark makes them
//! superfluous, and the map is copied for it if it is shared.

use std::sync::Arc;

use super::record::Map;
use crate::types::Record;

/// A map with room for fewer keys than this is not worth shrinking.
const SHRINK_CAPACITY_MIN: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Base {
    /// Changes only while nobody shares it.
    map: Arc<Map>,
    /// The records that stand for those of the same keys in the map. Not empty.
    beside: Option<Box<Map>>,
}

impl Base {
    /// The record of a key.
    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        let beside = self.beside.as_ref().and_then(|beside| beside.get(key));
        beside.or_else(|| self.map.get(key))
    }

    /// The map as it is now, and what is beside it.
    pub fn parts(&self) -> (Arc<Map>, impl Iterator<Item = &Record>) {
        (Arc::clone(&self.map), self.beside.iter().flat_map(|beside| beside.iter()))
    }

    /// All records as one map, which stays as it is while anybody shares it.
    pub fn share(&mut self, freed: &mut Vec<Record>) -> Arc<Map> {
        if self.beside.is_some() {
            self.own(freed);
        }
        Arc::clone(&self.map)
    }

    /// Puts a record in; the one of its key that it replaces. Others that nothing refers to any
    /// more go to `freed`.
    pub fn put(&mut self, record: Record, freed: &mut Vec<Record>) -> Option<Record> {
        // An empty map may be shared by many slots for good, and costs nothing to copy.
        if let Some(map) = Arc::get_mut(&mut self.map) {
            gather(map, &mut self.beside, freed);
            return map.put(record);
        }
        if self.map.is_empty() {
            return Arc::make_mut(&mut self.map).put(record);
        }
        let shared = self.map.get(record.key()).cloned();
        self.beside.get_or_insert_default().put(record).or(shared)
    }

    /// Removes the record of a key.
    pub fn remove(&mut self, key: &[u8], freed: &mut Vec<Record>) -> Option<Record> {
        let map = self.own(freed);
        let removed = map.remove(key);
        // A map does not give memory back by itself. An eighth full, shrunk to half full: at least
        // an eighth of the room must be filled or emptied before the next such move.
        if map.capacity() > SHRINK_CAPACITY_MIN && map.len() < map.capacity() / 8 {
            map.shrink_to(map.len() * 2);
        }
        removed
    }

    /// All records as one map, to be changed: a copy if it is shared.
    fn own(&mut self, freed: &mut Vec<Record>) -> &mut Map {
        if Arc::get_mut(&mut self.map).is_none() {
            // To copy it is to count each record once more.
            self.map.fetch();
        }
        let map = Arc::make_mut(&mut self.map);
        gather(map, &mut self.beside, freed);
        map
    }
}

/// Moves what is beside a map into it; what that replaces goes to `freed`.
fn gather(map: &mut Map, beside: &mut Option<Box<Map>>, freed: &mut Vec<Record>) {
    if let Some(beside) = beside.take() {
        freed.extend(beside.into_records().filter_map(|record| map.put(record)));
    }
}

impl From<Arc<Map>> for Base {
    fn from(map: Arc<Map>) -> Base {
        Base { map, beside: None }
    }
}

#[cfg(test)]
impl Base {
    /// True if somebody else holds the map: a write would go beside it.
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
        assert!(base.beside.is_none());
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
                let (map, beside) = base.parts();
                let mut seen = versions(map.iter());
                seen.extend(versions(beside));
                prop_assert_eq!(&seen, &plain);
                for (map, then) in &shared {
                    prop_assert_eq!(&versions(map.iter()), then);
                }
            }
        }
    }
}
