//! Undo: which transactions can be undone, and what undoing one would write.
//!
//! To undo a transaction is to record, for each of its objects, what was before it: a back pointer
//! to the record before, or nothing if there was none. That is right while the object still has the
//! data that is to be undone, be it because nothing came after, or because what came after was
//! undone. Otherwise both states would have to be merged, which needs the application's classes;
//! a server has none, so there it refuses, in the words of FileStorage.
//!
//! The rules are those of `_transactionalUndoRecord` of `ZODB/FileStorage/FileStorage.py`.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::{COMMITTED, DataHeader, PACKED, TransactionHeader};

use super::generation::Generation;
use super::iterate::{self, Records};
use super::{Body, Change, METADATA_BYTES_MAX, StorageError, UndoEntry, history};
use crate::commit::check::read_spool;
use crate::commit::draft::{Draft, Span};

/// No transaction has that id, or a pack has dropped it.
pub(crate) const NO_TRANSACTION: &str = "Invalid transaction id";

const NOT_UNDOABLE: &str = "non-undoable transaction";
const GONE: &str = "_loadBack() failed";
/// The placeholder is FileStorage's own, which it never fills in.
const GONE_BEFORE: &str = "_loadBack() failed for %s";
const CHANGED: &str = "Some data were modified by a later transaction";
const CHANGED_SINCE_ADDED: &str =
    "Can't undo an add transaction followed by conflicting transactions.";

/// The transactions that can be undone, newest first: see [`super::Storage::undo_log`].
///
/// # Errors
///
/// [`StorageError::Corrupt`], [`StorageError::Read`].
pub fn undo_log(
    storage: &Generation,
    skip: usize,
    count: usize,
    wanted: &dyn Fn(&UndoEntry) -> bool,
    visible: Tid,
) -> Result<Vec<UndoEntry>, StorageError> {
    let (mut entries, mut skipped, mut bytes) = (Vec::new(), 0, 0);
    if count == 0 {
        return Ok(entries);
    }
    for transaction in iterate::backwards(storage) {
        let (position, header) = transaction?;
        if header.status == PACKED {
            break;
        }
        if header.status != COMMITTED || visible < header.tid {
            continue;
        }
        let metadata = storage.metadata_at(position, &header, true)?;
        let entry = UndoEntry { tid: header.tid, size: header.length, metadata };
        if !wanted(&entry) {
            continue;
        }
        if skipped < skip {
            skipped += 1;
            continue;
        }
        bytes += entry.metadata.length();
        entries.push(entry);
        if entries.len() == count || METADATA_BYTES_MAX <= bytes {
            break;
        }
    }
    Ok(entries)
}

/// The oids that undoing a transaction would write, each once: see [`super::Storage::undo_oids`].
///
/// # Errors
///
/// [`StorageError::Undo`] if there is no such transaction, or it was packed.
pub fn undo_oids(storage: &Generation, tid: Tid) -> Result<Vec<Oid>, StorageError> {
    let (position, header) = undoable(storage, tid)?;
    let (mut records, mut oids) = (Records::of(position, &header), BTreeSet::new());
    while let Some((_, record)) = records.next(storage)? {
        oids.insert(record.oid);
    }
    Ok(oids.into_iter().collect())
}

/// What undoing a transaction would write, given what the same draft writes before (`pending`: of
/// each object the last). Called with the objects locked. Waits for the disk.
///
/// # Errors
///
/// [`StorageError::Undo`] if there is no such transaction, or it was packed;
/// [`StorageError::MultipleUndo`] if some of its objects cannot be undone.
pub(crate) fn undo(
    storage: &Generation,
    draft: &Draft,
    tid: Tid,
    pending: &HashMap<Oid, Body>,
) -> Result<Vec<Change>, StorageError> {
    let (position, header) = undoable(storage, tid)?;
    let mut records = Records::of(position, &header);
    let mut changes = Vec::new();
    // In the order of the file, which is the order in which Python tells them.
    let mut failures: Vec<Option<(Oid, &'static str)>> = Vec::new();
    let mut failed: HashMap<Oid, usize> = HashMap::new();
    while let Some((at, record)) = records.next(storage)? {
        let oid = record.oid;
        // The last record of an object decides: what came of those before it does not matter.
        if let Some(place) = failed.remove(&oid) {
            failures[place] = None;
        }
        match undo_record(storage, draft, at, &record, pending.get(&oid))? {
            Ok(body) => changes.push(Change { oid, serial: None, body }),
            Err(reason) => {
                failed.insert(oid, failures.len());
                failures.push(Some((oid, reason)));
            }
        }
    }
    if failed.is_empty() {
        Ok(changes)
    } else {
        Err(StorageError::MultipleUndo { failures: failures.into_iter().flatten().collect() })
    }
}

fn undoable(storage: &Generation, tid: Tid) -> Result<(u64, TransactionHeader), StorageError> {
    let reason = match iterate::find(storage, tid)? {
        Some((position, header)) if header.status == COMMITTED => return Ok((position, header)),
        Some(_) => NOT_UNDOABLE,
        None => NO_TRANSACTION,
    };
    Err(StorageError::Undo { reason, oid: None })
}

/// What takes the place of a record that is undone, or why it cannot be undone.
type Undone = Result<Body, &'static str>;

/// Where the current data of an object are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Current {
    /// In the record at a position, or behind its back pointer.
    At(u64),
    /// In the draft.
    Drafted(Span),
    /// Nowhere: the object is gone.
    Gone,
}

fn undo_record(
    storage: &Generation,
    draft: &Draft,
    at: u64,
    record: &DataHeader,
    pending: Option<&Body>,
) -> Result<Undone, StorageError> {
    let previous = record.previous;
    let mut same = true;
    let current = current(storage, record.oid, at, pending)?;
    if current != Current::At(at) {
        let undone = storage.read_data(at, true)?.map(|data| data.bytes);
        let data = match current {
            Current::At(position) => storage.read_data(position, true)?.map(|data| data.bytes),
            Current::Drafted(span) => Some(Bytes::from(read_spool(draft, span)?)),
            Current::Gone => None,
        };
        let (Some(undone), Some(data)) = (undone, data) else {
            return Ok(Err(GONE));
        };
        same = undone == data;
        if !same && previous == 0 {
            return Ok(Err(CHANGED_SINCE_ADDED));
        }
    }
    Ok(match previous {
        0 => Ok(Body::Gone),
        _ if same => Ok(Body::Same(previous)),
        _ if storage.read_data(previous, true)?.is_none() => Err(GONE_BEFORE),
        _ => Err(CHANGED),
    })
}

/// Where the data are that the object would have after what the draft writes before.
///
/// Of a record that is the current one itself, this is its own position, whatever it holds. Of
/// another, back pointers are followed for one hop: that is how FileStorage knows, without reading
/// any data, an undo that led back to the record at `at`.
fn current(
    storage: &Generation,
    oid: Oid,
    at: u64,
    pending: Option<&Body>,
) -> Result<Current, StorageError> {
    Ok(match pending {
        Some(Body::Data(span)) if span.length != 0 => Current::Drafted(*span),
        Some(Body::Same(position)) => Current::At(*position),
        Some(Body::Data(_) | Body::Gone) => Current::Gone,
        None => {
            let Some((position, header)) =
                history::revisions(storage, oid, true).next().transpose()?
            else {
                let expected = "a record of an object in the index";
                return Err(StorageError::Corrupt { position: at, expected });
            };
            if position == at || header.length != 0 {
                Current::At(position)
            } else if header.back != 0 {
                Current::At(header.back)
            } else {
                Current::Gone
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Storage;
    use crate::storage::testing::Ask::{self, Check, Delete, Store, Undo};
    use crate::storage::testing::{Folder, carry_out, draft};

    /// What undoing is to write: the oid, and the transaction to point back to.
    #[derive(Clone, Copy, Debug)]
    enum Wrote {
        Back(u64, u64),
        Gone(u64),
        Data(u64),
    }
    use Wrote::{Back, Data, Gone};

    type Row<'a> = (
        &'a str,
        &'a [(u64, &'a [Ask<'a>])],
        &'a [Ask<'a>],
        Result<&'a [Wrote], &'a [(u64, &'a str)]>,
    );

    /// Each outcome is that of ZODB 6.4 for the same calls.
    const ROWS: &[Row<'_>] = &[
        (
            "a change",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")])],
            &[Undo(20)],
            Ok(&[Back(1, 10)]),
        ),
        ("a creation", &[(10, &[Store(1, 0, b"a")])], &[Undo(10)], Ok(&[Gone(1)])),
        (
            "a change that was overtaken",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")]), (30, &[Store(1, 20, b"c")])],
            &[Undo(20)],
            Err(&[(1, CHANGED)]),
        ),
        (
            "a creation that was overtaken",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")])],
            &[Undo(10)],
            Err(&[(1, CHANGED_SINCE_ADDED)]),
        ),
        (
            "a change that came back",
            &[
                (10, &[Store(1, 0, b"a")]),
                (20, &[Store(1, 10, b"b")]),
                (30, &[Store(1, 20, b"c")]),
                (40, &[Store(1, 30, b"b")]),
            ],
            &[Undo(20)],
            Ok(&[Back(1, 10)]),
        ),
        (
            "an undo",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")]), (30, &[Undo(20)])],
            &[Undo(30)],
            Ok(&[Back(1, 20)]),
        ),
        (
            "a change whose undo was undone",
            &[
                (10, &[Store(1, 0, b"a")]),
                (20, &[Store(1, 10, b"b")]),
                (30, &[Undo(20)]),
                (40, &[Undo(30)]),
            ],
            &[Undo(20)],
            Ok(&[Back(1, 10)]),
        ),
        (
            "a deletion",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Delete(1, 10)])],
            &[Undo(20)],
            Ok(&[Back(1, 10)]),
        ),
        (
            "the undo of a creation",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Undo(10)])],
            &[Undo(20)],
            Ok(&[Back(1, 10)]),
        ),
        (
            "a change of what is gone",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")]), (30, &[Delete(1, 20)])],
            &[Undo(20)],
            Err(&[(1, GONE)]),
        ),
        (
            "a change of what was gone before",
            &[
                (10, &[Store(1, 0, b"a")]),
                (20, &[Delete(1, 10)]),
                (30, &[Store(1, 20, b"b")]),
                (40, &[Store(1, 30, b"c")]),
            ],
            &[Undo(30)],
            Err(&[(1, GONE_BEFORE)]),
        ),
        (
            "two changes, newest first",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")]), (30, &[Store(1, 20, b"c")])],
            &[Undo(30), Undo(20)],
            Ok(&[Back(1, 20), Back(1, 10)]),
        ),
        (
            "two changes, oldest first",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")]), (30, &[Store(1, 20, b"c")])],
            &[Undo(20), Undo(30)],
            Err(&[(1, CHANGED)]),
        ),
        (
            "everything",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")])],
            &[Undo(20), Undo(10)],
            Ok(&[Back(1, 10), Gone(1)]),
        ),
        (
            "a change after a store of the same",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")])],
            &[Store(1, 20, b"b"), Undo(20)],
            Ok(&[Data(1), Back(1, 10)]),
        ),
        (
            "a change after a store of something else",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")])],
            &[Store(1, 20, b"z"), Undo(20)],
            Err(&[(1, CHANGED)]),
        ),
        (
            "a change after a deletion",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b")])],
            &[Delete(1, 20), Undo(20)],
            Err(&[(1, GONE)]),
        ),
        (
            "an object stored twice: the last record redeems the first",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b"), Store(1, 10, b"c")])],
            &[Undo(20)],
            Ok(&[Back(1, 10)]),
        ),
        (
            "an object stored twice alike",
            &[(10, &[Store(1, 0, b"a")]), (20, &[Store(1, 10, b"b"), Store(1, 10, b"b")])],
            &[Undo(20)],
            Ok(&[Back(1, 10), Back(1, 10)]),
        ),
        (
            "several objects, some of which were overtaken",
            &[
                (10, &[Store(1, 0, b"a"), Store(2, 0, b"a"), Store(3, 0, b"a")]),
                (20, &[Store(3, 10, b"b"), Store(2, 10, b"b"), Store(1, 10, b"b")]),
                (30, &[Store(1, 20, b"c"), Store(3, 20, b"c")]),
            ],
            &[Undo(20)],
            Err(&[(3, CHANGED), (1, CHANGED)]),
        ),
        ("nothing", &[(10, &[]), (20, &[Store(1, 0, b"a")])], &[Undo(10)], Ok(&[])),
    ];

    #[test]
    fn undo_leads_back_to_what_was_before_or_says_why_not() {
        for (what, past, asked, expected) in ROWS {
            let folder = Folder::new();
            let (storage, mut appender) = folder.open().unwrap();
            for (tid, asked) in *past {
                carry_out(&*storage, &mut appender, *tid, draft(asked));
            }
            let found = storage.check(&draft(asked), true);
            let expected = match expected {
                Ok(expected) => expected,
                Err(expected) => {
                    let Err(StorageError::MultipleUndo { failures }) = found else {
                        panic!("{what}: {found:?}");
                    };
                    let failures: Vec<_> =
                        failures.into_iter().map(|(oid, reason)| (oid.0, reason)).collect();
                    assert_eq!(failures, *expected, "{what}");
                    continue;
                }
            };
            let found = found.unwrap();
            let position = |oid, tid| {
                history::revisions(&storage.current(), Oid(oid), true)
                    .map(|revision| revision.unwrap())
                    .find(|(_, header)| header.serial == Tid(tid))
                    .map(|(position, _)| position)
                    .unwrap()
            };
            assert_eq!(found.changes.len(), expected.len(), "{what}");
            for (change, expected) in found.changes.iter().zip(*expected) {
                let (oid, right) = match *expected {
                    Back(oid, tid) => (oid, change.body == Body::Same(position(oid, tid))),
                    Gone(oid) => (oid, change.body == Body::Gone),
                    Data(oid) => (oid, matches!(change.body, Body::Data(_))),
                };
                assert!(change.oid == Oid(oid) && right, "{what}: {change:?}, not {expected:?}");
            }
            let chosen = if expected.is_empty() { vec![] } else { vec![Oid(1)] };
            assert_eq!(found.chosen, chosen, "{what}");
        }
    }

    #[test]
    fn an_undone_state_is_loaded_as_the_state_before() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        let asked: [(u64, &[Ask<'_>]); 5] = [
            (10, &[Store(1, 0, b"a"), Store(2, 0, b"x")]),
            (20, &[Store(1, 10, b"b")]),
            (30, &[Undo(20), Check(2, 10)]),
            (40, &[Undo(30)]),
            (50, &[Undo(40), Undo(30), Undo(20), Undo(10)]),
        ];
        for (tid, asked) in asked {
            carry_out(&*storage, &mut appender, tid, draft(asked));
        }
        for (tid, data) in [(10, "a"), (20, "b"), (30, "a"), (40, "b")] {
            assert_eq!(storage.load_serial(Oid(1), Tid(tid), Tid::MAX).unwrap(), data);
        }
        for oid in [1, 2] {
            let gone = storage.serial(Oid(oid), Tid::MAX);
            assert!(matches!(gone, Err(StorageError::UnknownObject { .. })), "{gone:?}");
        }
        assert_eq!(undo_oids(&storage.current(), Tid(50)).unwrap(), [Oid(1), Oid(2)]);
    }

    /// A file whose transactions 10 and 20 a pack has been through.
    fn packed(folder: &Folder) -> (std::sync::Arc<crate::storage::file::FileStorage>, impl Sized) {
        let (storage, mut appender) = folder.open().unwrap();
        let mut serial = 0;
        for tid in [10, 20, 30, 40, 50] {
            let mut draft = draft(&[Store(1, serial, b"data")]);
            draft.packed = tid <= 20;
            draft.user = tid.to_string().into();
            carry_out(&*storage, &mut appender, tid, draft);
            serial = tid;
        }
        (storage, appender)
    }

    #[test]
    fn what_was_packed_or_never_was_cannot_be_undone() {
        let folder = Folder::new();
        let (storage, _appender) = packed(&folder);
        let rows = [
            (0, NO_TRANSACTION),
            (10, NOT_UNDOABLE),
            (20, NOT_UNDOABLE),
            (25, NO_TRANSACTION),
            (51, NO_TRANSACTION),
        ];
        for (tid, expected) in rows {
            for found in [
                undo_oids(&storage.current(), Tid(tid)).map(drop),
                storage.check(&draft(&[Undo(tid)]), true).map(drop),
            ] {
                let Err(StorageError::Undo { reason, oid: None }) = found else {
                    panic!("{tid}: {found:?}");
                };
                assert_eq!(reason, expected, "{tid}");
            }
        }
    }

    #[test]
    fn the_undo_log_ends_at_a_pack_and_counts_only_what_is_wanted() {
        let folder = Folder::new();
        let (storage, _appender) = packed(&folder);
        let rows: [(usize, usize, u64, u64, &[u64]); 8] = [
            (0, 100, 0, 100, &[50, 40, 30]),
            (0, 2, 0, 100, &[50, 40]),
            (1, 1, 0, 100, &[40]),
            (3, 1, 0, 100, &[]),
            (0, 0, 0, 100, &[]),
            (0, 100, 0, 49, &[40, 30]),
            (1, 1, 40, 100, &[30]),
            (usize::MAX, usize::MAX, 0, 100, &[]),
        ];
        for (skip, count, unwanted, visible, expected) in rows {
            let wanted = |entry: &UndoEntry| entry.tid != Tid(unwanted);
            let found = undo_log(&storage.current(), skip, count, &wanted, Tid(visible)).unwrap();
            let tids: Vec<_> = found.iter().map(|entry| entry.tid.0).collect();
            assert_eq!(tids, expected, "{skip} {count} {unwanted} {visible}");
            for entry in found {
                assert_eq!(entry.metadata.user, entry.tid.0.to_string());
                assert_eq!(entry.size, 23 + 2 + 42 + 4);
            }
        }
    }
}
