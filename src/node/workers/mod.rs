//! The threads that carry out the replica's decisions and raise its alarms. Each waits for one
//! thing.
//!
//! | file | idea |
//! |---|---|
//! | `wal` | writes records, syncs, releases the messages that wait for the sync |
//! | `apply` | applies committed entries to the store, answers clients |
//! | `snapshot` | writes and verifies images, makes spare log segments |
//! | `timers` | the heartbeat, election and drain alarms |

pub mod apply;
pub mod snapshot;
pub mod timers;
pub mod wal;
