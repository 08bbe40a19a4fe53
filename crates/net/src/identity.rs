//! Who a device, or an operator, is: a key that never leaves its folder, and a certificate for it.

use crate::authority::IdentityError;
use crate::files;
use crate::protocol::{Address, Enrolled, Role, signed_text};
use crate::registry::unix_now;
use crate::tls;
use base::Node;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use ring::signature::Ed25519KeyPair;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const KEY: &str = "identity.key";
const CARD: &str = "identity.json";

/// The folder of an identity: its key is made at once, its card comes from enrolling.
pub struct Wallet {
    folder: PathBuf,
    pair: KeyPair,
}

/// What a server gave for a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Card {
    /// Where the server is, as it was given with the token.
    pub server: String,
    pub node: Node,
    pub role: Role,
    /// PEM.
    pub certificate: String,
    /// Seconds since 1970, by the server's clock.
    pub expires: u64,
    /// Seconds since 1970, by this machine's clock: when the certificate came.
    pub received: u64,
    /// Seconds it was good for when it came.
    pub lifetime: u64,
    /// The server's authority, as hexadecimal DER.
    pub authority: String,
}

/// A card with the key it is for.
pub struct Identity {
    pub card: Card,
    pub tls: Arc<ClientConfig>,
    key: Ed25519KeyPair,
}

impl Wallet {
    /// Open the wallet in a folder, or make one with a new key.
    pub fn open(folder: &Path) -> Result<Wallet, IdentityError> {
        files::create_private(folder)?;
        let path = folder.join(KEY);
        let pair = match files::read(&path)? {
            Some(pem) => KeyPair::from_pem(&String::from_utf8_lossy(&pem))?,
            None => {
                let pair = KeyPair::generate_for(&PKCS_ED25519)?;
                files::write_secret(&path, pair.serialize_pem().as_bytes())?;
                pair
            }
        };
        Ok(Wallet { folder: folder.to_owned(), pair })
    }

    /// A number that nobody else can know, the same whenever this device asks: made of its key.
    pub fn secret(&self) -> u64 {
        let hash = blake3::derive_key("undertone: what a device draws from", self.pair.serialized_der());
        u64::from_le_bytes(hash[..8].try_into().expect("eight of thirty-two bytes"))
    }

    /// A request for a certificate of this key, in PEM.
    pub fn request(&self) -> Result<String, IdentityError> {
        Ok(CertificateParams::default().serialize_request(&self.pair)?.pem()?)
    }

    /// The card of the last enrolment, if there was one.
    pub fn card(&self) -> Result<Option<Card>, IdentityError> {
        let path = self.folder.join(CARD);
        let Some(bytes) = files::read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| IdentityError::Damaged(format!("{}: {error}", path.display())))
    }

    /// Keep what a server answered.
    pub fn keep(
        &self,
        server: &str,
        authority: &CertificateDer<'static>,
        enrolled: Enrolled,
        server_now: u64,
    ) -> Result<Card, IdentityError> {
        let card = Card {
            server: server.to_owned(),
            node: enrolled.node,
            role: enrolled.role,
            certificate: enrolled.certificate,
            expires: enrolled.expires,
            received: unix_now(),
            lifetime: enrolled.expires.saturating_sub(server_now),
            authority: authority.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let json = serde_json::to_vec_pretty(&card).expect("a card is plain data");
        files::write_atomically(&self.folder.join(CARD), &json)?;
        Ok(card)
    }

    /// The key with that card.
    pub fn identity(&self, card: Card) -> Result<Identity, IdentityError> {
        let damaged = |what: &str| IdentityError::Damaged(format!("{}: {what}", self.folder.display()));
        let chain = CertificateDer::from_pem_slice(card.certificate.as_bytes())
            .map_err(|_| damaged("its certificate cannot be read"))?;
        let authority = card.authority().ok_or_else(|| damaged("its authority cannot be read"))?;
        let der = self.pair.serialize_der();
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map_err(|_| damaged("its key cannot be read"))?;
        let private = PrivateKeyDer::try_from(der).map_err(|_| damaged("its key cannot be read"))?;
        Ok(Identity { tls: tls::client(&authority, vec![chain], private)?, card, key })
    }
}

impl Card {
    /// Whether two thirds of its time are over, by the span this machine's clock has seen: a clock that is a
    /// day off does no harm.
    pub fn is_ageing(&self) -> bool {
        3 * unix_now().saturating_sub(self.received) > 2 * self.lifetime
    }

    /// The server's authority.
    pub fn authority(&self) -> Option<CertificateDer<'static>> {
        let digit = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = self.authority.as_bytes().chunks(2).map(digit).collect();
        bytes.map(CertificateDer::from)
    }
}

impl Identity {
    /// The signature of a request that changes something, in hexadecimal digits.
    pub fn sign(&self, method: &str, path: &str, body: &[u8], sequence: u64) -> String {
        let text = signed_text(method, path, Address::of(body), sequence);
        self.key.sign(text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
