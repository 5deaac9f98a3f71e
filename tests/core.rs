//! What needs no process, no thread and no file: the replica and the client sessions, driven by
//! hand.

mod protocol;
mod scripts;
#[path = "core/simulation_findings.rs"]
mod simulation_findings;
