//! Golden transcripts of the consensus core. A script is a file of commands with their transcript;
//! its name is the sentence that it proves. `UPDATE_GOLDENFILES=1 cargo test --test core
//! scripts` writes the transcripts anew. Accept a change only when its cause is understood.
//!
//! `raft/`, `joining/` and `eventual/` drive whole clusters of replicas: a command delivers each
//! message and completes each disk job (see `harness/commands.rs`). `log/` and `progress/` drive
//! those two types alone.

mod harness;

use std::fs::DirEntry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use goldenscript::Runner;

/// Runs each script of a folder with a new runner, and names all that fail.
fn run_folder<R: Runner + Default>(folder: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(folder);
    let entries = std::fs::read_dir(&path).expect("the folder can be read");
    let entry = |entry: std::io::Result<_>| entry.map(|entry: DirEntry| entry.path());
    let mut files: Vec<PathBuf> =
        entries.map(entry).collect::<Result<_, _>>().expect("the folder can be read");
    files.sort();
    assert!(!files.is_empty(), "no scripts in {}", path.display());
    let fails = |file: &PathBuf| {
        let run = || goldenscript::run(&mut R::default(), file);
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                println!("{}: {error}", file.display());
                true
            }
            Err(_) => true,
        }
    };
    let failed: Vec<&PathBuf> = files.iter().filter(|file| fails(file)).collect();
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

#[test]
fn raft() {
    run_folder::<harness::Cluster>("raft");
}

#[test]
fn joining() {
    run_folder::<harness::Cluster>("joining");
}

#[test]
fn eventual() {
    run_folder::<harness::Cluster>("eventual");
}

#[test]
fn log() {
    run_folder::<harness::LogRunner>("log");
}

#[test]
fn progress() {
    run_folder::<harness::ProgressRunner>("progress");
}
