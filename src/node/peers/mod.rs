//! The other nodes: a link to each for what goes out, a reader for each for what comes in, and the
//! detector that watches them.

pub mod detector;
pub mod link;
pub mod receiver;
pub mod sender;
