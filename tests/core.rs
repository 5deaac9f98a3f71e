//! Tests of the pure parts, which need no process, thread or file: the replica and the client
//! sessions.

mod protocol;
mod scripts;
#[path = "core/simulation_findings.rs"]
mod simulation_findings;
