//! What all sessions of a node share and none of them changes: the node's identity, its password,
//! its limits and what CONFIG GET tells.

use sha2::{Digest, Sha256};

use crate::types::{Consistency, NodeId};

/// Shared by all sessions of a node, through an `Arc`.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// This node.
    pub node: NodeId,
    /// The version that HELLO tells, such as `0.1.0`.
    pub version: &'static str,
    /// What AUTH must bring before anything else is served; `None` lets everyone in.
    pub password: Option<Password>,
    /// What a client may ask for at most.
    pub limits: Limits,
    /// What new sessions start with, and come back to with RESET.
    pub consistency: Consistency,
    /// Names (lower case) and values that CONFIG GET answers from.
    pub config: Vec<(&'static str, String)>,
}

/// The bounds on one session. They are checked against announced lengths before memory is taken, so
/// a client costs what it has really sent and never more. Each must be at least 1, and
/// `request_bytes_max` below 4 GiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest key, in bytes; a longer one is answered with an error. Default 64 KiB.
    pub key_bytes_max: usize,
    /// Longest value, and so longest argument of a RESP request, in bytes; more closes the
    /// connection (Redis: proto-max-bulk-len). Default 512 MiB.
    pub value_bytes_max: usize,
    /// Most arguments of one RESP request, its name counted; more closes the connection. Default
    /// 1,048,576, as in Redis up to version 6.
    pub arguments_max: usize,
    /// Longest line of the line protocol, in bytes; more closes the connection. Default 64 KiB,
    /// Redis's limit for inline commands.
    pub line_bytes_max: usize,
    /// Longest RESP request as a whole, in bytes; more closes the connection (Redis:
    /// client-query-buffer-limit). Default 513 MiB: one largest value with its key and framing.
    pub request_bytes_max: usize,
    /// Longest reply, in bytes of values and names; a command with a longer one is answered with an
    /// error, because MGET can name one large value a million times. Default 513 MiB.
    pub reply_bytes_max: usize,
    /// When this much output waits, [`Work::Flush`](crate::protocol::Work::Flush) asks the driver to write it
    /// before more is made. Default 1 MiB.
    pub output_bytes_max: usize,
    /// About how many bytes of encoded commands one [`Work::Write`](crate::protocol::Work::Write), or of
    /// encoded writes one [`Work::Stamp`](crate::protocol::Work::Stamp), holds at most, unless a single
    /// command is longer. Default 1 MiB.
    pub batch_bytes_max: usize,
    /// Most commands in one run, whoever serves it. Default 4096.
    pub batch_commands_max: usize,
    /// Most eventual writes that are stamped in one step of the core; a longer run goes in parts.
    /// Default 1024.
    pub stamp_writes_max: usize,
    /// Before authentication: most arguments of a RESP request. Default 10, as in Redis.
    pub stranger_arguments_max: usize,
    /// Before authentication: longest argument of a RESP request, in bytes. Default 16 KiB, as in
    /// Redis.
    pub stranger_value_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        const KIB: usize = 1 << 10;
        const MIB: usize = 1 << 20;
        Limits {
            key_bytes_max: 64 * KIB,
            value_bytes_max: 512 * MIB,
            arguments_max: 1_048_576,
            line_bytes_max: 64 * KIB,
            request_bytes_max: 513 * MIB,
            reply_bytes_max: 513 * MIB,
            output_bytes_max: MIB,
            batch_bytes_max: MIB,
            batch_commands_max: 4096,
            stamp_writes_max: 1024,
            stranger_arguments_max: 10,
            stranger_value_bytes_max: 16 * KIB,
        }
    }
}

/// A password, kept as its SHA-256 digest: comparing digests takes the same time whatever the guess
/// has in common with the truth, and neither a log line nor a core dump shows the password itself.
#[derive(Clone)]
pub struct Password {
    digest: [u8; 32],
}

impl Password {
    /// Keeps the digest of `password`.
    pub fn new(password: &[u8]) -> Password {
        Password { digest: Sha256::digest(password).into() }
    }

    /// True if `guess` is the password.
    pub fn matches(&self, guess: &[u8]) -> bool {
        let guess = Password::new(guess);
        let difference =
            self.digest.iter().zip(guess.digest).fold(0, |sum, (own, other)| sum | (own ^ other));
        difference == 0
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_matches_itself_only_and_is_never_shown() {
        let password = Password::new(b"secret");
        assert!(password.matches(b"secret"));
        for guess in ["", "secre", "secret ", "Secret"] {
            assert!(!password.matches(guess.as_bytes()), "{guess:?}");
        }
        assert_eq!(format!("{password:?}"), "Password(…)");
    }
}
