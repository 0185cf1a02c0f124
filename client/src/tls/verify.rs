//! Whether a server is one that we trust. No I/O; `rustls` asks in the middle of a handshake.
//!
//! ```text
//!   shown certificate
//!      | signed, step by step, by an authority that `authenticate` names? --> dates, purpose, name
//!      | else: equal to a certificate that `authenticate` names?          --> dates, name
//!      | else: not trusted
//! ```
//!
//! In every case the server has to prove that it holds the key of the certificate that it shows.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, VerifierBuilderError};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore, SignatureScheme,
};

use super::certificate::Certificate;
use super::files::Trust;

/// Says whom to trust.
#[derive(Debug)]
pub(super) struct Verifier {
    pinned: Vec<Certificate>,
    /// `None` if nobody whom we trust may sign for others.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
    check_hostname: bool,
}

impl Verifier {
    /// Trusts those in `trust`. Fails if a revocation list cannot be used.
    pub(super) fn new(
        trust: Trust,
        check_hostname: bool,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let mut roots = RootCertStore::empty();
        // WebPKI does not ask whether a root may sign. A server whose certificate is pinned could
        // else vouch for other servers.
        let authorities = trust.certificates.iter().filter(|known| known.is_authority);
        roots.add_parsable_certificates(authorities.map(|known| known.der.clone()));
        let authorities = if roots.is_empty() {
            None
        } else {
            let roots = Arc::new(roots);
            let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
                .with_crls(trust.revocation_lists)
                .only_check_end_entity_revocation();
            Some(builder.build()?)
        };
        Ok(Self {
            pinned: trust.certificates,
            authorities,
            algorithms: provider.signature_verification_algorithms,
            check_hostname,
        })
    }

    fn pinned(&self, shown: &CertificateDer<'_>) -> Option<&Certificate> {
        self.pinned.iter().find(|pinned| pinned.der == *shown)
    }

    /// What remains to be checked of a certificate that we know.
    fn verify_pinned(
        &self,
        pinned: &Certificate,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), CertificateError> {
        if now < pinned.not_before {
            let not_before = pinned.not_before;
            return Err(CertificateError::NotValidYetContext { time: now, not_before });
        }
        if pinned.not_after < now {
            let not_after = pinned.not_after;
            return Err(CertificateError::ExpiredContext { time: now, not_after });
        }
        if self.check_hostname { verify_pinned_name(pinned, name) } else { Ok(()) }
    }
}

/// Looks for the name among the alternative names, or, if there are none at all, among the common
/// names, which were what one had before there were alternative ones. OpenSSL still does so.
fn verify_pinned_name(pinned: &Certificate, name: &ServerName<'_>) -> Result<(), CertificateError> {
    if pinned.has_extensions {
        let parsed = ParsedCertificate::try_from(&pinned.der);
        match parsed.and_then(|parsed| verify_server_name(&parsed, name)) {
            Ok(()) => return Ok(()),
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented,
                ..
            })) if presented.is_empty() => {}
            Err(Error::InvalidCertificate(error)) => return Err(error),
            Err(_) => return Err(CertificateError::BadEncoding),
        }
    }
    match name {
        ServerName::DnsName(host) if pinned.is_named(host.as_ref()) => Ok(()),
        _ => Err(CertificateError::NotValidForNameContext {
            expected: name.to_owned(),
            presented: pinned.common_names.clone(),
        }),
    }
}

fn is_about_name(error: &Error) -> bool {
    use CertificateError::{NotValidForName, NotValidForNameContext};

    matches!(error, Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }))
}

/// Of a certificate that nobody vouches for, WebPKI may say first that it is old or no server's, or,
/// if a trusted authority has the name of its issuer, that a signature is wrong.
fn plain_error(shown: &CertificateDer<'_>, error: Error) -> Error {
    let is_self_issued = || {
        let shown = Certificate::read(shown.clone().into_owned());
        shown.is_some_and(|shown| shown.is_self_issued)
    };
    let is_strange = error == CertificateError::BadSignature.into()
        || (!is_about_name(&error) && is_self_issued());
    if is_strange { CertificateError::UnknownIssuer.into() } else { error }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let signed = match &self.authorities {
            Some(authorities) => authorities.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        let error = match signed {
            Ok(verified) => return Ok(verified),
            // Names are looked at last: all else was right.
            Err(error) if !self.check_hostname && is_about_name(&error) => {
                return Ok(ServerCertVerified::assertion());
            }
            Err(error) => error,
        };
        if error == CertificateError::Revoked.into() {
            return Err(error);
        }
        if let Some(pinned) = self.pinned(end_entity) {
            self.verify_pinned(pinned, server_name, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        Err(plain_error(end_entity, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(pinned) = self.pinned(cert) else {
            return verify_tls12_signature(message, cert, signed, &self.algorithms);
        };
        // In TLS 1.2 a scheme stands for several algorithms; the key tells which of them.
        let (_, candidates) = self
            .algorithms
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == signed.scheme)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let algorithm = candidates
            .iter()
            .find(|algorithm| algorithm.public_key_alg_id().as_ref() == pinned.key_algorithm)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        algorithm
            .verify_signature(&pinned.key, message, signed.signature())
            .map_err(|_| CertificateError::BadSignature)?;
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.pinned(cert) {
            Some(pinned) => verify_tls13_signature_with_raw_key(
                message,
                &pinned.public_key,
                signed,
                &self.algorithms,
            ),
            None => verify_tls13_signature(message, cert, signed, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
