//! The exit codes of the tools, and the error that carries one.

/// A promise of the product is broken (`bench`: a request has failed).
pub const VIOLATION: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// Nothing wrong was found, and nothing is proven.
pub const INCONCLUSIVE: u8 = 3;
/// The machine has failed: a file, a socket or a process.
pub const IO: u8 = 74;

/// Why a tool has no result: its exit code, and a sentence for the user.
pub type ToolError = (u8, String);
