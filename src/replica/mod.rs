//! The pure core (under way).
mod message;
pub use message::*;
