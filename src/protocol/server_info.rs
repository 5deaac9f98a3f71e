//! The part of a node that all its sessions share and none of them changes: identity, password,
//! limits and configuration.

use sha2::{Digest, Sha256};

use crate::types::{Consistency, NodeId};

/// The node as its sessions know it; they share it through an `Arc`.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    /// This node.
    pub node: NodeId,
    /// The version in HELLO's reply, such as `0.1.0`.
    pub version: &'static str,
    /// The password that AUTH checks; with `None` every client is authenticated from the start.
    pub password: Option<Password>,
    /// The bounds on each session.
    pub limits: Limits,
    /// The consistency of new sessions, and of a session after RESET.
    pub consistency: Consistency,
    /// The settings of CONFIG GET: names in lower case, and values.
    pub config: Vec<(&'static str, String)>,
}

/// The bounds on one session. Announced lengths are checked against them before memory is taken, so
/// a client costs no more than the bytes that it has sent. Each must be at least 1, and
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
    /// From this much unwritten output on, [`Work::Flush`](crate::protocol::Work::Flush) asks the
    /// driver to write it before the session makes more. Default 1 MiB.
    pub output_bytes_max: usize,
    /// Most bytes of encoded commands in one [`Work::Write`](crate::protocol::Work::Write), or of
    /// encoded writes in one [`Work::Stamp`](crate::protocol::Work::Stamp), unless a single command
    /// is longer; approximate. Default 1 MiB.
    pub batch_bytes_max: usize,
    /// Most commands in one run of any kind. Default 4096.
    pub batch_commands_max: usize,
    /// Most eventual writes that are stamped in one step of the core; a longer run goes in parts.
    /// Default 1024.
    pub stamp_writes_max: usize,
    /// Before authentication: most arguments of a RESP request. Default 10, as in Redis.
    pub unauthenticated_arguments_max: usize,
    /// Before authentication: longest argument of a RESP request, in bytes. Default 16 KiB, as in
    /// Redis.
    pub unauthenticated_value_bytes_max: usize,
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
            unauthenticated_arguments_max: 10,
            unauthenticated_value_bytes_max: 16 * KIB,
        }
    }
}

/// A password, kept as its SHA-256 digest. Comparing digests takes the same time for every guess,
/// and neither a log line nor a core dump shows the password itself.
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
        // No early exit: the time must not tell how many leading bytes are right.
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
