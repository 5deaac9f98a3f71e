//! The front ends: how clients' bytes come in and replies go out.
//!
//! | file | idea |
//! |---|---|
//! | `listener` | accepts, counts, gives each connection to a front end |
//! | `connection` | rules for a new connection; the first byte tells a peer from a client |
//! | `loops` | `--io poll`: a few loops, each serves many clients through readiness |
//! | `conn` | one connection of a loop, and the thing that it waits for |
//! | `watched` | the connections of a loop that have a deadline |
//! | `mailbox` | the way into a loop for other threads |
//! | `threads` | `--io threads`: a blocking pool thread for each live client |
//! | `waiter` | the inbox of such a thread |
//! | `pool` | the threads that serve connections |
//! | `external` | clients of a front end outside this crate |
//! | `registry` | the connected clients, for CLIENT LIST and INFO |
//! | `view` | a client's view of its node |
//!
//! Both front ends drive the same [`SessionDriver`](crate::service::SessionDriver). A peer's
//! connection always gets a thread of the pool (`peers/receiver.rs`).

mod conn;
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
mod watched;

pub use external::{ExternalClient, ExternalNext};
pub use loops::PollLoop;
pub use mailbox::Loops;
pub use pool::Pool;
pub use registry::{Clients, ConnectedClient};
pub use waiter::Waiter;
