//! The handshake of two peers, before the first frame.
//!
//! ```text
//!   dialer                                   acceptor
//!   Hello   version, cluster, from, to,  ──▶
//!           boot, nonce
//!                                        ◀── Welcome  boot, nonce, proof     or  Refused  reason
//!   Proof   proof                        ──▶
//!                                        ◀── Accepted                        or  Refused  reason
//! ```
//! A proof is an HMAC-SHA-256 (RFC 2104) under the password over a role byte, both nonces, and the
//! claims of both ends. The password never crosses the wire, a proof fits one handshake only, and
//! the role byte keeps a proof from being sent back to its origin. Without a password the key is
//! empty. The acceptor proves itself first. Proofs are compared in constant time.
//!
//! Each message is the magic byte, a tag, a length (u16) and a body. The magic byte begins neither
//! a line of text nor a RESP request, so the first byte tells a peer from a client.
//!
//! Left out: frames behind the handshake are neither encrypted nor authenticated; use a trusted
//! network or a tunnel. An attacker that can dial a node gets its proof and can try passwords on it
//! offline, so the password must be long and random.

use std::fmt;

use bytes::BufMut;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::codec::{Malformed, Reader};
use crate::types::NodeId;

/// The first byte of every handshake message.
pub const MAGIC_BYTE: u8 = 0xF5;

/// The version of the wire format, which covers frames and handshakes.
pub const VERSION: u8 = 2;

/// The longest body of a message, in bytes.
const BODY_LEN_MAX: usize = 1024;

/// The length of magic byte, tag and length field, in bytes.
pub const HEAD_LEN: usize = 4;

type Nonce = [u8; 16];
type ProofBytes = [u8; 32];

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
enum HandshakeMessage {
    Hello { version: u8, cluster: ClusterId, from: NodeId, to: NodeId, boot: u64, nonce: Nonce },
    Welcome { boot: u64, nonce: Nonce, proof: ProofBytes },
    Proof { proof: ProofBytes },
    Accepted,
    Refused { reason: String },
}

/// The credentials that one end presents and proves.
#[derive(Clone)]
pub struct Credentials {
    /// The cluster.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// Its process lifetime.
    pub boot: u64,
    /// The secret that both ends must know; empty if there is no password.
    pub password: Vec<u8>,
}

impl fmt::Debug for Credentials {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Credentials { node, boot, .. } = self;
        f.debug_struct("Credentials")
            .field("node", node)
            .field("boot", boot)
            .finish_non_exhaustive()
    }
}

/// Why there is no link.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum HandshakeError {
    /// The other end has refused, for this reason.
    #[error("refused by the peer: {0}")]
    Refused(String),
    /// The other end is not the node that it should be.
    #[error("{0}")]
    Unsuitable(String),
    /// The other end does not speak this protocol.
    #[error("no handshake of a NodeSync peer: {0}")]
    Malformed(#[from] Malformed),
}

/// Length of the message that begins with `head`, its head included.
///
/// # Errors
/// If these are not the first bytes of a handshake message.
pub fn message_len(head: &[u8; HEAD_LEN]) -> Result<usize, HandshakeError> {
    let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
    if head[0] != MAGIC_BYTE || len > BODY_LEN_MAX {
        return Err(Malformed("head").into());
    }
    Ok(HEAD_LEN + len)
}

/// The claims of both ends, which both proofs cover.
#[derive(Clone, Debug)]
struct Transcript {
    from: NodeId,
    to: NodeId,
    boots: [u64; 2],
    nonces: [Nonce; 2],
}

impl Transcript {
    fn mac(&self, credentials: &Credentials, role: u8) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&credentials.password)
            .expect("HMAC takes keys of any length");
        mac.update(&[role, VERSION]);
        mac.update(&credentials.cluster);
        for node in [self.from, self.to] {
            mac.update(&node.0.to_le_bytes());
        }
        self.boots.iter().for_each(|boot| mac.update(&boot.to_le_bytes()));
        self.nonces.iter().for_each(|nonce| mac.update(nonce));
        mac
    }

    fn proof(&self, credentials: &Credentials, role: u8) -> ProofBytes {
        self.mac(credentials, role).finalize().into_bytes().into()
    }

    fn verify(&self, credentials: &Credentials, role: u8, proof: &ProofBytes) -> bool {
        self.mac(credentials, role).verify_slice(proof).is_ok()
    }
}

const DIALER: u8 = 1;
const ACCEPTOR: u8 = 2;

/// The end that connects.
#[derive(Debug)]
pub struct Dialer {
    credentials: Credentials,
    to: NodeId,
    nonce: Nonce,
}

impl Dialer {
    /// Begins: the state, and the bytes to send. `nonce` is fresh from the system's generator.
    pub fn hello(credentials: Credentials, to: NodeId, nonce: Nonce) -> (Dialer, Vec<u8>) {
        let Credentials { cluster, node: from, boot, .. } = credentials;
        let hello = HandshakeMessage::Hello { version: VERSION, cluster, from, to, boot, nonce };
        (Dialer { credentials, to, nonce }, hello.encode())
    }

    /// Takes the answer; returns the peer's boot and the proof to send.
    ///
    /// # Errors
    /// Refused, or the peer does not know the password.
    pub fn welcome(&self, answer: &[u8]) -> Result<(u64, Vec<u8>), HandshakeError> {
        let (boot, nonce, proof) = match HandshakeMessage::decode(answer)? {
            HandshakeMessage::Welcome { boot, nonce, proof } => (boot, nonce, proof),
            HandshakeMessage::Refused { reason } => return Err(HandshakeError::Refused(reason)),
            _ => return Err(Malformed("answer to hello").into()),
        };
        let transcript = Transcript {
            from: self.credentials.node,
            to: self.to,
            boots: [self.credentials.boot, boot],
            nonces: [self.nonce, nonce],
        };
        // The acceptor proves itself before the dialer does: a false node learns no proof to try
        // passwords on.
        if !transcript.verify(&self.credentials, ACCEPTOR, &proof) {
            return Err(HandshakeError::Unsuitable("the peer has another password".into()));
        }
        let proof = transcript.proof(&self.credentials, DIALER);
        Ok((boot, HandshakeMessage::Proof { proof }.encode()))
    }

    /// Takes the answer to the proof.
    ///
    /// # Errors
    /// Refused.
    pub fn finish(answer: &[u8]) -> Result<(), HandshakeError> {
        match HandshakeMessage::decode(answer)? {
            HandshakeMessage::Accepted => Ok(()),
            HandshakeMessage::Refused { reason } => Err(HandshakeError::Refused(reason)),
            _ => Err(Malformed("answer to proof").into()),
        }
    }
}

/// The end that was connected to, after a good hello.
#[derive(Debug)]
pub struct Acceptor {
    credentials: Credentials,
    transcript: Transcript,
}

impl Acceptor {
    /// Takes a hello; returns the state and the bytes to send. `members` may connect.
    ///
    /// # Errors
    /// The reason of a refusal; [`refusal`] encodes it for the dialer.
    pub fn hello(
        credentials: Credentials,
        members: &[NodeId],
        nonce: Nonce,
        hello: &[u8],
    ) -> Result<(Acceptor, Vec<u8>), HandshakeError> {
        let unsuitable = |reason: String| Err(HandshakeError::Unsuitable(reason));
        // Judged before the rest is decoded: a later version's hello may have another length.
        if let [MAGIC_BYTE, tag::HELLO, _, _, version, ..] = hello
            && *version != VERSION
        {
            return unsuitable(format!("wire format {version}, but this node speaks {VERSION}"));
        }
        let HandshakeMessage::Hello { cluster, from, to, boot, nonce: theirs, .. } =
            HandshakeMessage::decode(hello)?
        else {
            return Err(Malformed("hello").into());
        };
        // A vote or an acknowledgement counts in one cluster only, and quorums are counted over its
        // fixed members.
        if cluster != credentials.cluster {
            return unsuitable("it belongs to another cluster (name or members differ)".into());
        }
        // The dialer's address list is wrong: this port belongs to another node.
        if to != credentials.node {
            return unsuitable(format!("it looks for node {to}, but this is {}", credentials.node));
        }
        if from == credentials.node {
            return unsuitable(format!("it has this node's own id, {from}"));
        }
        if !members.contains(&from) {
            return unsuitable(format!("node {from} is no member"));
        }
        let own_boot = credentials.boot;
        let transcript = Transcript { from, to, boots: [boot, own_boot], nonces: [theirs, nonce] };
        let proof = transcript.proof(&credentials, ACCEPTOR);
        let welcome = HandshakeMessage::Welcome { boot: own_boot, nonce, proof }.encode();
        Ok((Acceptor { credentials, transcript }, welcome))
    }

    /// Takes the proof; returns the bytes to send.
    ///
    /// # Errors
    /// The dialer does not know the password; [`refusal`] encodes that for it.
    pub fn proof(&self, proof: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        match HandshakeMessage::decode(proof)? {
            HandshakeMessage::Proof { proof }
                if self.transcript.verify(&self.credentials, DIALER, &proof) =>
            {
                Ok(HandshakeMessage::Accepted.encode())
            }
            HandshakeMessage::Proof { .. } => {
                Err(HandshakeError::Unsuitable("it has another password".into()))
            }
            _ => Err(Malformed("proof").into()),
        }
    }

    /// The node that has connected.
    pub fn peer(&self) -> NodeId {
        self.transcript.from
    }

    /// The peer's process lifetime.
    pub fn peer_boot(&self) -> u64 {
        self.transcript.boots[0]
    }
}

/// The message for a dialer that is refused.
pub fn refusal(error: &HandshakeError) -> Vec<u8> {
    let mut reason = error.to_string();
    reason.truncate(reason.floor_char_boundary(BODY_LEN_MAX - 8));
    HandshakeMessage::Refused { reason }.encode()
}

mod tag {
    pub const HELLO: u8 = 1;
    pub const WELCOME: u8 = 2;
    pub const PROOF: u8 = 3;
    pub const ACCEPTED: u8 = 4;
    pub const REFUSED: u8 = 5;
}

impl HandshakeMessage {
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let tag = match self {
            HandshakeMessage::Hello { version, cluster, from, to, boot, nonce } => {
                body.put_u8(*version);
                body.put_slice(cluster);
                body.put_u32_le(from.0);
                body.put_u32_le(to.0);
                body.put_u64_le(*boot);
                body.put_slice(nonce);
                tag::HELLO
            }
            HandshakeMessage::Welcome { boot, nonce, proof } => {
                body.put_u64_le(*boot);
                body.put_slice(nonce);
                body.put_slice(proof);
                tag::WELCOME
            }
            HandshakeMessage::Proof { proof } => {
                body.put_slice(proof);
                tag::PROOF
            }
            HandshakeMessage::Accepted => tag::ACCEPTED,
            HandshakeMessage::Refused { reason } => {
                body.put_slice(reason.as_bytes());
                tag::REFUSED
            }
        };
        let mut out = vec![MAGIC_BYTE, tag];
        out.put_u16_le(u16::try_from(body.len()).expect("bodies are bounded"));
        out.extend(body);
        out
    }

    fn decode(bytes: &[u8]) -> Result<HandshakeMessage, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u8("magic")? != MAGIC_BYTE {
            return Err(Malformed("magic"));
        }
        let tag = reader.u8("tag")?;
        let len = reader.u16("length")?;
        let mut body = Reader::new(reader.take(len.into(), "body")?);
        reader.finish("message")?;
        let message = match tag {
            tag::HELLO => HandshakeMessage::Hello {
                version: body.u8("version")?,
                cluster: take(&mut body, "cluster")?,
                from: NodeId(body.u32("from")?),
                to: NodeId(body.u32("to")?),
                boot: body.u64("boot")?,
                nonce: take(&mut body, "nonce")?,
            },
            tag::WELCOME => HandshakeMessage::Welcome {
                boot: body.u64("boot")?,
                nonce: take(&mut body, "nonce")?,
                proof: take(&mut body, "proof")?,
            },
            tag::PROOF => HandshakeMessage::Proof { proof: take(&mut body, "proof")? },
            tag::ACCEPTED => HandshakeMessage::Accepted,
            tag::REFUSED => {
                let reason = body.take(body.rest().len(), "reason")?;
                // The reason goes into a log, and its sender is not authenticated yet: no control
                // characters.
                let text = String::from_utf8_lossy(reason);
                HandshakeMessage::Refused {
                    reason: text.chars().filter(|c| !c.is_control()).collect(),
                }
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
