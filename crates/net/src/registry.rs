//! Who may speak as whom: one-time tokens, and the certificates they were exchanged for.

use crate::database::Database;
use crate::protocol::{Address, Role, Token};
use crate::store::StoreError;
use base::Node;
use ring::rand::{SecureRandom, SystemRandom};
use rusqlite::{OptionalExtension, params};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The part of the server's database that is about identity. Other processes (`undertone enroll`,
/// `undertone revoke`) write to it while the server runs.
pub struct Registry {
    database: Database,
}

/// A certificate as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub node: Node,
    pub role: Role,
    /// Its Ed25519 public key.
    pub key: Vec<u8>,
    pub pem: String,
    /// Seconds since 1970.
    pub expires: u64,
    pub revoked: bool,
}

/// Why a token is worth nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("this server never made that token; ask its operator for a new one (`undertone enroll`)")]
    Unknown,
    #[error("that token has been used; ask the server's operator for a new one (`undertone enroll`)")]
    Used,
    #[error("that token has expired; ask the server's operator for a new one (`undertone enroll`)")]
    Expired,
}

/// What a token was exchanged for.
#[derive(Debug, PartialEq, Eq)]
pub enum Redeemed {
    /// It is used from now on, by this key.
    Fresh(Node, Role),
    /// The same key asks again: its answer was lost on the way.
    Again(Certificate),
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Registry {
    /// Open, or make, the registry of a server's folder.
    pub fn open(folder: &Path) -> Result<Registry, StoreError> {
        Database::open(folder).map(|database| Registry { database })
    }

    /// Make a token for `node`, good for so many seconds; only its hash is kept.
    pub fn issue(
        &self,
        node: Node,
        role: Role,
        lifetime_s: u64,
        authority: &[u8],
    ) -> Result<Token, StoreError> {
        let mut random = [0; 16];
        SystemRandom::new().fill(&mut random).expect("the system has randomness");
        let secret = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let expires = unix_now().saturating_add(lifetime_s);
        self.database
            .connection
            .execute(
                "INSERT INTO tokens (hash, node, role, expires) VALUES (?1, ?2, ?3, ?4)",
                params![hash(&secret), node.0, role.name(), expires as i64],
            )
            .map_err(self.database.failed())?;
        Ok(Token { node, secret, authority: Token::name_authority(authority) })
    }

    /// Use a token up, for this key.
    pub fn redeem(&mut self, token: &Token, key: &[u8]) -> Result<Result<Redeemed, Denied>, StoreError> {
        let failed = self.database.failed();
        self.exchange(token, key, unix_now()).map_err(failed)
    }

    fn exchange(
        &mut self,
        token: &Token,
        key: &[u8],
        now: u64,
    ) -> rusqlite::Result<Result<Redeemed, Denied>> {
        let transaction =
            self.database.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let hash = hash(&token.secret);
        let found = transaction
            .query_row(
                "SELECT node, role, expires, key FROM tokens WHERE hash = ?1 AND node = ?2",
                params![hash, token.node.0],
                |row| {
                    let role = Role::named(&row.get::<_, String>(1)?).unwrap_or(Role::Device);
                    Ok((
                        Node(row.get(0)?),
                        role,
                        row.get::<_, i64>(2)? as u64,
                        row.get::<_, Option<Vec<u8>>>(3)?,
                    ))
                },
            )
            .optional()?;
        let Some((node, role, expires, used_by)) = found else { return Ok(Err(Denied::Unknown)) };
        if let Some(used_by) = used_by {
            if used_by != key {
                return Ok(Err(Denied::Used));
            }
            return Ok(match newest_of(&transaction, key)? {
                Some(certificate) if certificate.revoked => Err(Denied::Used),
                Some(certificate) => Ok(Redeemed::Again(certificate)),
                // Killed between taking the token and signing the certificate.
                None => Ok(Redeemed::Fresh(node, role)),
            });
        }
        if now >= expires {
            return Ok(Err(Denied::Expired));
        }
        transaction.execute("UPDATE tokens SET key = ?1 WHERE hash = ?2", params![key, hash])?;
        transaction.commit()?;
        Ok(Ok(Redeemed::Fresh(node, role)))
    }

    /// Enter a certificate that was just signed, by its DER form.
    pub fn enter(&self, der: &[u8], certificate: &Certificate) -> Result<(), StoreError> {
        let Certificate { node, role, key, pem, expires, revoked } = certificate;
        let row = params![&Address::of(der).0[..], node.0, role.name(), key, pem, *expires as i64, revoked];
        self.database
            .connection
            .execute("INSERT OR IGNORE INTO certificates VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", row)
            .map(drop)
            .map_err(self.database.failed())
    }

    /// The certificate of that DER form.
    pub fn certificate(&self, address: &Address) -> Result<Option<Certificate>, StoreError> {
        let query = "SELECT node, role, key, pem, expires, revoked FROM certificates WHERE hash = ?1";
        self.database
            .connection
            .prepare_cached(query)
            .and_then(|mut query| query.query_row([&address.0[..]], read).optional())
            .map_err(self.database.failed())
    }

    /// Devices that have a certificate that holds, or a token that may become one.
    pub fn taken(&self) -> Result<Vec<Node>, StoreError> {
        let query = "SELECT node FROM certificates WHERE role = 'device' AND revoked = 0
                     UNION SELECT node FROM tokens WHERE role = 'device' AND key IS NULL AND expires > ?1";
        let read = || -> rusqlite::Result<Vec<Node>> {
            let mut query = self.database.connection.prepare(query)?;
            query.query_map([unix_now() as i64], |row| row.get(0).map(Node))?.collect()
        };
        read().map_err(self.database.failed())
    }

    /// Devices all of whose certificates are revoked.
    pub fn excluded(&self) -> Result<Vec<Node>, StoreError> {
        let query =
            "SELECT node FROM certificates WHERE role = 'device' GROUP BY node HAVING min(revoked) = 1";
        let read = || -> rusqlite::Result<Vec<Node>> {
            let mut query = self.database.connection.prepare_cached(query)?;
            query.query_map([], |row| row.get(0).map(Node))?.collect()
        };
        read().map_err(self.database.failed())
    }

    /// Revoke what a node holds: its certificates, and tokens that are not used. How many there were.
    pub fn revoke(&self, node: Node) -> Result<usize, StoreError> {
        let change = || -> rusqlite::Result<usize> {
            let connection = &self.database.connection;
            let certificates = "UPDATE certificates SET revoked = 1 WHERE node = ?1 AND revoked = 0";
            let tokens = "DELETE FROM tokens WHERE node = ?1 AND key IS NULL";
            Ok(connection.execute(certificates, [node.0])? + connection.execute(tokens, [node.0])?)
        };
        change().map_err(self.database.failed())
    }
}

fn newest_of(connection: &rusqlite::Connection, key: &[u8]) -> rusqlite::Result<Option<Certificate>> {
    let query = "SELECT node, role, key, pem, expires, revoked FROM certificates
                 WHERE key = ?1 ORDER BY revoked DESC, expires DESC LIMIT 1";
    connection.query_row(query, [key], read).optional()
}

fn read(row: &rusqlite::Row) -> rusqlite::Result<Certificate> {
    Ok(Certificate {
        node: Node(row.get(0)?),
        role: Role::named(&row.get::<_, String>(1)?).unwrap_or(Role::Device),
        key: row.get(2)?,
        pem: row.get(3)?,
        expires: row.get::<_, i64>(4)? as u64,
        revoked: row.get(5)?,
    })
}

/// A secret of 128 random bits needs no salt.
fn hash(secret: &str) -> Vec<u8> {
    blake3::hash(secret.as_bytes()).as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_for_its_node_until_it_expires() {
        let folder = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(folder.path()).unwrap();
        let token = registry.issue(Node(3), Role::Device, 60, b"authority").unwrap();
        let of_another = Token { node: Node(4), ..token.clone() };
        assert_eq!(registry.redeem(&of_another, b"key").unwrap(), Err(Denied::Unknown));
        assert_eq!(registry.redeem(&token, b"key").unwrap(), Ok(Redeemed::Fresh(Node(3), Role::Device)));
        assert_eq!(registry.redeem(&token, b"other").unwrap(), Err(Denied::Used));
        let certificate = Certificate {
            node: Node(3),
            role: Role::Device,
            key: b"key".to_vec(),
            pem: "pem".into(),
            expires: 9,
            revoked: false,
        };
        registry.enter(b"der", &certificate).unwrap();
        assert_eq!(registry.redeem(&token, b"key").unwrap(), Ok(Redeemed::Again(certificate)));
        assert_eq!(registry.excluded().unwrap(), []);
        assert_eq!(registry.revoke(Node(3)).unwrap(), 1);
        assert_eq!(registry.excluded().unwrap(), [Node(3)]);
        assert!(registry.certificate(&Address::of(b"der")).unwrap().unwrap().revoked);
        assert_eq!(registry.redeem(&token, b"key").unwrap(), Err(Denied::Used), "revoked");
        let late = registry.issue(Node(5), Role::Operator, 0, b"authority").unwrap();
        assert_eq!(registry.redeem(&late, b"key").unwrap(), Err(Denied::Expired));
    }

    #[test]
    fn no_secret_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(folder.path()).unwrap();
        let token = registry.issue(Node(3), Role::Device, 60, b"authority").unwrap();
        drop(registry);
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            let held = bytes.windows(token.secret.len()).any(|window| window == token.secret.as_bytes());
            assert!(!held);
        }
    }
}
