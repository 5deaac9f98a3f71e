//! Commands about the connection itself, which the session answers at once, and questions that only
//! the node can answer.

use super::{Response, not_an_integer, syntax_error, wrong_count};
use crate::protocol::Question;
use crate::protocol::args::Args;
use crate::protocol::conn_state::{ConnState, Protocol, mode_called};
use crate::protocol::number::parse_u64;
use crate::protocol::reply::{Reply, ReplyShape};
use crate::types::parse_integer;

type Answered = Result<Response, Reply>;

/// Longest client name, library name or library version, in bytes. Redis has no such limit.
const NAME_BYTES_MAX: usize = 1024;

fn now(reply: Reply) -> Answered {
    Ok(Response::Now(reply, ReplyShape::Plain))
}

fn ask(question: Question) -> Answered {
    Ok(Response::Ask(question, ReplyShape::Plain))
}

/// `CONSISTENCY [strong|eventual]`. READONLY goes on whatever is chosen here.
pub(super) fn consistency(args: Args<'_>, conn: &mut ConnState) -> Answered {
    match args.count() {
        1 => now(Reply::text(conn.consistency.as_str())),
        2 => {
            conn.consistency = mode_called(args.at(1))?;
            Ok(Response::Now(Reply::OK, ReplyShape::Chosen(conn.consistency)))
        }
        _ => Err(wrong_count("consistency")),
    }
}

/// `READONLY`
pub(super) fn readonly(_: Args<'_>, conn: &mut ConnState) -> Answered {
    conn.readonly = true;
    now(Reply::OK)
}

/// `READWRITE`
pub(super) fn readwrite(_: Args<'_>, conn: &mut ConnState) -> Answered {
    conn.readonly = false;
    now(Reply::OK)
}

/// `PING [message]`
pub(super) fn ping(args: Args<'_>, _: &mut ConnState) -> Answered {
    match args.count() {
        1 => now(Reply::Simple("PONG")),
        2 => now(Reply::bulk(args.at(1))),
        _ => Err(wrong_count("ping")),
    }
}

/// `ECHO message`
pub(super) fn echo(args: Args<'_>, _: &mut ConnState) -> Answered {
    now(Reply::bulk(args.at(1)))
}

/// `QUIT`
pub(super) fn quit(_: Args<'_>, conn: &mut ConnState) -> Answered {
    conn.closing = true;
    now(Reply::OK)
}

/// `RESET`: RESP2, no name, the node's consistency, and AUTH again if there is a password.
pub(super) fn reset(_: Args<'_>, conn: &mut ConnState) -> Answered {
    conn.authenticated = conn.server_info.password.is_none();
    (conn.consistency, conn.readonly) = (conn.server_info.consistency, false);
    conn.profile.name.clear();
    if conn.profile.protocol == Protocol::Resp3 {
        conn.profile.protocol = Protocol::Resp2;
    }
    conn.profile.revision += 1;
    now(Reply::Simple("RESET"))
}

/// `SELECT index`
pub(super) fn select(args: Args<'_>, _: &mut ConnState) -> Answered {
    match parse_integer(args.at(1)) {
        Some(0) => now(Reply::OK),
        Some(_) => Err(Reply::error("ERR DB index is out of range")),
        None => Err(not_an_integer()),
    }
}

/// `AUTH [username] password`; the one user is `default`.
pub(super) fn auth(args: Args<'_>, conn: &mut ConnState) -> Answered {
    let (user, password) = match args.count() {
        2 if conn.server_info.password.is_none() => {
            return Err(Reply::error(
                "ERR AUTH <password> called without any password configured for the default user. \
                 Are you sure your configuration is correct?",
            ));
        }
        2 => (&b"default"[..], args.at(1)),
        3 => (args.at(1), args.at(2)),
        _ => return Err(syntax_error()),
    };
    authenticate(user, password, conn)?;
    now(Reply::OK)
}

/// Without a password any is right, as for Redis's default user.
fn authenticate(user: &[u8], password: &[u8], conn: &mut ConnState) -> Result<(), Reply> {
    let expected = conn.server_info.password.as_ref();
    if user != b"default" || expected.is_some_and(|expected| !expected.matches(password)) {
        let text = "WRONGPASS invalid username-password pair or user is disabled.";
        return Err(Reply::error(text));
    }
    conn.authenticated = true;
    Ok(())
}

/// `HELLO [2|3 [AUTH username password] [SETNAME name]]`. `role` is always master: a client may
/// write to any node. Nothing is changed if anything is wrong.
pub(super) fn hello(args: Args<'_>, conn: &mut ConnState) -> Answered {
    if conn.profile.protocol == Protocol::Line {
        return Err(Reply::error("ERR HELLO is for RESP clients"));
    }
    let protocol = match args.rest(1).next().map(parse_integer) {
        None => conn.profile.protocol,
        Some(Some(2)) => Protocol::Resp2,
        Some(Some(3)) => Protocol::Resp3,
        Some(Some(_)) => return Err(Reply::error("NOPROTO unsupported protocol version")),
        Some(None) => {
            let text = "ERR Protocol version is not an integer or out of range";
            return Err(Reply::error(text));
        }
    };
    let (mut credentials, mut name) = (None, None);
    let mut index = 2;
    while index < args.count() {
        let left = args.count() - index;
        if args.is(index, "auth") && left > 2 {
            credentials = Some((args.at(index + 1), args.at(index + 2)));
            index += 3;
        } else if args.is(index, "setname") && left > 1 {
            name = Some(named(args.at(index + 1), "Client names")?);
            index += 2;
        } else {
            let option = super::excerpt(args.at(index), 128);
            return Err(Reply::error(format!("ERR Syntax error in HELLO option '{option}'")));
        }
    }
    if let Some((user, password)) = credentials {
        authenticate(user, password, conn)?;
    }
    if !conn.authenticated {
        return Err(Reply::error(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the \
             HELLO AUTH <user> <pass> option can be used to authenticate the client and select \
             the RESP protocol version at the same time",
        ));
    }
    if let Some(name) = name {
        conn.profile.name = name;
    }
    conn.profile.protocol = protocol;
    conn.profile.revision += 1;
    now(introduction(conn))
}

fn introduction(conn: &ConnState) -> Reply {
    let pair = |name: &'static str, value| (Reply::text(name), value);
    Reply::Map(vec![
        pair("server", Reply::text("nodesync")),
        pair("version", Reply::text(conn.server_info.version)),
        pair("proto", Reply::Integer(if conn.profile.protocol == Protocol::Resp3 { 3 } else { 2 })),
        pair("id", Reply::Integer(conn.number())),
        pair("mode", Reply::text("standalone")),
        pair("role", Reply::text("master")),
        pair("modules", Reply::Array(Vec::new())),
    ])
}

/// A name that CLIENT LIST can print; `what` begins the error text.
fn named(name: &[u8], what: &str) -> Result<String, Reply> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Reply::error(format!(
            "ERR {what} cannot be longer than {NAME_BYTES_MAX} bytes"
        )));
    }
    let text = std::str::from_utf8(name).ok().filter(|text| text.bytes().all(is_printable));
    text.map(String::from).ok_or_else(|| {
        let text = format!("ERR {what} cannot contain spaces, newlines or special characters.");
        Reply::error(text)
    })
}

fn is_printable(byte: u8) -> bool {
    (b'!'..=b'~').contains(&byte)
}

/// `CLIENT ID`
pub(super) fn client_id(_: Args<'_>, conn: &mut ConnState) -> Answered {
    now(Reply::Integer(conn.number()))
}

/// `CLIENT GETNAME`
pub(super) fn client_getname(_: Args<'_>, conn: &mut ConnState) -> Answered {
    match conn.profile.name.as_str() {
        "" => now(Reply::Null),
        name => now(Reply::text(name.to_owned())),
    }
}

/// `CLIENT SETNAME name`; an empty one takes the name away.
pub(super) fn client_setname(args: Args<'_>, conn: &mut ConnState) -> Answered {
    conn.profile.name = named(args.at(2), "Client names")?;
    conn.profile.revision += 1;
    now(Reply::OK)
}

/// `CLIENT SETINFO LIB-NAME|LIB-VER value` (Redis 7.2)
pub(super) fn client_setinfo(args: Args<'_>, conn: &mut ConnState) -> Answered {
    if args.is(2, "lib-name") {
        conn.profile.library = named(args.at(3), "lib-name")?;
    } else if args.is(2, "lib-ver") {
        conn.profile.library_version = named(args.at(3), "lib-ver")?;
    } else {
        let option = super::excerpt(args.at(2), 128);
        return Err(Reply::error(format!("ERR Unrecognized option '{option}'")));
    }
    conn.profile.revision += 1;
    now(Reply::OK)
}

/// `CLIENT NO-EVICT ON|OFF`, `CLIENT NO-TOUCH ON|OFF`
pub(super) fn client_switch(args: Args<'_>, _: &mut ConnState) -> Answered {
    if args.is(2, "on") || args.is(2, "off") { now(Reply::OK) } else { Err(syntax_error()) }
}

/// `CLIENT INFO`
pub(super) fn client_info(_: Args<'_>, _: &mut ConnState) -> Answered {
    ask(Question::ClientInfo)
}

/// `CLIENT LIST [TYPE normal|master|replica|pubsub | ID id …]`
pub(super) fn client_list(args: Args<'_>, _: &mut ConnState) -> Answered {
    if args.count() == 2 {
        return ask(Question::ClientList { ids: None });
    }
    if args.is(2, "type") && args.count() == 4 {
        let is = |word| args.is(3, word);
        return if is("normal") {
            ask(Question::ClientList { ids: None })
        } else if ["master", "replica", "slave", "pubsub"].into_iter().any(is) {
            now(Reply::Verbatim(String::new()))
        } else {
            let kind = super::excerpt(args.at(3), 128);
            Err(Reply::error(format!("ERR Unknown client type '{kind}'")))
        };
    }
    if args.is(2, "id") && args.count() > 3 {
        let ids = args.rest(3).map(parse_u64).collect::<Option<Vec<u64>>>();
        let ids = ids.ok_or_else(|| Reply::error("ERR Invalid client ID"))?;
        return ask(Question::ClientList { ids: Some(ids) });
    }
    Err(syntax_error())
}

/// `INFO [section …]`
pub(super) fn info(args: Args<'_>, _: &mut ConnState) -> Answered {
    let section = |word| String::from_utf8_lossy(word).to_ascii_lowercase();
    ask(Question::Info { sections: args.rest(1).map(section).collect() })
}

/// `LEADER`
pub(super) fn leader(_: Args<'_>, _: &mut ConnState) -> Answered {
    Ok(Response::Ask(Question::Leader, ReplyShape::Leader))
}

/// `NODES`
pub(super) fn nodes(_: Args<'_>, _: &mut ConnState) -> Answered {
    Ok(Response::Ask(Question::Nodes, ReplyShape::Nodes))
}

/// `ROLE`
pub(super) fn role(_: Args<'_>, _: &mut ConnState) -> Answered {
    ask(Question::Role)
}

/// `TIME`
pub(super) fn time(_: Args<'_>, _: &mut ConnState) -> Answered {
    ask(Question::Time)
}

/// `WAIT numreplicas timeout`, the timeout in milliseconds, 0 for none
pub(super) fn wait(args: Args<'_>, _: &mut ConnState) -> Answered {
    let replicas = parse_integer(args.at(1)).ok_or_else(not_an_integer)?;
    let timeout = parse_integer(args.at(2))
        .ok_or_else(|| Reply::error("ERR timeout is not an integer or out of range"))?;
    let timeout_ms = u64::try_from(timeout).map_err(|_| Reply::error("ERR timeout is negative"))?;
    ask(Question::Wait { replicas, timeout_ms })
}
