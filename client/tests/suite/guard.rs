//! Certificates, and TLS before a server that has none: a thread for each connection, which gives
//! the clear bytes to the server and its answers back.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use zeoring_client::tls::{Authenticate, TlsOptions};

/// Who shows which certificate, in files of a folder, each with its key: `server.pem` and
/// `stranger.pem` stand for themselves, as ZEO's documentation makes them; `client.pem` was signed
/// by `authority.pem`, whom servers trust.
pub(crate) fn make_certificates(folder: &Path) -> TlsOptions {
    let params = |name: &str| {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let write = |name: &str, certificate: String, key: &KeyPair| {
        let text = format!("{certificate}{}", key.serialize_pem());
        fs::write(folder.join(format!("{name}.pem")), text).unwrap();
    };
    for name in ["server", "stranger"] {
        let key = KeyPair::generate().unwrap();
        write(name, params(name).self_signed(&key).unwrap().pem(), &key);
    }
    let mut authority = params("authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Python's server looks at certificates strictly.
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    write("authority", authority.pem(), authority.key());
    let key = KeyPair::generate().unwrap();
    let mut client = params("client");
    client.use_authority_key_identifier_extension = true;
    write("client", client.signed_by(&key, &authority).unwrap().pem(), &key);
    TlsOptions {
        certificate: Some(folder.join("client.pem")),
        authenticate: Authenticate::File(folder.join("server.pem")),
        ..TlsOptions::default()
    }
}

/// Takes connections with TLS for a server.
pub(crate) struct Guard {
    address: SocketAddr,
    bell: Option<std::os::fd::OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    /// Before the server at `server`, with the certificates of a folder.
    pub(crate) fn start(address: SocketAddr, server: SocketAddr, folder: &Path) -> Self {
        let config = config(folder);
        let listener = TcpListener::bind(address).unwrap();
        let (heard, bell) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let thread = std::thread::spawn(move || {
            let mut guests = Vec::new();
            let heard = Arc::new(heard);
            loop {
                let mut ready =
                    [PollFd::new(&listener, PollFlags::IN), PollFd::new(&*heard, PollFlags::IN)];
                poll(&mut ready, None).unwrap();
                if !ready[1].revents().is_empty() {
                    break;
                }
                let (guest, _) = listener.accept().unwrap();
                let (config, heard) = (Arc::clone(&config), Arc::clone(&heard));
                guests.push(std::thread::spawn(move || {
                    let _ = serve(&guest, server, config, &*heard);
                }));
            }
            for guest in guests {
                guest.join().unwrap();
            }
        });
        Self { address, bell: Some(bell), thread: Some(thread) }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.bell = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn config(folder: &Path) -> Arc<ServerConfig> {
    let certificates = |name: &str| -> Vec<_> {
        let pem = fs::read(folder.join(name)).unwrap();
        rustls::pki_types::pem::PemObject::pem_slice_iter(&pem).map(Result::unwrap).collect()
    };
    let mut trusted = RootCertStore::empty();
    for certificate in certificates("authority.pem") {
        trusted.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(trusted.into(), provider.clone());
    let pem = fs::read(folder.join("server.pem")).unwrap();
    let key: PrivateKeyDer<'static> =
        rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(certificates("server.pem"), key)
        .unwrap();
    Arc::new(config)
}

/// Carries bytes both ways until one side ends, or the bell rings.
fn serve(
    mut guest: &TcpStream,
    server: SocketAddr,
    config: Arc<ServerConfig>,
    heard: impl AsFd,
) -> std::io::Result<()> {
    let mut tls = ServerConnection::new(config).unwrap();
    let mut server = TcpStream::connect(server)?;
    let mut clear = vec![0; 64 * 1024];
    loop {
        while tls.wants_write() {
            tls.write_tls(&mut guest)?;
        }
        let mut ready = [
            PollFd::new(&guest, PollFlags::IN),
            PollFd::new(&server, PollFlags::IN),
            PollFd::new(&heard, PollFlags::IN),
        ];
        poll(&mut ready, None)?;
        let [from_guest, from_server, bell] = ready.map(|fd| !fd.revents().is_empty());
        if bell {
            return Ok(());
        }
        if from_guest {
            if tls.read_tls(&mut guest)? == 0 {
                return Ok(());
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert tells the client.
                let _ = tls.write_tls(&mut guest);
                return Err(std::io::Error::other(error));
            }
            loop {
                match tls.reader().read(&mut clear) {
                    Ok(0) => return Ok(()),
                    Ok(count) => server.write_all(&clear[..count])?,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        if from_server {
            let count = server.read(&mut clear)?;
            if count == 0 {
                return Ok(());
            }
            tls.writer().write_all(&clear[..count])?;
        }
    }
}
