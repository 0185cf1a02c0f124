//! Makes sure that the server's address is free, before anything is opened.
//!
//! Asks by connecting, as `runzeo` does: two servers on one data file are kept apart by its lock,
//! but only this tells the second one why it must not take over the first one's socket.
//!
//! The sockets of a server that was killed go on listening for a moment, because the kernel closes
//! a ring after the process has ended. Nobody speaks there any more, while a server of ZEO greets
//! whoever connects: so silence is waited for, and only what speaks is in use.

use std::{
    fs,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::config::Address;

/// How long an address of this machine may take to answer. One that answers at all does so in
/// less than a millisecond; only a firewall between makes it long.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a greeting may take before an address counts as silent.
const GREETING_TIME_MAX: Duration = Duration::from_millis(200);

/// How long an address may be silent before it counts as somebody's who is no server of ZEO.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(5);

/// The address cannot be used. Ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Someone listens there.
    #[error("address {0} already in use; stop the server there, or choose another address")]
    InUse(Address),
    /// There is a file at the path, and it is not a socket.
    #[error("address {}: there is a file that is not a socket; choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The socket of a server that is gone cannot be removed.
    #[error("address {}: the old socket cannot be removed: {source}", path.display())]
    Stale {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Who is at an address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Voice {
    Nobody,
    Silent,
    Greets,
}

/// Makes sure that nobody answers at the address, and removes the socket that a dead server left.
pub fn claim(address: &Address) -> Result<(), AddressError> {
    let start = Instant::now();
    loop {
        match voice_at(address) {
            Voice::Nobody => break,
            Voice::Silent if start.elapsed() < SILENCE_TIME_MAX => thread::sleep(PAUSE),
            Voice::Silent | Voice::Greets => return Err(AddressError::InUse(address.clone())),
        }
    }
    match address {
        Address::Tcp { .. } => Ok(()),
        Address::Unix(path) => remove_socket(path),
    }
}

/// Between two looks at a silent address.
const PAUSE: Duration = Duration::from_millis(10);

/// Removes the socket of this server when it stops. An internet address leaves nothing behind,
/// and what is no socket stays.
pub fn release(address: &Address) {
    if let Address::Unix(path) = address {
        // Nobody is left who could do anything about it, and the next start tries again.
        let _ = remove_socket(path);
    }
}

fn voice_at(address: &Address) -> Voice {
    let (host, port) = match address {
        Address::Unix(path) => {
            return UnixStream::connect(path).map_or(Voice::Nobody, |mut stream| {
                // A stream that cannot have a timeout would be waited for without end.
                match stream.set_read_timeout(Some(GREETING_TIME_MAX)) {
                    Ok(()) => listen_to(&mut stream),
                    Err(_) => Voice::Silent,
                }
            });
        }
        // The system is going to choose one that is free.
        Address::Tcp { port: 0, .. } => return Voice::Nobody,
        Address::Tcp { host, port } => (host, *port),
    };
    let candidates: Vec<SocketAddr> = match host {
        None => vec![
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port),
        ],
        // A name that cannot be resolved cannot be bound either, and that error says more.
        Some(host) => (host.as_str(), port).to_socket_addrs().into_iter().flatten().collect(),
    };
    let voice = |at: &SocketAddr| match TcpStream::connect_timeout(at, ANSWER_TIME_MAX) {
        Ok(stream) if is_own_echo(&stream) => Voice::Nobody,
        Ok(mut stream) => match stream.set_read_timeout(Some(GREETING_TIME_MAX)) {
            Ok(()) => listen_to(&mut stream),
            Err(_) => Voice::Silent,
        },
        Err(_) => Voice::Nobody,
    };
    candidates.iter().map(voice).max().unwrap_or(Voice::Nobody)
}

fn listen_to(stream: &mut impl Read) -> Voice {
    match stream.read(&mut [0]) {
        Ok(1..) => Voice::Greets,
        Ok(0) | Err(_) => Voice::Silent,
    }
}

/// A connection to a free port may by chance leave from that very port, and then meets itself.
fn is_own_echo(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(here), Ok(there)) if here == there)
}

fn remove_socket(path: &Path) -> Result<(), AddressError> {
    let stale = |source| AddressError::Stale { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(stale(error)),
        Ok(found) if !found.file_type().is_socket() => {
            Err(AddressError::NotASocket(path.to_owned()))
        }
        Ok(_) => fs::remove_file(path).map_err(stale),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_address_where_somebody_greets_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let hosts = [Some("127.0.0.1".to_owned()), Some("localhost".to_owned()), None];
        let greetings = hosts.len();
        let greeter = thread::spawn(move || {
            for stream in listener.incoming().take(greetings) {
                stream.unwrap().write_all(b"\0\0\0\x02Z5").unwrap();
            }
        });
        for host in hosts {
            let address = Address::Tcp { host, port };
            let error = claim(&address).unwrap_err().to_string();
            assert!(error.starts_with(&format!("address {address} already in use")), "{error}");
        }
        greeter.join().unwrap();
        claim(&Address::Tcp { host: None, port: 0 }).unwrap();
    }

    #[test]
    fn a_listener_that_says_nothing_and_goes_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = Address::Tcp { host: Some("127.0.0.1".to_owned()), port };
        assert_eq!(voice_at(&address), Voice::Silent);
        let (told, wait) = std::sync::mpsc::channel::<()>();
        let goer = thread::spawn(move || {
            // Whoever claims has connected once, and found nobody to speak.
            drop(listener.accept().unwrap());
            wait.recv().unwrap();
        });
        told.send(()).unwrap();
        claim(&address).unwrap();
        goer.join().unwrap();
    }

    #[test]
    fn the_socket_of_a_dead_server_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = Address::Unix(path.clone());
        claim(&address).unwrap();

        let listener = UnixListener::bind(&path).unwrap();
        let greeter = thread::spawn(move || {
            listener.accept().unwrap().0.write_all(b"\0\0\0\x02Z5").unwrap();
        });
        assert!(matches!(claim(&address), Err(AddressError::InUse(_))));
        greeter.join().unwrap();
        assert!(path.exists());
        claim(&address).unwrap();
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        assert!(matches!(claim(&address), Err(AddressError::NotASocket(_))));
        release(&address);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
