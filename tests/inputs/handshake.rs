//! The handshake of two peers. Each message of the input is offered to every step that takes one.
//! For any bytes:
//!
//! - with a password, only the one correct proof and the one correct welcome are accepted;
//! - a hello is accepted only from a member to this node, and the honest dialer accepts only the
//!   answer to its own hello;
//! - the reason of a refusal, which goes into a log, has no control characters.

use nodesync::types::NodeId;
use nodesync::wire::handshake::{
    Acceptor, Credentials, Dialer, HEAD_LEN, HandshakeError, cluster_id, message_len, refusal,
};

use super::{Case, Seeds};

const MEMBERS: [NodeId; 3] = [NodeId(5000), NodeId(5001), NodeId(5002)];

fn credentials(node: NodeId) -> Credentials {
    let cluster = cluster_id("nodesync", &MEMBERS);
    Credentials { cluster, node, boot: u64::from(node.0) << 8, password: b"secret".to_vec() }
}

/// Messages of two honest ends, in order.
struct Honest {
    dialer: Dialer,
    acceptor: Acceptor,
    hello: Vec<u8>,
    welcome: Vec<u8>,
    proof: Vec<u8>,
    accepted: Vec<u8>,
}

fn accept(hello: &[u8]) -> Result<(Acceptor, Vec<u8>), HandshakeError> {
    Acceptor::hello(credentials(MEMBERS[1]), &MEMBERS, [2; 16], hello)
}

impl Honest {
    fn new() -> Honest {
        let (dialer, hello) = Dialer::hello(credentials(MEMBERS[0]), MEMBERS[1], [1; 16]);
        let (acceptor, welcome) = accept(&hello).expect("an honest hello");
        let (_, proof) = dialer.welcome(&welcome).expect("an honest welcome");
        let accepted = acceptor.proof(&proof).expect("an honest proof");
        Honest { dialer, acceptor, hello, welcome, proof, accepted }
    }
}

/// True if the input is a sequence of messages, and some end accepts each of them.
pub fn run(case: &Case<'_>) -> bool {
    let honest = Honest::new();
    let (mut rest, mut taken) = (case.bytes, !case.bytes.is_empty());
    while let Some(head) = rest.first_chunk::<HEAD_LEN>() {
        // Offer overlong and malformed bytes as they are: a node may have read them.
        let len = message_len(head).unwrap_or(rest.len()).min(rest.len());
        let (message, behind) = rest.split_at(len);
        taken &= check_message(&honest, message);
        rest = behind;
    }
    taken && rest.is_empty()
}

fn check_message(honest: &Honest, message: &[u8]) -> bool {
    let hello = accept(message);
    if let Ok((acceptor, welcome)) = &hello {
        assert!(MEMBERS.contains(&acceptor.peer()) && acceptor.peer() != MEMBERS[1]);
        let met = honest.dialer.welcome(welcome).is_ok();
        assert_eq!(met, message == honest.hello, "a hello that was not the dialer's");
    }
    let welcome = honest.dialer.welcome(message);
    assert_eq!(welcome.is_ok(), message == honest.welcome, "only one welcome is right");
    let proof = honest.acceptor.proof(message);
    assert_eq!(proof.is_ok(), message == honest.proof, "only one proof is right");
    let end = Dialer::finish(message);
    assert_eq!(end.is_ok(), message == honest.accepted);
    for error in [hello.as_ref().err(), welcome.as_ref().err(), proof.as_ref().err()] {
        error.into_iter().for_each(check_refusal);
    }
    let refused = matches!(end, Err(HandshakeError::Refused(_)));
    hello.is_ok() || welcome.is_ok() || proof.is_ok() || end.is_ok() || refused
}

/// Checks that the reason of a refusal can be printed, and sent to the other end.
fn check_refusal(error: &HandshakeError) {
    assert!(!error.to_string().contains(char::is_control), "{error:?}");
    let refused = refusal(error);
    let head = refused.first_chunk().expect("a message has a head");
    assert_eq!(message_len(head), Ok(refused.len()));
    match Dialer::finish(&refused) {
        Err(HandshakeError::Refused(reason)) => assert!(error.to_string().starts_with(&reason)),
        other => panic!("{other:?}"),
    }
}

pub fn seeds() -> Seeds {
    let Honest { hello, welcome, proof, accepted, .. } = Honest::new();
    let reason = HandshakeError::Unsuitable("it belongs to another cluster".into());
    let from_itself = Dialer::hello(credentials(MEMBERS[1]), MEMBERS[1], [1; 16]).1;
    [
        ("whole", [&hello[..], &welcome, &proof, &accepted].concat()),
        ("refusal", refusal(&reason)),
        ("from-another-member", Dialer::hello(credentials(MEMBERS[2]), MEMBERS[1], [3; 16]).1),
        ("refused-from-itself", from_itself),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .to_vec()
}
