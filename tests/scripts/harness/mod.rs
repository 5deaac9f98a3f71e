//! What the scripts run on: a cluster whose network, disks and clock are moved by hand.

mod cluster;
mod commands;
mod disk;
mod eventual;
mod log;
mod network;
mod progress;
mod show;
mod store;

pub use cluster::Cluster;
pub use log::LogRunner;
pub use progress::ProgressRunner;
