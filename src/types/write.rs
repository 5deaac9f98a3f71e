//! Versioned writes: the writes of eventual sessions, stamped so that all nodes agree which of two
//! writes to a key is the newer one, in any order of arrival. Also the words that they share with
//! other writes: [`Key`], and the [`Consistency`] that a session chooses.

use std::sync::Arc;

use bytes::BufMut;

use super::{Record, SharedBytes, Value};
use crate::codec::{Malformed, Reader, put_bytes};

/// A key as it is stored: cheap to share between the store, the log and a reply.
pub type Key = SharedBytes;

/// A session's choice between linearizability and availability, made with CONSISTENCY, WITH and
/// READONLY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Writes on a majority before they are answered, linearizable reads.
    #[default]
    Strong,
    /// Answered by one node; the newest version wins everywhere in the end.
    Eventual,
}

impl Consistency {
    /// Its name, as CONSISTENCY has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Consistency::Strong => "strong",
            Consistency::Eventual => "eventual",
        }
    }
}

/// The version of a write: 56 bits of a hybrid clock in sixteenths of a microsecond since 1970
/// (enough until the year 2112), then 8 bits for the origin. Of two writes to a key the one with
/// the higher version wins. Zero is older than every write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// One versioned write. Cheap to clone. [`Write::new`] makes key and value one piece of memory,
/// which a store takes over without a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its version; zero until it is stamped.
    pub version: Version,
    /// The key.
    pub key: Key,
    /// The value; `None` deletes.
    pub value: Option<Value>,
}

/// Writes that travel together, in any order. Cheap to clone.
pub type Writes = Arc<[Write]>;

impl Version {
    /// The origin of writes that the log itself orders. It is above all members' places, so that a
    /// strong write wins a tie.
    pub const LOG: u8 = u8::MAX;

    /// The largest tick.
    const TICK_MAX: u64 = u64::MAX >> 8;

    /// The version of tick `tick` of the hybrid clock, from the member at place `origin` of the
    /// ascending list of members, or from the log.
    pub fn new(tick: u64, origin: u8) -> Version {
        Version(tick.min(Version::TICK_MAX) << 8 | u64::from(origin))
    }

    /// The member's place, or the log.
    pub fn origin(self) -> u8 {
        self.0 as u8
    }

    /// The tick of the hybrid clock.
    pub fn tick(self) -> u64 {
        self.0 >> 8
    }

    /// The version of the `count`-th write after this one in a batch that was stamped as a whole.
    pub fn plus(self, count: u64) -> Version {
        Version(self.0.saturating_add(count << 8))
    }

    /// A version of the log, above this one.
    pub fn next_of_log(self) -> Version {
        Version::new(self.tick() + 1, Version::LOG)
    }
}

impl Write {
    /// Copies key and value into a new write.
    pub fn new(version: Version, key: &[u8], value: Option<&[u8]>) -> Write {
        Write::of(&Record::new(version, key, value))
    }

    fn of(record: &Record) -> Write {
        let (key, value) = (record.share_key(), record.share_value());
        Write { version: record.version(), key, value }
    }

    /// The same write at another version; a copy only if it is shared.
    pub fn stamped(self, version: Version) -> Write {
        let record = self.record();
        // Its own shares must go first, or the record would count as shared.
        drop(self);
        Write::of(&record.stamped(version))
    }

    /// The store's record of the write.
    pub fn record(&self) -> Record {
        Record::of(self.version, &self.key, self.value.as_ref())
    }

    /// The smallest encoded write, in bytes.
    pub const ENCODED_LEN_MIN: usize = 8 + 1 + 4;

    /// The length of the byte form, in bytes.
    pub fn encoded_len(&self) -> usize {
        let value_len = self.value.as_ref().map_or(0, |value| 4 + value.len());
        Write::ENCODED_LEN_MIN + self.key.len() + value_len
    }

    /// Appends the byte form: version u64, 1 if there is a value, else 0, key, value if there is
    /// one; key and value behind their lengths u32.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.version.0);
        out.put_u8(u8::from(self.value.is_some()));
        put_bytes(out, &self.key);
        if let Some(value) = &self.value {
            put_bytes(out, value);
        }
    }

    /// Reads one write.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Write, Malformed> {
        let version = Version(reader.u64("version")?);
        let has_value = reader.bool("presence of a value")?;
        let key = reader.bytes("key")?;
        let value = if has_value { Some(reader.bytes("value")?) } else { None };
        Ok(Write::new(version, key, value))
    }
}

/// Appends writes behind their number, u32.
pub fn encode_writes(writes: &[Write], out: &mut Vec<u8>) {
    out.put_u32_le(u32::try_from(writes.len()).expect("limits keep batches far below 2^32"));
    writes.iter().for_each(|write| write.encode(out));
}

/// Reads writes behind their number.
pub fn decode_writes(reader: &mut Reader<'_>) -> Result<Writes, Malformed> {
    let count = reader.count(Write::ENCODED_LEN_MIN, "writes")?;
    (0..count).map(|_| Write::decode(reader)).collect()
}
