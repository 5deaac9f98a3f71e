//! Bytes from outside meet everything that reads them: client sessions of both protocols, frames
//! and handshakes of peers, entries and commands, the write-ahead log, snapshots, and the identity
//! file. Each target says what must hold for *any* bytes (see its module), and returns whether it
//! took them. None may panic, hang, or take memory by a length that it was only told.
//!
//! - `tests/inputs/corpus/<target>/` holds the inputs that all runs begin with. Most of them are
//!   sound ones, which the targets' `seeds` make: `UPDATE_CORPUS=1 cargo test --test inputs` writes
//!   them again, after a change of format. Any other file there is an input that once found
//!   something, or a rare one: it stays.
//! - The fresh run damages inputs of the corpus (`mutate.rs`). It lasts `NODESYNC_FUZZ_SECONDS`
//!   (10) for all targets together, or for one: `NODESYNC_FUZZ_TARGET=wal`. It prints
//!   its seed; `NODESYNC_FUZZ_SEED` sets it. A run of ten minutes:
//!   `NODESYNC_FUZZ_SECONDS=600 cargo test --release --test inputs fresh -- --nocapture`.
//! - An input that fails is written to the target directory and printed with the command that adds
//!   it to the corpus. A case is its bytes alone: what a target chooses besides, such as the sizes
//!   of pieces, it derives from their checksum.
//!
//! Memory: the crate denies `unsafe`, so there is no counting allocator here. Targets check the
//! buffers that they can see, and the run checks now and then that the process's address space has
//! not jumped (on Linux): a length that is believed costs gigabytes, because the mutations set
//! lengths to the largest there are.
//!
//! Left out: inputs that are chosen by the code that they reach (coverage), as libFuzzer does it.

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

/// Names and bytes of inputs. One whose name begins with `refused` is not taken by its target.
type Seeds = Vec<(String, Vec<u8>)>;

/// One reader of bytes from outside.
struct Target {
    name: &'static str,
    seeds: fn() -> Seeds,
    /// Makes checksums right again, as far as the structure can still be seen.
    repair: Option<fn(&mut [u8])>,
    /// Checks all that must hold; true if the input was taken.
    run: fn(&Case<'_>) -> bool,
}

/// What a target is given.
struct Case<'a> {
    bytes: &'a [u8],
    /// The sound input that it was made of, if it is that one, damaged and not repaired.
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

/// No file of the corpus is longer, in bytes.
const CORPUS_FILE_MAX: usize = 4096;

fn corpus_dir(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inputs/corpus").join(target.name)
}

/// The target's part of the corpus, by name.
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
fn the_corpus_holds_what_its_generators_make_and_the_targets_take_it() {
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
            assert!(same, "{what} is not what it should be: see UPDATE_CORPUS in this file");
            let taken = (target.run)(&Case { bytes: &bytes, origin: Some(&bytes) });
            assert_eq!(taken, !name.starts_with("refused"), "{what}");
            if let Some(repair) = target.repair {
                let mut repaired = bytes.clone();
                repair(&mut repaired);
                assert!(repaired == bytes, "{what} is sound: there is nothing to repair");
            }
        }
    }
}

#[test]
fn inputs_of_the_corpus_keep_their_promises_whole_and_cut_off() {
    let mut runner = Runner::new();
    for target in &TARGETS {
        for bytes in corpus(target).values() {
            runner.run(target, &Case { bytes, origin: None });
            // Each end matters; in a long file every few bytes of it will do.
            for len in (0..bytes.len()).step_by(1 + bytes.len() / 64) {
                runner.run(target, &Case { bytes: &bytes[..len], origin: Some(bytes) });
            }
        }
    }
}

#[test]
fn fresh_inputs_keep_their_promises() {
    runner::fresh_run(&TARGETS);
}
