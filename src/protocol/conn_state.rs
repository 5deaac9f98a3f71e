//! Who speaks on a connection: what it may do and what it tells about itself. This is the part of a
//! session that commands see and change.

use std::sync::Arc;

use crate::protocol::ServerInfo;
use crate::protocol::args::Args;
use crate::protocol::command::{self, CommandSpec, Handler};
use crate::protocol::reply::Reply;
use crate::protocol::resp::Bounds;
use crate::types::{Command, Consistency};

/// Which protocol a connection speaks, by its first byte and by HELLO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Nothing has come yet.
    #[default]
    Undecided,
    /// The line protocol.
    Line,
    /// RESP, version 2.
    Resp2,
    /// RESP, version 3.
    Resp3,
}

/// What a connection tells about itself, for CLIENT LIST.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// CLIENT SETNAME or HELLO SETNAME; may be empty.
    pub name: String,
    /// CLIENT SETINFO LIB-NAME; may be empty.
    pub library: String,
    /// CLIENT SETINFO LIB-VER; may be empty.
    pub library_version: String,
    /// The protocol spoken.
    pub protocol: Protocol,
    /// The latest command, in lower case, such as `client|list`; empty at first.
    pub last_command: &'static str,
    /// How many commands with the right number of arguments were taken, those that failed among
    /// them.
    pub commands: u64,
    /// Grows whenever a name or the protocol may have changed, so that who publishes profiles can
    /// compare this number instead of the strings. `last_command` and `commands` do not count.
    pub revision: u64,
}

/// A command that its caller may give.
pub(super) struct Call<'a> {
    pub(super) spec: &'static CommandSpec,
    /// Its words; behind WITH, those of the command that it introduces.
    pub(super) args: Args<'a>,
    /// The mode that WITH asks for.
    pub(super) mode: Option<Consistency>,
}

/// The session as its commands see it.
pub(super) struct ConnState {
    pub(super) id: u64,
    pub(super) server_info: Arc<ServerInfo>,
    pub(super) profile: Profile,
    /// True if AUTH succeeded or is not needed.
    pub(super) authenticated: bool,
    /// True once the connection is to be closed behind the output.
    pub(super) closing: bool,
    /// CONSISTENCY.
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

    /// What `command` is promised if it comes without WITH.
    pub(super) fn consistency_of(&self, command: &Command<'_>) -> Consistency {
        let eventual_read = self.readonly && !command.is_write();
        if eventual_read { Consistency::Eventual } else { self.consistency }
    }

    /// The session's id as a reply's number.
    pub(super) fn number(&self) -> i64 {
        i64::try_from(self.id).unwrap_or(i64::MAX)
    }

    /// Takes note of the protocol.
    pub(super) fn speak(&mut self, protocol: Protocol) {
        self.profile.protocol = protocol;
        self.profile.revision += 1;
    }

    /// Takes note that `spec` was called.
    pub(super) fn count(&mut self, spec: &CommandSpec) {
        self.profile.last_command = spec.name;
        self.profile.commands += 1;
    }

    /// What a RESP request may announce. Strangers get little, because they cost memory all the
    /// same.
    pub(super) fn bounds(&self) -> Bounds {
        let limits = &self.server_info.limits;
        let known = Bounds {
            arguments_max: limits.arguments_max,
            value_bytes_max: limits.value_bytes_max,
            request_bytes_max: limits.request_bytes_max,
            complaint: "invalid",
        };
        if self.authenticated {
            return known;
        }
        Bounds {
            arguments_max: known.arguments_max.min(limits.stranger_arguments_max),
            value_bytes_max: known.value_bytes_max.min(limits.stranger_value_bytes_max),
            complaint: "unauthenticated",
            ..known
        }
    }

    /// The command that a request names, if this caller may give it; an error is the reply. The
    /// order of the checks is Redis's: even a stranger learns which commands there are. WITH gives
    /// way to the store command that it introduces; its own row is what a request gets that has
    /// none.
    pub(super) fn admit<'a>(&self, args: Args<'a>) -> Result<Call<'a>, Reply> {
        let spec = self.find(args)?.resolve(args)?;
        if !self.authenticated && !spec.is_for_strangers() {
            return Err(Reply::error("NOAUTH Authentication required."));
        }
        let mut call = Call { spec, args, mode: None };
        if matches!(spec.handler, Handler::With) {
            let mode = mode_called(args.at(1))?;
            let args = args.behind(command::WITH_WORDS);
            let inner = self.find(args)?;
            if matches!(inner.handler, Handler::Store(_)) {
                call = Call { spec: inner.resolve(args)?, args, mode: Some(mode) };
            }
        }
        self.check_keys(&call)?;
        Ok(call)
    }

    /// The row of the command that the first word names, whatever the other words are.
    fn find(&self, args: Args<'_>) -> Result<&'static CommandSpec, Reply> {
        command::find(args.at(0)).ok_or_else(|| match self.profile.protocol {
            Protocol::Line => Reply::error("ERR Invalid command"),
            _ => command::unknown(args),
        })
    }

    fn check_keys(&self, call: &Call<'_>) -> Result<(), Reply> {
        let bytes_max = self.server_info.limits.key_bytes_max;
        for word in call.spec.key_words(call.args.count()) {
            let bytes = call.args.at(word).len();
            if bytes > bytes_max {
                let text = format!("ERR key of {bytes} bytes is longer than {bytes_max}");
                return Err(Reply::error(text));
            }
        }
        Ok(())
    }
}

/// The mode with this name, in upper or lower case; an error is the reply.
pub(super) fn mode_called(name: &[u8]) -> Result<Consistency, Reply> {
    [Consistency::Strong, Consistency::Eventual]
        .into_iter()
        .find(|&mode| name.eq_ignore_ascii_case(mode.as_str().as_bytes()))
        .ok_or_else(|| Reply::error("ERR invalid consistency mode"))
}
