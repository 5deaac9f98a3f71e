//! The other nodes.
//!
//! | file | idea |
//! |---|---|
//! | `link` | the way to a peer: whoever has something for it writes it, nobody waits |
//! | `sender` | the thread that owns a link: connects, and writes what takes long |
//! | `receiver` | the thread that reads a peer's frames and steps the core |
//! | `dial` | how both of them connect |
//! | `contacts` | signs of life, on their way to the detector |
//! | `detector` | the thread that tells who is suspected and who has recovered |

pub mod contacts;
pub mod detector;
mod dial;
pub mod link;
pub mod receiver;
pub mod sender;
