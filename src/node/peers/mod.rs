//! The links to and from the other nodes.
//!
//! | file | idea |
//! |---|---|
//! | `link` | the outbound link: the thread that has a message writes it, and never waits |
//! | `output` | the stream of a link, and the bytes on their way into it |
//! | `sender` | the thread that owns a link: connects, and writes what may block |
//! | `receiver` | the thread that reads a peer's frames and steps the core |
//! | `dial` | connecting and the handshake's bytes, for both of them |
//! | `contacts` | signs of life on their way to the detector |
//! | `detector` | the thread that tells which peers are suspected and which have recovered |

pub mod contacts;
pub mod detector;
mod dial;
pub mod link;
mod output;
pub mod receiver;
pub mod sender;
