//! A disk in memory that can be killed over, cut off from power, damaged and filled up.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use zeoring_shared::io::{Access, Chance, Disk, DiskFile, Machine};

/// What a disk loses in a power cut, it loses in pieces of this size.
const SECTOR: usize = 512;

/// A disk, and the files on it.
#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk {
    files: Arc<Mutex<HashMap<PathBuf, Arc<Content>>>>,
    /// One for all machines that the disk is ever in: chance does not repeat itself.
    chance: Arc<SimChance>,
}

/// A file, whoever has it open.
#[derive(Debug, Default)]
struct Content {
    bytes: Mutex<Bytes>,
    is_locked: AtomicBool,
    /// Writes, syncs and reads fail.
    is_broken: AtomicBool,
}

/// Invariant: `now` is `durable` after all of `changes`.
#[derive(Debug, Default)]
struct Bytes {
    durable: Vec<u8>,
    changes: Vec<Change>,
    now: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug)]
struct SimFile {
    content: Arc<Content>,
    has_lock: AtomicBool,
}

/// Numbers that look random and are the same in each run.
#[derive(Debug, Default)]
pub(super) struct SimChance(AtomicU64);

impl SimChance {
    pub(super) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Chance for SimChance {
    /// SplitMix64.
    fn bits(&self) -> u64 {
        let step = 0x9e37_79b9_7f4a_7c15;
        let state = self.0.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

impl Bytes {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Length(length) => bytes.resize(*length as usize, 0),
            Change::Write(position, written) => {
                let end = *position as usize + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*position as usize..end].copy_from_slice(written);
            }
        }
    }

    fn replay(&mut self) {
        self.now = self.durable.clone();
        self.changes.iter().for_each(|change| Self::apply(&mut self.now, change));
    }
}

impl SimDisk {
    pub(super) fn machine(&self) -> Machine {
        Machine { disk: Arc::new(self.clone()), chance: self.chance.clone(), ..Machine::real() }
    }

    fn content(&self, path: &Path) -> Option<Arc<Content>> {
        self.files.lock().unwrap().get(path).cloned()
    }

    /// Takes back the last `undone` writes of a process that was killed, and leaves `torn` bytes of
    /// the first of these. What was synced stays.
    pub(super) fn kill(&self, path: &Path, undone: usize, torn: usize) {
        let Some(content) = self.content(path) else { return };
        let mut bytes = content.bytes.lock().unwrap();
        let kept = bytes.changes.len().saturating_sub(undone);
        let mut cut = bytes.changes.split_off(kept).into_iter();
        if let Some(Change::Write(position, written)) = cut.next() {
            let torn = written[..torn.min(written.len())].to_vec();
            bytes.changes.push(Change::Write(position, torn));
        }
        bytes.replay();
    }

    /// Loses any of the sectors that were written since the last sync.
    pub(super) fn cut_power(&self, path: &Path, chance: &SimChance) {
        let Some(content) = self.content(path) else { return };
        let mut bytes = content.bytes.lock().unwrap();
        let mut sectors = Vec::new();
        for change in bytes.changes.drain(..) {
            let Change::Write(position, written) = change else {
                sectors.push(change);
                continue;
            };
            let mut start = 0;
            while start < written.len() {
                let at = position as usize + start;
                let end = written.len().min(start + SECTOR - at % SECTOR);
                sectors.push(Change::Write(at as u64, written[start..end].to_vec()));
                start = end;
            }
        }
        let odds = 1 + chance.bits() % 8;
        sectors.retain(|_| chance.bits() % 8 < odds);
        bytes.changes = sectors;
        bytes.replay();
        bytes.durable = bytes.now.clone();
        bytes.changes.clear();
    }

    /// Changes the bytes of a file that nobody has open.
    pub(super) fn damage(&self, path: &Path, damage: impl FnOnce(&mut Vec<u8>)) {
        let Some(content) = self.content(path) else { return };
        let mut bytes = content.bytes.lock().unwrap();
        damage(&mut bytes.now);
        bytes.durable = bytes.now.clone();
        bytes.changes.clear();
    }

    /// The bytes of a file.
    pub(super) fn read(&self, path: &Path) -> Option<Vec<u8>> {
        Some(self.content(path)?.bytes.lock().unwrap().now.clone())
    }

    /// Puts a file on the disk.
    pub(super) fn put(&self, path: &Path, now: &[u8]) {
        let bytes = Bytes { durable: now.to_vec(), changes: Vec::new(), now: now.to_vec() };
        let content = Content { bytes: Mutex::new(bytes), ..Content::default() };
        self.files.lock().unwrap().insert(path.to_owned(), Arc::new(content));
    }

    /// From now on everything fails that is done with this file.
    pub(super) fn break_file(&self, path: &Path) {
        self.content(path).unwrap().is_broken.store(true, Ordering::Relaxed);
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        assert_eq!(access, Access::Create, "the cache opens its file so");
        let content = self.files.lock().unwrap().entry(path.to_owned()).or_default().clone();
        Ok(Arc::new(SimFile { content, has_lock: AtomicBool::new(false) }))
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        let mut files = self.files.lock().unwrap();
        let content = files.remove(source).ok_or(io::ErrorKind::NotFound)?;
        files.insert(target.to_owned(), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.lock().unwrap().remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.content(path).is_some())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<OsString>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        self.check()?;
        let mut bytes = self.content.bytes.lock().unwrap();
        Bytes::apply(&mut bytes.now, &change);
        bytes.changes.push(change);
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        match self.content.is_broken.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.check()?;
        let bytes = self.content.bytes.lock().unwrap();
        let rest = bytes.now.get(position as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn read_at_now(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.read_at(buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.change(Change::Write(position, bytes.to_vec()))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        let mut bytes = self.content.bytes.lock().unwrap();
        bytes.durable = bytes.now.clone();
        bytes.changes.clear();
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.content.bytes.lock().unwrap().now.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.change(Change::Length(length))
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let was_locked = self.content.is_locked.swap(true, Ordering::Relaxed);
        if !was_locked {
            self.has_lock.store(true, Ordering::Relaxed);
        }
        Ok(!was_locked)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if self.has_lock.load(Ordering::Relaxed) {
            self.content.is_locked.store(false, Ordering::Relaxed);
        }
    }
}
