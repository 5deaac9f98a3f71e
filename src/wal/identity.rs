//! The text of the file `identity`, which says which node of which cluster a data directory belongs
//! to, so that a node never goes on with another node's state. A person can read it:
//! ```text
//! format = 1
//! cluster = nodesync
//! members = 5000 5001 5002
//! node = 5000
//! incarnation = 1234567890123456789
//! boot = 1763800000000
//! log = begun
//! crc32 = 89abcdef
//! ```
//! `incarnation` is a random number from the directory's creation. A node that returns with an
//! empty directory has another one, and so cannot pass for the node that voted and acknowledged
//! before. `boot` grows with each start. `log = none` stands there until the log has its first
//! record: only after that is a missing log a lost one. (Without the line, the log has begun.) The
//! checksum in the last line covers all lines before it.

use crate::types::NodeId;

/// The format that this program reads and writes.
pub(super) const FORMAT: u32 = 1;

/// The node that a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name: one line of text.
    pub cluster: String,
    /// All members, ascending.
    pub members: Vec<NodeId>,
    /// This node.
    pub node: NodeId,
}

/// The contents of an identity file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IdentityFile {
    /// The cluster's name with control characters escaped, so that it fits on its line.
    pub cluster: String,
    /// Ascending, separated by spaces.
    pub members: String,
    pub node: NodeId,
    pub incarnation: u64,
    pub boot: u64,
    /// True if the log has had a record.
    pub log_has_begun: bool,
}

/// Why a text is no identity that this program can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// Of this later format.
    Newer(u32),
    Damaged,
}

impl IdentityFile {
    pub fn new(
        identity: &Identity,
        incarnation: u64,
        boot: u64,
        log_has_begun: bool,
    ) -> IdentityFile {
        let mut members = identity.members.clone();
        members.sort_unstable();
        let members: Vec<String> = members.iter().map(NodeId::to_string).collect();
        IdentityFile {
            cluster: identity.cluster.escape_debug().to_string(),
            members: members.join(" "),
            node: identity.node,
            incarnation,
            boot,
            log_has_begun,
        }
    }

    pub fn parse(text: &str) -> Result<IdentityFile, Unusable> {
        // The format comes before the checksum: a later format may have another one.
        match field(text, "format").and_then(|format| format.parse().ok()) {
            Some(FORMAT) => IdentityFile::parse_fields(text).ok_or(Unusable::Damaged),
            Some(found) if found > FORMAT => Err(Unusable::Newer(found)),
            _ => Err(Unusable::Damaged),
        }
    }

    fn parse_fields(text: &str) -> Option<IdentityFile> {
        let (body, checksum) = text.split_at(text.rfind("crc32 = ")?);
        if checksum != checksum_line(body) {
            return None;
        }
        let number = |name| field(body, name)?.parse::<u64>().ok();
        let (incarnation, boot) = (number("incarnation")?, number("boot")?);
        // No directory is created with incarnation 0, and the largest boot leaves none for the next
        // start.
        if incarnation == 0 || boot == u64::MAX {
            return None;
        }
        Some(IdentityFile {
            cluster: field(body, "cluster")?.to_owned(),
            members: field(body, "members")?.to_owned(),
            node: NodeId(field(body, "node")?.parse().ok()?),
            incarnation,
            boot,
            log_has_begun: field(body, "log") != Some("none"),
        })
    }

    pub fn text(&self) -> String {
        let IdentityFile { cluster, members, node, incarnation, boot, log_has_begun } = self;
        let log = if *log_has_begun { "begun" } else { "none" };
        let mut text = format!(
            "format = {FORMAT}\ncluster = {cluster}\nmembers = {members}\nnode = {node}\n\
             incarnation = {incarnation}\nboot = {boot}\nlog = {log}\n"
        );
        text.push_str(&checksum_line(&text));
        text
    }
}

fn checksum_line(body: &str) -> String {
    format!("crc32 = {:08x}\n", crc32fast::hash(body.as_bytes()))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(" = "));
    fields.find(|(key, _)| *key == name).map(|(_, value)| value)
}
