//! Tests of the whole server: the simulator, the judge of histories, and a disk that loses power.

mod decisions;
pub mod linearizability;
mod memory_disk;
pub mod sim;

pub use decisions::{Decision, Decisions, LogJob};
pub use memory_disk::MemoryDisk;
