//! NodeSync: a fault-tolerant replicated key-value store.

pub mod clock;
pub mod codec;
pub mod config;
pub mod node;
pub mod protocol;
pub mod replica;
pub mod rng;
pub mod store;
pub mod types;
pub mod wal;
pub mod wire;
