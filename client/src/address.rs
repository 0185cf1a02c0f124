//! Where a server listens: a TCP port or a Unix socket, written as `runzeo -a` takes it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a server listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// A TCP port. The host is a name or an IP address, without brackets.
    Tcp {
        /// A name, or an IPv4 or IPv6 address.
        host: String,
        /// The port.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// A text that is no address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is neither PORT, HOST:PORT, [IPV6]:PORT nor a path with a slash")]
pub struct AddressError {
    text: String,
}

impl FromStr for Address {
    type Err = AddressError;

    /// Reads `PORT`, `HOST:PORT`, `[IPV6]:PORT`, or a path: what has a slash in it.
    ///
    /// A port alone means this machine: `localhost`.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_ambiguous = bare.is_none() && host.contains(':');
        let host = match bare.unwrap_or(host) {
            "" => "localhost",
            host => host,
        };
        match port.parse() {
            Ok(port) if !is_ambiguous => Ok(Self::Tcp { host: host.into(), port }),
            _ => Err(AddressError { text: text.into() }),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(socket: SocketAddr) -> Self {
        Self::Tcp { host: socket.ip().to_string(), port: socket.port() }
    }
}

impl fmt::Display for Address {
    /// The form that [`Address::from_str`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => match host.parse() {
                Ok(IpAddr::V6(host)) => write!(f, "[{host}]:{port}"),
                _ => write!(f, "{host}:{port}"),
            },
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_runzeo_reads_it() {
        let tcp = |host: &str, port| Ok(Address::Tcp { host: host.into(), port });
        let cases = [
            ("8100", tcp("localhost", 8100)),
            (":8100", tcp("localhost", 8100)),
            ("db.example:9", tcp("db.example", 9)),
            ("[::1]:9", tcp("::1", 9)),
            ("/run/zeo.sock", Ok(Address::Unix("/run/zeo.sock".into()))),
            ("./zeo", Ok(Address::Unix("./zeo".into()))),
        ];
        for (text, expected) in cases {
            let read: Result<Address, AddressError> = text.parse();
            assert_eq!(read, expected, "{text}");
            let written = read.unwrap().to_string();
            assert_eq!(written.parse(), expected, "{written}");
        }
    }

    #[test]
    fn what_has_no_port_is_no_address() {
        for text in ["", "host", "host:", "host:99999", "::1:9", "host:-1"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
