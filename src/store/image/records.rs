//! Records in an image: their byte form, their order, and the maps that are built from them.

use std::sync::Arc;

use bytes::BufMut;

use crate::codec::{Malformed, Reader, put_bytes};
use crate::store::Stats;
use crate::store::record::{Map, Totals};
use crate::store::slot::{SLOTS, slot_of};
use crate::types::{Record, Version};

/// A slot's records in ascending order of their keys. Comparing two keys means waiting for the
/// memory of both. Each key is therefore read once, for its eight bytes behind the prefix that all
/// keys share, and as a rule these decide.
pub(super) fn by_key(slot: &Map) -> impl Iterator<Item = &Record> {
    slot.prefetch();
    let mut records: Vec<(u64, &Record)> = slot.iter().map(|record| (0, record)).collect();
    let first = records.first().map_or(&[][..], |(_, record)| record.key());
    let alike = |key: &[u8]| key.iter().zip(first).take_while(|(a, b)| a == b).count();
    let common = records.iter().map(|(_, record)| alike(record.key())).min().unwrap_or(0);
    for (start, record) in &mut records {
        let rest = &record.key()[common..];
        let mut bytes = [0; 8];
        let len = rest.len().min(bytes.len());
        bytes[..len].copy_from_slice(&rest[..len]);
        *start = u64::from_be_bytes(bytes);
    }
    records.sort_unstable_by(|(a, first), (b, second)| {
        a.cmp(b).then_with(|| first.key().cmp(second.key()))
    });
    records.into_iter().map(|(_, record)| record)
}

/// The length of a record's byte form.
pub(super) fn encoded_len(record: &Record) -> usize {
    4 + record.key().len() + 1 + 8 + record.value().map_or(0, |value| 4 + value.len())
}

pub(super) fn encode(record: &Record, out: &mut Vec<u8>) {
    put_bytes(out, record.key());
    out.put_u8(u8::from(record.has_value()));
    out.put_u64_le(record.version().0);
    if let Some(value) = record.value() {
        put_bytes(out, value);
    }
}

fn decode(reader: &mut Reader<'_>) -> Result<Record, Malformed> {
    let key = reader.bytes("key")?;
    let has_value = reader.bool("kind of a record")?;
    let version = Version(reader.u64("version")?);
    let value = if has_value { Some(reader.bytes("value")?) } else { None };
    Ok(Record::new(version, key, value))
}

impl Totals {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let Stats { keys, bytes, tombstones } = self.stats;
        let numbers = [keys, bytes, tombstones, self.floor.0, self.latest.0, self.digest()];
        numbers.into_iter().for_each(|number| out.put_u64_le(number));
    }

    /// Compares the totals of all records that were read with the end of the image, and takes floor
    /// and latest version from there.
    pub(super) fn check(mut self, end: &mut Reader<'_>) -> Result<Totals, Malformed> {
        let (keys, bytes) = (end.u64("count of keys")?, end.u64("count of bytes")?);
        let tombstones = end.u64("count of tombstones")?;
        if self.stats != (Stats { keys, bytes, tombstones }) {
            return Err(Malformed("records are missing"));
        }
        self.floor = Version(end.u64("floor")?);
        self.latest = Version(end.u64("latest version")?);
        // Checksums find damaged bytes; the digest finds a state that was wrong when it was
        // written.
        let is_sound = end.u64("digest")? == self.digest();
        if is_sound { Ok(self) } else { Err(Malformed("digest of the state")) }
    }
}

/// Builds one slot's map after the other from sorted records.
#[derive(Default)]
pub(super) struct SlotsBuilder {
    /// The slots before the current one.
    finished: Vec<Arc<Map>>,
    /// The one map of all slots without records.
    empty: Arc<Map>,
    /// The slot of the records below.
    slot: usize,
    records: Vec<Record>,
    totals: Totals,
}

impl SlotsBuilder {
    pub fn push_all(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        while !reader.is_empty() {
            let record = decode(reader)?;
            let slot = slot_of(record.key());
            // Strictly ascending: a repeated section or key is found here, and each map is built
            // once.
            let is_ascending = match self.records.last() {
                Some(last) => (self.slot, last.key()) < (slot, record.key()),
                None => true,
            };
            if !is_ascending {
                return Err(Malformed("records out of order"));
            }
            if slot > self.slot {
                self.finish_slots(slot);
            }
            self.totals.add(&record);
            self.records.push(record);
        }
        Ok(())
    }

    /// Builds the current slot's map, and goes on to slot `next`.
    fn finish_slots(&mut self, next: usize) {
        if !self.records.is_empty() {
            self.finished.resize(self.slot, Arc::clone(&self.empty));
            self.finished.push(Arc::new(self.records.drain(..).collect()));
        }
        self.slot = next;
    }

    pub fn finish(mut self) -> (Vec<Arc<Map>>, Totals) {
        self.finish_slots(SLOTS);
        self.finished.resize(SLOTS, self.empty);
        (self.finished, self.totals)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_come_in_the_order_of_their_keys(
            common in prop::collection::vec(0..2_u8, 0..12),
            ends in prop::collection::btree_set(prop::collection::vec(0..3_u8, 0..12), 0..40),
        ) {
            let keys: Vec<_> = ends.iter().map(|end| [&common[..], end].concat()).collect();
            let map: Map = keys.iter().map(|key| Record::new(Version(1), key, None)).collect();
            let sorted: Vec<&[u8]> = by_key(&map).map(Record::key).collect();
            prop_assert_eq!(sorted, keys);
        }
    }
}
