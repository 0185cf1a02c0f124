//! MappingStorage: a storage in memory, for tests and demonstrations. Gone with the process.
//!
//! Keeps every revision; never undoes, deletes or restores, like ZODB's own
//! (`ZODB/MappingStorage.py`), whose sizes and interfaces it tells.
//!
//! Everything is behind one lock for readers and a writer, which loads on a reactor take too. That
//! is allowed here, as nobody holds it for long: readers copy a reference to some bytes, and the
//! commit thread, which has read all data before, only hangs them in. No one waits for a disk, or
//! for another lock, while holding it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::DiskFile;
use zeoring_shared::record::{COMMITTED, PACKED};

use super::pack::{Handover, Outcome, Progress, Successor};
use super::{
    Appender, Body, Checked, Commit, Facts, HistoryEntry, Loading, Metadata, NextRecord,
    RecordCursor, RecordEntry, Revision, Storage, StorageError, TransactionCursor,
    TransactionEntry, UndoEntry, View,
};
use crate::commit::check::{Tally, check_read, read_spool};
use crate::commit::draft::{Draft, Operation};

mod pack;

/// Bytes that an object counts for in the size, beside its revisions.
const OBJECT_SIZE: u64 = 50;

/// Bytes that a revision counts for in the size, beside its pickles.
const REVISION_SIZE: u64 = 100;

/// Objects in memory. Made by [`MappingStorage::create`].
#[derive(Debug)]
pub struct MappingStorage {
    facts: Facts,
    state: RwLock<State>,
    /// The highest oid given out.
    mark: AtomicU64,
    me: std::sync::Weak<Self>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<Oid, Revisions>,
    transactions: BTreeMap<Tid, Transaction>,
    size: u64,
    last: Tid,
    /// To when it was packed last.
    packed: Option<Tid>,
}

/// By rising tid; never empty.
type Revisions = Vec<(Tid, Bytes)>;

/// A transaction, its data left out.
#[derive(Debug)]
struct Transaction {
    status: u8,
    metadata: Metadata,
    /// Each once, in the order of the first store.
    oids: Vec<Oid>,
}

/// Adds to a [`MappingStorage`]. Lives on the commit thread.
#[derive(Debug)]
pub struct MappingAppender {
    storage: Arc<MappingStorage>,
    written: Vec<Written>,
}

/// A transaction that is to be published.
#[derive(Debug)]
struct Written {
    tid: Tid,
    transaction: Transaction,
    data: HashMap<Oid, Bytes>,
}

impl MappingStorage {
    /// An empty storage of that name, and its writer.
    pub fn create(name: &str) -> (Arc<Self>, MappingAppender) {
        let facts = Facts {
            name: name.to_owned(),
            read_only: false,
            supports_undo: false,
            supports_record_iternext: false,
            interfaces: INTERFACES.to_vec(),
        };
        let storage = Arc::new_cyclic(|me| Self {
            facts,
            state: RwLock::default(),
            mark: AtomicU64::new(0),
            me: me.clone(),
        });
        (storage.clone(), MappingAppender { storage, written: Vec::new() })
    }

    fn shared(&self) -> Arc<Self> {
        self.me.upgrade().expect("whoever asks has an Arc of it")
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The revisions that are not later than `visible`, of which there is at least one.
    fn revisions(&self, oid: Oid, visible: Tid) -> Result<&[(Tid, Bytes)], StorageError> {
        let known = self.objects.get(&oid).map_or(&[][..], |revisions| {
            &revisions[..revisions.partition_point(|(tid, _)| *tid <= visible)]
        });
        if known.is_empty() { Err(StorageError::UnknownObject { oid }) } else { Ok(known) }
    }

    fn load(&self, oid: Oid, before: Tid, visible: Tid) -> Result<Option<Revision>, StorageError> {
        let revisions = self.revisions(oid, visible)?;
        let after = revisions.partition_point(|(tid, _)| *tid < before);
        let Some((serial, data)) = after.checked_sub(1).map(|at| &revisions[at]) else {
            return Ok(None);
        };
        let end = revisions.get(after).map(|(tid, _)| *tid);
        Ok(Some(Revision { data: data.clone(), serial: *serial, end }))
    }

    fn publish(&mut self, Written { tid, transaction, data }: Written) {
        for (oid, data) in data {
            self.size += REVISION_SIZE + data.len() as u64;
            match self.objects.entry(oid) {
                Entry::Occupied(entry) => entry.into_mut().push((tid, data)),
                Entry::Vacant(entry) => {
                    self.size += OBJECT_SIZE;
                    entry.insert(vec![(tid, data)]);
                }
            }
        }
        self.transactions.insert(tid, transaction);
        self.last = tid;
    }
}

impl View for MappingStorage {
    fn load(&self, oid: Oid, before: Tid, visible: Tid) -> Loading {
        Loading::Answer(self.state().load(oid, before, visible))
    }

    fn data_file(&self) -> Option<Arc<dyn DiskFile>> {
        None
    }
}

impl Storage for MappingStorage {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn object_count(&self) -> u64 {
        self.state().objects.len() as u64
    }

    fn size(&self) -> u64 {
        self.state().size
    }

    fn last_tid(&self) -> Tid {
        self.state().last
    }

    fn new_oids(&self, count: usize) -> Result<Vec<Oid>, StorageError> {
        let state = self.state();
        let mut oids = Vec::new();
        while oids.len() < count {
            let rise = |mark: u64| mark.checked_add(1);
            let Ok(mark) = self.mark.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rise)
            else {
                return Err(StorageError::Refused("no oids are left".into()));
            };
            let oid = Oid(mark + 1);
            if !state.objects.contains_key(&oid) {
                oids.push(oid);
            }
        }
        Ok(oids)
    }

    fn view(&self) -> Arc<dyn View> {
        self.shared()
    }

    fn load_serial(&self, oid: Oid, serial: Tid, visible: Tid) -> Result<Bytes, StorageError> {
        let state = self.state();
        let revisions = state.revisions(oid, visible)?;
        revisions
            .binary_search_by_key(&serial, |(tid, _)| *tid)
            .map(|at| revisions[at].1.clone())
            .map_err(|_| StorageError::UnknownObject { oid })
    }

    fn serial(&self, oid: Oid, visible: Tid) -> Result<Tid, StorageError> {
        let state = self.state();
        let (serial, _) = state.revisions(oid, visible)?.last().expect("there is at least one");
        Ok(*serial)
    }

    fn history(
        &self,
        oid: Oid,
        count: usize,
        visible: Tid,
    ) -> Result<Vec<HistoryEntry>, StorageError> {
        let state = self.state();
        let entry = |(tid, data): &(Tid, Bytes)| HistoryEntry {
            tid: *tid,
            size: data.len() as u64,
            metadata: state.transactions[tid].metadata.clone(),
        };
        Ok(state.revisions(oid, visible)?.iter().rev().take(count).map(entry).collect())
    }

    fn record_next(&self, _: Oid, _: Tid) -> Result<Option<NextRecord>, StorageError> {
        Err(refused("record_iternext"))
    }

    fn undo_log(
        &self,
        _: usize,
        _: usize,
        _: &dyn Fn(&UndoEntry) -> bool,
        _: Tid,
    ) -> Result<Vec<UndoEntry>, StorageError> {
        // ZEO's server gives an empty log for a storage that cannot undo.
        Ok(Vec::new())
    }

    fn transactions(&self, start: Tid, stop: Tid) -> Box<dyn TransactionCursor> {
        let storage = self.shared();
        let stop = stop.min(self.last_tid());
        Box::new(Transactions { storage, start: Bound::Included(start), stop, last: None })
    }

    fn last_transactions(&self, count: usize) -> Result<Vec<(Tid, Vec<Oid>)>, StorageError> {
        let state = self.state();
        let newest = state.transactions.iter().rev().take(count);
        let mut found: Vec<_> =
            newest.map(|(tid, transaction)| (*tid, transaction.oids.clone())).collect();
        found.reverse();
        Ok(found)
    }

    fn undo_oids(&self, _: Tid) -> Result<Vec<Oid>, StorageError> {
        Err(refused("undo"))
    }

    fn check(&self, draft: &Draft, _: bool) -> Result<Checked, StorageError> {
        let state = self.state();
        let committed = |oid: Oid| -> Option<Tid> { Some(state.objects.get(&oid)?.last()?.0) };
        let mut tally = Tally::default();
        for operation in &draft.operations {
            match *operation {
                Operation::Store { oid, serial, data } => {
                    tally.store(oid, serial, data, committed(oid));
                }
                Operation::Check { oid, serial } => check_read(oid, serial, committed(oid))?,
                Operation::Delete { .. } => return Err(refused("deleteObject")),
                Operation::Restore { .. } => return Err(refused("restore")),
                Operation::Undo { .. } => return Err(refused("undo")),
            }
        }
        Ok(tally.into_checked())
    }

    fn pack(&self, stop: Tid, _: &Progress, _: &dyn Handover) -> Result<Outcome, StorageError> {
        self.state.write().unwrap_or_else(PoisonError::into_inner).pack(stop)
    }

    fn save_index(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// What a client is told that asks for a method which the storage does not have.
fn refused(method: &str) -> StorageError {
    StorageError::Refused(format!("a MappingStorage has no {method}"))
}

impl Appender for MappingAppender {
    fn write(&mut self, batch: &[Commit]) -> Result<(), StorageError> {
        assert!(self.written.is_empty(), "a batch is published before the next is written");
        let written: Result<_, _> = batch.iter().map(written).collect();
        self.written = written?;
        Ok(())
    }

    fn publish(&mut self, batch: &[Commit]) {
        let written = std::mem::take(&mut self.written);
        assert!(
            written.iter().map(|w| w.tid).eq(batch.iter().map(|commit| commit.tid)),
            "the batch published is the batch written"
        );
        let mut state = self.storage.state.write().unwrap_or_else(PoisonError::into_inner);
        for written in written {
            assert!(state.last < written.tid, "the commit thread gives out rising ids");
            state.publish(written);
        }
    }

    fn succeed(&mut self, _: Successor) -> Result<Arc<dyn View>, StorageError> {
        Err(refused("file to put another in place of"))
    }

    fn close(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Reads all that a commit has, so that to publish it takes no time.
fn written(Commit { tid, draft, changes }: &Commit) -> Result<Written, StorageError> {
    let (mut oids, mut data) = (Vec::new(), HashMap::new());
    for change in changes {
        let Body::Data(span) = change.body else {
            panic!("a MappingStorage lets nothing but data through its check");
        };
        if data.insert(change.oid, Bytes::from(read_spool(draft, span)?)).is_none() {
            oids.push(change.oid);
        }
    }
    let metadata = Metadata {
        user: draft.user.clone(),
        description: draft.description.clone(),
        extension: draft.extension.clone(),
    };
    let status = if draft.packed { PACKED } else { COMMITTED };
    Ok(Written { tid: *tid, transaction: Transaction { status, metadata, oids }, data })
}

/// A walk over transactions.
#[derive(Debug)]
struct Transactions {
    storage: Arc<MappingStorage>,
    start: Bound<Tid>,
    stop: Tid,
    /// The transaction that was last returned.
    last: Option<Tid>,
}

impl TransactionCursor for Transactions {
    fn next_transaction(&mut self) -> Result<Option<TransactionEntry>, StorageError> {
        let state = self.storage.state();
        let next = state.transactions.range((self.start, Bound::Unbounded)).next();
        let Some((&tid, transaction)) = next.filter(|(tid, _)| **tid <= self.stop) else {
            self.last = None;
            return Ok(None);
        };
        (self.start, self.last) = (Bound::Excluded(tid), Some(tid));
        let Transaction { status, ref metadata, .. } = *transaction;
        Ok(Some(TransactionEntry { tid, status, metadata: metadata.clone() }))
    }

    fn records(&self) -> Box<dyn RecordCursor> {
        Box::new(Records { storage: self.storage.clone(), tid: self.last, passed: 0 })
    }
}

/// A walk over the records of a transaction.
#[derive(Debug)]
struct Records {
    storage: Arc<MappingStorage>,
    tid: Option<Tid>,
    passed: usize,
}

impl RecordCursor for Records {
    fn next_record(&mut self) -> Result<Option<RecordEntry>, StorageError> {
        let Some(tid) = self.tid else { return Ok(None) };
        let state = self.storage.state();
        let Some(&oid) = state.transactions[&tid].oids.get(self.passed) else { return Ok(None) };
        self.passed += 1;
        let revisions = &state.objects[&oid];
        let at = revisions
            .binary_search_by_key(&tid, |(tid, _)| *tid)
            .expect("a transaction's objects have its revisions");
        let data = Some(revisions[at].1.clone());
        Ok(Some(RecordEntry { oid, tid, data, data_tid: None }))
    }
}

/// The interfaces of a MappingStorage, in the order of `get_info`.
const INTERFACES: [(&str, &str); 3] = [
    ("ZODB.interfaces", "IStorage"),
    ("ZODB.interfaces", "IStorageIteration"),
    ("zope.interface", "Interface"),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::testing::Ask::{self, Check, Delete, Restore, Store, Undo};
    use crate::storage::testing::{Folder, carry_out, draft, load};

    fn load_here(
        storage: &MappingStorage,
        oid: u64,
        before: Tid,
        visible: Tid,
    ) -> Result<Option<Revision>, StorageError> {
        match storage.load(Oid(oid), before, visible) {
            Loading::Answer(answer) => answer,
            Loading::Walk(walk) => panic!("there is no file to walk over: {walk:?}"),
        }
    }

    /// All that iterators tell.
    fn walk(
        storage: &dyn Storage,
        start: u64,
        stop: u64,
    ) -> Vec<(TransactionEntry, Vec<RecordEntry>)> {
        let mut cursor = storage.transactions(Tid(start), Tid(stop));
        let mut found = Vec::new();
        while let Some(transaction) = cursor.next_transaction().unwrap() {
            let mut cursor = cursor.records();
            let records = std::iter::from_fn(|| cursor.next_record().unwrap()).collect();
            found.push((transaction, records));
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn memory_and_file_give_the_same_answers(
            history in prop::collection::vec(
                prop::collection::btree_map(0_u64..4, 1_usize..4, 0..4),
                0..8,
            ),
        ) {
            let folder = Folder::new();
            let (file, mut file_appender) = folder.open().unwrap();
            let (memory, mut memory_appender) = MappingStorage::create("memory");
            let storages: [(&dyn Storage, &mut dyn Appender); 2] =
                [(&*file, &mut file_appender), (&*memory, &mut memory_appender)];
            for (storage, appender) in storages {
                for (objects, tid) in history.iter().zip((10..).step_by(10)) {
                    let asked: Vec<_> = objects
                        .iter()
                        .map(|(oid, length)| {
                            let serial = storage.serial(Oid(*oid), Tid::MAX).unwrap_or_default();
                            Store(*oid, serial.0, &b"data"[..*length])
                        })
                        .collect();
                    let mut draft = draft(&asked);
                    draft.user = tid.to_string().into();
                    carry_out(storage, appender, tid, draft);
                }
            }
            let same = |left: String, right: String, what: &str| {
                prop_assert_eq!(left, right, "{}", what);
                Ok(())
            };
            let times = || (0..history.len() as u64 + 2).flat_map(|n| [n * 10, n * 10 + 1]);
            prop_assert_eq!(file.last_tid(), memory.last_tid());
            prop_assert_eq!(file.object_count(), memory.object_count());
            for count in [0, 2, 100] {
                let last = (file.last_transactions(count), memory.last_transactions(count));
                prop_assert_eq!(last.0.unwrap(), last.1.unwrap());
            }
            for one in times() {
                for other in times() {
                    prop_assert_eq!(walk(&*file, one, other), walk(&*memory, one, other));
                }
            }
            for oid in 0..5 {
                for visible in times().map(Tid) {
                    let object = Oid(oid);
                    let found = [&*file as &dyn Storage, &*memory].map(|storage| {
                        (storage.serial(object, visible), storage.history(object, 3, visible))
                    });
                    let [file_found, memory_found] = found.map(|found| format!("{found:?}"));
                    same(file_found, memory_found, "serial and history")?;
                    for time in times().map(Tid) {
                        let found = load(&file, oid, time, visible);
                        let here = load_here(&memory, oid, time, visible);
                        same(format!("{found:?}"), format!("{here:?}"), "load")?;
                        let found = file.load_serial(object, time, visible);
                        let here = memory.load_serial(object, time, visible);
                        same(format!("{found:?}"), format!("{here:?}"), "load_serial")?;
                    }
                }
            }
        }
    }

    #[test]
    fn nobody_sees_a_batch_before_it_is_published() {
        let (storage, mut appender) = MappingStorage::create("memory");
        let draft = draft(&[Store(1, 0, b"first"), Store(1, 0, b"last")]);
        let changes = storage.check(&draft, false).unwrap().changes;
        let batch = [Commit { tid: Tid(10), draft, changes }];
        appender.write(&batch).unwrap();
        assert_eq!((storage.last_tid(), storage.object_count(), storage.size()), (Tid(0), 0, 0));
        appender.publish(&batch);
        // 50 an object and 100 a revision, as ZODB counts.
        assert_eq!((storage.last_tid(), storage.object_count()), (Tid(10), 1));
        assert_eq!(storage.size(), 50 + 100 + 4);
        let found = load_here(&storage, 1, Tid::MAX, Tid::MAX).unwrap().unwrap();
        assert_eq!((&found.data[..], found.end), (&b"last"[..], None));
        assert_eq!(storage.last_transactions(9).unwrap(), [(Tid(10), vec![Oid(1)])]);
    }

    #[test]
    fn stores_and_checks_are_held_against_what_is_committed_and_all_else_is_refused() {
        let (storage, mut appender) = MappingStorage::create("memory");
        carry_out(&*storage, &mut appender, 10, draft(&[Store(1, 0, b"a")]));
        carry_out(&*storage, &mut appender, 20, draft(&[Store(1, 10, b"b"), Check(1, 10)]));
        let lost = storage.check(&draft(&[Store(1, 10, b"c")]), false).unwrap();
        assert_eq!((lost.conflicts[0].committed, lost.conflicts[0].read), (Tid(20), Tid(10)));
        let won = storage.check(&draft(&[Store(1, 10, b"c"), Store(1, 20, b"d")]), false).unwrap();
        assert_eq!((won.conflicts.len(), won.changes.len()), (0, 1));
        let refused: [Ask<'_>; 3] = [Delete(1, 20), Restore(1, 30, None, None), Undo(20)];
        for ask in refused {
            let found = storage.check(&draft(&[ask]), true);
            assert!(matches!(found, Err(StorageError::Refused(_))), "{ask:?}: {found:?}");
        }
        let read = storage.check(&draft(&[Check(1, 10)]), false);
        assert!(matches!(read, Err(StorageError::ReadConflict { .. })), "{read:?}");
        let read = storage.check(&draft(&[Check(2, 0)]), false);
        assert!(matches!(read, Err(StorageError::UnknownObject { .. })), "{read:?}");
        assert!(storage.undo_log(0, 9, &|_| true, Tid::MAX).unwrap().is_empty());
    }

    #[test]
    fn no_oid_that_exists_is_given_out() {
        let (storage, mut appender) = MappingStorage::create("memory");
        carry_out(&*storage, &mut appender, 10, draft(&[Store(0, 0, b"a"), Store(2, 0, b"b")]));
        assert_eq!(storage.new_oids(2).unwrap(), [Oid(1), Oid(3)]);
        assert_eq!(storage.new_oids(1).unwrap(), [Oid(4)]);
        storage.mark.store(u64::MAX, Ordering::Relaxed);
        assert!(matches!(storage.new_oids(1), Err(StorageError::Refused(_))));
    }
}
