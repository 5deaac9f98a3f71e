//! Tests of the whole server: the simulator, the judge of histories, and a disk that loses power.

pub mod linearizability;
mod memory_disk;
pub mod sim;

pub use memory_disk::MemoryDisk;
