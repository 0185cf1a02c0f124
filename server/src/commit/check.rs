//! Decides what a transaction would write: who changed what first, and what an undo leads back to.
//!
//! The operations are taken in the client's order, each against what is committed; only an undo
//! sees what the same transaction writes before it. A store that lost a race is put on a list, for
//! the client to resolve, and the next good store of the object takes it off again, as the client
//! sends its resolved state after the first one. A lost delete or check ends the vote.
//!
//! Writes nothing and keeps nothing but the room on disk that the vote is given.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::{DataHeader, TransactionHeader, header::TRAILER};

use super::draft::{Draft, Operation, Span};
use crate::storage::file::FileStorage;
use crate::storage::generation::Generation;
use crate::storage::iterate::{self, Records};
use crate::storage::{Body, Change, Checked, Conflict, StorageError, history, undo};

/// Operations that are checked without patience, at most. Each is one read of what is in memory,
/// well below a microsecond, so that no reactor is kept from its other connections for long.
const OPERATIONS_IMPATIENT_MAX: usize = 512;

/// What a draft would write into a FileStorage: see [`crate::storage::Storage::check`].
///
/// # Errors
///
/// What ends the vote, or [`StorageError::WouldWait`] without patience.
pub fn check(
    storage: &FileStorage,
    draft: &Draft,
    patience: bool,
) -> Result<Checked, StorageError> {
    if storage.is_read_only() {
        return Err(StorageError::ReadOnly);
    }
    if !patience && is_long(draft) {
        return Err(StorageError::WouldWait);
    }
    let generation = &storage.current();
    let mut heads = Heads { generation, patience, known: HashMap::new() };
    let mut tally = Tally::default();
    let mut pending = Pending::default();
    let mut chosen = BTreeSet::new();
    for operation in &draft.operations {
        match *operation {
            Operation::Store { oid, serial, data } => {
                storage.note_oid(oid);
                tally.store(oid, serial, data, heads.of(oid)?.map(|head| head.serial));
            }
            Operation::Delete { oid, serial } => {
                let committed = heads.of(oid)?.ok_or(StorageError::UnknownObject { oid })?.serial;
                if serial != committed {
                    return Err(StorageError::DeleteConflict { oid, committed, read: serial });
                }
                tally.changes.push(Change { oid, serial: None, body: Body::Gone });
            }
            Operation::Check { oid, serial } => {
                let head = heads.of(oid)?.filter(|head| !head.is_gone());
                check_read(oid, serial, head.map(|head| head.serial))?;
            }
            Operation::Restore { oid, serial, data, previous } => {
                storage.note_oid(oid);
                let body = match previous {
                    Some(previous) => restored(generation, draft, oid, data, previous)?,
                    None => data.map_or(Body::Gone, Body::Data),
                };
                tally.changes.push(Change { oid, serial: Some(serial), body });
            }
            Operation::Undo { tid } => {
                let changes = undo::undo(generation, draft, tid, pending.after(&tally.changes))?;
                chosen.extend(changes.iter().map(|change| change.oid));
                tally.changes.extend(changes);
            }
        }
    }
    let mut checked = tally.into_checked();
    checked.chosen = chosen.into_iter().collect();
    if checked.conflicts.is_empty() {
        let bytes = length(draft, &checked.changes);
        let room = if patience {
            storage.reserve(generation, bytes)
        } else {
            storage.reserve_now(generation, bytes)
        };
        checked.room = Some(room?);
    }
    Ok(checked)
}

/// Whether the check may search the file, or take long even if all it reads is in memory.
fn is_long(draft: &Draft) -> bool {
    let searches = |operation: &Operation| {
        matches!(operation, Operation::Undo { .. } | Operation::Restore { previous: Some(_), .. })
    };
    OPERATIONS_IMPATIENT_MAX < draft.operations.len() || draft.operations.iter().any(searches)
}

/// Stores that won and stores that lost.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    changes: Vec<Change>,
    conflicts: BTreeMap<Oid, Conflict>,
}

impl Tally {
    /// Takes up a store of an object that was read at `read` and is at `committed` now: `None` if
    /// there never was such an object. An object that is gone counts with the serial of that.
    pub(crate) fn store(&mut self, oid: Oid, read: Tid, data: Span, committed: Option<Tid>) {
        if let Some(committed) = committed.filter(|committed| *committed != read) {
            self.conflicts.insert(oid, Conflict { oid, committed, read, data });
        } else {
            self.conflicts.remove(&oid);
            self.changes.push(Change { oid, serial: None, body: Body::Data(data) });
        }
    }

    /// What came of it.
    pub(crate) fn into_checked(self) -> Checked {
        let conflicts = self.conflicts.into_values().collect();
        Checked { changes: self.changes, conflicts, ..Checked::default() }
    }
}

/// Checks that an object is still at the serial it was read at.
///
/// # Errors
///
/// [`StorageError::UnknownObject`] if it is not there, [`StorageError::ReadConflict`].
pub(crate) fn check_read(oid: Oid, read: Tid, committed: Option<Tid>) -> Result<(), StorageError> {
    let committed = committed.ok_or(StorageError::UnknownObject { oid })?;
    if committed == read {
        Ok(())
    } else {
        Err(StorageError::ReadConflict { oid, committed, read })
    }
}

/// A pickle of the draft.
///
/// # Errors
///
/// [`StorageError::Read`], with the position in the draft's temporary file.
pub(crate) fn read_spool(draft: &Draft, span: Span) -> Result<Vec<u8>, StorageError> {
    let mut data = Vec::new();
    draft
        .spool
        .read(span, &mut data)
        .map_err(|source| StorageError::Read { position: span.start, source })?;
    Ok(data)
}

/// The headers of current records, each read once.
struct Heads<'a> {
    generation: &'a Generation,
    patience: bool,
    known: HashMap<Oid, Option<DataHeader>>,
}

impl Heads<'_> {
    fn of(&mut self, oid: Oid) -> Result<Option<DataHeader>, StorageError> {
        if let Some(head) = self.known.get(&oid) {
            return Ok(*head);
        }
        let head = history::revisions(self.generation, oid, self.patience).next().transpose()?;
        let head = head.map(|(_, header)| header);
        self.known.insert(oid, head);
        Ok(head)
    }
}

/// The last change of each object so far, for undo, which is the only one to ask.
#[derive(Debug, Default)]
struct Pending {
    bodies: HashMap<Oid, Body>,
    seen: usize,
}

impl Pending {
    fn after(&mut self, changes: &[Change]) -> &HashMap<Oid, Body> {
        let new = &changes[self.seen..];
        self.bodies.extend(new.iter().map(|change| (change.oid, change.body.clone())));
        self.seen = changes.len();
        &self.bodies
    }
}

/// What a restore records that says which transaction has the same data: a back pointer, if that
/// is so, or the data.
fn restored(
    generation: &Generation,
    draft: &Draft,
    oid: Oid,
    data: Option<Span>,
    previous: Tid,
) -> Result<Body, StorageError> {
    let whole = data.map_or(Body::Gone, Body::Data);
    let Some((position, record)) = record_in(generation, previous, oid)? else {
        return Ok(whole);
    };
    // A record that is a back pointer itself is trusted to lead to the same data.
    if record.length == 0 {
        return Ok(Body::Same(position));
    }
    let Some(span) = data.filter(|span| span.length == record.length) else {
        return Ok(whole);
    };
    let drafted = read_spool(draft, span)?;
    let same = generation.read_data(position, true)?.is_some_and(|data| data.bytes == drafted);
    Ok(if same { Body::Same(position) } else { whole })
}

/// The last record of an object in a transaction, if it has one.
fn record_in(
    generation: &Generation,
    tid: Tid,
    oid: Oid,
) -> Result<Option<(u64, DataHeader)>, StorageError> {
    // Nearly always the object's own chain leads there. Not after a pack, which keeps records
    // that only back pointers lead to.
    for revision in history::revisions(generation, oid, true) {
        let (position, record) = revision?;
        if record.serial == tid && generation.transaction_at(record.transaction, true)?.tid == tid {
            return Ok(Some((position, record)));
        }
        if record.serial < tid {
            break;
        }
    }
    let (position, header) = iterate::find(generation, tid)?
        .ok_or(StorageError::Undo { reason: undo::NO_TRANSACTION, oid: None })?;
    let (mut records, mut found) = (Records::of(position, &header), None);
    while let Some((position, record)) = records.next(generation)? {
        if record.oid == oid {
            found = Some((position, record));
        }
    }
    Ok(found)
}

/// Bytes of the transaction in the data file.
fn length(draft: &Draft, changes: &[Change]) -> u64 {
    let texts = draft.user.len() + draft.description.len() + draft.extension.len();
    let record = |change: &Change| match change.body {
        Body::Data(span) => DataHeader::record_length(span.length),
        Body::Same(_) | Body::Gone => DataHeader::record_length(0),
    };
    let records: u64 = changes.iter().map(record).sum();
    (TransactionHeader::LEN + texts + TRAILER) as u64 + records
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::Storage;
    use crate::storage::append::FileAppender;
    use crate::storage::open::{Options, open};
    use crate::storage::testing::Ask::{self, Check, Delete, Restore, Store, Undo};
    use crate::storage::testing::{Fault, FaultyDisk, Folder, carry_out, draft};

    /// Object 1 is at 20, object 2 was deleted at 30, object 3 is at 10; its data is `c`.
    fn past(folder: &Folder) -> (Arc<FileStorage>, FileAppender) {
        let (storage, mut appender) = folder.open().unwrap();
        let past: [(u64, &[Ask<'_>]); 3] = [
            (10, &[Store(1, 0, b"a"), Store(2, 0, b"b"), Store(3, 0, b"c")]),
            (20, &[Store(1, 10, b"aa"), Store(1, 10, b"aaa")]),
            (30, &[Delete(2, 10)]),
        ];
        for (tid, asked) in past {
            carry_out(&*storage, &mut appender, tid, draft(asked));
        }
        (storage, appender)
    }

    fn text(found: Result<Checked, StorageError>) -> String {
        let checked = match found {
            Ok(checked) => checked,
            Err(error) => return error.to_string(),
        };
        assert_eq!(checked.room.is_some(), checked.conflicts.is_empty());
        if checked.conflicts.is_empty() {
            let written = checked.changes.iter().map(|change| match change.body {
                Body::Data(span) => format!("{}:{}", change.oid.0, span.length),
                Body::Same(position) => format!("{}:@{position}", change.oid.0),
                Body::Gone => format!("{}:gone", change.oid.0),
            });
            return written.collect::<Vec<_>>().join(" ");
        }
        let lost = checked.conflicts.iter().map(|conflict| {
            let Conflict { oid, committed, read, data } = conflict;
            format!("lost {}:{} to {} at {}", oid.0, data.length, committed.0, read.0)
        });
        lost.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_operation_is_held_against_what_is_committed() {
        let folder = Folder::new();
        let (storage, _appender) = past(&folder);
        let oid = |oid: u64| Oid(oid).to_string();
        let tid = |tid: u64| Tid(tid).to_string();
        let rows: [(&[Ask<'_>], &str); 21] = [
            (&[], ""),
            (&[Store(1, 20, b"xx")], "1:2"),
            (&[Store(1, 10, b"xx")], "lost 1:2 to 20 at 10"),
            (&[Store(1, 0, b"xx")], "lost 1:2 to 20 at 0"),
            (&[Store(1, 99, b"xx")], "lost 1:2 to 20 at 99"),
            // A new object takes any serial, one that is gone only that of its end.
            (&[Store(9, 77, b"xx")], "9:2"),
            (&[Store(2, 30, b"xx")], "2:2"),
            (&[Store(2, 10, b"xx")], "lost 2:2 to 30 at 10"),
            // The client's second try, sent after the first one.
            (&[Store(1, 10, b"x"), Store(1, 20, b"xx")], "1:2"),
            (&[Store(1, 20, b"x"), Store(1, 10, b"xx")], "lost 1:2 to 20 at 10"),
            (&[Store(1, 10, b"x"), Store(1, 0, b"xx")], "lost 1:2 to 20 at 0"),
            (
                &[Store(3, 9, b"x"), Store(9, 0, b"x"), Store(1, 10, b"x")],
                "lost 1:1 to 20 at 10 lost 3:1 to 10 at 9",
            ),
            // As blobs do: two records.
            (&[Store(1, 20, b"x"), Store(1, 20, b"xx")], "1:1 1:2"),
            (&[Delete(1, 20), Check(1, 20)], "1:gone"),
            (&[Delete(2, 30)], "2:gone"),
            (&[Delete(1, 20), Store(1, 20, b"x"), Check(3, 10)], "1:gone 1:1"),
            (&[Restore(1, 15, Some(b"xx"), None), Restore(3, 40, None, None)], "1:2 3:gone"),
            (&[Delete(9, 0)], &format!("{} is not there", oid(9))),
            (&[Check(9, 0)], &format!("{} is not there", oid(9))),
            (&[Check(2, 30)], &format!("{} is not there", oid(2))),
            (
                &[Store(3, 9, b"x"), Check(1, 10)],
                &format!("{} was read at {} but changed at {}", oid(1), tid(10), tid(20)),
            ),
        ];
        for (asked, expected) in rows {
            for patience in [false, true] {
                let found = text(storage.check(&draft(asked), patience));
                assert_eq!(found, expected, "{asked:?}");
            }
        }
        let lost = storage.check(&draft(&[Delete(1, 10)]), true).unwrap_err();
        let expected =
            format!("{} was to be deleted at {} but changed at {}", oid(1), tid(10), tid(20));
        assert_eq!(lost.to_string(), expected);
    }

    #[test]
    fn a_restored_record_points_back_if_the_named_transaction_has_the_same() {
        let folder = Folder::new();
        let (storage, mut appender) = past(&folder);
        let first = storage.current().position(Oid(3)).unwrap();
        carry_out(&*storage, &mut appender, 40, draft(&[Store(3, 10, b"d")]));
        carry_out(&*storage, &mut appender, 50, draft(&[Undo(40)]));
        let (undone, second) =
            (storage.current().position(Oid(3)).unwrap(), storage.current().position(Oid(1)));
        let second = second.unwrap();
        let rows: [(Ask<'_>, &str); 8] = [
            (Restore(3, 60, Some(b"c"), Some(10)), &format!("3:@{first}")),
            (Restore(3, 60, Some(b"x"), Some(10)), "3:1"),
            (Restore(3, 60, Some(b"cc"), Some(10)), "3:2"),
            (Restore(3, 60, None, Some(10)), "3:gone"),
            // A back pointer is trusted.
            (Restore(3, 60, Some(b"c"), Some(50)), &format!("3:@{undone}")),
            // Of several records the last counts.
            (Restore(1, 60, Some(b"aaa"), Some(20)), &format!("1:@{second}")),
            (Restore(1, 60, Some(b"aa"), Some(20)), "1:2"),
            // The transaction has other objects.
            (Restore(3, 60, Some(b"c"), Some(20)), "3:1"),
        ];
        for (ask, expected) in rows {
            assert_eq!(text(storage.check(&draft(&[ask]), true)), expected, "{ask:?}");
            let hasty = storage.check(&draft(&[ask]), false);
            assert!(matches!(hasty, Err(StorageError::WouldWait)), "{ask:?}");
        }
        let unknown = storage.check(&draft(&[Restore(3, 60, Some(b"c"), Some(11))]), true);
        assert_eq!(unknown.unwrap_err().to_string(), undo::NO_TRANSACTION);
        let restored = storage.check(&draft(&[Restore(3, 60, Some(b"c"), None)]), true).unwrap();
        assert_eq!(restored.changes[0].serial, Some(Tid(60)), "it keeps its own tid");
    }

    #[test]
    fn without_patience_nothing_waits_for_the_disk() {
        let folder = Folder::new();
        drop(past(&folder));
        let (disk, machine) = FaultyDisk::machine();
        let (storage, _appender) = open(&machine, &folder.path(), &Options::default()).unwrap();
        disk.set(Fault::Cold);
        let rows: [&[Ask<'_>]; 3] = [&[Store(1, 20, b"x")], &[Check(1, 20)], &[Delete(1, 20)]];
        for asked in rows {
            let hasty = storage.check(&draft(asked), false);
            assert!(matches!(hasty, Err(StorageError::WouldWait)), "{asked:?}: {hasty:?}");
            assert!(storage.check(&draft(asked), true).is_ok());
        }
        // What is not in the index needs no read.
        assert!(storage.check(&draft(&[Store(9, 0, b"x")]), false).is_ok());
        disk.set(Fault::None);
        let many = vec![Store(9, 0, b"x"); OPERATIONS_IMPATIENT_MAX + 1];
        assert!(storage.check(&draft(&many[1..]), false).is_ok());
        let hasty = storage.check(&draft(&many), false);
        assert!(matches!(hasty, Err(StorageError::WouldWait)), "{hasty:?}");
        let hasty = storage.check(&draft(&[Undo(20)]), false);
        assert!(matches!(hasty, Err(StorageError::WouldWait)), "{hasty:?}");
    }

    #[test]
    fn a_vote_has_its_room_while_it_keeps_it() {
        let folder = Folder::new();
        drop(past(&folder));
        let end = std::fs::metadata(folder.path()).unwrap().len();
        let one = (TransactionHeader::LEN + DataHeader::LEN + 100 + TRAILER) as u64;
        let options = Options { quota: Some(end + 2 * one), ..Options::default() };
        let (storage, mut appender) = folder.open_with(&options).unwrap();
        let asked = draft(&[Store(9, 0, &[b'x'; 100])]);
        let first = storage.check(&asked, true).unwrap();
        let second = storage.check(&asked, false).unwrap();
        for patience in [false, true] {
            let third = storage.check(&asked, patience);
            assert!(matches!(third, Err(StorageError::Quota)), "{third:?}");
        }
        drop(first);
        assert!(storage.check(&asked, true).is_ok());
        drop(second);
        carry_out(&*storage, &mut appender, 60, asked);
        assert_eq!(storage.end(), end + one, "the room asked for is the room taken");
    }

    #[test]
    fn a_read_only_storage_takes_nothing() {
        let folder = Folder::new();
        drop(past(&folder));
        let options = Options { read_only: true, ..Options::default() };
        let (storage, _appender) = folder.open_with(&options).unwrap();
        let refused = storage.check(&draft(&[Store(9, 0, b"x")]), true);
        assert!(matches!(refused, Err(StorageError::ReadOnly)), "{refused:?}");
    }
}
