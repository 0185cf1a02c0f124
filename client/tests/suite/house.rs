//! A server for one test: ours in this process, or the stock one as a process, on a free loopback
//! port with an empty FileStorage. It ends with the test.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use zeoring_client::tls::TlsOptions;
use zeoring_client::{Address, Options};
use zeoring_server::config::{
    Address as Listen, FileSettings, LogSettings, Reactors, Settings, StorageKind, StorageSettings,
    Tuning,
};
use zeoring_server::server::{Bound, Server};
use zeoring_shared::io::Machine;

use guard::{Guard, make_certificates};

#[path = "guard.rs"]
mod guard;

/// The program `runzeo` of a Python that has ZEO; with it, the tests run against that server.
const STOCK: &str = "ZEORING_STOCK_SERVER";

/// How long the stock server may take to start, on a slow machine.
const START_MAX: Duration = Duration::from_secs(60);

/// A server, and the folder of its files.
pub(crate) struct House {
    /// Where its files are.
    pub(crate) folder: tempfile::TempDir,
    place: Place,
    is_read_only: bool,
    tls: Option<TlsOptions>,
    /// Before our server, which has no TLS of its own.
    guard: Option<Guard>,
    guarded: Option<SocketAddr>,
    server: Option<Running>,
}

/// Where a server listens.
#[derive(Clone)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

enum Running {
    Ours(Server),
    Stock(Child),
}

impl House {
    /// A server with an empty storage.
    pub(crate) fn new() -> Self {
        let mut house = Self::to_be();
        house.start();
        house
    }

    /// The same, which is not started yet.
    pub(crate) fn to_be() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            folder,
            place: Place::Tcp(free_port()),
            is_read_only: false,
            tls: None,
            guard: None,
            guarded: None,
            server: None,
        }
    }

    /// One that speaks TLS, and wants to see a certificate.
    pub(crate) fn with_tls() -> Self {
        let mut house = Self::to_be();
        house.tls = Some(make_certificates(house.folder.path()));
        house.start();
        house
    }

    /// One that listens at a Unix socket.
    pub(crate) fn at_a_path() -> Self {
        let mut house = Self::to_be();
        house.place = Place::Unix(house.folder.path().join("zeo.socket"));
        house.start();
        house
    }

    /// Whether it is the stock server.
    pub(crate) fn is_stock() -> bool {
        std::env::var_os(STOCK).is_some()
    }

    /// Stops it, and starts it again to be read only, or not.
    pub(crate) fn be_read_only(&mut self, is_read_only: bool) {
        self.stop();
        self.is_read_only = is_read_only;
        self.start();
    }

    /// Stops it, and starts it with an empty storage.
    pub(crate) fn forget_everything(&mut self) {
        self.stop();
        for name in ["Data.fs", "Data.fs.index", "Data.fs.tmp"] {
            let _ = fs::remove_file(self.folder.path().join(name));
        }
        self.start();
    }

    /// Starts the server again, at the same address and with the same files.
    pub(crate) fn start(&mut self) {
        let running = match std::env::var_os(STOCK) {
            Some(program) => Running::Stock(self.stock(program.into())),
            None => Running::Ours(self.ours()),
        };
        if let (Running::Ours(server), Some(_)) = (&running, &self.tls) {
            let Bound::Tcp(inner) = server.address() else { panic!("it has a port") };
            let guarded = self.guarded.get_or_insert_with(free_port);
            self.guard = Some(Guard::start(*guarded, inner[0], self.folder.path()));
        }
        self.server = Some(running);
    }

    /// Stops it in order.
    pub(crate) fn stop(&mut self) {
        self.guard = None;
        match self.server.take() {
            Some(Running::Ours(server)) => server.stop().unwrap(),
            Some(Running::Stock(mut child)) => {
                let pid = rustix::process::Pid::from_child(&child);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                child.wait().unwrap();
            }
            None => {}
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Address {
        if let Some(guard) = &self.guard {
            return guard.address().into();
        }
        match &self.place {
            Place::Tcp(address) => (*address).into(),
            Place::Unix(path) => Address::Unix(path.clone()),
        }
    }

    /// The usual options of a client of this server.
    pub(crate) fn options(&self) -> Options {
        Options { tls: self.tls.clone(), ..Options::new([self.address()]) }
    }
}

impl House {
    fn listens(&self) -> bool {
        match &self.place {
            Place::Tcp(address) => TcpStream::connect(address).is_ok(),
            Place::Unix(path) => UnixStream::connect(path).is_ok(),
        }
    }

    fn ours(&self) -> Server {
        let settings = Settings {
            address: match &self.place {
                Place::Tcp(address) => {
                    Listen::Tcp { host: Some(address.ip().to_string()), port: address.port() }
                }
                Place::Unix(path) => Listen::Unix(path.clone()),
            },
            read_only: self.is_read_only,
            invalidation_queue_size: 100,
            invalidation_age: None,
            transaction_timeout: Some(Duration::from_secs(30)),
            pid_file: None,
            msgpack: false,
            client_conflict_resolution: true,
            storages: vec![StorageSettings {
                name: "1".to_owned(),
                kind: StorageKind::File(FileSettings {
                    path: self.folder.path().join("Data.fs"),
                    create: false,
                    read_only: false,
                    quota_bytes: None,
                    blob_dir: None,
                    packer: None,
                    pack_gc: true,
                    pack_keep_old: true,
                }),
            }],
            log: LogSettings { handlers: Vec::new(), ..LogSettings::default() },
            tuning: Tuning {
                reactors: Reactors::Count(2.try_into().unwrap()),
                ..Tuning::default()
            },
            stop_at_once: false,
            notices: Vec::new(),
        };
        Server::start(&settings, &Machine::real()).unwrap()
    }

    fn stock(&self, program: PathBuf) -> Child {
        let folder = self.folder.path();
        let address = match &self.place {
            Place::Tcp(address) => address.to_string(),
            Place::Unix(path) => path.display().to_string(),
        };
        let config = folder.join("zeo.conf");
        let ssl = match &self.tls {
            None => String::new(),
            Some(_) => format!(
                " <ssl>\n  certificate {0}/server.pem\n  key {0}/server.pem\n  authenticate \
                 {0}/authority.pem\n </ssl>\n",
                folder.display()
            ),
        };
        let text = format!(
            "<zeo>\n address {address}\n client-conflict-resolution true\n read-only {}\n{ssl}</zeo>\n\
             <filestorage 1>\n path {}\n</filestorage>\n",
            self.is_read_only,
            folder.join("Data.fs").display(),
        );
        fs::write(&config, text).unwrap();
        let output = fs::File::create(folder.join("server.out")).unwrap();
        let mut child = Command::new(program)
            .arg("-C")
            .arg(&config)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let begin = Instant::now();
        while !self.listens() {
            let is_alive = child.try_wait().unwrap().is_none() && begin.elapsed() < START_MAX;
            assert!(is_alive, "{}", fs::read_to_string(folder.join("server.out")).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Drop for House {
    fn drop(&mut self) {
        if let Some(Running::Stock(child)) = &mut self.server {
            // A stock server under load may sleep through SIGTERM: its files go anyway.
            let _ = child.kill();
            let _ = child.wait();
        } else {
            self.stop();
        }
    }
}
