//! The slots that the key space is cut into: the slot of a key, the content of a slot, and the
//! order in which the slots of a command with many keys are locked.
//!
//! The slot of a key is Redis Cluster's, so that clients and proxies that compute `CLUSTER KEYSLOT`
//! agree: CRC16/XMODEM of the key, or of its hash tag, modulo 16384 (Redis Cluster specification,
//! "Key distribution model" and "Hash tags").

use super::base::Base;
use super::overlay::Overlay;
use crate::types::{Record, Version};

/// The number of slots that the key space is cut into.
pub const SLOTS: usize = 16_384;

/// The slot of `key`, below [`SLOTS`]. Keys with the same hash tag share a slot: if a `{` is
/// followed by a `}` with at least one byte between, only the bytes between the first `{` and the
/// first `}` after it count.
pub fn slot_of(key: &[u8]) -> usize {
    usize::from(crc16(hash_tag(key).unwrap_or(key))) % SLOTS
}

fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|&byte| byte == b'{')?;
    let inside = &key[open + 1..];
    let close = inside.iter().position(|&byte| byte == b'}')?;
    // An empty tag, as in `{}k`, is none: the whole key counts.
    (close > 0).then(|| &inside[..close])
}

/// CRC16/XMODEM: polynomial 0x1021, start 0, most significant bit first, no final xor. Takes four
/// bytes a step, whose table look-ups are independent: three times as fast as byte by byte.
fn crc16(bytes: &[u8]) -> u16 {
    let (fours, rest) = bytes.as_chunks();
    let crc = fours.iter().fold(0, |crc: u16, &[a, b, c, d]| {
        let [high, low] = crc.to_be_bytes();
        let place = usize::from;
        CRC16[3][place(high ^ a)]
            ^ CRC16[2][place(low ^ b)]
            ^ CRC16[1][place(c)]
            ^ CRC16[0][place(d)]
    });
    rest.iter().fold(crc, |crc: u16, &byte| {
        let [high, low] = crc.to_be_bytes();
        u16::from_be_bytes([low, 0]) ^ CRC16[0][usize::from(high ^ byte)]
    })
}

/// The contribution of a byte to the checksum, with none to three bytes behind it.
static CRC16: [[u16; 256]; 4] = {
    let mut tables = [[0; 256]; 4];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 * tables.len() {
            crc = if crc & 0x8000 != 0 { crc << 1 ^ 0x1021 } else { crc << 1 };
            bit += 1;
            if bit % 8 == 0 {
                tables[bit / 8 - 1][byte] = crc;
            }
        }
        byte += 1;
    }
    tables
};

/// The content of one slot, under one lock.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// The records that the log has applied.
    pub base: Base,
    /// The eventual writes that the log has not applied yet.
    pub overlay: Overlay,
}

/// The records that a write to a slot has replaced, to be freed after the lock is released.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    /// The base's record of the key.
    pub base: Option<Record>,
    /// The overlay's record of the key, if it is not newer than the write.
    pub overlay: Option<Record>,
    /// Records that earlier writes had replaced while an image shared them.
    pub freed: Vec<Record>,
}

impl Slot {
    /// The overlay's record of a key, if it counts: if it is newer than the base's record, or than
    /// the floor if there is none.
    pub fn undrained(&self, key: &[u8], floor: Version) -> Option<&Record> {
        if self.overlay.is_empty() {
            return None;
        }
        // A floor that has risen since may have superseded the record, so presence is not enough.
        let known = self.base.get(key).map_or(floor, Record::version);
        self.overlay.get(key).filter(|over| over.version() > known)
    }

    /// The newer of the two records of a key.
    pub fn newest(&self, key: &[u8], floor: Version) -> Option<&Record> {
        self.undrained(key, floor).or_else(|| self.base.get(key))
    }

    /// Puts a record into the base; the overlay forgets an older one of its key.
    pub fn put(&mut self, record: Record) -> Replaced {
        // One lock, one moment: a newest read finds the write in the overlay or in the base, never
        // in neither.
        let overlay = self.overlay.forget(record.key(), record.version());
        let mut freed = Vec::new();
        let base = self.base.put(record, &mut freed);
        Replaced { base, overlay, freed }
    }
}

/// The slots of several keys in the order in which they must be locked, and for each key the
/// position of its slot.
pub(super) struct LockOrder {
    /// The slots, ascending, each once. Ascending, so that no two threads wait for each other.
    /// Once, because a second read lock of one thread waits behind a writer that has queued up
    /// since the first one, and that writer waits for the first.
    pub slots: Vec<usize>,
    /// For each key the position of its slot in `slots`.
    pub places: Vec<usize>,
}

impl LockOrder {
    pub fn of<'k>(keys: impl Iterator<Item = &'k [u8]>) -> LockOrder {
        let slots_of_keys: Vec<usize> = keys.map(slot_of).collect();
        let mut slots = slots_of_keys.clone();
        slots.sort_unstable();
        slots.dedup();
        let place = |slot| slots.binary_search(slot).expect("every key's slot was put in above");
        let places = slots_of_keys.iter().map(place).collect();
        LockOrder { slots, places }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc16_xmodem() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(crc16(b""), 0);
    }

    #[test]
    fn the_checksum_is_that_of_one_bit_after_the_other_at_any_length() {
        let bytes: Vec<u8> = (0..40_u8).map(|i| i.wrapping_mul(89) ^ 0x5a).collect();
        for len in 0..bytes.len() {
            let shift = |crc: u16| crc << 1 ^ if crc & 0x8000 != 0 { 0x1021 } else { 0 };
            let plain = bytes[..len]
                .iter()
                .fold(0, |crc, &byte| (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| shift(crc)));
            assert_eq!(crc16(&bytes[..len]), plain, "{len}");
        }
    }

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(slot_of(b""), 0);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"bar"), 5_061);
        assert_eq!(slot_of(b"hello"), 866);
        assert_eq!(slot_of(b"somekey"), 11_058);
        assert_eq!(slot_of(b"123456789"), 0x31c3);
    }

    #[test]
    fn keys_with_the_same_tag_share_a_slot() {
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"{user1000}.followers"));
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{hash_tag}"), 2_515);
    }

    #[test]
    fn only_the_first_tag_counts_and_only_if_it_is_not_empty() {
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
        assert_eq!(hash_tag(b"foo{}{bar}"), None);
        assert_eq!(hash_tag(b"}foo{bar"), None);
        assert_eq!(hash_tag(b"{"), None);
    }

    #[test]
    fn locks_are_ordered_and_each_slot_comes_once() {
        let keys: [&[u8]; 4] = [b"foo", b"bar", b"{foo}x", b"hello"];
        let order = LockOrder::of(keys.into_iter());
        assert_eq!(order.slots, [866, 5_061, 12_182]);
        assert_eq!(order.places, [2, 1, 2, 0]);
    }
}
