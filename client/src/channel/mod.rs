//! What lies between a session and a socket: nothing, or TLS. No I/O.
//!
//! ```text
//!   socket --receive--> [ channel ] --clear--> session
//!   socket <-take_output-- [     ] <--send---- session
//! ```
//!
//! A driver that has received gives the bytes to [`Channel::receive`] and then sends what
//! [`Channel::take_output`] gives, also after an error: it may be the alert that tells the server
//! why. The first bytes of a TLS connection are there to be taken as soon as the channel is.

#[cfg(test)]
mod site;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trust_tests;

use std::fmt;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, ClientConnection, Error, InvalidMessage};

/// Why the bytes of a connection make no sense, or stopped. The connection is of no use any more.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChannelError {
    /// The first bytes of the server are not TLS. A ZEO server without `<ssl>` greets like this.
    #[error("the server does not speak TLS here; connect without, or give the server an <ssl>")]
    NotTls,
    /// The server ended the connection before it said anything in it, and did not say why. Python's
    /// servers do so to clients whose certificate they do not know; in TLS 1.3 the handshake has
    /// ended well for the client by then.
    #[error("the server closed the connection at once; {remedy}")]
    ClosedAtOnce {
        /// What to look at.
        remedy: String,
    },
    /// The server ended the connection.
    #[error("the server closed the connection")]
    Closed,
    /// Nobody whom we trust vouches for the server.
    #[error(
        "the server's certificate is neither in {authenticate} nor signed by one that is; \
         set `authenticate` to a file with the server's certificate or its authority's"
    )]
    UnknownIssuer {
        /// Whom we trust, as it was set.
        authenticate: String,
    },
    /// The certificate is another server's.
    #[error(
        "the server's certificate is not for {expected} but for {presented}; \
         set `server-hostname` to a name that it is for"
    )]
    WrongName {
        /// The name that we called.
        expected: String,
        /// The names in the certificate.
        presented: String,
    },
    /// The server's certificate is genuine, but must not be accepted: expired, revoked, not made
    /// for a server, or of a kind that is no longer safe.
    #[error("the server's certificate is not acceptable: {reason}")]
    ServerCertificate {
        /// What is wrong with it.
        reason: String,
    },
    /// The server lets nobody in without a certificate.
    #[error("the server wants a client certificate; set `certificate` and `key`")]
    CertificateWanted,
    /// The server did not like the handshake, and we have shown no certificate.
    #[error(
        "the server refused the TLS handshake ({alert}); \
         if it wants a client certificate, set `certificate` and `key`"
    )]
    RefusedWithoutCertificate {
        /// What the server said: an alert of RFC 8446 section 6.2.
        alert: String,
    },
    /// The server does not let us in with this certificate.
    #[error(
        "the server does not accept the certificate in {} ({alert}); \
         the server's `authenticate` has to name it or its authority", certificate.display()
    )]
    CertificateRefused {
        /// The file of our certificate.
        certificate: PathBuf,
        /// What the server said.
        alert: String,
    },
    /// There is no version of TLS, or no cipher, that both sides know.
    #[error("the server speaks no TLS that we accept (1.2 or later): {reason}")]
    Incompatible {
        /// What is missing.
        reason: String,
    },
    /// Anything else that is not as it has to be.
    #[error("the TLS connection to the server failed: {reason}")]
    Broken {
        /// What happened.
        reason: String,
    },
}

/// What errors name as the thing to change.
#[derive(Debug)]
pub(crate) struct Remedies {
    /// Whom we trust.
    pub(crate) authenticate: String,
    /// The file of our certificate.
    pub(crate) certificate: Option<PathBuf>,
}

/// The bytes of one connection, on their way between the session and the socket.
pub(crate) enum Channel {
    /// Bytes as they are.
    Plain {
        /// Not yet taken.
        output: Vec<u8>,
    },
    /// Bytes in TLS.
    Tls(Box<Secured>),
}

/// One connection of TLS.
pub(crate) struct Secured {
    connection: ClientConnection,
    remedies: Arc<Remedies>,
    /// Whether the server has said anything.
    is_heard: bool,
}

impl Channel {
    /// A connection without TLS.
    pub(crate) fn plain() -> Self {
        Self::Plain { output: Vec::new() }
    }

    pub(crate) fn tls(mut connection: ClientConnection, remedies: Arc<Remedies>) -> Self {
        // What waits to be sent is what our own side gave, which has its own bound; the little that
        // a server can make TLS itself add is bounded by rustls.
        connection.set_buffer_limit(None);
        Self::Tls(Box::new(Secured { connection, remedies, is_heard: false }))
    }

    /// Whether bytes go through as they are, so that a driver may leave the channel out.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain { .. })
    }

    /// Whether the server has not yet proved who it is. What is sent meanwhile waits.
    #[cfg(test)]
    pub(crate) fn is_handshaking(&self) -> bool {
        match self {
            Self::Plain { .. } => false,
            Self::Tls(secured) => secured.connection.is_handshaking(),
        }
    }

    /// Takes bytes that came from the socket, and gives the clear bytes in them to `clear`, piece by
    /// piece. At most a record of TLS (16 KiB) or a message of the handshake (64 KiB) is kept until
    /// the rest of it comes.
    ///
    /// What TLS itself has to answer is in the output afterwards. An error may come after good
    /// bytes, which `clear` has got then.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        clear: &mut dyn FnMut(&[u8]),
    ) -> Result<(), ChannelError> {
        match self {
            Self::Plain { .. } => clear(bytes),
            Self::Tls(secured) => secured.receive(bytes, clear)?,
        }
        Ok(())
    }

    /// Takes clear bytes to send, at any time: what comes before the end of the handshake waits for
    /// it in memory.
    pub(crate) fn send(&mut self, clear: &[u8]) -> Result<(), ChannelError> {
        match self {
            Self::Plain { output } => output.extend_from_slice(clear),
            Self::Tls(secured) => secured.connection.writer().write_all(clear).map_err(broken)?,
        }
        Ok(())
    }

    /// Moves what is to go to the socket to the end of `out`.
    pub(crate) fn take_output(&mut self, out: &mut Vec<u8>) -> Result<(), ChannelError> {
        match self {
            Self::Plain { output } => out.append(output),
            Self::Tls(secured) => {
                while secured.connection.wants_write() {
                    secured.connection.write_tls(out).map_err(broken)?;
                }
            }
        }
        Ok(())
    }

    /// Tells the server that nothing will be sent any more. It is in the output afterwards.
    pub(crate) fn close(&mut self) {
        if let Self::Tls(secured) = self {
            secured.connection.send_close_notify();
        }
    }

    /// What it means that the socket has come to its end now, or that the server has reset it.
    pub(crate) fn end(&self) -> ChannelError {
        match self {
            Self::Plain { .. } => ChannelError::Closed,
            Self::Tls(secured) => secured.end(),
        }
    }
}

impl Secured {
    fn receive(
        &mut self,
        mut bytes: &[u8],
        clear: &mut dyn FnMut(&[u8]),
    ) -> Result<(), ChannelError> {
        while !bytes.is_empty() {
            let was_handshaking = self.connection.is_handshaking();
            self.connection.read_tls(&mut bytes).map_err(broken)?;
            let processed = self.connection.process_new_packets();
            self.drain(clear);
            match processed {
                // Bytes after this one are not even read.
                Ok(state) if state.peer_has_closed() => return Err(self.end()),
                Ok(_) => {}
                Err(error) => return Err(self.explain(error, was_handshaking)),
            }
        }
        Ok(())
    }

    /// Gives away all clear bytes, so that none add up.
    fn drain(&mut self, clear: &mut dyn FnMut(&[u8])) {
        let mut reader = self.connection.reader();
        // An error says that there is nothing yet, an empty chunk that there will be nothing more.
        while let Ok(chunk) = reader.fill_buf() {
            let taken = chunk.len();
            if taken == 0 {
                break;
            }
            self.is_heard = true;
            clear(chunk);
            reader.consume(taken);
        }
    }

    fn end(&self) -> ChannelError {
        if self.is_heard {
            return ChannelError::Closed;
        }
        let remedy = match &self.remedies.certificate {
            Some(certificate) => {
                let certificate = certificate.display();
                format!("its `authenticate` has to name {certificate} or its authority")
            }
            None => "if it wants a client certificate, set `certificate` and `key`".into(),
        };
        ChannelError::ClosedAtOnce { remedy }
    }

    fn explain(&self, error: Error, was_handshaking: bool) -> ChannelError {
        match error {
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge,
            ) if was_handshaking => ChannelError::NotTls,
            Error::InvalidCertificate(error) => self.explain_certificate(error),
            Error::AlertReceived(alert) => self.explain_alert(alert),
            Error::PeerIncompatible(_) => ChannelError::Incompatible { reason: error.to_string() },
            _ => ChannelError::Broken { reason: error.to_string() },
        }
    }

    fn explain_certificate(&self, error: CertificateError) -> ChannelError {
        match error {
            CertificateError::UnknownIssuer => {
                ChannelError::UnknownIssuer { authenticate: self.remedies.authenticate.clone() }
            }
            CertificateError::NotValidForNameContext { expected, presented } => {
                let names: Vec<&str> = presented.iter().map(|name| bare_name(name)).collect();
                let presented =
                    if names.is_empty() { "no name at all".into() } else { names.join(", ") };
                ChannelError::WrongName { expected: expected.to_str().into(), presented }
            }
            error => ChannelError::ServerCertificate { reason: fault(&error) },
        }
    }

    fn explain_alert(&self, alert: AlertDescription) -> ChannelError {
        use AlertDescription::{
            AccessDenied, BadCertificate, CertificateExpired, CertificateRequired,
            CertificateRevoked, CertificateUnknown, DecryptError, HandshakeFailure,
            InsufficientSecurity, NoCertificate, ProtocolVersion, UnknownCA,
            UnsupportedCertificate,
        };

        let said = format!("{alert:?}");
        match (alert, &self.remedies.certificate) {
            (CertificateRequired | NoCertificate, _) => ChannelError::CertificateWanted,
            (ProtocolVersion | InsufficientSecurity, _) => {
                ChannelError::Incompatible { reason: said }
            }
            (
                HandshakeFailure | AccessDenied | BadCertificate | CertificateUnknown | UnknownCA,
                None,
            ) => ChannelError::RefusedWithoutCertificate { alert: said },
            (
                AccessDenied
                | BadCertificate
                | CertificateExpired
                | CertificateRevoked
                | CertificateUnknown
                | DecryptError
                | UnknownCA
                | UnsupportedCertificate,
                Some(certificate),
            ) => ChannelError::CertificateRefused { certificate: certificate.clone(), alert: said },
            _ => ChannelError::Broken { reason: format!("the server said {said}") },
        }
    }
}

/// What is wrong with a certificate, as a person would say it.
fn fault(error: &CertificateError) -> String {
    const DAY_S: u64 = 24 * 60 * 60;

    match error {
        CertificateError::ExpiredContext { time, not_after } => {
            let days = time.as_secs().saturating_sub(not_after.as_secs()) / DAY_S;
            format!("it expired {days} days ago")
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            let days = not_before.as_secs().saturating_sub(time.as_secs()) / DAY_S;
            format!("it will be valid in {days} days; is the clock of this machine right?")
        }
        CertificateError::Revoked => "it has been revoked".into(),
        CertificateError::UnknownRevocationStatus => {
            "none of the revocation lists in `authenticate` is its authority's".into()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. } => {
            "it is signed in a way that is not safe (SHA-1?); \
             make a new one, or set `authenticate` to this very certificate"
                .into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not made for a server".into()
        }
        // Signatures of authorities that do not fit come as unknown issuers.
        CertificateError::BadSignature => {
            "the server does not hold the key that belongs to it".into()
        }
        error => error.to_string(),
    }
}

/// A name of a certificate without what webpki puts around it: `DnsName("a.example")`.
fn bare_name(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.map_or(name, |inner| inner.trim_matches('"'))
}

fn broken(error: io::Error) -> ChannelError {
    ChannelError::Broken { reason: error.to_string() }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_plain() { "Channel::Plain" } else { "Channel::Tls" };
        f.debug_struct(kind).finish_non_exhaustive()
    }
}
