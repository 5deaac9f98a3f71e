//! Fuzzing of everything that reads bytes from outside: client sessions of both protocols, frames
//! and handshakes of peers, entries and commands, the write-ahead log, snapshots, and the identity
//! file. The module of each target states the properties that hold for *any* bytes; the target
//! returns whether it accepted them. No input may cause a panic, a hang, or an allocation by an
//! unverified length.
//!
//! - `tests/inputs/corpus/<target>/` holds the inputs with which all runs begin. Most of them are
//!   sound, and made by the targets' `seeds`: `UPDATE_CORPUS=1 cargo test --test inputs` rewrites
//!   them after a change of format. The other files are inputs that once found a bug, or rare ones;
//!   they stay.
//! - The fresh run damages inputs of the corpus (`mutate.rs`). It lasts `NODESYNC_FUZZ_SECONDS`
//!   (10) for all targets together, or for the one that `NODESYNC_FUZZ_TARGET=wal` selects. It
//!   prints its seed; `NODESYNC_FUZZ_SEED` sets it. A run of ten minutes:
//!   `NODESYNC_FUZZ_SECONDS=600 cargo test --release --test inputs fresh -- --nocapture`.
//! - A failing input is written to the target directory, and printed with the command that adds it
//!   to the corpus. A case is its bytes alone: a target derives its other choices, such as the
//!   sizes of pieces, from their checksum.
//!
//! Memory: the crate denies `unsafe`, so there is no counting allocator here. Targets check the
//! buffers that they can see. The run also checks at intervals that the address space of the
//! process has not jumped (on Linux): a length that is trusted costs gigabytes, because the
//! mutations set lengths to the largest possible values.
//!
//! Left out: coverage guidance, which chooses inputs by the code that they reach, as libFuzzer
//! does.

#[path = "inputs/entries.rs"]
mod entries;
#[path = "inputs/handshake.rs"]
mod handshake;
#[path = "inputs/identity.rs"]
mod identity;
#[path = "inputs/image.rs"]
mod image;
#[path = "protocol/limits.rs"]
mod limits;
#[path = "inputs/mutate.rs"]
mod mutate;
#[path = "inputs/reference.rs"]
mod reference;
#[path = "inputs/runner.rs"]
mod runner;
#[path = "inputs/session.rs"]
mod session;
#[path = "inputs/wal.rs"]
mod wal;
#[path = "inputs/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use runner::Runner;

/// Names and bytes of inputs. A target must refuse those whose name begins with `refused`.
type Seeds = Vec<(String, Vec<u8>)>;

/// Reader of bytes from outside.
struct Target {
    name: &'static str,
    seeds: fn() -> Seeds,
    /// Corrects the checksums, as far as the structure is still recognizable.
    repair: Option<fn(&mut [u8])>,
    /// Checks all properties; true if the input was accepted.
    run: fn(&Case<'_>) -> bool,
}

/// Input of a target.
struct Case<'a> {
    bytes: &'a [u8],
    /// Sound input that it was made from, unless other inputs contributed or a checksum was
    /// repaired.
    origin: Option<&'a [u8]>,
}

const TARGETS: [Target; 7] = [
    Target { name: "session", seeds: session::seeds, repair: None, run: session::run },
    Target { name: "wire", seeds: wire::seeds, repair: Some(wire::repair), run: wire::run },
    Target { name: "handshake", seeds: handshake::seeds, repair: None, run: handshake::run },
    Target { name: "entries", seeds: entries::seeds, repair: None, run: entries::run },
    Target { name: "wal", seeds: wal::seeds, repair: Some(wal::repair), run: wal::run },
    Target { name: "image", seeds: image::seeds, repair: Some(image::repair), run: image::run },
    Target {
        name: "identity",
        seeds: identity::seeds,
        repair: Some(identity::repair),
        run: identity::run,
    },
];

/// Size limit of a corpus file, in bytes.
const CORPUS_FILE_MAX: usize = 4096;

fn corpus_dir(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inputs/corpus").join(target.name)
}

/// Corpus of a target, by name.
fn corpus(target: &Target) -> BTreeMap<String, Vec<u8>> {
    let dir = corpus_dir(target);
    let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, fs::read(&path).unwrap())
    };
    files.map(|file| read(file.unwrap().path())).collect()
}

#[test]
fn the_corpus_matches_its_generators_and_the_targets_accept_it() {
    let update = std::env::var("UPDATE_CORPUS").is_ok_and(|value| value == "1");
    for target in &TARGETS {
        let seeds = (target.seeds)();
        if update {
            fs::create_dir_all(corpus_dir(target)).unwrap();
            for (name, bytes) in &seeds {
                fs::write(corpus_dir(target).join(name), bytes).unwrap();
            }
        }
        let corpus = corpus(target);
        for (name, bytes) in seeds {
            let what = format!("{}/{name}", target.name);
            assert!(bytes.len() <= CORPUS_FILE_MAX, "{what} has {} bytes", bytes.len());
            let same = corpus.get(&name) == Some(&bytes);
            assert!(same, "{what} differs from its generator: see UPDATE_CORPUS in this file");
            let accepted = (target.run)(&Case { bytes: &bytes, origin: Some(&bytes) });
            assert_eq!(accepted, !name.starts_with("refused"), "{what}");
            if let Some(repair) = target.repair {
                let mut repaired = bytes.clone();
                repair(&mut repaired);
                assert!(repaired == bytes, "{what} is sound, and its repair must change nothing");
            }
        }
    }
}

#[test]
fn corpus_inputs_pass_their_checks_whole_and_truncated() {
    let mut runner = Runner::new();
    for target in &TARGETS {
        for bytes in corpus(target).values() {
            runner.run(target, &Case { bytes, origin: None });
            // Truncate at every length; in a long file, at every few bytes.
            for len in (0..bytes.len()).step_by(1 + bytes.len() / 64) {
                runner.run(target, &Case { bytes: &bytes[..len], origin: Some(bytes) });
            }
        }
    }
}

#[test]
fn fresh_inputs_pass_their_checks() {
    runner::fresh_run(&TARGETS);
}
