//! What both ends of a connection agree on; docs/protocol.md says it in words.

use base::Node;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Version of requests and answers. It stands in every path (`/v1/...`), so that a server can tell an
/// older or newer device what is wrong.
pub const VERSION: u32 = 1;

/// The name every server's certificate carries, whatever address it is reached by. Devices trust one
/// authority only, that of the server they enrolled with, so an address proves nothing more.
pub const SERVER_NAME: &str = "undertone.server";

/// The largest body of an upload's chunk.
pub const CHUNK_BYTES: u64 = 4 << 20;
/// The largest body of any other request.
pub const BODY_BYTES: usize = 1 << 20;
/// Parts of a packet above this travel beside it, by address.
pub const INLINE_BYTES: usize = 64 << 10;
/// What all inline parts of a packet may come to; beyond it, smaller parts travel beside it as well.
pub const INLINE_TOTAL: usize = 512 << 10;
/// The largest part of a packet.
pub const PART_BYTES: u64 = 1 << 30;
/// Parts of one packet.
pub const PARTS: u32 = 4096;
/// How long the server holds a poll open, in seconds, unless it is told otherwise.
pub const WAIT_S: u64 = 25;

pub const SEQUENCE: &str = "undertone-sequence";
pub const SIGNATURE: &str = "undertone-signature";
pub const TIME: &str = "undertone-time";
pub const NODE: &str = "undertone-node";
pub const OFFSET: &str = "upload-offset";
pub const LENGTH: &str = "upload-length";

/// What a certificate entitles to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// To take part as its node, and to see nothing of others.
    Device,
    /// To see how the run goes.
    Operator,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Device => "device",
            Role::Operator => "operator",
        }
    }

    pub fn named(name: &str) -> Option<Role> {
        [Role::Device, Role::Operator].into_iter().find(|role| role.name() == name)
    }
}

/// The BLAKE3 hash of a content, by which it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 32]);

impl Address {
    pub fn of(content: &[u8]) -> Address {
        Address(*blake3::hash(content).as_bytes())
    }

    /// From 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Address> {
        blake3::Hash::from_hex(text).ok().map(|hash| Address(*hash.as_bytes()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a device signs of a request that changes something: the method, the path with its query, the
/// BLAKE3 of the body, and its sequence number.
pub fn signed_text(method: &str, path: &str, body: Address, sequence: u64) -> String {
    format!("undertone/{VERSION}\n{method}\n{path}\n{body}\n{sequence}\n")
}

/// The body of `POST /v1/enroll`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    pub token: String,
    /// A PKCS#10 request in PEM, for an Ed25519 key. Its subject and extensions are ignored.
    pub csr: String,
}

/// The body of `POST /v1/renew`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    pub csr: String,
}

/// The answer to both.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enrolled {
    pub node: Node,
    pub role: Role,
    /// PEM.
    pub certificate: String,
    /// Seconds since 1970.
    pub expires: u64,
}

/// Any answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A word for programs.
    pub error: String,
    /// A sentence for people: what is wrong, and what to do.
    pub reason: String,
    /// The largest sequence number the server has seen from this device, where that was the trouble.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
}

/// One-time right to become a node: `undertone1.<node>.<secret>.<authority>`. The last part is the start
/// of the hash of the server's authority, so that a device knows its server from the first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub node: Node,
    /// 128 bits in hexadecimal digits.
    pub secret: String,
    /// 128 bits of BLAKE3 over the authority's certificate, in hexadecimal digits.
    pub authority: String,
}

const TOKEN_TAG: &str = "undertone1";
/// Hexadecimal digits of a secret, and of an authority.
const DIGITS: usize = 32;

impl Token {
    /// Read a token, or say that it is none.
    pub fn parse(text: &str) -> Result<Token, NoToken> {
        // One part too many is enough to see that it is none.
        let parts: Vec<&str> = text.trim().splitn(5, '.').collect();
        let [TOKEN_TAG, node, secret, authority] = parts[..] else { return Err(NoToken) };
        let plain = |part: &str| part.len() == DIGITS && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let node = node.parse().map_err(|_| NoToken)?;
        if !plain(secret) || !plain(authority) {
            return Err(NoToken);
        }
        Ok(Token { node: Node(node), secret: secret.to_owned(), authority: authority.to_owned() })
    }

    /// How a token names an authority, from its certificate.
    pub fn name_authority(certificate: &[u8]) -> String {
        Address::of(certificate).to_string()[..DIGITS].to_owned()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TOKEN_TAG}.{}.{}.{}", self.node.0, self.secret, self.authority)
    }
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no token: one looks like {TOKEN_TAG}.3.<32 digits>.<32 digits>, and `undertone enroll` makes it"
)]
pub struct NoToken;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_being_written_down_and_nothing_else_is_one() {
        let token = Token { node: Node(3), secret: "0a".repeat(16), authority: "f1".repeat(16) };
        let text = token.to_string();
        assert_eq!(Token::parse(&format!(" {text}\n")), Ok(token));
        for end in 0..text.len() {
            assert_eq!(Token::parse(&text[..end]), Err(NoToken), "cut at {end}");
        }
        for wrong in [text.replace("undertone1", "undertone2"), format!("{text}0"), text.replace('3', "-3")]
        {
            assert_eq!(Token::parse(&wrong), Err(NoToken), "{wrong}");
        }
    }

    #[test]
    fn an_address_is_64_digits() {
        let address = Address::of(b"x");
        assert_eq!(Address::parse(&address.to_string()), Some(address));
        for wrong in ["", "../../etc/passwd", &"g".repeat(64), &"a".repeat(63), &"a".repeat(65)] {
            assert_eq!(Address::parse(wrong), None, "{wrong}");
        }
    }
}
