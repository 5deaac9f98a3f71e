//! The tables of mutants in docs/testing.md: for each mutant the seed that catches it, and the
//! invariant that it breaks there. Two test binaries have one each.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const HEAD: &str = "| mutant | seed | invariant |\n|---|---|---|\n";

/// One table, with the rest of its document.
pub struct MutantTable {
    path: PathBuf,
    before: String,
    behind: String,
    /// Name, seed and invariant of each row.
    pub rows: Vec<(String, u64, String)>,
}

impl MutantTable {
    /// Reads the table between `<!-- marker -->` and `<!-- /marker -->`.
    ///
    /// # Panics
    /// If it is not there, or has another form.
    pub fn read(marker: &str) -> MutantTable {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/testing.md");
        let document = fs::read_to_string(&path).unwrap();
        let begin = format!("<!-- {marker} -->\n{HEAD}");
        let (before, rest) = document.split_once(&begin).expect("a marker and the table's head");
        let (table, behind) =
            rest.split_once(&format!("<!-- /{marker} -->")).expect("a marker behind the table");
        let before = format!("{before}{begin}");
        let behind = format!("<!-- /{marker} -->{behind}");
        MutantTable { path, before, behind, rows: table.lines().map(row).collect() }
    }

    /// Writes the document with its rows as they are now.
    pub fn write(&self) {
        let mut rows = String::new();
        for (name, seed, invariant) in &self.rows {
            writeln!(rows, "| `{name}` | {seed} | {invariant} |").unwrap();
        }
        fs::write(&self.path, [self.before.as_str(), &rows, &self.behind].concat()).unwrap();
    }
}

fn row(line: &str) -> (String, u64, String) {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [mutant, seed, invariant] = cells[..] else { panic!("no row of three cells: {line}") };
    (mutant.trim_matches('`').to_owned(), seed.parse().unwrap(), invariant.to_owned())
}
