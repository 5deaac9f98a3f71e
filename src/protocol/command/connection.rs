//! Commands that concern the connection itself, which the session answers at once, and questions
//! that only the node can answer.

use crate::protocol::args::Args;
use crate::protocol::command::catalog::matches;
use crate::protocol::command::errors::{excerpt, not_an_integer, syntax_error, wrong_count};
use crate::protocol::command::spec::{Handled, Response};
use crate::protocol::conn_state::{ConnState, Protocol};
use crate::protocol::number::parse_u64;
use crate::protocol::reply::{Reply, ReplyShape};
use crate::protocol::work::Question;
use crate::types::{Consistency, parse_integer};

/// Longest client name, library name or library version, in bytes. Redis has no such limit.
const NAME_BYTES_MAX: usize = 1024;

fn now(reply: Reply) -> Handled {
    Ok(Response::Now(reply, ReplyShape::Plain))
}

fn ask(question: Question) -> Handled {
    Ok(Response::Ask(question, ReplyShape::Plain))
}

/// The consistency mode with this name, in upper or lower case; an error is the reply.
pub fn parse_consistency(name: &[u8]) -> Result<Consistency, Reply> {
    [Consistency::Strong, Consistency::Eventual]
        .into_iter()
        .find(|&mode| name.eq_ignore_ascii_case(mode.as_str().as_bytes()))
        .ok_or_else(|| Reply::error("ERR invalid consistency mode"))
}

/// `CONSISTENCY [strong|eventual]`. READONLY stays in force whatever the client sets here.
pub fn consistency(args: Args<'_>, conn: &mut ConnState) -> Handled {
    match args.count() {
        1 => now(Reply::text(conn.consistency.as_str())),
        2 => {
            conn.consistency = parse_consistency(args.at(1))?;
            Ok(Response::Now(Reply::OK, ReplyShape::Chosen(conn.consistency)))
        }
        _ => Err(wrong_count("consistency")),
    }
}

/// `READONLY`
pub fn readonly(_: Args<'_>, conn: &mut ConnState) -> Handled {
    conn.readonly = true;
    now(Reply::OK)
}

/// `READWRITE`
pub fn readwrite(_: Args<'_>, conn: &mut ConnState) -> Handled {
    conn.readonly = false;
    now(Reply::OK)
}

/// `PING [message]`
pub fn ping(args: Args<'_>, _: &mut ConnState) -> Handled {
    match args.count() {
        1 => now(Reply::Simple("PONG")),
        2 => now(Reply::bulk(args.at(1))),
        _ => Err(wrong_count("ping")),
    }
}

/// `ECHO message`
pub fn echo(args: Args<'_>, _: &mut ConnState) -> Handled {
    now(Reply::bulk(args.at(1)))
}

/// `QUIT`
pub fn quit(_: Args<'_>, conn: &mut ConnState) -> Handled {
    conn.closing = true;
    now(Reply::OK)
}

/// `RESET`: RESP2, no name, the node's consistency, and AUTH again if there is a password.
pub fn reset(_: Args<'_>, conn: &mut ConnState) -> Handled {
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
pub fn select(args: Args<'_>, _: &mut ConnState) -> Handled {
    match parse_integer(args.at(1)) {
        Some(0) => now(Reply::OK),
        Some(_) => Err(Reply::error("ERR DB index is out of range")),
        None => Err(not_an_integer()),
    }
}

/// `AUTH [username] password`; the one user is `default`.
pub fn auth(args: Args<'_>, conn: &mut ConnState) -> Handled {
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

/// Lets the client in if the password matches. On a node without a password every one matches, as
/// for Redis's default user.
fn authenticate(user: &[u8], password: &[u8], conn: &mut ConnState) -> Result<(), Reply> {
    let expected = conn.server_info.password.as_ref();
    if user != b"default" || expected.is_some_and(|expected| !expected.matches(password)) {
        let text = "WRONGPASS invalid username-password pair or user is disabled.";
        return Err(Reply::error(text));
    }
    conn.authenticated = true;
    Ok(())
}

/// `HELLO [2|3 [AUTH username password] [SETNAME name]]`. The role in the reply is always master,
/// because a client may write to any node. A HELLO with an error changes nothing.
pub fn hello(args: Args<'_>, conn: &mut ConnState) -> Handled {
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
    // Read all options before any of them takes effect.
    let (mut credentials, mut name) = (None, None);
    let mut index = 2;
    while index < args.count() {
        let left = args.count() - index;
        if args.is(index, "auth") && left > 2 {
            credentials = Some((args.at(index + 1), args.at(index + 2)));
            index += 3;
        } else if args.is(index, "setname") && left > 1 {
            name = Some(printable_name(args.at(index + 1), "Client names")?);
            index += 2;
        } else {
            let option = excerpt(args.at(index));
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
    now(hello_reply(conn))
}

fn hello_reply(conn: &ConnState) -> Reply {
    let pair = |name: &'static str, value| (Reply::text(name), value);
    Reply::Map(vec![
        pair("server", Reply::text("nodesync")),
        pair("version", Reply::text(conn.server_info.version)),
        pair("proto", Reply::Integer(if conn.profile.protocol == Protocol::Resp3 { 3 } else { 2 })),
        pair("id", Reply::Integer(conn.id_number())),
        pair("mode", Reply::text("standalone")),
        pair("role", Reply::text("master")),
        pair("modules", Reply::Array(Vec::new())),
    ])
}

/// A name that CLIENT LIST can print; `subject` begins the error text.
fn printable_name(name: &[u8], subject: &str) -> Result<String, Reply> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Reply::error(format!(
            "ERR {subject} cannot be longer than {NAME_BYTES_MAX} bytes"
        )));
    }
    let text = std::str::from_utf8(name).ok().filter(|text| text.bytes().all(is_printable));
    text.map(String::from).ok_or_else(|| {
        let text = format!("ERR {subject} cannot contain spaces, newlines or special characters.");
        Reply::error(text)
    })
}

fn is_printable(byte: u8) -> bool {
    (b'!'..=b'~').contains(&byte)
}

/// `CLIENT ID`
pub fn client_id(_: Args<'_>, conn: &mut ConnState) -> Handled {
    now(Reply::Integer(conn.id_number()))
}

/// `CLIENT GETNAME`
pub fn client_getname(_: Args<'_>, conn: &mut ConnState) -> Handled {
    match conn.profile.name.as_str() {
        "" => now(Reply::Null),
        name => now(Reply::text(name.to_owned())),
    }
}

/// `CLIENT SETNAME name`; an empty one takes the name away.
pub fn client_setname(args: Args<'_>, conn: &mut ConnState) -> Handled {
    conn.profile.name = printable_name(args.at(2), "Client names")?;
    conn.profile.revision += 1;
    now(Reply::OK)
}

/// `CLIENT SETINFO LIB-NAME|LIB-VER value` (Redis 7.2)
pub fn client_setinfo(args: Args<'_>, conn: &mut ConnState) -> Handled {
    if args.is(2, "lib-name") {
        conn.profile.library = printable_name(args.at(3), "lib-name")?;
    } else if args.is(2, "lib-ver") {
        conn.profile.library_version = printable_name(args.at(3), "lib-ver")?;
    } else {
        let option = excerpt(args.at(2));
        return Err(Reply::error(format!("ERR Unrecognized option '{option}'")));
    }
    conn.profile.revision += 1;
    now(Reply::OK)
}

/// `CLIENT NO-EVICT ON|OFF`, `CLIENT NO-TOUCH ON|OFF`
pub fn client_switch(args: Args<'_>, _: &mut ConnState) -> Handled {
    if args.is(2, "on") || args.is(2, "off") { now(Reply::OK) } else { Err(syntax_error()) }
}

/// `CLIENT INFO`
pub fn client_info(_: Args<'_>, _: &mut ConnState) -> Handled {
    ask(Question::ClientInfo)
}

/// `CLIENT LIST [TYPE normal|master|replica|pubsub | ID id …]`
pub fn client_list(args: Args<'_>, _: &mut ConnState) -> Handled {
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
            let kind = excerpt(args.at(3));
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

/// `CONFIG GET pattern …`; a setting that matches several patterns comes once.
pub fn config_get(args: Args<'_>, conn: &mut ConnState) -> Handled {
    let is_wanted = |name: &str| args.rest(2).any(|pattern| matches(pattern, name.as_bytes()));
    let wanted = conn.server_info.config.iter().filter(|(name, _)| is_wanted(name));
    let settings = wanted.map(|(name, value)| (Reply::text(*name), Reply::text(value.clone())));
    now(Reply::Map(settings.collect()))
}

/// `INFO [section …]`
pub fn info(args: Args<'_>, _: &mut ConnState) -> Handled {
    let section = |word| String::from_utf8_lossy(word).to_ascii_lowercase();
    ask(Question::Info { sections: args.rest(1).map(section).collect() })
}

/// `LEADER`
pub fn leader(_: Args<'_>, _: &mut ConnState) -> Handled {
    Ok(Response::Ask(Question::Leader, ReplyShape::Leader))
}

/// `NODES`
pub fn nodes(_: Args<'_>, _: &mut ConnState) -> Handled {
    Ok(Response::Ask(Question::Nodes, ReplyShape::Nodes))
}

/// `ROLE`
pub fn role(_: Args<'_>, _: &mut ConnState) -> Handled {
    ask(Question::Role)
}

/// `TIME`
pub fn time(_: Args<'_>, _: &mut ConnState) -> Handled {
    ask(Question::Time)
}

/// `WAIT numreplicas timeout`, the timeout in milliseconds, 0 for none
pub fn wait(args: Args<'_>, _: &mut ConnState) -> Handled {
    let replicas = parse_integer(args.at(1)).ok_or_else(not_an_integer)?;
    let timeout = parse_integer(args.at(2))
        .ok_or_else(|| Reply::error("ERR timeout is not an integer or out of range"))?;
    let timeout_ms = u64::try_from(timeout).map_err(|_| Reply::error("ERR timeout is negative"))?;
    ask(Question::Wait { replicas, timeout_ms })
}
