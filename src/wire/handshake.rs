//! How two peers meet, before the first frame.
//!
//! ```text
//!   dialer                                   acceptor
//!   Hello   version, cluster, from, to,  ──▶
//!           boot, nonce
//!                                        ◀── Welcome  boot, nonce, proof     or  Refused  reason
//!   Proof   proof                        ──▶
//!                                        ◀── Accepted                        or  Refused  reason
//! ```
//! A proof is HMAC-SHA-256 (RFC 2104) under the password over a role byte, both nonces, and what
//! the two ends have said of themselves: the password never crosses the wire, a proof fits one
//! handshake only, and none can be sent back to where it came from. Without a password the key is
//! empty. The acceptor proves itself first. Proofs are compared in constant time.
//!
//! Each message is the magic byte, a tag, a length (u16) and a body. The magic byte begins neither
//! a line of text nor a RESP request, so the first byte tells a peer from a client.
//!
//! Left out: what follows the handshake is neither encrypted nor authenticated: that is for a
//! network one trusts, or a tunnel. And whoever can dial a node gets its proof, and can try
//! passwords on it at home: the password must be a long random one.

use std::fmt;

use bytes::BufMut;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::codec::{Malformed, Reader};
use crate::types::NodeId;

/// The first byte of every handshake message.
pub const MAGIC_BYTE: u8 = 0xF5;

/// The version of the wire format, of frames as of handshakes.
pub const VERSION: u8 = 2;

/// The longest message's body, in bytes.
const BODY_LEN_MAX: usize = 1024;

/// Bytes of magic, tag and length.
pub const HEAD_LEN: usize = 4;

type Nonce = [u8; 16];
type Tag = [u8; 32];

/// Names a cluster on the wire.
pub type ClusterId = [u8; 32];

/// The id of the cluster `name` with these members: SHA-256 over both.
pub fn cluster_id(name: &str, members: &[NodeId]) -> ClusterId {
    let mut sorted = members.to_vec();
    sorted.sort_unstable();
    let mut hash = Sha256::new();
    hash.update((name.len() as u64).to_le_bytes());
    hash.update(name);
    sorted.iter().for_each(|member| hash.update(member.0.to_le_bytes()));
    hash.finalize().into()
}

/// One message of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    Hello { version: u8, cluster: ClusterId, from: NodeId, to: NodeId, boot: u64, nonce: Nonce },
    Welcome { boot: u64, nonce: Nonce, proof: Tag },
    Proof { proof: Tag },
    Accepted,
    Refused { reason: String },
}

/// What one end knows of itself.
#[derive(Clone)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its process lifetime.
    pub boot: u64,
    /// What both ends must know; empty if there is no password.
    pub password: Vec<u8>,
}

impl fmt::Debug for Identity {
    /// Everything but the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { node, boot, .. } = self;
        f.debug_struct("Identity").field("node", node).field("boot", boot).finish_non_exhaustive()
    }
}

/// Why there is no link.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum HandshakeError {
    /// The other end says why.
    #[error("refused by the peer: {0}")]
    Refused(String),
    /// The other end is not who it should be.
    #[error("{0}")]
    Unsuitable(String),
    /// The other end does not speak this protocol.
    #[error("no handshake of a NodeSync peer: {0}")]
    Malformed(#[from] Malformed),
}

/// Length of the message that begins with `head`, its head included.
///
/// # Errors
/// These are not the first bytes of a handshake message.
pub fn message_len(head: &[u8; HEAD_LEN]) -> Result<usize, HandshakeError> {
    let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
    if head[0] != MAGIC_BYTE || len > BODY_LEN_MAX {
        return Err(Malformed("head").into());
    }
    Ok(HEAD_LEN + len)
}

/// What both proofs are about.
#[derive(Clone, Debug)]
struct Session {
    from: NodeId,
    to: NodeId,
    boots: [u64; 2],
    nonces: [Nonce; 2],
}

impl Session {
    fn mac(&self, identity: &Identity, role: u8) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&identity.password)
            .expect("HMAC takes keys of any length");
        mac.update(&[role, VERSION]);
        mac.update(&identity.cluster);
        for node in [self.from, self.to] {
            mac.update(&node.0.to_le_bytes());
        }
        self.boots.iter().for_each(|boot| mac.update(&boot.to_le_bytes()));
        self.nonces.iter().for_each(|nonce| mac.update(nonce));
        mac
    }

    fn proof(&self, identity: &Identity, role: u8) -> Tag {
        self.mac(identity, role).finalize().into_bytes().into()
    }

    fn verify(&self, identity: &Identity, role: u8, proof: &Tag) -> bool {
        self.mac(identity, role).verify_slice(proof).is_ok()
    }
}

const DIALER: u8 = 1;
const ACCEPTOR: u8 = 2;

/// The end that connects.
#[derive(Debug)]
pub struct Dialer {
    identity: Identity,
    to: NodeId,
    nonce: Nonce,
}

impl Dialer {
    /// Begins: the state, and the bytes to send. `nonce` is fresh from the system's generator.
    pub fn hello(identity: Identity, to: NodeId, nonce: Nonce) -> (Dialer, Vec<u8>) {
        let Identity { cluster, node: from, boot, .. } = identity;
        let hello = Message::Hello { version: VERSION, cluster, from, to, boot, nonce };
        (Dialer { identity, to, nonce }, hello.encode())
    }

    /// Takes the answer; gives the peer's boot and the proof to send.
    ///
    /// # Errors
    /// Refused, or the peer does not know the password.
    pub fn welcome(&self, answer: &[u8]) -> Result<(u64, Vec<u8>), HandshakeError> {
        let (boot, nonce, proof) = match Message::decode(answer)? {
            Message::Welcome { boot, nonce, proof } => (boot, nonce, proof),
            Message::Refused { reason } => return Err(HandshakeError::Refused(reason)),
            _ => return Err(Malformed("answer to hello").into()),
        };
        let session = Session {
            from: self.identity.node,
            to: self.to,
            boots: [self.identity.boot, boot],
            nonces: [self.nonce, nonce],
        };
        if !session.verify(&self.identity, ACCEPTOR, &proof) {
            return Err(HandshakeError::Unsuitable("the peer has another password".into()));
        }
        let proof = session.proof(&self.identity, DIALER);
        Ok((boot, Message::Proof { proof }.encode()))
    }

    /// Takes the last word.
    ///
    /// # Errors
    /// Refused.
    pub fn finish(answer: &[u8]) -> Result<(), HandshakeError> {
        match Message::decode(answer)? {
            Message::Accepted => Ok(()),
            Message::Refused { reason } => Err(HandshakeError::Refused(reason)),
            _ => Err(Malformed("answer to proof").into()),
        }
    }
}

/// The end that was connected to, after a good hello.
#[derive(Debug)]
pub struct Acceptor {
    identity: Identity,
    session: Session,
}

impl Acceptor {
    /// Takes a hello; gives the state and the bytes to send. `members` are those who may come.
    ///
    /// # Errors
    /// Why not; [`refusal`] tells the dialer.
    pub fn hello(
        identity: Identity,
        members: &[NodeId],
        nonce: Nonce,
        hello: &[u8],
    ) -> Result<(Acceptor, Vec<u8>), HandshakeError> {
        let unsuitable = |reason: String| Err(HandshakeError::Unsuitable(reason));
        // A later version may say hello at greater length: its version is what matters.
        if let [MAGIC_BYTE, tag::HELLO, _, _, version, ..] = hello
            && *version != VERSION
        {
            return unsuitable(format!("wire format {version}, but this node speaks {VERSION}"));
        }
        let Message::Hello { cluster, from, to, boot, nonce: theirs, .. } = Message::decode(hello)?
        else {
            return Err(Malformed("hello").into());
        };
        if cluster != identity.cluster {
            return unsuitable("it belongs to another cluster (name or members differ)".into());
        }
        if to != identity.node {
            return unsuitable(format!("it looks for node {to}, but this is {}", identity.node));
        }
        if from == identity.node {
            return unsuitable(format!("it has this node's own id, {from}"));
        }
        if !members.contains(&from) {
            return unsuitable(format!("node {from} is no member"));
        }
        let own_boot = identity.boot;
        let session = Session { from, to, boots: [boot, own_boot], nonces: [theirs, nonce] };
        let proof = session.proof(&identity, ACCEPTOR);
        let welcome = Message::Welcome { boot: own_boot, nonce, proof }.encode();
        Ok((Acceptor { identity, session }, welcome))
    }

    /// Takes the proof; gives the bytes to send.
    ///
    /// # Errors
    /// The dialer does not know the password; [`refusal`] tells it.
    pub fn proof(&self, proof: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        match Message::decode(proof)? {
            Message::Proof { proof } if self.session.verify(&self.identity, DIALER, &proof) => {
                Ok(Message::Accepted.encode())
            }
            Message::Proof { .. } => {
                Err(HandshakeError::Unsuitable("it has another password".into()))
            }
            _ => Err(Malformed("proof").into()),
        }
    }

    /// Who has connected.
    pub fn peer(&self) -> NodeId {
        self.session.from
    }

    /// Its process lifetime.
    pub fn peer_boot(&self) -> u64 {
        self.session.boots[0]
    }
}

/// What to tell a dialer that is turned away.
pub fn refusal(error: &HandshakeError) -> Vec<u8> {
    let mut reason = error.to_string();
    reason.truncate(reason.floor_char_boundary(BODY_LEN_MAX - 8));
    Message::Refused { reason }.encode()
}

mod tag {
    pub const HELLO: u8 = 1;
    pub const WELCOME: u8 = 2;
    pub const PROOF: u8 = 3;
    pub const ACCEPTED: u8 = 4;
    pub const REFUSED: u8 = 5;
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let tag = match self {
            Message::Hello { version, cluster, from, to, boot, nonce } => {
                body.put_u8(*version);
                body.put_slice(cluster);
                body.put_u32_le(from.0);
                body.put_u32_le(to.0);
                body.put_u64_le(*boot);
                body.put_slice(nonce);
                tag::HELLO
            }
            Message::Welcome { boot, nonce, proof } => {
                body.put_u64_le(*boot);
                body.put_slice(nonce);
                body.put_slice(proof);
                tag::WELCOME
            }
            Message::Proof { proof } => {
                body.put_slice(proof);
                tag::PROOF
            }
            Message::Accepted => tag::ACCEPTED,
            Message::Refused { reason } => {
                body.put_slice(reason.as_bytes());
                tag::REFUSED
            }
        };
        let mut out = vec![MAGIC_BYTE, tag];
        out.put_u16_le(u16::try_from(body.len()).expect("bodies are bounded"));
        out.extend(body);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u8("magic")? != MAGIC_BYTE {
            return Err(Malformed("magic"));
        }
        let tag = reader.u8("tag")?;
        let len = reader.u16("length")?;
        let mut body = Reader::new(reader.take(len.into(), "body")?);
        reader.finish("message")?;
        let message = match tag {
            tag::HELLO => Message::Hello {
                version: body.u8("version")?,
                cluster: take(&mut body, "cluster")?,
                from: NodeId(body.u32("from")?),
                to: NodeId(body.u32("to")?),
                boot: body.u64("boot")?,
                nonce: take(&mut body, "nonce")?,
            },
            tag::WELCOME => Message::Welcome {
                boot: body.u64("boot")?,
                nonce: take(&mut body, "nonce")?,
                proof: take(&mut body, "proof")?,
            },
            tag::PROOF => Message::Proof { proof: take(&mut body, "proof")? },
            tag::ACCEPTED => Message::Accepted,
            tag::REFUSED => {
                let reason = body.take(body.rest().len(), "reason")?;
                // It goes into a log: no control characters from a stranger.
                let text = String::from_utf8_lossy(reason);
                Message::Refused { reason: text.chars().filter(|c| !c.is_control()).collect() }
            }
            _ => return Err(Malformed("tag")),
        };
        body.finish("body")?;
        Ok(message)
    }
}

fn take<const N: usize>(
    reader: &mut Reader<'_>,
    field: &'static str,
) -> Result<[u8; N], Malformed> {
    reader.take(N, field)?.try_into().map_err(|_| Malformed(field))
}
