//! Walks over transactions, in both directions, and over the records of one.
//!
//! Each transaction says its length at both ends, so a walk can start at either end of the file and
//! needs nothing but a position. A cursor keeps the file's end of the moment when it was made:
//! transactions that come later are not its business.
//!
//! ```text
//!   FS30 | T1 ... n1 | T2 ... n2 | T3 ... n3 |
//!        4 --------->             <--------- end
//! ```

use std::sync::Arc;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::{DataHeader, FIRST, TransactionHeader, UNDONE};

use super::generation::Generation;
use super::{RecordCursor, RecordEntry, StorageError, TransactionCursor, TransactionEntry};

/// The transactions from `start` to `stop`: see [`super::Storage::transactions`].
pub fn transactions(storage: Arc<Generation>, start: Tid, stop: Tid) -> Box<dyn TransactionCursor> {
    let end = storage.end();
    Box::new(Transactions { storage, end, stop, next: Next::From(start), last: None })
}

/// The oids of the last transactions: see [`super::Storage::last_transactions`].
///
/// # Errors
///
/// [`StorageError::Corrupt`], [`StorageError::Read`].
pub fn last_transactions(
    storage: &Generation,
    count: usize,
) -> Result<Vec<(Tid, Vec<Oid>)>, StorageError> {
    let mut found = Vec::new();
    for transaction in backwards(storage).take(count) {
        let (position, header) = transaction?;
        if header.status == UNDONE {
            continue;
        }
        let (mut records, mut oids) = (Records::of(position, &header), Vec::new());
        while let Some((_, record)) = records.next(storage)? {
            oids.push(record.oid);
        }
        found.push((header.tid, oids));
    }
    found.reverse();
    Ok(found)
}

/// A walk over transactions. Holds positions only.
#[derive(Debug)]
struct Transactions {
    storage: Arc<Generation>,
    end: u64,
    stop: Tid,
    next: Next,
    /// The transaction that was last returned.
    last: Option<Records>,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    /// The first transaction that is not before this one.
    From(Tid),
    /// The transaction at this position.
    At(u64),
    /// There is none.
    Done,
}

impl TransactionCursor for Transactions {
    fn next_transaction(&mut self) -> Result<Option<TransactionEntry>, StorageError> {
        self.last = None;
        let mut position = match self.next {
            Next::From(start) => seek(&self.storage, start, self.end)?,
            Next::At(position) => position,
            Next::Done => self.end,
        };
        while position < self.end {
            let header = self.storage.transaction_at(position, true)?;
            if self.stop < header.tid {
                break;
            }
            let after = header.end(position);
            if header.status != UNDONE {
                let metadata = self.storage.metadata_at(position, &header, true)?;
                self.next = Next::At(after);
                self.last = Some(Records::of(position, &header));
                let (tid, status) = (header.tid, header.status);
                return Ok(Some(TransactionEntry { tid, status, metadata }));
            }
            position = after;
        }
        self.next = Next::Done;
        Ok(None)
    }

    fn records(&self) -> Box<dyn RecordCursor> {
        let records = self.last.unwrap_or(Records::NONE);
        Box::new(RecordsOfOne { storage: self.storage.clone(), records })
    }
}

/// The position of the first transaction that is not before `start`, or `end`.
///
/// Walks from the end of the file that is nearer in time. A tid is a time in its upper bits, so
/// their difference says which one that is, well enough.
fn seek(storage: &Generation, start: Tid, end: u64) -> Result<u64, StorageError> {
    let Some(last) = storage.transaction_before(end, true)? else {
        return Ok(end);
    };
    let (oldest, newest) =
        (storage.transaction_at(FIRST, true)?.tid, storage.transaction_at(last, true)?.tid);
    if start <= oldest {
        return Ok(FIRST);
    }
    if newest < start {
        return Ok(end);
    }
    if start.0 - oldest.0 < newest.0 - start.0 {
        let mut position = FIRST;
        while position < end {
            let header = storage.transaction_at(position, true)?;
            if start <= header.tid {
                break;
            }
            position = header.end(position);
        }
        return Ok(position);
    }
    let mut position = end;
    for transaction in Backwards::from(storage, end) {
        let (before, header) = transaction?;
        if header.tid < start {
            break;
        }
        position = before;
    }
    Ok(position)
}

/// A walk over the records of one transaction, for clients.
#[derive(Debug)]
struct RecordsOfOne {
    storage: Arc<Generation>,
    records: Records,
}

impl RecordCursor for RecordsOfOne {
    fn next_record(&mut self) -> Result<Option<RecordEntry>, StorageError> {
        let Some((position, header)) = self.records.next(&self.storage)? else {
            return Ok(None);
        };
        let data = self.storage.read_data(position, true)?.map(|data| data.bytes);
        // One hop, though the data may be further away: a copy restores each hop of its own.
        let data_tid = match header.back {
            0 => None,
            back => Some(self.storage.record_at(back, true)?.serial),
        };
        Ok(Some(RecordEntry { oid: header.oid, tid: header.serial, data, data_tid }))
    }
}

/// Where a walk over the records of one transaction is.
///
/// Invariant: `position <= trailer`
#[derive(Clone, Copy, Debug)]
pub(crate) struct Records {
    transaction: u64,
    position: u64,
    trailer: u64,
}

impl Records {
    /// No records.
    const NONE: Self = Self { transaction: 0, position: 0, trailer: 0 };

    /// The records of the transaction at a position, whose header was found to fit.
    pub(crate) fn of(position: u64, header: &TransactionHeader) -> Self {
        let first = position + header.head_length();
        Self { transaction: position, position: first, trailer: header.trailer(position) }
    }

    /// Position and header of the next record, or `None` past the last. Waits for the disk.
    ///
    /// # Errors
    ///
    /// [`StorageError::Corrupt`] if there is no record of this transaction, [`StorageError::Read`].
    /// The walk stays where it is.
    pub(crate) fn next(
        &mut self,
        storage: &Generation,
    ) -> Result<Option<(u64, DataHeader)>, StorageError> {
        let position = self.position;
        if position == self.trailer {
            return Ok(None);
        }
        let header = storage.record_at(position, true)?;
        let end = header.end(position);
        if header.transaction != self.transaction || self.trailer < end {
            let expected = "a record of this transaction";
            return Err(StorageError::Corrupt { position, expected });
        }
        self.position = end;
        Ok(Some((position, header)))
    }
}

/// Position and header of each published transaction, newest first. Ends after the first error.
pub(crate) fn backwards(storage: &Generation) -> Backwards<'_> {
    Backwards::from(storage, storage.end())
}

/// Position and header of the transaction with that id. Tids fall on the way from the file's end,
/// so the search is as long as the transaction is old.
pub(crate) fn find(
    storage: &Generation,
    tid: Tid,
) -> Result<Option<(u64, TransactionHeader)>, StorageError> {
    for transaction in backwards(storage) {
        let (position, header) = transaction?;
        if header.tid <= tid {
            return Ok(Some((position, header)).filter(|_| header.tid == tid));
        }
    }
    Ok(None)
}

/// See [`backwards`].
#[derive(Debug)]
pub(crate) struct Backwards<'a> {
    storage: &'a Generation,
    end: u64,
}

impl<'a> Backwards<'a> {
    fn from(storage: &'a Generation, end: u64) -> Self {
        Self { storage, end }
    }

    fn read(&self) -> Result<Option<(u64, TransactionHeader)>, StorageError> {
        let Some(position) = self.storage.transaction_before(self.end, true)? else {
            return Ok(None);
        };
        let header = self.storage.transaction_at(position, true)?;
        if header.end(position) != self.end {
            let expected = "the transaction length, repeated";
            return Err(StorageError::Corrupt { position: header.trailer(position), expected });
        }
        Ok(Some((position, header)))
    }
}

impl Iterator for Backwards<'_> {
    type Item = Result<(u64, TransactionHeader), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let transaction = self.read();
        self.end = match &transaction {
            Ok(Some((position, _))) => *position,
            Ok(None) | Err(_) => FIRST,
        };
        transaction.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Storage;
    use crate::storage::testing::{Folder, Write, commit, transaction};
    use crate::storage::{Appender, Metadata};

    fn tids(cursor: &mut dyn TransactionCursor) -> Vec<u64> {
        let next = || cursor.next_transaction().unwrap().map(|transaction| transaction.tid.0);
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_walk_has_both_its_ends_and_what_is_between() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        assert_eq!(tids(&mut *storage.transactions(Tid::ZERO, Tid::MAX)), []);
        assert_eq!(storage.last_transactions(3).unwrap(), []);
        // Unevenly, so that the nearer end of the file is now this one, now that one.
        let all = [2, 3, 4, 50, 60, 98, 99];
        for tid in all {
            commit(&mut appender, tid, &[(tid, Write::Data(b"data"))]);
        }
        for start in 0..=101 {
            for stop in 0..=101 {
                let expected: Vec<_> =
                    all.into_iter().filter(|tid| start <= *tid && *tid <= stop).collect();
                let mut cursor = storage.transactions(Tid(start), Tid(stop));
                assert_eq!(tids(&mut *cursor), expected, "{start} to {stop}");
                assert_eq!(cursor.next_transaction().unwrap(), None, "it stays at its end");
            }
        }
        for count in 0..=all.len() + 1 {
            let expected: Vec<_> = all.iter().map(|tid| (Tid(*tid), vec![Oid(*tid)])).collect();
            let from = all.len().saturating_sub(count);
            assert_eq!(storage.last_transactions(count).unwrap(), expected[from..]);
        }
    }

    #[test]
    fn a_walk_does_not_see_what_comes_after_its_start() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        commit(&mut appender, 10, &[]);
        let mut cursor = storage.transactions(Tid::ZERO, Tid::MAX);
        commit(&mut appender, 20, &[]);
        assert_eq!(tids(&mut *cursor), [10]);
        commit(&mut appender, 30, &[]);
        assert_eq!(tids(&mut *cursor), []);
    }

    #[test]
    fn records_are_what_was_written_and_a_back_pointer_is_followed_for_its_data() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        commit(&mut appender, 10, &[(1, Write::Data(b"one"))]);
        let one = storage.current().position(Oid(1)).unwrap();
        commit(&mut appender, 20, &[(1, Write::Same(one))]);
        let back = storage.current().position(Oid(1)).unwrap();
        commit(&mut appender, 30, &[(1, Write::Gone)]);
        let gone = storage.current().position(Oid(1)).unwrap();
        commit(&mut appender, 40, &[]);
        let mut last = transaction(
            Tid(50),
            &[(1, Write::Same(back)), (2, Write::Same(gone)), (2, Write::Data(b"two"))],
        );
        (last.draft.packed, last.draft.extension) = (true, "}.".into());
        last.changes[1].oid = Oid(1);
        last.changes[2].serial = Some(Tid(45));
        let last = [last];
        appender.write(&last).unwrap();
        appender.publish(&last);

        type Records<'a> = &'a [(u64, u64, Option<&'a str>, Option<u64>)];
        let rows: [(u64, u8, &str, Records<'_>); 5] = [
            (10, b' ', "", &[(1, 10, Some("one"), None)]),
            (20, b' ', "", &[(1, 20, Some("one"), Some(10))]),
            (30, b' ', "", &[(1, 30, None, None)]),
            (40, b' ', "", &[]),
            (
                50,
                b'p',
                "}.",
                &[
                    (1, 50, Some("one"), Some(20)),
                    (1, 50, None, Some(30)),
                    (2, 45, Some("two"), None),
                ],
            ),
        ];
        let mut cursor = storage.transactions(Tid::ZERO, Tid::MAX);
        assert_eq!(cursor.records().next_record().unwrap(), None, "there is no transaction yet");
        for (tid, status, extension, records) in rows {
            let metadata = Metadata {
                user: "user".into(),
                description: "what".into(),
                extension: extension.into(),
            };
            let expected = TransactionEntry { tid: Tid(tid), status, metadata };
            assert_eq!(cursor.next_transaction().unwrap(), Some(expected));
            let mut found = cursor.records();
            for (oid, tid, data, data_tid) in records {
                let expected = RecordEntry {
                    oid: Oid(*oid),
                    tid: Tid(*tid),
                    data: data.map(Into::into),
                    data_tid: data_tid.map(Tid),
                };
                assert_eq!(found.next_record().unwrap(), Some(expected), "in {tid}");
            }
            assert_eq!(found.next_record().unwrap(), None);
        }
        assert_eq!(cursor.next_transaction().unwrap(), None);
        assert_eq!(cursor.records().next_record().unwrap(), None);
        let oids: Vec<_> = storage.last_transactions(2).unwrap();
        assert_eq!(oids, [(Tid(40), vec![]), (Tid(50), vec![Oid(1), Oid(1), Oid(2)])]);
    }

    #[test]
    fn damage_ends_a_walk_with_an_error_and_never_with_a_panic() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        for tid in [10, 20, 30] {
            commit(&mut appender, tid, &[(1, Write::Data(b"data")), (2, Write::Gone)]);
        }
        let end = storage.end();
        appender.close().unwrap();
        let whole = std::fs::read(folder.path()).unwrap();
        let middle = whole.len() / 3..2 * whole.len() / 3;
        for at in middle {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                // The storage is open and has its index: the disk goes bad under it.
                std::fs::write(folder.path(), &bytes).unwrap();
                let mut cursor = storage.transactions(Tid(0), Tid(u64::MAX));
                while let Ok(Some(_)) = cursor.next_transaction() {
                    let mut records = cursor.records();
                    while let Ok(Some(_)) = records.next_record() {}
                }
                let _ = storage.transactions(Tid(29), Tid::MAX).next_transaction();
                let _ = storage.last_transactions(5);
                let _ = storage.undo_oids(Tid(10));
                let _ = storage.undo_log(0, 5, &|_| true, Tid::MAX);
                let _ = storage.history(Oid(1), 5, Tid::MAX);
                assert_eq!(storage.end(), end);
            }
        }
    }
}
