//! Where objects are: what every storage can do, and the kinds of storage behind it.
//!
//! A [`Storage`] is shared by all threads and answers questions. An [`Appender`] belongs to the one
//! commit thread and is the only thing that changes it. What the appender has written is seen by
//! nobody before [`Appender::publish`].

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::DiskFile;

use crate::commit::draft::{Draft, Span};

pub mod append;
pub mod error;
pub mod file;
pub mod generation;
pub mod history;
pub mod index;
pub mod index_file;
pub mod index_read;
pub mod iterate;
pub mod load;
pub mod lockfile;
pub mod mapping;
#[cfg(test)]
mod mortal;
mod oids;
pub mod open;
pub mod pack;
pub mod paths;
mod recover;
pub mod space;
#[cfg(test)]
pub(crate) mod testing;
pub mod undo;
pub mod window;

pub use error::StorageError;

/// What a storage tells its clients about itself (`get_info` of `ZEO/StorageServer.py`).
#[derive(Clone, Debug)]
pub struct Facts {
    /// The path as configured, or the name of a storage without a file.
    pub name: String,
    /// Whether it refuses to be changed.
    pub read_only: bool,
    /// Whether it knows `undoLog`, `undoInfo` and `undo`.
    pub supports_undo: bool,
    /// Whether it knows `record_iternext`.
    pub supports_record_iternext: bool,
    /// Module and name of each zope interface it provides, in the order clients expect.
    pub interfaces: Vec<(&'static str, &'static str)>,
}

/// One revision of an object, and how long it was the current one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Revision {
    /// The object's pickles, as stored.
    pub data: Bytes,
    /// The transaction that wrote it.
    pub serial: Tid,
    /// The next transaction that wrote the object, or `None` while there is none.
    pub end: Option<Tid>,
}

/// How a storage takes up a load.
#[derive(Debug)]
pub enum Loading {
    /// The answer was in memory. `None`: the object has no revision that old.
    Answer(Result<Option<Revision>, StorageError>),
    /// Records have to be read: give them to the walk.
    Walk(load::Walk),
}

/// A storage as it stands from one pack to the next. Asked on reactors, and never waits.
///
/// A view that a pack has overtaken still gives right answers about every transaction that was
/// committed before the pack put the next one in its place.
pub trait View: Send + Sync + std::fmt::Debug {
    /// Takes up a load. Never waits, and allocates nothing on the way of a [`Loading::Walk`].
    ///
    /// The revision is the newest that is older than `before` and not later than `visible`; an
    /// `end` later than `visible` is told as `None`.
    fn load(&self, oid: Oid, before: Tid, visible: Tid) -> Loading;

    /// The file that [`Loading::Walk`] wants records of.
    fn data_file(&self) -> Option<Arc<dyn DiskFile>>;
}

/// A question that may have to wait for the disk. Asked on a clerk's thread, never on a reactor.
///
/// Every method takes the last transaction that the asking connection may know of, `visible`, and
/// answers as if no later one existed, so that no answer overtakes an invalidation.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// What does not change while the storage is open.
    fn facts(&self) -> &Facts;

    /// How many objects there are.
    fn object_count(&self) -> u64;

    /// The size of the data file, in bytes.
    fn size(&self) -> u64;

    /// The last published transaction, or [`Tid::ZERO`] if there is none.
    fn last_tid(&self) -> Tid;

    /// Gives out oids that nobody has. At most 100 a call are asked for.
    fn new_oids(&self, count: usize) -> Result<Vec<Oid>, StorageError>;

    /// The storage as it stands until the next pack: what reactors answer loads from.
    fn view(&self) -> Arc<dyn View>;

    /// The data of exactly one revision.
    fn load_serial(&self, oid: Oid, serial: Tid, visible: Tid) -> Result<Bytes, StorageError>;

    /// The serial of the current revision.
    fn serial(&self, oid: Oid, visible: Tid) -> Result<Tid, StorageError>;

    /// The newest revisions of an object, newest first.
    fn history(
        &self,
        oid: Oid,
        count: usize,
        visible: Tid,
    ) -> Result<Vec<HistoryEntry>, StorageError>;

    /// The object with the smallest oid that is at least `from`, and the oid after it.
    ///
    /// `Ok(None)`: there is no such object.
    fn record_next(&self, from: Oid, visible: Tid) -> Result<Option<NextRecord>, StorageError>;

    /// The transactions that can be undone, newest first, skipping `skip` and at most `count`
    /// of those that `wanted` accepts.
    fn undo_log(
        &self,
        skip: usize,
        count: usize,
        wanted: &dyn Fn(&UndoEntry) -> bool,
        visible: Tid,
    ) -> Result<Vec<UndoEntry>, StorageError>;

    /// The transactions from `start` to `stop`, both included, oldest first.
    fn transactions(&self, start: Tid, stop: Tid) -> Box<dyn TransactionCursor>;

    /// The oids of each of the last `count` transactions, oldest first (`lastInvalidations` of
    /// `ZODB/FileStorage/FileStorage.py`).
    fn last_transactions(&self, count: usize) -> Result<Vec<(Tid, Vec<Oid>)>, StorageError>;

    /// The oids that undoing a transaction would write: what has to be locked before
    /// [`Storage::check`] of a draft that undoes it.
    fn undo_oids(&self, tid: Tid) -> Result<Vec<Oid>, StorageError>;

    /// Decides what a transaction would write. Called with the draft's objects locked.
    ///
    /// With `patience` false, a question that has to wait for the disk gives
    /// [`StorageError::WouldWait`]: ask again, patiently, on a clerk's thread.
    fn check(&self, draft: &Draft, patience: bool) -> Result<Checked, StorageError>;

    /// Packs: takes away what was not current at `stop` or later, and what nothing refers to.
    /// Waits for the disk, for long, while loads and commits go on. One at a time.
    ///
    /// # Errors
    ///
    /// Nothing has changed, but in the one case that [`Appender::succeed`] tells of.
    fn pack(
        &self,
        stop: Tid,
        progress: &pack::Progress,
        handover: &dyn pack::Handover,
    ) -> Result<pack::Outcome, StorageError>;

    /// Saves what makes the next start fast. May be called while commits go on.
    ///
    /// # Errors
    ///
    /// It could not be saved; nothing is lost, but the next start may be slow.
    fn save_index(&self) -> Result<(), StorageError>;
}

/// Walks over transactions. Holds a position, not an open file.
pub trait TransactionCursor: Send + std::fmt::Debug {
    /// The next transaction, or `None` past the last.
    fn next_transaction(&mut self) -> Result<Option<TransactionEntry>, StorageError>;

    /// A walk over the records of the transaction that was last returned.
    fn records(&self) -> Box<dyn RecordCursor>;
}

/// Walks over the data records of one transaction.
pub trait RecordCursor: Send + std::fmt::Debug {
    /// The next record, or `None` past the last.
    fn next_record(&mut self) -> Result<Option<RecordEntry>, StorageError>;
}

/// The one writer of a storage. Lives on the commit thread.
pub trait Appender: Send + std::fmt::Debug {
    /// Writes transactions and waits until they are durable. Nobody sees them yet.
    ///
    /// # Errors
    ///
    /// After an error what the disk holds is unknown, and the storage takes no more commits.
    fn write(&mut self, batch: &[Commit]) -> Result<(), StorageError>;

    /// Lets everybody see what the last [`Appender::write`] has written.
    fn publish(&mut self, batch: &[Commit]);

    /// Puts a packed file in the place of the data file, and returns what loads are to be answered
    /// from. Everything that was written is published.
    ///
    /// # Errors
    ///
    /// Nothing has changed; or, if the verdict is to poison, which file the next start finds is
    /// unknown, and the storage takes no more commits.
    fn succeed(&mut self, successor: pack::Successor) -> Result<Arc<dyn View>, StorageError>;

    /// Leaves the storage as the next start, or Python's, wants it: index saved, lock given back.
    fn close(&mut self) -> Result<(), StorageError>;
}

/// A transaction on its way into a storage.
#[derive(Debug)]
pub struct Commit {
    /// Its id, later than all before it.
    pub tid: Tid,
    /// What the client sent.
    pub draft: Draft,
    /// What is to be written, in order. An oid may come twice: the last one counts.
    pub changes: Vec<Change>,
}

/// One data record to write.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Which object.
    pub oid: Oid,
    /// The record's own tid where a restore names one; else it is the transaction's.
    pub serial: Option<Tid>,
    /// What is recorded.
    pub body: Body,
}

/// What a data record holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body {
    /// Pickles, in the draft's spool.
    Data(Span),
    /// The same as an older record has: a back pointer to its position in the data file.
    Same(u64),
    /// The object is deleted, or its creation undone.
    Gone,
}

/// What [`Storage::check`] found.
#[derive(Debug, Default)]
pub struct Checked {
    /// What a commit would write. Of no use while there are conflicts.
    pub changes: Vec<Change>,
    /// Objects that another transaction changed first, for the client to resolve.
    pub conflicts: Vec<Conflict>,
    /// Objects whose data the server chose: the oids of undone records.
    pub chosen: Vec<Oid>,
    /// Room for the transaction on the disk, to be kept until it is published or given up.
    pub room: Option<space::Reservation>,
}

/// An object that another transaction changed first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Conflict {
    /// Which object.
    pub oid: Oid,
    /// The revision that is current.
    pub committed: Tid,
    /// The revision that the client had read.
    pub read: Tid,
    /// What the client wanted to store, in the draft's spool.
    pub data: Span,
}

/// An entry of [`Storage::history`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HistoryEntry {
    /// The transaction.
    pub tid: Tid,
    /// Bytes of data in the record; 0 for a back pointer.
    pub size: u64,
    /// User, description and extension of the transaction.
    pub metadata: Metadata,
}

/// What people say about a transaction.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Metadata {
    /// Who did it.
    pub user: Bytes,
    /// What was done.
    pub description: Bytes,
    /// A pickled dictionary, or nothing.
    pub extension: Bytes,
}

impl Metadata {
    /// Bytes of all three.
    pub fn length(&self) -> usize {
        self.user.len() + self.description.len() + self.extension.len()
    }
}

/// Bytes of metadata that one undo log, or one history, may have: more entries are cut off. A
/// client may commit 196 kB of it with every transaction, and an answer is made in memory.
pub const METADATA_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An entry of [`Storage::undo_log`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UndoEntry {
    /// The transaction.
    pub tid: Tid,
    /// Its length in the data file, as its header says it.
    pub size: u64,
    /// User, description and extension.
    pub metadata: Metadata,
}

/// An entry of [`Storage::record_next`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NextRecord {
    /// Which object.
    pub oid: Oid,
    /// The serial of its current revision.
    pub serial: Tid,
    /// The data of its current revision.
    pub data: Bytes,
    /// The object after it, if there is one.
    pub next: Option<Oid>,
}

/// A transaction as [`TransactionCursor`] finds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TransactionEntry {
    /// Its id.
    pub tid: Tid,
    /// Its status byte: `b' '` or `b'p'`.
    pub status: u8,
    /// User, description and extension.
    pub metadata: Metadata,
}

/// A data record as [`RecordCursor`] finds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RecordEntry {
    /// Which object.
    pub oid: Oid,
    /// The record's tid.
    pub tid: Tid,
    /// The pickles; `None` if the object is gone with this record.
    pub data: Option<Bytes>,
    /// The transaction of the record that a back pointer leads to.
    pub data_tid: Option<Tid>,
}

/// Where something stands in a record that was read.
pub type DataRange = Range<usize>;
