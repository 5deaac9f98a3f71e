//! The front ends: how clients' bytes come in and replies go out.
//!
//! | file | idea |
//! |---|---|
//! | `listener` | accepts, counts, hands each connection to a front end |
//! | `connection` | rules for a new connection; the first byte tells a peer from a client |
//! | `loops` | `--io poll`: a few loops, each serves many clients through readiness |
//! | `mailbox` | the way into a loop for other threads |
//! | `threads` | `--io threads`: a blocking pool thread for each live client |
//! | `waiter` | the inbox of such a thread |
//! | `pool` | the threads that serve connections |
//! | `external` | clients that somebody else's front end serves |
//! | `registry` | the clients there are, for CLIENT LIST and INFO |
//! | `view` | what a driver sees of its node |
//!
//! Both front ends drive the same [`SessionDriver`](crate::service::SessionDriver). A peer's
//! connection always gets a thread of the pool (`peers/receiver.rs`).

mod connection;
mod external;
pub mod listener;
mod loops;
mod mailbox;
mod pool;
mod registry;
#[cfg(test)]
mod tests;
mod threads;
mod view;
mod waiter;

pub use external::{ExternalClient, Step};
pub use loops::PollLoop;
pub use mailbox::Loops;
pub use pool::Pool;
pub use registry::{Client, Clients};
pub use waiter::Waiter;
