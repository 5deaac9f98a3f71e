//! Mutants: mistakes planted into the real lines, to prove that the simulator finds them.
//! `tests/mutants/` holds one file for each: the right lines, and the same lines with the mistake
//! behind a switch. The source itself knows nothing of them.
//!
//! The first test checks that each file still fits the source. The second, which builds a copy of
//! the project with all mistakes in it and runs the seeds of docs/testing.md, takes some minutes:
//!
//! ```sh
//! cargo test --test mutants -- --ignored
//! ```
//!
//! `UPDATE_GOLDENFILES=1` looks for the first seed that finds each mutant, and writes the table.

#[path = "common/mutant_table.rs"]
mod mutant_table;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use mutant_table::MutantTable;

/// A mutant must be found by one of this many seeds. (Figure 8 of the Raft paper is rare.)
const SEEDS: u64 = 3_000;

/// Seeds that one search runs together.
const SEARCH_STEP: usize = 100;

/// The switch, for the copy of the crate.
const SWITCH: &str = r#"
/// True if this mistake is switched on.
pub fn planted(name: &str) -> bool {
    static ON: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("NODESYNC_PLANTED").unwrap_or_default()) == name
}
"#;

/// One mistake.
struct Mutant {
    name: String,
    /// From the project's root.
    file: String,
    right: String,
    wrong: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All mistakes, by name.
fn mutants() -> Vec<Mutant> {
    let mut paths: Vec<PathBuf> = fs::read_dir(root().join("tests/mutants"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "mutant"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 7, "only {} mistakes", paths.len());
    paths.iter().map(|path| mutant(path)).collect()
}

fn mutant(path: &Path) -> Mutant {
    let text = fs::read_to_string(path).unwrap();
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let parts = text.split_once("--- right\n").and_then(|(head, rest)| {
        let (right, wrong) = rest.split_once("--- wrong\n")?;
        let file = head.lines().find_map(|line| line.strip_prefix("file: "))?;
        Some((file.to_owned(), right.to_owned(), wrong.to_owned()))
    });
    let (file, right, wrong) = parts.unwrap_or_else(|| panic!("{}: no mutant", path.display()));
    assert!(wrong.contains(&format!("planted(\"{name}\")")), "{name}: not behind its switch");
    Mutant { name, file, right, wrong }
}

#[test]
fn each_planted_mistake_fits_the_source_and_has_its_row() {
    let rows = MutantTable::read("planted").rows;
    let mutants = mutants();
    for Mutant { name, file, right, .. } in &mutants {
        let source = fs::read_to_string(root().join(file)).unwrap();
        let found = source.matches(right.as_str()).count();
        assert_eq!(found, 1, "tests/mutants/{name}.mutant: its right lines in {file}");
    }
    let names: Vec<&str> = mutants.iter().map(|mutant| mutant.name.as_str()).collect();
    let listed: Vec<&str> = rows.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, listed, "the rows of docs/testing.md");
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Builds the project with all mistakes in it, each behind its switch: the program.
fn build(mutants: &[Mutant]) -> PathBuf {
    // A place of its own in the target directory: artifacts of the right source stay untouched,
    // and a second run builds only what has changed.
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
    let _ = fs::remove_dir_all(work.join("source"));
    for folder in ["src", "tests", "benches"] {
        copy(&root().join(folder), &work.join("source").join(folder));
    }
    for file in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(root().join(file), work.join("source").join(file)).unwrap();
    }
    for Mutant { file, right, wrong, .. } in mutants {
        let path = work.join("source").join(file);
        let text = fs::read_to_string(&path).unwrap().replacen(right.as_str(), wrong, 1);
        let import = "\nuse crate::planted;\n";
        let text = if text.contains(import) { text } else { with_import(&text, import) };
        fs::write(&path, text).unwrap();
    }
    let lib = work.join("source/src/lib.rs");
    let text = fs::read_to_string(&lib).unwrap();
    fs::write(&lib, text + SWITCH).unwrap();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--bin", "nodesync"])
        .current_dir(work.join("source"))
        .env("CARGO_TARGET_DIR", work.join("target"))
        .status()
        .unwrap();
    assert!(built.success(), "the project with the mistakes does not build");
    work.join("target/debug/nodesync")
}

/// Puts an import in front of the first one.
fn with_import(text: &str, import: &str) -> String {
    let at = text.find("\nuse ").expect("the file has imports");
    format!("{}{import}{}", &text[..at], &text[at + 1..])
}

/// Runs seeds with a mutant: the first seed that breaks an invariant, and the invariant.
fn broken(program: &Path, name: &str, seeds: Range<u64>) -> Option<(u64, String)> {
    let output = Command::new(program)
        .args(["sim", "--seeds", &format!("{}..{}", seeds.start, seeds.end)])
        .env("NODESYNC_PLANTED", name)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => None,
        Some(1) => {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix("  seed "));
            let (seed, invariant) = lines.next().and_then(|line| line.split_once(": "))?;
            Some((seed.parse().ok()?, invariant.to_owned()))
        }
        other => panic!("{name}, seeds {seeds:?}: exit {other:?}: {text}"),
    }
}

#[test]
#[ignore = "builds the project a second time: minutes"]
fn each_planted_mistake_is_found_by_the_simulator() {
    let mut table = MutantTable::read("planted");
    let mutants = mutants();
    let program = build(&mutants);
    assert_eq!(broken(&program, "", 0..20), None, "without a mutant nothing is wrong");
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        table.rows.clear();
        for Mutant { name, .. } in mutants {
            let mut steps = (0..SEEDS).step_by(SEARCH_STEP);
            let search = |from| broken(&program, &name, from..from + SEARCH_STEP as u64);
            let first = steps.find_map(search);
            let (seed, invariant) = first.unwrap_or_else(|| panic!("no seed finds {name}"));
            table.rows.push((name, seed, invariant));
        }
        return table.write();
    }
    for (name, seed, invariant) in table.rows {
        println!("{name}, seed {seed}");
        let found = broken(&program, &name, seed..seed + 1);
        assert_eq!(found, Some((seed, invariant)), "{name}");
    }
}
