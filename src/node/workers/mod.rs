//! The threads that do what the replica decides, and raise its alarms: each waits for one thing.

pub mod apply;
pub mod snapshot;
pub mod timers;
pub mod wal;
