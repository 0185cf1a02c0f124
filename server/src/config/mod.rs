//! Every setting of the server, its default, and why that one.
//!
//! The types here say what can be set and nothing else. [`cli`] reads the command line,
//! [`zconfig`] the text of a configuration file, [`schema`] says which sections and keys there
//! are, and [`build`] turns them into [`Settings`]. Opens no socket and no storage; of the file
//! system it reads the configuration and asks whether the directories it names exist, as
//! `runzeo` does, so that a typing error stops the server before anything has happened.

pub mod build;
pub mod cli;
pub mod datatype;
mod error;
pub mod schema;
pub mod zconfig;

#[cfg(test)]
mod tests;

use std::{fmt, num::NonZeroUsize, path::PathBuf, time::Duration};

pub use self::error::{ConfigError, Place};
use crate::log::{Format, Threshold};

/// Everything the server can be told before it starts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Where to listen. There is no default: a wrong guess would serve the wrong network.
    pub address: Address,
    /// Refuses clients that want to write. Off, as in ZEO. A pack is still allowed.
    pub read_only: bool,
    /// How many of the last transactions are kept in memory for clients that come back. 100, as
    /// in ZEO: a client that missed more asks for its whole cache.
    pub invalidation_queue_size: usize,
    /// Clients that were away for less than this are told from the file what changed meanwhile.
    /// Off, as in ZEO, because a scan of an old file's end may be long.
    pub invalidation_age: Option<Duration>,
    /// How long a transaction may hold its locks before its connection is closed. 30 s, and `0`
    /// or `none` turns it off. ZEO's own default is no timeout at all, so there one silent client
    /// stops all others for ever; its documentation says 30 s, and we do what it says.
    pub transaction_timeout: Option<Duration>,
    /// Where the process id is written. `None` writes none. Without the key it is
    /// `$INSTANCE_HOME/var/ZEO.pid` if that variable is set; a read-only server writes none.
    pub pid_file: Option<PathBuf>,
    /// Offers clients M5 (msgpack) instead of Z5. Without the key the environment variable
    /// `ZEO_MSGPACK` decides: any text but the empty one means yes.
    pub msgpack: bool,
    /// As the file says it. The server always acts as if it were true, because the classes that
    /// resolve conflicts are Python code, and those are in the clients.
    pub client_conflict_resolution: bool,
    /// What is served: at least one, and no name twice.
    pub storages: Vec<StorageSettings>,
    /// Who hears what the server has to say.
    pub log: LogSettings,
    /// What only this server has. A configuration for `runzeo` never needs it.
    pub tuning: Tuning,
    /// Starts, opens everything, says so, and stops (`--test`).
    pub stop_at_once: bool,
    /// What was set and cannot be followed, for the log once it is open. One line each.
    pub notices: Vec<String>,
}

/// Where the server listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// An internet address.
    Tcp {
        /// A name, an IPv4 or an IPv6 address without brackets; `None` means every interface.
        host: Option<String>,
        /// The port; 0 lets the system choose one.
        port: u16,
    },
    /// A path in the file system. In a configuration it is known by its `/`.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host: Some(host), port } if host.contains(':') => {
                write!(f, "[{host}]:{port}")
            }
            Self::Tcp { host, port } => write!(f, "{}:{port}", host.as_deref().unwrap_or("")),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// One storage and the name clients ask for it by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StorageSettings {
    /// In lower case, as ZConfig makes every section name. A section without a name is `1`.
    pub name: String,
    /// What kind of storage, and its settings.
    pub kind: StorageKind,
}

/// The kinds of storage this server can open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StorageKind {
    /// `<filestorage>`: a `Data.fs`.
    File(FileSettings),
    /// `<mappingstorage>`: everything in memory, nothing kept.
    Mapping {
        /// What `getName` says. `Mapping Storage`, as in ZODB.
        name: String,
    },
    /// `<blobstorage>`: blobs beside another storage.
    Blob {
        /// The directory of the blobs. It is made if it does not exist.
        blob_dir: PathBuf,
        /// The storage that keeps everything but the blobs.
        base: Box<Self>,
    },
}

/// The keys of `<filestorage>`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileSettings {
    /// The data file. The names of index, lock and old file are made from it.
    pub path: PathBuf,
    /// Empties the file if there is one. Off, as in ZODB.
    pub create: bool,
    /// Opens the file for reading only. Off, as in ZODB.
    pub read_only: bool,
    /// The largest size the file may reach, in bytes. No limit, as in ZODB.
    pub quota_bytes: Option<u64>,
    /// The directory of the blobs; `None` means that the storage has none.
    pub blob_dir: Option<PathBuf>,
    /// The Python name of another packer, as the file says it. It cannot be run here, so whoever
    /// opens the storage says so in the log and packs in its own way.
    pub packer: Option<String>,
    /// A pack also removes objects that nothing refers to. On, as in ZODB.
    pub pack_gc: bool,
    /// A pack keeps the file as it was before, as `.old`. On, as in ZODB.
    pub pack_keep_old: bool,
}

/// Which messages go where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogSettings {
    /// Messages below this are dropped before any handler sees them. INFO, as in ZConfig.
    pub level: Threshold,
    /// Each gets every message that is left. An `<eventlog>` without handlers is silent, as in
    /// ZEO.
    pub handlers: Vec<HandlerSettings>,
    /// There is an `<eventlog>` section. Without one `runzeo` writes to the standard error and
    /// does not act on USR2.
    pub configured: bool,
}

impl Default for LogSettings {
    /// What `runzeo` does without an `<eventlog>`: INFO and above to the standard error.
    fn default() -> Self {
        let handlers = vec![HandlerSettings::new(Target::Stderr)];
        Self { level: Threshold::INFO, handlers, configured: false }
    }
}

/// The keys of `<logfile>`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HandlerSettings {
    /// Where messages are written.
    pub target: Target,
    /// Messages below this are not written here. By default all are.
    pub level: Threshold,
    /// How one message looks. ZConfig's default, which ZEO's log analysers read.
    pub format: Format,
    /// How `%(asctime)s` looks, in the words of `strftime`. `%Y-%m-%dT%H:%M:%S`, as in ZConfig.
    pub date_format: String,
    /// When the file is put aside. Never by default: USR2 and `logrotate` do that.
    pub rotation: Option<Rotation>,
    /// The file is opened at the first message instead of at start. Off, as in ZConfig.
    pub delay: bool,
}

impl HandlerSettings {
    /// A handler with every default.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            level: Threshold::ALL,
            format: Format::default(),
            date_format: "%Y-%m-%dT%H:%M:%S".to_owned(),
            rotation: None,
            delay: false,
        }
    }
}

/// Where messages are written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// Appended to this file.
    File(PathBuf),
    /// The standard output (`path STDOUT`).
    Stdout,
    /// The standard error (`path STDERR`).
    Stderr,
}

/// When a log file is put aside (`max-size`, `old-files`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rotation {
    /// The file is put aside before a message would make it as large as this, in bytes.
    pub bytes_max: u64,
    /// How many old files are kept: `.1` is the youngest.
    pub old_files: NonZeroUsize,
}

/// The keys of our own section `<zeoring>`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tuning {
    /// How many threads serve connections. `auto`: one a core.
    pub reactors: Reactors,
    /// How long an idle reactor looks for work before it sleeps. `auto`: as long as it pays.
    pub spin: Spin,
    /// How many connections may be open at once. 4096: ten times a large site, and at 16 KiB an
    /// idle connection 64 MiB.
    pub connections_max: NonZeroUsize,
    /// The largest message a registered client may send, in bytes. 256 MiB: a stored object may
    /// be large, and the memory is taken as the bytes arrive.
    pub frame_bytes_max: u32,
    /// How long a new connection may take until it has registered. 10 s: more than a slow network
    /// needs, and short enough that silent connections do not gather.
    pub handshake_timeout: Duration,
    /// How long a client may take over one message, or not read what it is sent. 60 s: ZEO's
    /// clients show that they live that often.
    pub progress_timeout: Duration,
    /// How many bytes one transaction may have, its list of operations included. 2 GiB: it waits
    /// for its vote in a temporary file, and a disk has an end.
    pub transaction_bytes_max: u64,
    /// How many bytes may wait for a client that does not read before it is closed. 256 MiB, so
    /// that the largest message fits.
    pub output_bytes_max: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            reactors: Reactors::Auto,
            spin: Spin::Auto,
            connections_max: const { NonZeroUsize::new(4096).expect("4096 is not zero") },
            frame_bytes_max: 256 * 1024 * 1024,
            handshake_timeout: Duration::from_secs(10),
            progress_timeout: Duration::from_secs(60),
            transaction_bytes_max: 2 << 30,
            output_bytes_max: 256 * 1024 * 1024,
        }
    }
}

/// How many threads serve connections.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reactors {
    /// One for each core this process may use.
    Auto,
    /// So many.
    Count(NonZeroUsize),
}

/// How long an idle reactor looks for work before it sleeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spin {
    /// Adapts to what has paid lately.
    Auto,
    /// Always so long; zero sleeps at once.
    For(Duration),
}
