//! Keeps a cache as small as it is to be: the thread that looks at it, and what it drops.
//!
//! As Python's clients do it (`ZEO/ClientStorage.py`, `_check_blob_cache_size`), together with
//! them: one process at a time makes the cache smaller, for all; what was not used for longest goes
//! first; a folder into which somebody fetches is left alone.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::directory::{LOCK, ends};
use super::layout::SUFFIX;
use super::lock::Lock;
use super::sweep;

/// Held by who makes the cache smaller.
pub(super) const CHECK_LOCK: &str = "check_size.lock";

/// Made by who found the lock taken, so that the one who has it looks once more at its end.
pub(super) const ATTEMPT: &str = "check_size.attempt";

/// How long who found the lock taken waits before it tries once more.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// How much a cache may take, how much is new in it, and the bell of who looks after it.
#[derive(Debug)]
pub(super) struct Usage {
    limit: Option<Limit>,
    /// Bytes that came since the size was last looked at.
    fresh: AtomicU64,
    wishes: Mutex<Wishes>,
    bell: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    /// A cache that is looked at gets as small as this.
    target: u64,
    /// After so many new bytes it is looked at.
    interval: u64,
}

/// What the thread is to do.
#[derive(Debug, Default)]
struct Wishes {
    look: bool,
    end: bool,
}

/// Looks after a cache, on a thread of its own.
#[derive(Debug)]
pub(super) struct Keeper {
    usage: Arc<Usage>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// A fork has this value, but not the thread.
    process: u32,
}

impl Usage {
    /// Of a cache that may take so many bytes, and what part of them, in percent, may come before
    /// it is looked at.
    pub(super) fn new(limit: Option<(u64, u8)>) -> Self {
        let limit = limit.map(|(size, percent)| {
            // In this order nothing overflows, and small sizes do not round to nothing.
            let interval = (u128::from(size) * u128::from(percent) / 100) as u64;
            Limit { target: size.saturating_sub(interval), interval }
        });
        let wishes = Mutex::new(Wishes { look: limit.is_some(), end: false });
        Self { limit, fresh: AtomicU64::new(0), wishes, bell: Condvar::new() }
    }

    /// Counts bytes that have come into the cache, and has it looked at when they are many.
    pub(super) fn add(&self, bytes: u64) {
        let Some(limit) = self.limit else { return };
        let fresh = self.fresh.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if limit.interval <= fresh {
            self.fresh.store(0, Ordering::Relaxed);
            self.lock().look = true;
            self.bell.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ending(&self) -> bool {
        self.lock().end
    }

    /// Waits until the cache is to be looked at; false if it is to be left instead.
    fn wait(&self) -> bool {
        let mut wishes = self.lock();
        while !wishes.look && !wishes.end {
            wishes = self.bell.wait(wishes).unwrap_or_else(PoisonError::into_inner);
        }
        wishes.look = false;
        !wishes.end
    }

    /// Lets time pass; false if the end comes meanwhile.
    fn pause(&self, time: Duration) -> bool {
        let waited = self.bell.wait_timeout_while(self.lock(), time, |wishes| !wishes.end);
        !waited.unwrap_or_else(PoisonError::into_inner).0.end
    }
}

impl Keeper {
    /// Starts the thread: it removes what dead processes left, then keeps the size.
    pub(super) fn start(root: &Path, usage: &Arc<Usage>) -> io::Result<Self> {
        let thread = thread::Builder::new().name("zeoring-blobs".to_owned()).spawn({
            let (root, usage) = (root.to_owned(), Arc::clone(usage));
            move || work(&root, &usage)
        })?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { usage: Arc::clone(usage), thread, process: std::process::id() })
    }

    /// Ends the thread, and waits for that: it looks up after each file.
    pub(super) fn close(&self) {
        if self.process != std::process::id() {
            return;
        }
        self.usage.lock().end = true;
        self.usage.bell.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that panicked has ended too.
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.close();
    }
}

fn work(root: &Path, usage: &Usage) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    sweep::sweep(root, i64::try_from(now).unwrap_or(i64::MAX), || usage.is_ending());
    let Some(limit) = usage.limit else { return };
    while usage.wait() {
        // Nobody waits for this, so nobody can be told; the next look may do better.
        let _ = shrink(root, limit.target, usage);
    }
}

/// Drops files until all together are not larger than `target`, or nothing more can be dropped.
pub(super) fn shrink(root: &Path, target: u64, usage: &Usage) -> io::Result<()> {
    let (lock, attempt) = (root.join(CHECK_LOCK), root.join(ATTEMPT));
    let mut taken = Lock::take(&lock)?;
    if taken.is_none() {
        if !usage.pause(LOCK_WAIT) {
            return Ok(());
        }
        taken = Lock::take(&lock)?;
    }
    let Some(_lock) = taken else {
        fs::write(&attempt, "")?;
        return Ok(());
    };
    loop {
        let mut files = files(root)?;
        let size = files.iter().map(|file| file.length).sum::<u64>();
        let is_done = size <= target || !drop_oldest(&mut files, size - target, usage);
        let was_asked = is_done && fs::remove_file(&attempt).is_ok();
        if is_done && !was_asked {
            return Ok(());
        }
    }
}

/// A blob in a cache.
#[derive(Debug)]
struct CachedFile {
    /// When it was last used, in seconds and nanoseconds.
    used: (i64, i64),
    length: u64,
    path: PathBuf,
}

/// Drops what was not used for longest, until so many bytes are gone. Tells whether to look again:
/// false if nothing could be dropped, or the end came.
fn drop_oldest(files: &mut [CachedFile], excess: u64, usage: &Usage) -> bool {
    files.sort_unstable_by(|one, other| (one.used, &one.path).cmp(&(other.used, &other.path)));
    let mut gone = 0;
    for file in files {
        if excess <= gone || usage.is_ending() {
            break;
        }
        let Ok(Some(_lock)) = Lock::take(&file.path.with_file_name(LOCK)) else { continue };
        if fs::remove_file(&file.path).is_ok() {
            gone += file.length;
        }
    }
    0 < gone && !usage.is_ending()
}

/// All blobs of a cache. What disappears meanwhile is left out.
fn files(root: &Path) -> io::Result<Vec<CachedFile>> {
    let mut files = Vec::new();
    for folder in folders(root)? {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let is_blob = ends(Path::new(&entry.file_name()), &[SUFFIX]);
            let Some(metadata) = entry.metadata().ok().filter(|_| is_blob) else { continue };
            if metadata.is_file() {
                let used = (metadata.atime(), metadata.atime_nsec());
                files.push(CachedFile { used, length: metadata.len(), path: entry.path() });
            }
        }
    }
    Ok(files)
}

/// The folders of a cache: those whose names are numbers.
pub(super) fn folders(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_number = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if is_number && entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}
