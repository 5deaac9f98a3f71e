//! Clusters of real processes, with the real ways in which processes end and stall.
//! `NODESYNC_LONG=1` makes the loads as long and heavy as the project promises to bear: 30 seconds,
//! 64 clients.

mod disk_full;
mod eventual;
mod failover;
mod outage;
mod password;
mod ready;
mod refusals;
mod rejoin;
mod stopping;
