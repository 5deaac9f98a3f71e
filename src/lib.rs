//! NodeSync: a fault-tolerant replicated key-value store. One binary, N equal nodes, no async
//! runtime.
//!
//! **Threads wait, the replica decides, the disk speaks first.** Each dedicated thread owns one
//! thing to wait for: a client, a peer, a deadline, a disk. Every decision is made by one pure
//! value, [`replica::Replica`], which never waits. Nothing that promises durability leaves a node
//! before its write-ahead log has synced.
//!
//! ```text
//!  client bytes ──▶ protocol::Session ──▶ ┌──────────────────┐ ──▶ wal ──▶ disk
//!                                         │ node::core       │
//!  peer bytes ────▶ wire::FrameReader ──▶ │  one lock around │ ──▶ wire ──▶ peers
//!                                         │ replica::Replica │
//!  deadlines ───────────────────────────▶ └──────────────────┘ ──▶ store ──▶ replies
//! ```
//!
//! Who may use whom: `types codec clock rng` ← [`replica`] ← [`store`], [`wal`], [`wire`] ←
//! [`node`]; [`protocol`] uses `types` and `codec` only; [`sim`] may use all but `node`. Never
//! sideways, never up. Threads, channels and sockets are in [`node`] alone, files in [`wal`]'s disk
//! and home, the real clock in [`clock`]. Beside the server stand the tools that try it:
//! [`client`], and the commands in [`cli`], which may do what `node` may. A test
//! (`tests/tidy.rs`) checks this.
//!
//! To read the code: [`types`], then [`replica`] and its essay [`replica::raft`], then [`node`]
//! with the thread map, then whatever you came for.

#![warn(clippy::unwrap_used)]

pub mod client;
pub mod clock;
pub mod codec;
pub mod config;
pub mod node;
pub mod protocol;
pub mod replica;
pub mod rng;
pub mod service;
pub mod store;
#[cfg(any(test, feature = "tools"))]
pub mod testing;
#[cfg(feature = "tools")]
pub mod tools;
pub mod types;
pub mod wal;
pub mod wire;
