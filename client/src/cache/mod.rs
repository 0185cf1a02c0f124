//! Revisions that the server told of, kept so that it need not be asked again.
//!
//! A cache follows the server's stream: what loads brought is inserted, what transactions wrote is
//! invalidated, in the order in which the server said it. It is then true for a point in history,
//! [`Cache::last_tid`], and a hit is what the server would have answered there:
//!
//! ```text
//!   oid 7:   | T3 .. T5 | T5 .. T9 | T9 ..          last tid T12
//!              load_before(7, T4) = T3's, ends T5     load_before(7, T13) = T9's, current
//! ```
//!
//! A cache never asks the server, never waits for it, and never guesses: what is not known for
//! certain is a miss. It does not verify itself after a reconnect: that is done by who has the
//! connection, with [`Cache::forget`], [`Cache::advance`] and [`Cache::clear`].
//!
//! ```
//! use bytes::Bytes;
//! use zeoring_client::Revision;
//! use zeoring_client::cache::{Cache, CacheOptions};
//! use zeoring_shared::ids::{Oid, Tid};
//!
//! let (cache, opened) = Cache::open(&CacheOptions { memory_max: 1 << 20, file: None })?;
//! println!("{opened}");
//! cache.advance(Tid(12)); // What the server says when one registers.
//! let revision = Revision { data: Bytes::from_static(b"state"), serial: Tid(9), end: None };
//! cache.insert(Oid(7), &revision);
//! assert_eq!(cache.load_before(Oid(7), Tid(13)), Some(revision));
//! cache.invalidate(Tid(14), &[Oid(7)]);
//! assert_eq!(cache.load_before(Oid(7), Tid(15)), None);
//! # Ok::<(), zeoring_client::cache::CacheError>(())
//! ```
//!
//! | file | subject |
//! |---|---|
//! | `contents.rs` | what changes, and in which order |
//! | `index.rs` | the revisions of each object; what a hit does |
//! | `memory.rs` | which of them stay in memory |
//! | `recent.rs` | answers that come late |
//! | `file/` | the second tier, which outlives the process |

mod contents;
mod file;
mod index;
mod memory;
mod recent;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::Machine;

use self::contents::Contents;
use self::file::Ending;
use self::index::{Entry, Found, OPEN};
use crate::session::Revision;

/// Where Linux says which boot of the machine this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How much a cache keeps, and where.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Bytes of memory for data, counting a fixed overhead an entry. 0 keeps no data in memory.
    ///
    /// A revision that is only in the file is not counted; it takes about 130 bytes of memory.
    pub memory_max: usize,
    /// A file that keeps more, and keeps it when the process ends.
    pub file: Option<CacheFile>,
}

impl Default for CacheOptions {
    /// 20 MiB of memory, as much as ZEO's clients have by default, and no file.
    fn default() -> Self {
        Self { memory_max: 20 * 1024 * 1024, file: None }
    }
}

/// The file of a cache. One process at a time may use it.
#[derive(Clone, Debug)]
pub struct CacheFile {
    /// Its name. What is there and is no cache is kept beside it, with `.bad` at its name's end.
    pub path: PathBuf,
    /// Bytes that it may take, at least 20 KiB. A file of another size is begun anew.
    pub size_max: u64,
}

/// What a cache knew when it was opened, for a line in a log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opened {
    /// There is no file.
    MemoryOnly,
    /// The file is a new one.
    Fresh,
    /// The file was used before, and what it has may be used.
    Warm {
        /// How much it has.
        revisions: usize,
        /// How many damaged places cost what was written before them.
        damaged: usize,
    },
    /// What the file had could not be used.
    Dropped(Dropped),
}

/// Why the contents of a cache file could not be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dropped {
    /// The machine stopped while the file was in use, so writes may be missing from it.
    PowerCut,
    /// It was made for another size.
    Resized,
    /// It is no cache file, or its header is damaged. It is kept beside the new one.
    Foreign,
}

/// A cache could not be opened, or not be closed in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Another process has the file.
    #[error(
        "cache file {path} is in use by another process: give each process a file of its own, or end the other one"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file may not be large enough to be of use.
    #[error("cache file {path} needs {size_min} bytes at least: allow it more, or use none")]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// The least size, in bytes.
        size_min: u64,
    },
    /// The disk failed. What was cached in memory is well.
    #[error("cache file {path} failed")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How full a cache is, and how well it does. Counters begin when it is opened.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Statistics {
    /// Revisions in either tier.
    pub revisions: usize,
    /// Revisions whose data are in memory.
    pub memory_revisions: usize,
    /// What these take, in bytes.
    pub memory_bytes: usize,
    /// What the log takes in the file, in bytes.
    pub file_bytes: u64,
    /// Questions answered from memory.
    pub hits: u64,
    /// Questions answered from the file.
    pub file_hits: u64,
    /// Questions not answered.
    pub misses: u64,
    /// Records of the file that were found damaged, each a miss.
    pub damaged: u64,
    /// Why the file is not used any more. Memory goes on.
    pub file_failure: Option<String>,
}

/// Revisions of objects, true for a point in history.
///
/// May be read from any number of threads while one follows the server's stream. Dropped without
/// [`Cache::close`], it leaves its file as a killed process does: warm for this boot of the machine.
#[derive(Debug)]
pub struct Cache {
    contents: Arc<Contents>,
    file: Option<Writer>,
}

/// The thread that writes the file, until it is closed.
#[derive(Debug)]
struct Writer {
    path: PathBuf,
    /// The process that has the thread. A child that was forked off has not.
    process: u32,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Cache {
    /// Opens a cache, and its file if it has one, which is read: a second or so a gigabyte.
    ///
    /// # Errors
    ///
    /// Those of the file. Damage is none: what cannot be trusted is dropped, and `Opened` says so.
    pub fn open(options: &CacheOptions) -> Result<(Self, Opened), CacheError> {
        let boot_id = match &options.file {
            None => String::new(),
            Some(file) => fs::read_to_string(BOOT_ID)
                .map_err(|source| CacheError::Io { path: file.path.clone(), source })?,
        };
        Self::open_on(&Machine::real(), &boot_id, options)
    }

    /// Opens a cache on a machine that may be simulated. `boot_id` is another after each power cut.
    ///
    /// # Errors
    ///
    /// As [`Cache::open`].
    pub fn open_on(
        machine: &Machine,
        boot_id: &str,
        options: &CacheOptions,
    ) -> Result<(Self, Opened), CacheError> {
        let Some(file) = &options.file else {
            let contents = Arc::new(Contents::new(options.memory_max, None));
            return Ok((Self { contents, file: None }, Opened::MemoryOnly));
        };
        let contents = |tier| Arc::new(Contents::new(options.memory_max, Some(tier)));
        let (contents, thread, opened) = file::open(machine, boot_id, file, contents)?;
        let (path, process) = (file.path.clone(), process::id());
        let writer = Writer { path, process, thread: Mutex::new(Some(thread)) };
        Ok((Self { contents, file: Some(writer) }, opened))
    }

    /// The transaction that the contents are true for; `None` while the cache knows nothing.
    pub fn last_tid(&self) -> Option<Tid> {
        self.contents.last_tid()
    }

    /// The newest revision older than `before`, if it is known for certain.
    ///
    /// Takes no lock that anybody holds over a system call. From memory it allocates nothing; what
    /// is only in the file is read from there, in this thread.
    pub fn load_before(&self, oid: Oid, before: Tid) -> Option<Revision> {
        let (data, serial, end) =
            self.find(oid, |entry| entry.serial < before && before <= entry.end)?;
        Some(Revision { data, serial, end: (end != OPEN).then_some(end) })
    }

    /// The data that the transaction `serial` wrote for the object. As [`Cache::load_before`].
    pub fn load_serial(&self, oid: Oid, serial: Tid) -> Option<Bytes> {
        self.find(oid, |entry| entry.serial == serial).map(|(data, ..)| data)
    }

    fn find(&self, oid: Oid, matches: impl Fn(&Entry) -> bool) -> Option<(Bytes, Tid, Tid)> {
        match self.contents.index.find(oid, matches) {
            Found::Memory { data, serial, end } => Some((data, serial, end)),
            Found::File { position, length, serial, end } => {
                let data = self.read(oid, serial, position, length)?;
                Some((data, serial, end))
            }
            Found::Nothing => None,
        }
    }

    fn read(&self, oid: Oid, serial: Tid, position: u64, length: u32) -> Option<Bytes> {
        let tier = self.contents.tier()?;
        let data = tier.read(position, length, oid, serial);
        match &data {
            Some(data) => self.contents.keep(oid, serial, position, data),
            // It is no damage if the place was recycled meanwhile.
            None if self.contents.lose(oid, serial, position) => tier.count_damaged(),
            None => {}
        }
        self.contents.index.count_file(oid, data.is_some());
        data
    }

    /// Takes in a revision as the server told of it.
    ///
    /// Nothing is taken in before the cache knows what it is true for, that is, before the first
    /// [`Cache::advance`] or [`Cache::invalidate`]; nor what begins or ends after
    /// [`Cache::last_tid`]; nor as current what is known to have changed, because the answer was
    /// late.
    ///
    /// The bytes are kept, not copied: give none that are a small part of a large buffer.
    pub fn insert(&self, oid: Oid, revision: &Revision) {
        self.contents.insert(oid, revision);
    }

    /// Says that the transaction `tid` wrote these objects, and that the contents are true for it
    /// from now on. Own transactions are no exception; what they wrote may be inserted next.
    ///
    /// A `tid` that is not later than the last is a fault of the server: whoever has the connection
    /// may want to [`Cache::clear`]. Here, it only drops what is held as current of these objects.
    pub fn invalidate(&self, tid: Tid, oids: &[Oid]) {
        self.contents.invalidate(tid, oids);
    }

    /// Drops what is held as current of these objects: they changed, and when is not known.
    pub fn forget(&self, oids: &[Oid]) {
        self.contents.forget(oids);
    }

    /// Says that the contents are true for `tid`, too, because nothing that is held as current has
    /// changed since, or because what has was forgotten. Does nothing if they were already.
    pub fn advance(&self, tid: Tid) {
        self.contents.advance(tid);
    }

    /// Drops everything. The cache knows nothing then, and takes in nothing until it is told what
    /// it is true for.
    pub fn clear(&self) {
        self.contents.clear();
    }

    /// How full the cache is, and how well it does. Counts, so not for every load.
    pub fn statistics(&self) -> Statistics {
        let [hits, file_hits, misses] = self.contents.index.counts();
        let (memory_revisions, memory_bytes) = self.contents.memory();
        let tier = self.contents.tier();
        Statistics {
            revisions: self.contents.index.revisions(),
            memory_revisions,
            memory_bytes,
            file_bytes: tier.map_or(0, |tier| tier.bytes()),
            hits,
            file_hits,
            misses,
            damaged: tier.map_or(0, |tier| tier.damaged()),
            file_failure: tier.and_then(|tier| tier.failure()).map(ToString::to_string),
        }
    }

    /// Waits until the file has what the cache was told so far, or is off. Nothing is made durable.
    pub fn settle(&self) {
        if let Some(tier) = self.contents.tier() {
            tier.inbox.settle();
        }
    }

    /// Writes out what the file is to keep, and marks it as whole. What is in memory still answers;
    /// nothing is taken in any more. The file may be opened again once this is dropped.
    ///
    /// # Errors
    ///
    /// If the file has failed, now or before. It then keeps what it had before it failed.
    pub fn close(&self) -> Result<(), CacheError> {
        self.contents.close();
        self.end(Ending::Close);
        let failure = self.contents.tier().and_then(|tier| tier.failure());
        match (&self.file, failure) {
            (Some(Writer { path, .. }), Some(failure)) => {
                let source = io::Error::new(failure.kind(), failure.to_string());
                Err(CacheError::Io { path: path.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Ends the writer's thread, if it has not ended yet.
    fn end(&self, ending: Ending) {
        let (Some(writer), Some(tier)) = (&self.file, self.contents.tier()) else { return };
        if writer.process != process::id() {
            return;
        }
        let mut thread = writer.thread.lock().expect("no thread panics while it ends the writer");
        if let Some(thread) = thread.take() {
            tier.inbox.end(ending);
            thread.join().expect("the writer does not panic");
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.end(Ending::Stop);
    }
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MemoryOnly => write!(f, "in memory only"),
            Self::Fresh => write!(f, "a new file"),
            Self::Warm { revisions, damaged: 0 } => write!(f, "{revisions} revisions"),
            Self::Warm { revisions, damaged } => {
                write!(f, "{revisions} revisions, others lost to damage in {damaged} places")
            }
            Self::Dropped(dropped) => write!(f, "empty: {dropped}"),
        }
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerCut => "the machine stopped while the file was in use",
            Self::Resized => "the file was made for another size",
            Self::Foreign => "the file was no cache or is damaged, and is kept as .bad",
        })
    }
}
