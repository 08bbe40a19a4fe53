//! The server's own certificate authority: it signs the server, and the devices that enrolled.

use crate::files;
use crate::protocol::{Role, SERVER_NAME};
use crate::registry::{Certificate, unix_now};
use crate::store::StoreError;
use base::Node;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A device's certificate is good for a week, and renewed after two thirds of it.
pub const LIFETIME: Duration = Duration::from_hours(7 * 24);
/// Certificates begin this long ago, so that a device whose clock is a day slow can use its own.
const BACKDATED: Duration = Duration::from_hours(2 * 24);
const YEAR: Duration = Duration::from_hours(365 * 24);

const CERTIFICATE: &str = "authority.pem";
const KEY: &str = "authority.key";

/// An authority with its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// A certificate that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the certificate request is no good: {0}")]
    Request(String),
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cannot set up TLS: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    #[error("{0}")]
    Damaged(String),
}

/// A certificate just signed.
pub struct Signed {
    pub der: CertificateDer<'static>,
    pub certificate: Certificate,
}

impl Authority {
    /// Open the authority of a server's folder, or make one.
    pub fn open(folder: &Path) -> Result<Authority, IdentityError> {
        files::create_private(folder)?;
        let (certificate, key) = (folder.join(CERTIFICATE), folder.join(KEY));
        if files::read(&certificate)?.is_none() {
            let pair = KeyPair::generate_for(&PKCS_ED25519)?;
            let made = authority_params().self_signed(&pair)?;
            // The certificate last: a folder that has it has both.
            files::write_secret(&key, pair.serialize_pem().as_bytes())?;
            files::write_atomically(&certificate, made.pem().as_bytes())?;
        }
        let damaged = |path: &Path| IdentityError::Damaged(format!("{} cannot be read", path.display()));
        let pem = files::read(&key)?.and_then(|pem| String::from_utf8(pem).ok());
        let pair = KeyPair::from_pem(&pem.ok_or_else(|| damaged(&key))?)?;
        let der = CertificateDer::from_pem_file(&certificate).map_err(|_| damaged(&certificate))?;
        Ok(Authority { issuer: Issuer::from_ca_cert_der(&der, pair)?, certificate: der })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate and key for the server itself, by all the names it is reached by; a new key each time.
    pub fn server(
        &self,
        names: &[String],
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), IdentityError> {
        let own = [SERVER_NAME, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut params = CertificateParams::new([&own, names].concat())?;
        params.distinguished_name = named("undertone server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        valid(&mut params, SystemTime::now() + YEAR);
        let pair = KeyPair::generate_for(&PKCS_ED25519)?;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        let key = PrivateKeyDer::try_from(pair.serialize_der())
            .map_err(|what| IdentityError::Damaged(what.to_owned()))?;
        Ok((vec![certificate.der().clone(), self.certificate.clone()], key))
    }

    /// The public key of a certificate request, once it is shown that the asker holds the private one.
    /// Nothing else of a request is looked at.
    pub fn key_of(csr: &str) -> Result<CertificateRequest, IdentityError> {
        let request = CertificateSigningRequestParams::from_pem(csr)
            .map_err(|error| IdentityError::Request(error.to_string()))?;
        if request.public_key.algorithm() != &PKCS_ED25519 {
            return Err(IdentityError::Request("an Ed25519 key is wanted".to_owned()));
        }
        Ok(CertificateRequest(request))
    }

    /// Sign a certificate for a key.
    pub fn sign(
        &self,
        request: &CertificateRequest,
        node: Node,
        role: Role,
        lifetime: Duration,
    ) -> Result<Signed, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("undertone {} {}", role.name(), node.0));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::ExplicitNoCa;
        let expires = unix_now().saturating_add(lifetime.as_secs());
        valid(&mut params, UNIX_EPOCH + Duration::from_secs(expires));
        let certificate = params.signed_by(&request.0.public_key, &self.issuer)?;
        let (key, pem) = (request.key().to_vec(), certificate.pem());
        let der = certificate.der().clone();
        Ok(Signed { der, certificate: Certificate { node, role, key, pem, expires, revoked: false } })
    }
}

/// A request whose asker holds the key it is for.
pub struct CertificateRequest(CertificateSigningRequestParams);

impl CertificateRequest {
    /// The raw Ed25519 public key.
    pub fn key(&self) -> &[u8] {
        self.0.public_key.der_bytes()
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("undertone authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, SystemTime::now() + 20 * YEAR);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn valid(params: &mut CertificateParams, until: SystemTime) {
    params.not_before = (SystemTime::now() - BACKDATED).into();
    params.not_after = until.into();
}
