//! Admission: which command a request names, and whether this client may call it now.
//!
//! The order of the checks is Redis's (`processCommand`): the command exists, the number of its
//! arguments is right, the client is authenticated. So an unauthenticated client learns which
//! commands exist, and nothing else.

use crate::protocol::args::Args;
use crate::protocol::command::{self, CommandSpec, Handler};
use crate::protocol::conn_state::{ConnState, Protocol};
use crate::protocol::reply::Reply;
use crate::protocol::server_info::Limits;
use crate::types::Consistency;

/// A command that the client may call.
pub(super) struct Call<'a> {
    pub(super) spec: &'static CommandSpec,
    /// The words of the command; for a command behind WITH, without WITH and its mode.
    pub(super) args: Args<'a>,
    /// The consistency that WITH asks for.
    pub(super) mode: Option<Consistency>,
}

/// The command that `args` call on this connection; an error is the reply.
pub(super) fn admit<'a>(conn: &ConnState, args: Args<'a>) -> Result<Call<'a>, Reply> {
    let spec = find(conn, args)?.resolve(args)?;
    if !conn.authenticated && !spec.needs_no_auth() {
        return Err(Reply::error("NOAUTH Authentication required."));
    }
    let mut call = Call { spec, args, mode: None };
    if matches!(spec.handler, Handler::With) {
        let mode = command::parse_consistency(args.at(1))?;
        let args = args.behind(command::WITH_WORDS);
        let inner = find(conn, args)?;
        // Only a store command has a consistency. For any other the call stays WITH itself, which
        // answers with an error.
        if matches!(inner.handler, Handler::Store(_)) {
            call = Call { spec: inner.resolve(args)?, args, mode: Some(mode) };
        }
    }
    check_keys(&call, &conn.server_info.limits)?;
    Ok(call)
}

/// The row of the table that the first word names.
fn find(conn: &ConnState, args: Args<'_>) -> Result<&'static CommandSpec, Reply> {
    command::find(args.at(0)).ok_or_else(|| match conn.profile.protocol {
        Protocol::Line => Reply::error("ERR Invalid command"),
        _ => command::unknown_command(args),
    })
}

fn check_keys(call: &Call<'_>, limits: &Limits) -> Result<(), Reply> {
    let bytes_max = limits.key_bytes_max;
    for word in call.spec.key_words(call.args.count()) {
        let bytes = call.args.at(word).len();
        if bytes > bytes_max {
            let text = format!("ERR key of {bytes} bytes is longer than {bytes_max}");
            return Err(Reply::error(text));
        }
    }
    Ok(())
}
