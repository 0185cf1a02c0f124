//! A directory of blobs: finding one, fetching one, keeping one that was committed, and handing
//! one over to the server.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
use zeoring_shared::ids::{Oid, Tid};

use super::eviction::{Keeper, Usage};
use super::layout::{self, Layout, MARKER};
use super::lock::Lock;
use super::receiving::{PARTIAL, Partial, Receiving, settle};
use super::{BlobError, BlobOptions};
use crate::driver::gate::Gate;

/// Where applications write blobs that they have not stored yet (`ZODB/blob.py`,
/// `FilesystemHelper`).
pub(super) const TEMPORARY: &str = "tmp";

/// The lock of a cache's folder (`ZEO/ClientStorage.py`, `_lock_blob`).
pub(super) const LOCK: &str = ".lock";

/// Python makes a marker and then writes it; whoever looks between finds nothing in it.
const MARKER_WAIT_MAX: Duration = Duration::from_secs(1);

/// Ends the name of a file that is handed over; servers take no others (`ZEO/StorageServer.py`,
/// `storeBlobShared`).
const STAGED: &str = ".tmp";

/// A directory of blobs that is in use.
#[derive(Debug)]
pub(crate) struct BlobDirectory {
    root: PathBuf,
    layout: Layout,
    usage: Arc<Usage>,
    /// Looks after a cache; a shared directory is the server's to look after.
    keeper: Option<Keeper>,
    /// Nothing changes here: one waits at it for time to pass.
    pub(super) pause: Gate<()>,
}

/// What there is of a blob that is wanted.
#[derive(Debug)]
pub(crate) enum Download {
    /// Its file.
    Here(PathBuf),
    /// Nothing: ask the server, and write what it sends to this.
    Wanted(Receiving),
    /// Nothing, and somebody else fetches into the same folder, perhaps the same blob. Ask again a
    /// little later.
    Busy {
        /// Bytes of it that have arrived there: it goes on as long as this changes.
        arrived: u64,
    },
}

/// A file that was put where the server takes it over. It is removed unless the server hears of
/// it.
#[derive(Debug)]
pub(crate) struct Staged {
    path: PathBuf,
    is_told: bool,
}

/// Which file it was, and when its bytes last changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Stamp {
    file: (u64, u64),
    length: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// As the file system tells it.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl BlobDirectory {
    /// Opens a directory, and starts looking after it if it is a cache.
    pub(crate) fn open(options: &BlobOptions) -> Result<Self, BlobError> {
        let directory = &options.directory;
        let opening = |error| BlobError::io("open", directory, error);
        let root = std::path::absolute(directory).map_err(opening)?;
        if options.is_shared {
            let layout = Layout::of_server(&root).map_err(opening)?;
            let layout = layout.map_err(|found| BlobError::Layout {
                directory: root.clone(),
                found,
                wanted: "`bushy` or `lawn`",
            })?;
            return Ok(Self {
                root,
                layout,
                usage: Arc::new(Usage::new(None)),
                keeper: None,
                pause: Gate::default(),
            });
        }
        let percent = options.cache_size_check_percent;
        if 100 <= percent {
            return Err(BlobError::Percent { percent });
        }
        fs::create_dir_all(root.join(TEMPORARY)).map_err(opening)?;
        mark(&root, Layout::Cache)?;
        let usage = Arc::new(Usage::new(options.cache_size.map(|size| (size, percent))));
        let keeper = Keeper::start(&root, &usage).map_err(opening)?;
        Ok(Self {
            root,
            layout: Layout::Cache,
            usage,
            keeper: Some(keeper),
            pause: Gate::default(),
        })
    }

    /// Whether it is the server's own.
    pub(crate) fn is_shared(&self) -> bool {
        self.layout != Layout::Cache
    }

    /// Where to write a file that is going to be stored, so that it need not be copied then.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join(TEMPORARY)
    }

    /// Looks for a blob, and prepares its download if it is not there. Never waits.
    pub(crate) fn download(&self, oid: Oid, serial: Tid) -> Result<Download, BlobError> {
        let path = self.path(oid, serial);
        if is_there(&path)? {
            return Ok(self.found(path));
        }
        if self.is_shared() {
            return Err(BlobError::Missing { oid, serial, path });
        }
        let Some(lock) = self.lock(oid)? else {
            return Ok(Download::Busy { arrived: self.arrived(oid) });
        };
        // Who had the lock until now may have fetched just this blob.
        if is_there(&path)? {
            return Ok(self.found(path));
        }
        let partial = Partial::begin(path, lock, Arc::clone(&self.usage))?;
        Ok(Download::Wanted(Receiving::new(partial, oid, serial)))
    }

    /// Bytes of blobs that are on their way into the folder of an object's.
    fn arrived(&self, oid: Oid) -> u64 {
        let entries = fs::read_dir(self.folder(oid)).into_iter().flatten().flatten();
        let partial = entries.filter(|entry| ends(Path::new(&entry.file_name()), &PARTIAL));
        partial.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
    }

    /// Whether some of a blob has come, or all of it.
    pub(crate) fn is_coming(&self, oid: Oid, serial: Tid) -> bool {
        // In this order: what has come to its end in between is found.
        self.arrived(oid) != 0 || self.path(oid, serial).exists()
    }

    /// Moves the file of a blob that was committed into the cache; `None` if somebody is at its
    /// folder, and it is to be tried again. The file is copied if it is on another file system.
    ///
    /// # Errors
    ///
    /// What the file system says, or that the file is not any more what was stored.
    pub(crate) fn keep(
        &self,
        oid: Oid,
        serial: Tid,
        file: &Path,
        stored: &Stamp,
    ) -> Result<Option<PathBuf>, BlobError> {
        let Some(lock) = self.lock(oid)? else { return Ok(None) };
        let path = self.path(oid, serial);
        let found = fs::metadata(file).map_err(|error| BlobError::reading(file, error))?;
        if Stamp::of(&found) != *stored {
            return Err(BlobError::Changed { path: file.to_owned() });
        }
        let length = match rename_settled(file, &path) {
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                let mut partial = Partial::begin(path.clone(), lock, Arc::clone(&self.usage))?;
                copy(file, &mut partial)?;
                partial.publish()?;
                remove(file);
                return Ok(Some(path));
            }
            renamed => renamed.map_err(|error| BlobError::io("move", file, error))?,
        };
        drop(lock);
        self.usage.add(length);
        Ok(Some(path))
    }

    /// Removes the file of a blob that was committed and cannot be kept, unless it is not that file
    /// any more.
    pub(crate) fn give_up(&self, file: &Path, stored: &Stamp) {
        if fs::metadata(file).is_ok_and(|found| Stamp::of(&found) == *stored) {
            remove(file);
        }
    }

    /// Moves a blob's file to where the server takes it over when it is told the name.
    pub(crate) fn stage_shared(&self, oid: Oid, file: &Path) -> Result<Staged, BlobError> {
        if !self.root.is_dir() {
            // Made here, it would not be the server's.
            return Err(BlobError::NotMounted { directory: self.root.clone() });
        }
        let folder = self.make_folder(oid)?;
        let path = folder.join(unused_name());
        let reserved = OpenOptions::new().write(true).create_new(true).open(&path);
        let mut target = reserved.map_err(|error| BlobError::io("make", &path, error))?;
        let staged = Staged { path, is_told: false };
        match rename_settled(file, &staged.path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                let read = |error| BlobError::reading(file, error);
                let mut source = File::open(file).map_err(read)?;
                let permissions = read_only(source.metadata().map_err(read)?.permissions());
                let copied = io::copy(&mut source, &mut target);
                let copied = copied.and_then(|_| settle(&target, permissions));
                copied.map_err(|error| BlobError::io("write", &staged.path, error))?;
                remove(file);
            }
            Err(error) => return Err(BlobError::io("move", file, error)),
        }
        Ok(staged)
    }

    /// Ends the thread that looks after the cache.
    pub(crate) fn close(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.close();
        }
    }

    fn folder(&self, oid: Oid) -> PathBuf {
        self.root.join(self.layout.folder(oid))
    }

    /// Where a blob is, if it is there.
    pub(super) fn path(&self, oid: Oid, serial: Tid) -> PathBuf {
        self.root.join(self.layout.file(oid, serial))
    }

    fn found(&self, path: PathBuf) -> Download {
        if !self.is_shared() {
            touch(&path);
        }
        Download::Here(path)
    }

    fn make_folder(&self, oid: Oid) -> Result<PathBuf, BlobError> {
        let folder = self.folder(oid);
        fs::create_dir_all(&folder).map_err(|error| BlobError::io("make", &folder, error))?;
        Ok(folder)
    }

    fn lock(&self, oid: Oid) -> Result<Option<Lock>, BlobError> {
        let path = self.make_folder(oid)?.join(LOCK);
        Lock::take(&path).map_err(|error| BlobError::io("lock", &path, error))
    }
}

impl Staged {
    /// The name that the server is to be told: it knows the folder.
    pub(crate) fn name(&self) -> String {
        let name = self.path.file_name().expect("it was put together from a folder and a name");
        name.to_string_lossy().into_owned()
    }

    /// Leaves the file to the server: it takes it over, or removes it with the transaction.
    pub(crate) fn tell(mut self) {
        self.is_told = true;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_told {
            remove(&self.path);
        }
    }
}

/// Writes the marker of a directory that has none, or checks the one it has.
fn mark(root: &Path, wanted: Layout) -> Result<(), BlobError> {
    let path = root.join(MARKER);
    let failed = |error| BlobError::io("write", &path, error);
    let begin = Instant::now();
    loop {
        let found = layout::marker(root).map_err(|error| BlobError::reading(&path, error))?;
        match found {
            Some(name) if name == wanted.name() => return Ok(()),
            Some(name) if name.is_empty() && begin.elapsed() < MARKER_WAIT_MAX => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Some(found) => {
                let directory = root.to_owned();
                return Err(BlobError::Layout { directory, found, wanted: "`zeocache`" });
            }
            None => {
                // A name for what is already written: nobody finds an empty marker of ours.
                let draft = root.join(TEMPORARY).join(unused_name());
                fs::write(&draft, wanted.name()).map_err(failed)?;
                let linked = fs::hard_link(&draft, &path);
                remove(&draft);
                match linked {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    linked => return linked.map_err(failed),
                }
            }
        }
    }
}

fn is_there(path: &Path) -> Result<bool, BlobError> {
    path.try_exists().map_err(|error| BlobError::reading(path, error))
}

/// Marks a file as used just now: file systems do not all note reads.
fn touch(path: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let unchanged = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: now, last_modification: unchanged };
    // Another user's file cannot be marked, and is used all the same.
    let _ = utimensat(CWD, path, &times, AtFlags::empty());
}

/// Renames a file whose bytes are on the disk before that. Tells its length.
fn rename_settled(file: &Path, target: &Path) -> io::Result<u64> {
    let source = File::open(file)?;
    let permissions = read_only(source.metadata()?.permissions());
    let length = settle(&source, permissions)?;
    fs::rename(file, target)?;
    Ok(length)
}

/// What a file may be without being written (`ZODB/blob.py`, `set_not_writable`).
fn read_only(permissions: Permissions) -> Permissions {
    Permissions::from_mode(permissions.mode() & !0o222)
}

fn copy(file: &Path, partial: &mut Partial) -> Result<(), BlobError> {
    let mut source = File::open(file).map_err(|error| BlobError::reading(file, error))?;
    let copied = io::copy(&mut source, partial.file());
    copied.map_err(|error| BlobError::io("write", partial.path(), error))?;
    Ok(())
}

/// Whether a file's name ends in one of these.
pub(super) fn ends(path: &Path, suffixes: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    suffixes.iter().any(|suffix| name.ends_with(suffix.as_bytes()))
}

/// Removes a file that is of no use any more; nothing depends on it.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

/// A name that no other process and no other call makes.
fn unused_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("zeoring-{}-{now:x}-{count}{STAGED}", std::process::id())
}
