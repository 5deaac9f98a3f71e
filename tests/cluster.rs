//! Clusters of real processes: the program as users run it, with real sockets and files, and with
//! the real ways in which processes end and stall. `NODESYNC_LONG=1` makes the loads as long and as
//! heavy as the project promises to bear: 30 seconds, 64 clients.

mod common;

#[path = "cluster/disk_full.rs"]
mod disk_full;
#[path = "cluster/eventual.rs"]
mod eventual;
#[path = "cluster/failover.rs"]
mod failover;
#[path = "cluster/outage.rs"]
mod outage;
#[path = "cluster/password.rs"]
mod password;
#[path = "cluster/ready.rs"]
mod ready;
#[path = "cluster/refusals.rs"]
mod refusals;
#[path = "cluster/rejoin.rs"]
mod rejoin;
#[path = "cluster/stopping.rs"]
mod stopping;
