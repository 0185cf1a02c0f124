//! Where blobs are kept: the large files that belong to objects, one a revision.
//!
//! Two kinds of directories, both exactly as Python's ZEO client has them, so that both may use
//! one at the same time:
//!
//! | | whose it is | a blob that is missing | a blob that is stored |
//! |---|---|---|---|
//! | cache | the clients' of one machine | is fetched from the server | is sent, then kept |
//! | shared | the server's, on a common file system | is nowhere | is moved there; the server gets its name |
//!
//! ```text
//!   blob_dir/.layout                              which of the layouts it is
//!   blob_dir/<oid % 997>/<oid / 997>.<tid>.blob   in a cache; bytes that never change
//!   blob_dir/<oid % 997>/....blob.part            on its way; only under the folder's lock
//!   blob_dir/<oid % 997>/.lock                    flock: who fetches into, or drops from, this folder
//!   blob_dir/check_size.lock                      flock: who makes the cache smaller
//! ```
//!
//! A file with a blob's name is whole and on the disk, also after a power cut, or it is not there.
//! Nothing here talks to a server, and nothing waits for a lock: who finds one taken is told so.
//!
//! | file | subject |
//! |---|---|
//! | `layout.rs` | what files are called |
//! | `directory.rs` | finding, fetching, keeping and handing over |
//! | `fetch.rs` | what a client does to get one |
//! | `receiving.rs` | a blob on its way from the server |
//! | `lock.rs` | the locks that Python's clients know too |
//! | `eviction.rs` | keeping the cache small, and the thread that does it |
//! | `sweep.rs` | what dead processes left |

mod directory;
mod eviction;
mod fetch;
mod layout;
mod lock;
mod receiving;
mod sweep;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeoring_shared::ids::{Oid, Tid};

pub(crate) use self::directory::{BlobDirectory, Download, Staged, Stamp};
pub use self::receiving::{Received, Receiving};

/// So many bytes of a blob travel in one message, as Python's clients and servers cut them
/// (`ZEO/ClientStorage.py`, `storeBlob`).
pub const CHUNK_LENGTH: usize = 59_000;

/// Where blobs are, and how much may be there.
///
/// ```
/// use zeoring_client::blob::BlobOptions;
///
/// let mut cache = BlobOptions::new("/var/cache/zeo/blobs");
/// cache.cache_size = Some(10 << 30);
/// assert_eq!(cache.cache_size_check_percent, 10); // Shrinks to 9 GiB, looks after each GiB.
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BlobOptions {
    /// The directory. A cache's is made if it is not there; a shared one is the server's to make.
    pub directory: PathBuf,
    /// Whether this is the server's own blob directory, on a file system that both see
    /// (`shared-blob-dir` of ZEO).
    pub is_shared: bool,
    /// Bytes that a cache may take, all its clients together; without it, it grows. Not looked at
    /// in a shared directory.
    pub cache_size: Option<u64>,
    /// In percent of `cache_size`, less than 100: after so many new bytes the size is looked at,
    /// and the cache is made smaller than `cache_size` by as much. 10 if nothing else is said, as
    /// with ZEO.
    pub cache_size_check_percent: u8,
}

impl BlobOptions {
    /// A cache in this directory that may grow.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            is_shared: false,
            cache_size: None,
            cache_size_check_percent: 10,
        }
    }

    /// The server's directory, where this machine has it.
    pub fn shared(directory: impl Into<PathBuf>) -> Self {
        Self { is_shared: true, ..Self::new(directory) }
    }
}

/// What can go wrong with the files of blobs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The file system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The server's directory has no such blob. It is then nowhere, or the directory is not the
    /// server's.
    #[error("object {oid} has no blob of transaction {serial}: there is no {}", path.display())]
    Missing {
        /// The object.
        oid: Oid,
        /// The blob's revision.
        serial: Tid,
        /// Where it would be.
        path: PathBuf,
    },
    /// The directory is laid out in another way than is needed here.
    #[error(
        "the blob directory {} has the layout `{found}`, where {wanted} is needed: \
         use another directory",
        directory.display()
    )]
    Layout {
        /// The directory.
        directory: PathBuf,
        /// What its marker says.
        found: String,
        /// What would do.
        wanted: &'static str,
    },
    /// There is no shared directory: it may not be mounted.
    #[error("the server's blob directory {} is not there: mount it", directory.display())]
    NotMounted {
        /// Where it should be.
        directory: PathBuf,
    },
    /// Another thread or process fetches a blob into the same folder, and nothing of it came for
    /// so long.
    #[error(
        "the blob of object {oid} waits for another download into its folder, of which nothing \
         came within {waited:?}"
    )]
    Stalled {
        /// The object whose blob was wanted.
        oid: Oid,
        /// How long was waited.
        waited: Duration,
    },
    /// The server said that it had sent the blob, and had not sent its end.
    #[error("the server did not send all of the blob of object {oid}, transaction {serial}")]
    CutShort {
        /// The object.
        oid: Oid,
        /// The blob's revision.
        serial: Tid,
    },
    /// The file of a blob was changed after it was stored.
    #[error("{} was changed after it was stored as a blob", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A transaction was to be voted in which a blob had not been stored to its end. It was
    /// aborted.
    #[error("the blob of object {oid} was not stored to its end, so its transaction was aborted")]
    NotStored {
        /// The object.
        oid: Oid,
    },
    /// The storage keeps no blobs.
    #[error("this storage keeps no blobs: its server has to be given a blob directory")]
    NotKept,
    /// A setting makes no sense.
    #[error("the blob cache is to be checked after {percent}% of its size: give less than 100%")]
    Percent {
        /// The setting.
        percent: u8,
    },
}

impl BlobError {
    /// That a file could not be read.
    pub(crate) fn reading(path: &Path, source: io::Error) -> Self {
        Self::io("read", path, source)
    }

    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}
