//! The identity file, which names the node that owns a data directory. For any text:
//!
//! - the directory is refused and left unchanged, or every line that matters names this node;
//! - a directory that is accepted keeps its incarnation, and its boot number grows with each start.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use nodesync::types::NodeId;
use nodesync::wal::{DataDir, Identity};
use tempfile::TempDir;

use super::{Case, Seeds};

thread_local! {
    /// One directory for all cases: making one takes longer than a case.
    static DIR: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

fn wanted() -> Identity {
    let members = [5000, 5001, 5002].map(NodeId).to_vec();
    Identity { cluster: "nodesync".to_owned(), members, node: NodeId(5001) }
}

pub fn run(case: &Case<'_>) -> bool {
    DIR.with_borrow_mut(|dir| {
        let dir = dir.get_or_insert_with(|| tempfile::tempdir().unwrap());
        check(dir.path(), case.bytes)
    })
}

fn check(dir: &Path, bytes: &[u8]) -> bool {
    let file = dir.join("identity");
    fs::write(&file, bytes).unwrap();
    let _ = fs::remove_file(dir.join("lock"));
    let Ok(data_dir) = DataDir::open(dir, &wanted(), 5) else {
        let left: Vec<_> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(left, std::slice::from_ref(&file), "a refused directory is left as it was");
        assert!(fs::read(&file).unwrap() == bytes, "its identity, too");
        return false;
    };
    let text = std::str::from_utf8(bytes).expect("text was accepted");
    let (body, checksum) =
        text.split_at(text.rfind("crc32 = ").expect("an accepted file has a checksum"));
    assert_eq!(checksum, format!("crc32 = {:08x}\n", crc32fast::hash(body.as_bytes())));
    let value = |name: &str| {
        let prefix = format!("{name} = ");
        let found = body.lines().find_map(|line| line.strip_prefix(&prefix));
        found.unwrap_or_else(|| panic!("{name} is missing")).to_owned()
    };
    let number = |name: &str| value(name).parse::<u64>().expect("a number");
    assert_eq!((value("cluster"), value("members")), ("nodesync".into(), "5000 5001 5002".into()));
    assert_eq!((number("format"), number("node")), (1, 5001));
    assert!(data_dir.incarnation() == number("incarnation") && data_dir.incarnation() != 0);
    assert!(data_dir.boot() > number("boot"), "{} after {}", data_dir.boot(), number("boot"));
    // Syncs are slow, so only one case in 16 is claimed.
    if crc32fast::hash(bytes).is_multiple_of(16) {
        check_claim(dir, data_dir);
    }
    true
}

fn check_claim(dir: &Path, data_dir: DataDir) {
    let (incarnation, boot) = (data_dir.incarnation(), data_dir.boot());
    data_dir.claim().expect("the directory can be written to");
    drop(data_dir);
    let again = DataDir::open(dir, &wanted(), 5).expect("its own file is accepted");
    assert_eq!(again.incarnation(), incarnation);
    assert!(again.boot() > boot, "{} after {boot}", again.boot());
}

/// Corrects the checksum in the last line that has one.
pub fn repair(bytes: &mut [u8]) {
    const NAME: &[u8] = b"crc32 = ";
    let Some(at) = bytes.windows(NAME.len()).rposition(|window| window == NAME) else { return };
    let (body, line) = bytes.split_at_mut(at);
    if let Some(digits) = line.get_mut(NAME.len()..NAME.len() + 8) {
        digits.copy_from_slice(format!("{:08x}", crc32fast::hash(body)).as_bytes());
    }
}

pub fn seeds() -> Seeds {
    let text = |format: u32, node: u32, incarnation: u64, boot: u64| {
        let text = format!(
            "format = {format}\ncluster = nodesync\nmembers = 5000 5001 5002\nnode = {node}\n\
             incarnation = {incarnation}\nboot = {boot}\ncrc32 = 00000000\n"
        );
        let mut bytes = text.into_bytes();
        repair(&mut bytes);
        bytes
    };
    [
        ("own", text(1, 5001, 1_234_567_890_123_456_789, 1_763_800_000_000)),
        ("young", text(1, 5001, 9, 1)),
        ("refused-another-node", text(1, 5002, 9, 7)),
        ("refused-later-format", text(2, 5001, 9, 7)),
        ("refused-boot-without-a-next", text(1, 5001, 9, u64::MAX)),
        ("refused-incarnation-of-none", text(1, 5001, 0, 7)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .to_vec()
}
