//! FileStorage: a `Data.fs`, its index, and the answers that both give.
//!
//! Shared by all threads. Reads what was published; only the [`FileAppender`] of the commit thread
//! changes anything.
//!
//! [`FileAppender`]: super::append::FileAppender

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::{DiskFile, Machine};

use super::generation::Generation;
use super::index::Index;
use super::oids::OidSource;
use super::open::Packing;
use super::pack::{Handover, Outcome, Progress};
use super::space::Space;
use super::{
    Checked, Facts, HistoryEntry, NextRecord, Storage, StorageError, TransactionCursor, UndoEntry,
    View, history, iterate, undo,
};
use crate::commit::check;
use crate::commit::draft::Draft;

/// The storage that Python's FileStorage is, on the same file. Made by [`super::open::open`].
#[derive(Debug)]
pub struct FileStorage {
    /// For reservations, which outlive the call that made them.
    me: Weak<Self>,
    pub(super) machine: Machine,
    pub(super) path: PathBuf,
    pub(super) packing: Packing,
    pub(super) oids: OidSource,
    pub(super) space: Mutex<Space>,
    facts: Facts,
    /// Written by the commit thread alone, when a pack ends, with `space` locked. No load asks it:
    /// reactors hold generations of their own, and are told of the next.
    current: RwLock<Arc<Generation>>,
    last: AtomicU64,
    /// Held while the index is saved, and while a pack puts another file in place.
    pub(super) saving: Mutex<Saving>,
}

/// Whether the index may be saved.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Saving {
    #[default]
    Allowed,
    /// A pack has left it open which file is the data file.
    Never,
}

/// What [`super::open::open`] found out about a file.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) machine: Machine,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) index: Index,
    pub(super) packing: Packing,
    pub(super) quota: Option<u64>,
    pub(super) read_only: bool,
    /// Behind the last good transaction.
    pub(super) end: u64,
    pub(super) last: Tid,
}

impl FileStorage {
    pub(super) fn new(opened: Opened) -> Arc<Self> {
        let Opened { machine, path, file, index, packing, quota, read_only, end, last } = opened;
        let facts = Facts {
            name: path.to_string_lossy().into_owned(),
            read_only,
            supports_undo: true,
            supports_record_iternext: true,
            interfaces: INTERFACES.to_vec(),
        };
        let oids = OidSource::above(&index);
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            machine,
            path,
            packing,
            oids,
            space: Mutex::new(Space::new(end, quota)),
            facts,
            current: RwLock::new(Arc::new(Generation::new(file, index, end))),
            last: AtomicU64::new(last.0),
            saving: Mutex::default(),
        })
    }

    /// The storage, to be kept by a reservation.
    pub fn shared(&self) -> Arc<Self> {
        self.me.upgrade().expect("whoever asks has an Arc of it")
    }

    /// Whether it was opened only to be read.
    pub fn is_read_only(&self) -> bool {
        self.facts.read_only
    }

    /// The data file's path, as configured.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file as the last pack has left it, and its index.
    pub fn current(&self) -> Arc<Generation> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts the file that a pack has written in the place of the one before.
    pub(super) fn set_current(&self, next: Arc<Generation>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// Behind the last published transaction.
    pub fn end(&self) -> u64 {
        self.current().end()
    }

    /// Lets no oid up to this one be given out again, unless it is outlandish (see
    /// `oids.rs`). To be told of every oid that a client stores or restores.
    pub fn note_oid(&self, oid: Oid) {
        self.oids.note(oid);
    }

    /// Says that the current generation knows all records before `end`, the last of which are
    /// `last`'s.
    pub(super) fn set_published(&self, end: u64, last: Tid) {
        self.current().set_published(end);
        // Whoever hears of the transaction finds its records.
        self.last.store(last.0, Ordering::Release);
    }
}

impl Storage for FileStorage {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn object_count(&self) -> u64 {
        self.current().index.len()
    }

    fn size(&self) -> u64 {
        self.end()
    }

    fn last_tid(&self) -> Tid {
        Tid(self.last.load(Ordering::Acquire))
    }

    fn new_oids(&self, count: usize) -> Result<Vec<Oid>, StorageError> {
        if self.facts.read_only {
            return Err(StorageError::ReadOnly);
        }
        self.oids.take(count, &self.current().index)
    }

    fn view(&self) -> Arc<dyn View> {
        self.current()
    }

    fn load_serial(&self, oid: Oid, serial: Tid, visible: Tid) -> Result<Bytes, StorageError> {
        history::load_serial(&self.current(), oid, serial, visible)
    }

    fn serial(&self, oid: Oid, visible: Tid) -> Result<Tid, StorageError> {
        history::serial(&self.current(), oid, visible)
    }

    fn history(
        &self,
        oid: Oid,
        count: usize,
        visible: Tid,
    ) -> Result<Vec<HistoryEntry>, StorageError> {
        history::history(&self.current(), oid, count, visible)
    }

    fn record_next(&self, from: Oid, visible: Tid) -> Result<Option<NextRecord>, StorageError> {
        history::record_next(&self.current(), from, visible)
    }

    fn undo_log(
        &self,
        skip: usize,
        count: usize,
        wanted: &dyn Fn(&UndoEntry) -> bool,
        visible: Tid,
    ) -> Result<Vec<UndoEntry>, StorageError> {
        undo::undo_log(&self.current(), skip, count, wanted, visible)
    }

    fn transactions(&self, start: Tid, stop: Tid) -> Box<dyn TransactionCursor> {
        iterate::transactions(self.current(), start, stop)
    }

    fn last_transactions(&self, count: usize) -> Result<Vec<(Tid, Vec<Oid>)>, StorageError> {
        iterate::last_transactions(&self.current(), count)
    }

    fn undo_oids(&self, tid: Tid) -> Result<Vec<Oid>, StorageError> {
        undo::undo_oids(&self.current(), tid)
    }

    fn check(&self, draft: &Draft, patience: bool) -> Result<Checked, StorageError> {
        check::check(self, draft, patience)
    }

    fn pack(
        &self,
        stop: Tid,
        progress: &Progress,
        handover: &dyn Handover,
    ) -> Result<Outcome, StorageError> {
        self.pack_to(stop, progress, handover)
    }

    fn save_index(&self) -> Result<(), StorageError> {
        Self::save_index(self)
    }
}

/// The interfaces of a FileStorage without blobs, in the order of `get_info`.
const INTERFACES: [(&str, &str); 7] = [
    ("ZODB.interfaces", "IStorageRestoreable"),
    ("ZODB.interfaces", "IStorageIteration"),
    ("ZODB.interfaces", "IStorageUndoable"),
    ("ZODB.interfaces", "IStorageCurrentRecordIteration"),
    ("ZODB.interfaces", "IExternalGC"),
    ("ZODB.interfaces", "IStorage"),
    ("zope.interface", "Interface"),
];
