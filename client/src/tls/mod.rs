//! TLS as ZEO's `<ssl>` section means it: settings in, a prepared configuration out.
//!
//! Files are read once, by [`Tls::prepare`]; after that nothing here does I/O. The bytes of a
//! connection go through a channel, `channel/mod.rs`.
//!
//! Sites of ZEO seldom have a certificate authority. What `authenticate` names is as a rule the
//! server's own, self-signed certificate. Such a one is trusted because it is that very
//! certificate, whoever signed it and however; see `tls/verify.rs` for what is still checked.
//!
//! ```no_run
//! use zeoring_client::tls::{Authenticate, Tls, TlsError, TlsOptions};
//!
//! # fn main() -> Result<(), TlsError> {
//! let tls = Tls::prepare(&TlsOptions {
//!     certificate: Some("client.pem".into()),
//!     key: Some("client_key.pem".into()),
//!     authenticate: Authenticate::File("server.pem".into()),
//!     ..TlsOptions::default()
//! })?;
//! # drop(tls);
//! # Ok(())
//! # }
//! ```

mod certificate;
mod files;
mod verify;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection};

use self::certificate::Certificate;
use self::verify::Verifier;
use crate::channel::{Channel, Remedies};

/// How a client proves who it is, and whom it trusts. The fields are the keys of `<ssl>`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsOptions {
    /// A PEM file with the client's certificate, and after it those that lead to its issuer. Most
    /// servers want one: a stock ZEO server with `<ssl>` lets nobody in without.
    pub certificate: Option<PathBuf>,
    /// A PEM file with the private key of the certificate, not encrypted. `None`: it is in the
    /// certificate's file.
    pub key: Option<PathBuf>,
    /// Which servers are trusted.
    pub authenticate: Authenticate,
    /// Whether the server's certificate must be for the name that the client calls.
    pub check_hostname: bool,
    /// The name that the certificate must be for, and that the server is told, instead of the host
    /// of the address. An address that is a Unix socket has no host.
    pub server_hostname: Option<String>,
}

impl Default for TlsOptions {
    /// No certificate of our own, servers that this machine trusts, host names checked.
    fn default() -> Self {
        Self {
            certificate: None,
            key: None,
            authenticate: Authenticate::System,
            check_hostname: true,
            server_hostname: None,
        }
    }
}

/// Which servers a client trusts.
///
/// Each certificate here stands for two: the server that shows that very certificate, and, if it
/// is a certificate authority's, the servers whose certificates it has signed. With revocation
/// lists in the same files, a server's certificate must not be revoked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Authenticate {
    /// Whom this machine trusts. The store is where `SSL_CERT_FILE` or `SSL_CERT_DIR` say, or else
    /// where distributions of Linux keep it.
    System,
    /// The certificates of a PEM file.
    File(PathBuf),
    /// The certificates of all files in a directory whose names end in `.pem` or `.crt`, or are
    /// like those that `openssl rehash` makes (`1a2b3c4d.0`).
    Directory(PathBuf),
}

impl Authenticate {
    /// Reads the setting as ZEO does: nothing or `DYNAMIC` is the system's store, a directory is a
    /// directory, and anything else is taken for a file.
    pub fn from_setting(setting: &Path) -> Self {
        if setting.as_os_str().is_empty() || setting == "DYNAMIC" {
            Self::System
        } else if setting.is_dir() {
            Self::Directory(setting.into())
        } else {
            Self::File(setting.into())
        }
    }
}

impl fmt::Display for Authenticate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("the system's certificates"),
            Self::File(path) | Self::Directory(path) => path.display().fmt(f),
        }
    }
}

/// Why TLS cannot be used as it is set up. Nothing has been sent yet.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file or directory could not be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not PEM.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file has no certificate in it.
    #[error("{} holds no certificate (-----BEGIN CERTIFICATE-----)", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// No file of a directory has a certificate in it.
    #[error("no *.pem, *.crt or hashed (1a2b3c4d.0) file in {} holds a certificate", path.display())]
    EmptyDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// This machine trusts nobody, or keeps its certificates where we do not look.
    #[error("found no certificates of the system; set SSL_CERT_FILE, or `authenticate` to a file")]
    NoSystemCertificates,
    /// A revocation list cannot be used.
    #[error("a revocation list in {authenticate} cannot be used: {reason}")]
    RevocationList {
        /// Where the list is from.
        authenticate: Authenticate,
        /// What is wrong with it.
        reason: String,
    },
    /// There is a key, but no certificate to go with it.
    #[error("{} is set as `key`, but there is no `certificate`", path.display())]
    KeyAlone {
        /// The key's file.
        path: PathBuf,
    },
    /// A file has no private key in it.
    #[error("{} holds no private key; set `key` to the file that does", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A private key is encrypted.
    #[error(
        "the key in {path} is encrypted, which is not supported; \
         decrypt it with: openssl pkey -in {path} -out KEY", path = path.display()
    )]
    EncryptedKey {
        /// The key's file.
        path: PathBuf,
    },
    /// A private key is of a kind that cannot be used, or damaged.
    #[error("the key in {} cannot be used: RSA of 2048 to 4096 bits, P-256, P-384 and Ed25519 can",
        path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What the reader of keys said.
        source: rustls::Error,
    },
    /// A private key is another certificate's.
    #[error("the key in {} does not belong to the certificate in {}",
        key.display(), certificate.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// There is no name to check the server's certificate for.
    #[error("{host:?} is no host name; set `server-hostname`, or `check-hostname` to false")]
    HostName {
        /// The host of the address, or `server_hostname`.
        host: String,
    },
    /// No connection can be begun with this configuration.
    #[error("cannot begin TLS")]
    Begin(#[source] rustls::Error),
}

/// TLS, ready for any number of connections. Cheap to clone.
///
/// Files that change later are not looked at again: prepare anew for that. Each connection makes a
/// full handshake and checks the server's certificate; nothing is remembered between connections.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    check_hostname: bool,
    server_hostname: Option<String>,
    remedies: Arc<Remedies>,
}

impl Tls {
    /// Reads all files that `options` name and checks that they can be used.
    pub fn prepare(options: &TlsOptions) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let trust = files::trust(&options.authenticate)?;
        let verifier =
            Verifier::new(trust, options.check_hostname, &provider).map_err(|error| {
                let authenticate = options.authenticate.clone();
                TlsError::RevocationList { authenticate, reason: error.to_string() }
            })?;
        let identity = identity(options, &provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("ring has cipher suites for both versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
            None => builder.with_no_client_auth(),
        };
        // A resumed session would not look at the server's certificate again. Connections live for
        // days; a full handshake at the start of each costs nothing.
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            check_hostname: options.check_hostname,
            server_hostname: options.server_hostname.clone(),
            remedies: Arc::new(Remedies {
                authenticate: options.authenticate.to_string(),
                certificate: options.certificate.clone(),
            }),
        })
    }

    /// Begins a connection to `host`: a name, an IP address, or nothing for a Unix socket.
    pub(crate) fn channel(&self, host: &str) -> Result<Channel, TlsError> {
        let host = self.server_hostname.as_deref().unwrap_or(host);
        let name = match ServerName::try_from(host) {
            Ok(name) => name.to_owned(),
            // Nobody looks at the name, and an IP address is not told to the server.
            Err(_) if !self.check_hostname => IpAddr::V4(Ipv4Addr::UNSPECIFIED).into(),
            Err(_) => return Err(TlsError::HostName { host: host.into() }),
        };
        let connection = ClientConnection::new(Arc::clone(&self.config), name);
        let connection = connection.map_err(TlsError::Begin)?;
        Ok(Channel::tls(connection, Arc::clone(&self.remedies)))
    }
}

/// The client's own certificate with its key.
fn identity(
    options: &TlsOptions,
    provider: &CryptoProvider,
) -> Result<Option<CertifiedKey>, TlsError> {
    let Some(certificate) = &options.certificate else {
        return match &options.key {
            Some(key) => Err(TlsError::KeyAlone { path: key.clone() }),
            None => Ok(None),
        };
    };
    let chain = files::chain(certificate)?;
    let own = chain.first().and_then(|der| Certificate::read(der.clone()));
    let own = own.ok_or_else(|| TlsError::Damaged {
        path: certificate.clone(),
        reason: "its certificate cannot be understood".into(),
    })?;
    let path = options.key.as_ref().unwrap_or(certificate);
    let key = provider.key_provider.load_private_key(files::key(path)?);
    let key = key.map_err(|source| TlsError::Key { path: path.clone(), source })?;
    let is_of_another = key.public_key().is_some_and(|public| public != own.public_key);
    if is_of_another {
        let certificate = certificate.clone();
        return Err(TlsError::KeyMismatch { key: path.clone(), certificate });
    }
    Ok(Some(CertifiedKey::new(chain, key)))
}
