//! The state of a connection: its protocol, its rights, its consistency and its profile. This is
//! the part of a session that commands see and change.

use std::sync::Arc;

use crate::protocol::resp::Bounds;
use crate::protocol::server_info::ServerInfo;
use crate::types::{Command, Consistency};

/// The protocol of a connection, chosen by its first byte and by HELLO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// No byte has arrived yet.
    #[default]
    Undecided,
    /// The line protocol.
    Line,
    /// RESP, version 2.
    Resp2,
    /// RESP, version 3.
    Resp3,
}

/// A connection's description of itself, for CLIENT LIST.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// CLIENT SETNAME or HELLO SETNAME; may be empty.
    pub name: String,
    /// CLIENT SETINFO LIB-NAME; may be empty.
    pub library: String,
    /// CLIENT SETINFO LIB-VER; may be empty.
    pub library_version: String,
    /// The protocol that the connection speaks.
    pub protocol: Protocol,
    /// The latest command, in lower case, such as `client|list`; empty at first.
    pub last_command: &'static str,
    /// Number of commands taken that had the right number of arguments, failed ones included.
    pub commands: u64,
    /// Grows whenever a name or the protocol may have changed, so that the publisher of profiles
    /// compares this number and not the strings. `last_command` and `commands` do not count.
    pub revision: u64,
}

/// The part of a session that its commands read and change.
pub(super) struct ConnState {
    pub(super) id: u64,
    pub(super) server_info: Arc<ServerInfo>,
    pub(super) profile: Profile,
    /// True if AUTH has succeeded or the node has no password.
    pub(super) authenticated: bool,
    /// True once the connection is to be closed, as soon as its output is written.
    pub(super) closing: bool,
    /// The mode that CONSISTENCY has set.
    pub(super) consistency: Consistency,
    /// True from READONLY to READWRITE.
    pub(super) readonly: bool,
}

impl ConnState {
    pub(super) fn new(id: u64, server_info: Arc<ServerInfo>) -> ConnState {
        let authenticated = server_info.password.is_none();
        ConnState {
            id,
            profile: Profile::default(),
            authenticated,
            closing: false,
            consistency: server_info.consistency,
            readonly: false,
            server_info,
        }
    }

    /// The consistency of `command` when it comes without WITH.
    pub(super) fn consistency_of(&self, command: &Command<'_>) -> Consistency {
        // READONLY (Redis Cluster) allows stale reads; it changes nothing for writes.
        let eventual_read = self.readonly && !command.is_write();
        if eventual_read { Consistency::Eventual } else { self.consistency }
    }

    /// The connection's id as the number of a reply.
    pub(super) fn id_number(&self) -> i64 {
        i64::try_from(self.id).unwrap_or(i64::MAX)
    }

    /// Notes the protocol.
    pub(super) fn set_protocol(&mut self, protocol: Protocol) {
        self.profile.protocol = protocol;
        self.profile.revision += 1;
    }

    /// Notes a call of the command `name`.
    pub(super) fn note_call(&mut self, name: &'static str) {
        self.profile.last_command = name;
        self.profile.commands += 1;
    }

    /// The limits on a RESP request.
    pub(super) fn bounds(&self) -> Bounds {
        let limits = &self.server_info.limits;
        let bounds = Bounds {
            arguments_max: limits.arguments_max,
            value_bytes_max: limits.value_bytes_max,
            request_bytes_max: limits.request_bytes_max,
            complaint: "invalid",
        };
        if self.authenticated {
            return bounds;
        }
        // As in Redis, an unauthenticated client may announce little: its requests cost memory
        // before AUTH can refuse it.
        Bounds {
            arguments_max: bounds.arguments_max.min(limits.unauthenticated_arguments_max),
            value_bytes_max: bounds.value_bytes_max.min(limits.unauthenticated_value_bytes_max),
            complaint: "unauthenticated",
            ..bounds
        }
    }
}
