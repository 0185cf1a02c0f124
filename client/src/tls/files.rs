//! The files that `<ssl>` names: certificates, keys and revocation lists as PEM.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::certificate::Certificate;
use super::{Authenticate, TlsError};

/// Where distributions keep the certificates of all authorities in one file: Debian, Fedora and
/// Red Hat, openSUSE, Alpine.
const SYSTEM_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// And where in one file each.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// Whom we trust, and whom no longer.
#[derive(Default)]
pub(super) struct Trust {
    pub(super) certificates: Vec<Certificate>,
    pub(super) revocation_lists: Vec<CertificateRevocationListDer<'static>>,
}

/// Reads what `authenticate` names. There is at least one certificate in it.
pub(super) fn trust(authenticate: &Authenticate) -> Result<Trust, TlsError> {
    let mut trust = Trust::default();
    match authenticate {
        Authenticate::System => trust.add_system(),
        Authenticate::File(path) => trust.add_file(path)?,
        Authenticate::Directory(path) => trust.add_directory(path)?,
    }
    if !trust.certificates.is_empty() {
        return Ok(trust);
    }
    Err(match authenticate {
        Authenticate::System => TlsError::NoSystemCertificates,
        Authenticate::File(path) => TlsError::NoCertificate { path: path.clone() },
        Authenticate::Directory(path) => TlsError::EmptyDirectory { path: path.clone() },
    })
}

/// Reads a client's own certificate, and those after it.
pub(super) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = certificates_of(&read(path)?);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|error| damaged(path, &error))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path.into() });
    }
    Ok(chain)
}

/// Reads the first private key of a file.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read(path)?;
    // PKCS #8 says it in the title, OpenSSL's older format in a header below it.
    let is_encrypted = [&b"-----BEGIN ENCRYPTED PRIVATE KEY-----"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| bytes.windows(mark.len()).any(|bytes| bytes == *mark));
    if is_encrypted {
        return Err(TlsError::EncryptedKey { path: path.into() });
    }
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => Err(TlsError::NoKey { path: path.into() }),
        Err(error) => Err(damaged(path, &error)),
    }
}

impl Trust {
    fn add_file(&mut self, path: &Path) -> Result<(), TlsError> {
        let bytes = certificates_of(&read(path)?);
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(&bytes) {
            match section.map_err(|error| damaged(path, &error))? {
                (SectionKind::Certificate, der) => {
                    let certificate = Certificate::read(der.into());
                    let certificate = certificate.ok_or_else(|| TlsError::Damaged {
                        path: path.into(),
                        reason: "a certificate in it cannot be understood".into(),
                    })?;
                    self.add(certificate);
                }
                (SectionKind::Crl, der) => self.revocation_lists.push(der.into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn add_directory(&mut self, path: &Path) -> Result<(), TlsError> {
        let unreadable = |source| TlsError::Unreadable { path: path.into(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            // Also no link to a file that is gone: packages leave such behind.
            if is_certificate_name(&file) && file.is_file() {
                files.push(file);
            }
        }
        files.sort();
        files.iter().try_for_each(|file| self.add_file(file))
    }

    /// Adds what this machine trusts. Stores hold certificates of all kinds and ages, so one that
    /// is not understood is passed over.
    fn add_system(&mut self) {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let (set_file, set_directories) = (set("SSL_CERT_FILE"), set("SSL_CERT_DIR"));
        let is_set = set_file.is_some() || set_directories.is_some();
        let (files, directories): (Vec<PathBuf>, Vec<PathBuf>) = if is_set {
            let directories = set_directories.unwrap_or_default();
            let directories = env::split_paths(&directories).collect();
            (set_file.into_iter().map(PathBuf::from).collect(), directories)
        } else {
            (SYSTEM_FILES.map(PathBuf::from).into(), SYSTEM_DIRECTORIES.map(PathBuf::from).into())
        };
        for path in files {
            self.add_readable(&path);
        }
        if is_set || self.certificates.is_empty() {
            for path in directories {
                let entries = fs::read_dir(&path).into_iter().flatten().flatten();
                let files =
                    entries.map(|entry| entry.path()).filter(|file| is_certificate_name(file));
                files.for_each(|file| self.add_readable(&file));
            }
        }
    }

    fn add_readable(&mut self, path: &Path) {
        let Ok(bytes) = fs::read(path) else { return };
        let bytes = certificates_of(&bytes);
        let readable = CertificateDer::pem_slice_iter(&bytes).filter_map(Result::ok);
        readable.filter_map(Certificate::read).for_each(|certificate| self.add(certificate));
    }

    /// Adds a certificate once: in hashed directories each is there under two names.
    fn add(&mut self, certificate: Certificate) {
        if self.certificates.iter().all(|known| known.der != certificate.der) {
            self.certificates.push(certificate);
        }
    }
}

/// `*.pem`, `*.crt`, and a hash of eight digits with a number behind it.
fn is_certificate_name(path: &Path) -> bool {
    let (Some(stem), Some(extension)) = (path.file_stem(), path.extension()) else { return false };
    let are_all = |text: &OsStr, is: fn(&u8) -> bool| text.as_encoded_bytes().iter().all(is);
    let is_hashed = stem.len() == 8
        && are_all(stem, u8::is_ascii_hexdigit)
        && are_all(extension, u8::is_ascii_digit);
    is_hashed || extension == "pem" || extension == "crt"
}

/// The certificates and revocation lists of a file, without what else is there. Keys are often near
/// by, and an encrypted one has headers that the reader of PEM takes for damage.
fn certificates_of(text: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut is_inside = false;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        is_inside |= line.starts_with(b"-----BEGIN CERTIFICATE-----")
            || line.starts_with(b"-----BEGIN X509 CRL-----");
        if is_inside {
            kept.extend_from_slice(line);
        }
        is_inside &= !line.starts_with(b"-----END ");
    }
    kept
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable { path: path.into(), source })
}

fn damaged(path: &Path, error: &pem::Error) -> TlsError {
    TlsError::Damaged { path: path.into(), reason: error.to_string() }
}
