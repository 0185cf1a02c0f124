//! Puts a server together from its settings, and takes it apart again.
//!
//! ```text
//!   settings -> storages opened -> sockets bound -> commit threads, clerks, reactors -> served
//!   stop     -> packs end -> reactors end -> clerks end -> commit threads finish and close -> socket removed
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use zeoring_shared::io::Machine;
use zeoring_shared::ring::{Doorbell, Mailbox};
use zeoring_shared::uring::{Kernel, NoRing, Options, Reactor, SpinBudget};
use zeoring_shared::wire::Codec;

use crate::clerk::Clerks;
use crate::commit::thread::CommitThread;
use crate::config::{Address, Reactors, Settings, Spin, StorageKind, StorageSettings};
use crate::limits::Limits;
use crate::log::{self, Severity, Source};
use crate::note::{Note, Post, inbox_slots};
use crate::reactor::{Loads, READS_MAX, Turner};
use crate::reader::Reader;
use crate::service::{Service, Stats};
use crate::session::desk::{Desk, Hall, Recent};
use crate::storage::open::{self, OpenError};
use crate::storage::pack::Blobs;
use crate::storage::{Appender, Storage, StorageError, mapping};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    address: Bound,
    post: Post,
    reactors: Vec<JoinHandle<io::Result<()>>>,
    clerks: Option<Arc<Clerks>>,
    commits: Vec<CommitThread>,
}

/// Where a server listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Bound {
    /// TCP, with the port that the system has chosen if it was to choose.
    Tcp(Vec<SocketAddr>),
    /// A Unix socket. The server removes it when it stops.
    Unix(PathBuf),
}

/// The server could not start. The message ends in what to do, where we know.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel gives no ring.
    #[error(transparent)]
    NoRing(#[from] NoRing),
    /// A storage could not be opened.
    #[error("storage {name:?}: {source}")]
    Storage {
        /// Which.
        name: String,
        /// Why.
        source: OpenError,
    },
    /// A storage could be opened but not read.
    #[error("storage {name:?}: {source}")]
    Unreadable {
        /// Which.
        name: String,
        /// Why.
        source: StorageError,
    },
    /// The server cannot listen where it should.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// No thread, no memory, no descriptor.
    #[error("cannot start: {source}; raise the limits of the process (ulimit -a)")]
    Resources {
        /// What the system said.
        #[from]
        source: io::Error,
    },
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addresses) => {
                let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
                f.write_str(&addresses.join(", "))
            }
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Server {
    /// Opens the storages, listens, and starts all threads.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left running.
    pub fn start(settings: &Settings, machine: &Machine) -> Result<Self, StartError> {
        let kernel = Kernel::probe()?;
        log::event(Source::SERVER, Severity::Info, "", format_args!("{kernel}"));
        let connections_max = settings.tuning.connections_max.get();
        let processors = thread::available_parallelism()?.get();
        let reactor_count = match settings.tuning.reactors {
            // The commit thread, and whoever else is on the machine, has a processor, too.
            Reactors::Auto => (processors - 1).clamp(1, 255),
            Reactors::Count(count) => count.get().min(255),
        };
        let doorbells = (0..reactor_count)
            .map(|_| Doorbell::for_ring().map(Arc::new))
            .collect::<io::Result<Vec<_>>>()?;
        let slots = inbox_slots(connections_max, READS_MAX);
        let inboxes = doorbells.iter().map(|doorbell| Mailbox::new(slots, Arc::clone(doorbell)));
        let post = Post::new(inboxes.collect());

        let mut commits = Vec::new();
        let mut shelves = Vec::new();
        for (place, storage) in settings.storages.iter().enumerate() {
            let (service, appender, recent) = open_service(place, storage, settings, machine)?;
            let clock = Arc::clone(&machine.clock);
            commits.push(CommitThread::start(Arc::clone(&service), appender, clock, post.clone())?);
            shelves.push((service, recent));
        }
        let started = listen(&settings.address).and_then(|(address, listeners)| {
            let clerks = Arc::new(Clerks::start(2 * connections_max + READS_MAX, &post)?);
            let limits = Arc::new(limits(settings, connections_max));
            let loads: Loads = Arc::new((0..reactor_count).map(|_| AtomicUsize::new(0)).collect());
            let mut listeners = Some(listeners);
            let mut reactors = Vec::new();
            for (number, doorbell) in doorbells.into_iter().enumerate() {
                let options = Options { spin: spin(settings.tuning.spin), processors };
                let halls = shelves
                    .iter()
                    .map(|(service, recent)| {
                        let count = settings.invalidation_queue_size;
                        Hall::new(Arc::clone(service), recent, count)
                    })
                    .collect();
                let desk = Desk {
                    halls,
                    reader: Reader::default(),
                    clerks: Arc::clone(&clerks),
                    post: post.clone(),
                    limits: Arc::clone(&limits),
                    now: machine.clock.monotonic(),
                    since_1970: machine.clock.since_1970(),
                    cold: Vec::new(),
                    orders_waiting: VecDeque::new(),
                };
                let (machine, loads) = (machine.clone(), Arc::clone(&loads));
                // The first reactor accepts, and hands over to the others.
                let listeners = listeners.take().unwrap_or_default();
                let (ready, is_ready) = mpsc::channel();
                let work = move || {
                    let reactor = match Reactor::new(options, doorbell) {
                        Ok(reactor) => reactor,
                        Err(error) => {
                            drop(ready.send(Err(error)));
                            return Ok(());
                        }
                    };
                    drop(ready.send(Ok(())));
                    Turner::new(number, reactor, desk, machine, listeners, loads).run()
                };
                let name = format!("reactor-{number}");
                reactors.push(thread::Builder::new().name(name).spawn(work)?);
                let outcome = is_ready.recv().map_err(io::Error::other)?;
                if let Err(error) = outcome {
                    stop_reactors(&post, reactors);
                    return Err(error.into());
                }
            }
            Ok((address, clerks, reactors))
        });
        match started {
            Ok((address, clerks, reactors)) => {
                Ok(Self { address, post, reactors, clerks: Some(clerks), commits })
            }
            Err(error) => {
                for commit in commits {
                    // Nothing was committed: what stays behind is what was there before.
                    drop(commit.close());
                }
                Err(error)
            }
        }
    }

    /// Where the server listens.
    pub fn address(&self) -> &Bound {
        &self.address
    }

    /// Ends all connections, finishes what was ordered, closes the storages.
    ///
    /// # Errors
    ///
    /// A storage could not be closed in order; what was answered is safe.
    pub fn stop(mut self) -> Result<(), StorageError> {
        if let Bound::Unix(path) = &self.address {
            // It may have been removed, or taken over, by someone else.
            drop(fs::remove_file(path));
        }
        // While those whom a pack tells of its end are there.
        self.commits.iter().for_each(|commit| commit.service().packer.stop());
        stop_reactors(&self.post, std::mem::take(&mut self.reactors));
        drop(self.clerks.take());
        self.commits.drain(..).map(CommitThread::close).fold(Ok(()), Result::and)
    }
}

fn stop_reactors(post: &Post, reactors: Vec<JoinHandle<io::Result<()>>>) {
    for number in 0..reactors.len() {
        post.tell(number, Note::Stop);
    }
    for reactor in reactors {
        match reactor.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                log::event(Source::SERVER, Severity::Critical, "", format_args!("reactor: {error}"))
            }
            Err(_) => log::event(
                Source::SERVER,
                Severity::Critical,
                "",
                format_args!("a reactor panicked"),
            ),
        }
    }
}

type Opened = (Arc<Service>, Box<dyn Appender>, Vec<Arc<Recent>>);

fn open_service(
    place: usize,
    storage: &StorageSettings,
    settings: &Settings,
    machine: &Machine,
) -> Result<Opened, StartError> {
    let name = storage.name.clone();
    let (opened, appender) = open_kind(&storage.kind, None, machine)
        .map_err(|source| StartError::Storage { name: name.clone(), source })?;
    let recent = opened
        .last_transactions(settings.invalidation_queue_size)
        .map_err(|source| StartError::Unreadable { name: name.clone(), source })?;
    let recent = recent.into_iter().map(|(tid, oids)| Arc::new(Recent { tid, oids })).collect();
    let slots = settings.tuning.connections_max.get();
    let orders = Mailbox::new(slots, Arc::new(Doorbell::for_thread()));
    let stats = Stats {
        start: jiff::Zoned::now().strftime("%a %b %e %H:%M:%S %Y").to_string(),
        has_timeout: settings.transaction_timeout.is_some(),
        ..Stats::default()
    };
    Ok((Arc::new(Service::new(place, name, opened, orders, stats)), appender, recent))
}

type OpenedKind = (Arc<dyn Storage>, Box<dyn Appender>);

/// Opens a storage. `blobs` are those of a section around it.
fn open_kind(
    kind: &StorageKind,
    blobs: Option<Blobs>,
    machine: &Machine,
) -> Result<OpenedKind, OpenError> {
    match kind {
        StorageKind::File(settings) => {
            let (gc, keep_old) = (settings.pack_gc, settings.pack_keep_old);
            let own = |folder: &PathBuf| Blobs { folder: folder.clone(), keep_old };
            let blobs = blobs.or_else(|| settings.blob_dir.as_ref().map(own));
            let options = open::Options {
                create: settings.create,
                read_only: settings.read_only,
                quota: settings.quota_bytes,
                future_allowed: false,
                packing: open::Packing { gc, keep_old, blobs },
            };
            let (storage, appender) = open::open(machine, &settings.path, &options)?;
            Ok((storage, Box::new(appender)))
        }
        StorageKind::Mapping { name } => {
            let (storage, appender) = mapping::MappingStorage::create(name);
            Ok((storage, Box::new(appender)))
        }
        StorageKind::Blob { blob_dir, base } => {
            let text = format!("blobs in {} are not served by this version", blob_dir.display());
            log::event(Source::SERVER, Severity::Warning, "", format_args!("{text}"));
            // A pack through a BlobStorage of Python's keeps none of the removed blobs.
            let blobs = Blobs { folder: blob_dir.clone(), keep_old: false };
            open_kind(base, Some(blobs), machine)
        }
    }
}

fn limits(settings: &Settings, connections_max: usize) -> Limits {
    Limits {
        codec: if settings.msgpack { Codec::Msgpack } else { Codec::Pickle },
        read_only: settings.read_only,
        transaction_timeout: settings.transaction_timeout,
        invalidation_age: settings.invalidation_age,
        connections_max,
        frame_max: settings.tuning.frame_bytes_max,
        handshake_timeout: settings.tuning.handshake_timeout,
        progress_timeout: settings.tuning.progress_timeout,
        output_max: settings.tuning.output_bytes_max,
        transaction_max: settings.tuning.transaction_bytes_max,
    }
}

fn spin(setting: Spin) -> SpinBudget {
    match setting {
        Spin::Auto => SpinBudget::Auto,
        Spin::For(budget) => SpinBudget::Fixed(budget),
    }
}

fn listen(address: &Address) -> Result<(Bound, Vec<OwnedFd>), StartError> {
    let listen_error = |source| StartError::Listen { address: address.to_string(), source };
    match address {
        Address::Unix(path) => {
            let listener = listen_unix(path).map_err(listen_error)?;
            Ok((Bound::Unix(path.clone()), vec![listener]))
        }
        Address::Tcp { host, port } => {
            let addresses: Vec<SocketAddr> = match host {
                Some(host) => {
                    (host.as_str(), *port).to_socket_addrs().map_err(listen_error)?.collect()
                }
                None => vec![SocketAddr::from(([0_u16; 8], *port))],
            };
            let mut bound = Vec::new();
            let mut listeners = Vec::new();
            for address in addresses {
                let listener = match listen_tcp(address) {
                    // A machine without IPv6 listens on all of IPv4.
                    Err(_) if host.is_none() => listen_tcp(SocketAddr::from(([0; 4], *port))),
                    listener => listener,
                };
                let listener = listener.map_err(listen_error)?;
                bound.push(listener.local_addr().map_err(listen_error)?);
                listeners.push(OwnedFd::from(listener));
            }
            Ok((Bound::Tcp(bound), listeners))
        }
    }
}

fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    let listener = UnixListener::bind(path)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener.into())
}

/// Listens on a TCP address; on the IPv6 address of all interfaces also for IPv4.
fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}
