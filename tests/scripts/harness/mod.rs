//! The machinery under the scripts: a cluster whose network, disks and clock move by command.

mod cluster;
mod commands;
mod disk;
mod eventual;
mod log;
mod network;
mod process;
mod progress;
mod show;
mod turns;

pub use cluster::Cluster;
pub use log::LogRunner;
pub use progress::ProgressRunner;
