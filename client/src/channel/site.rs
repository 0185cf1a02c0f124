//! What the tests of TLS are made on: certificates, the files that hold them, and a server of
//! `rustls` whose bytes come and go in pieces.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    ServerConnection, SignatureScheme, SupportedProtocolVersion,
};
use tempfile::TempDir;

use super::{Channel, ChannelError};
use crate::tls::{Authenticate, Tls, TlsOptions};

pub(super) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A certificate with its key.
pub(super) struct Made {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: KeyPair,
}

/// What one asks of a certificate; the rest is as rcgen has it: valid from 1975 to 4096.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) common_name: &'static str,
    pub(super) names: &'static [&'static str],
    pub(super) is_authority: bool,
    pub(super) years: (i32, i32),
    pub(super) algorithm: &'static SignatureAlgorithm,
    pub(super) serial: u64,
}

pub(super) const ASKED: Asked = Asked {
    common_name: "zodb.org",
    names: &[],
    is_authority: false,
    years: (1975, 4096),
    algorithm: &PKCS_ECDSA_P256_SHA256,
    serial: 1,
};

impl Asked {
    pub(super) fn ed25519(self) -> Self {
        Self { algorithm: &PKCS_ED25519, ..self }
    }

    fn params(&self) -> CertificateParams {
        let names: Vec<String> = self.names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.common_name);
        params.serial_number = Some(self.serial.into());
        params.not_before = rcgen::date_time_ymd(self.years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(self.years.1, 1, 1);
        if self.is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }

    pub(super) fn self_signed(&self) -> Made {
        let key = KeyPair::generate_for(self.algorithm).unwrap();
        let certificate = self.params().self_signed(&key).unwrap();
        Made { chain: vec![certificate.der().clone()], key }
    }

    pub(super) fn signed_by(&self, issuer: &Issuer<'_, KeyPair>) -> Made {
        let key = KeyPair::generate_for(self.algorithm).unwrap();
        let certificate = self.params().signed_by(&key, issuer).unwrap();
        Made { chain: vec![certificate.der().clone()], key }
    }

    pub(super) fn issuer(&self) -> CertifiedIssuer<'static, KeyPair> {
        let key = KeyPair::generate_for(self.algorithm).unwrap();
        CertifiedIssuer::self_signed(self.params(), key).unwrap()
    }

    /// An issuer whose certificate another issuer has signed.
    pub(super) fn issuer_by(
        &self,
        issuer: &Issuer<'_, KeyPair>,
    ) -> CertifiedIssuer<'static, KeyPair> {
        let key = KeyPair::generate_for(self.algorithm).unwrap();
        CertifiedIssuer::signed_by(self.params(), key, issuer).unwrap()
    }
}

impl Made {
    pub(super) fn pem(&self) -> String {
        self.chain.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }

    /// The same certificate as one of version 1: no version, no extensions. Its signature is wrong
    /// then, as it may be for one that is trusted for being itself.
    pub(super) fn of_version_1(self) -> Self {
        let (_, certificate, _) = element(&self.chain[0]);
        let (_, mut body, signature) = element(certificate);
        let mut old_body = Vec::new();
        while !body.is_empty() {
            let (tag, _, rest) = element(body);
            if !matches!(tag, 0xa0 | 0xa3) {
                old_body.extend_from_slice(&body[..body.len() - rest.len()]);
            }
            body = rest;
        }
        let old = sequence(&[&sequence(&[&old_body]), signature]);
        Self { chain: vec![old.into()], key: self.key }
    }
}

pub(super) fn pem(title: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {title}-----\n");
    for line in der.chunks(48) {
        for bytes in line.chunks(3) {
            let number = (0..3).fold(0, |number, at| {
                number << 8 | usize::from(bytes.get(at).copied().unwrap_or(0))
            });
            for digit in 0..4 {
                let is_there = digit <= bytes.len();
                let value = number >> (18 - 6 * digit) & 63;
                text.push(if is_there { char::from(DIGITS[value]) } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {title}-----\n")
}

fn element(der: &[u8]) -> (u8, &[u8], &[u8]) {
    let (length, header) = match der[1] {
        0x81 => (usize::from(der[2]), 3),
        0x82 => (usize::from(der[2]) << 8 | usize::from(der[3]), 4),
        short => (usize::from(short), 2),
    };
    (der[0], &der[header..header + length], &der[header + length..])
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut der = vec![0x30, 0x82];
    der.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
    der.extend_from_slice(&content);
    der
}

/// A directory with the files of a client's settings.
pub(super) struct Site {
    pub(super) directory: TempDir,
}

impl Site {
    pub(super) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(super) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Trusts what is in `pem`.
    pub(super) fn trusting(&self, pem: &str) -> TlsOptions {
        let authenticate = Authenticate::File(self.file("authenticate.pem", pem));
        TlsOptions { authenticate, ..TlsOptions::default() }
    }
}

/// A channel to `host` with these settings.
pub(super) fn channel(options: &TlsOptions, host: &str) -> Channel {
    Tls::prepare(options).unwrap().channel(host).unwrap()
}

/// A server that shows a certificate, and wants one of these if there are any.
pub(super) fn server(
    shown: &Made,
    wanted: &[CertificateDer<'static>],
    version: &'static SupportedProtocolVersion,
) -> ServerConnection {
    let provider = Arc::new(ring::default_provider());
    let key = PrivateKeyDer::try_from(shown.key.serialize_der()).unwrap();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(shown.chain.clone(), key));
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap();
    let builder = if wanted.is_empty() {
        builder.with_no_client_auth()
    } else {
        let wanted = Wanted { certificates: wanted.to_vec(), provider };
        builder.with_client_cert_verifier(Arc::new(wanted))
    };
    let config = builder.with_cert_resolver(Arc::new(shown));
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    server.set_buffer_limit(None);
    server
}

/// Lets in those who show one of some certificates, as a ZEO server does.
#[derive(Debug)]
struct Wanted {
    certificates: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for Wanted {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if !self.certificates.contains(end_entity) {
            return Err(CertificateError::UnknownIssuer.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Numbers that look like chance and are the same for the same seed (xorshift64*).
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % end
    }
}

/// How it went between a channel and a server until both were silent or the channel failed.
pub(super) struct Outcome {
    /// The clear bytes that the channel gave.
    pub(super) clear: Vec<u8>,
    /// The clear bytes that the server got.
    pub(super) at_server: Vec<u8>,
    pub(super) client: Result<(), ChannelError>,
    pub(super) server: Result<(), Error>,
}

/// Lets bytes go to and fro, in pieces of at most `piece_max` bytes. The server sends back all that
/// it gets.
pub(super) fn talk(
    channel: &mut Channel,
    server: &mut ServerConnection,
    piece_max: usize,
    chance: &mut Chance,
) -> Outcome {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut outcome =
        Outcome { clear: Vec::new(), at_server: Vec::new(), client: Ok(()), server: Ok(()) };
    loop {
        channel.take_output(&mut to_server).unwrap();
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
        if outcome.server.is_err() {
            to_server.clear();
        }
        if to_server.is_empty() && to_client.is_empty() {
            return outcome;
        }
        let piece = cut(&mut to_server, piece_max, chance);
        let mut rest = &piece[..];
        while outcome.server.is_ok() && !rest.is_empty() {
            if server.read_tls(&mut rest).unwrap() == 0 {
                break;
            }
            outcome.server = server.process_new_packets().map(drop);
            let mut buffer = [0; 20_000];
            while let Ok(got @ 1..) = server.reader().read(&mut buffer) {
                outcome.at_server.extend_from_slice(&buffer[..got]);
                server.writer().write_all(&buffer[..got]).unwrap();
            }
        }
        let piece = cut(&mut to_client, piece_max, chance);
        let received = channel.receive(&piece, &mut |bytes| outcome.clear.extend_from_slice(bytes));
        if received.is_err() {
            outcome.client = received;
            // The alert that says why.
            to_server.clear();
            channel.take_output(&mut to_server).unwrap();
            if outcome.server.is_ok() && !to_server.is_empty() {
                server.read_tls(&mut &to_server[..]).unwrap();
                outcome.server = server.process_new_packets().map(drop);
            }
            return outcome;
        }
    }
}

fn cut(bytes: &mut Vec<u8>, piece_max: usize, chance: &mut Chance) -> Vec<u8> {
    let length = bytes.len().min(chance.below(piece_max) + 1);
    bytes.drain(..length).collect()
}
