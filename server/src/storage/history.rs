//! An object's revisions, newest first: its history, one of them, the current one.
//!
//! ```text
//!   index ---> | T5 | --previous--> | T3 | --previous--> | T1 |      later than `visible`: not there
//! ```
//!
//! Reads and waits for the disk, so none of the answers is for a reactor to ask for. Loads go
//! another way: see [`super::load`].

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::DataHeader;

use super::generation::Generation;
use super::{HistoryEntry, METADATA_BYTES_MAX, NextRecord, StorageError};

/// The data of exactly one revision: see [`super::Storage::load_serial`].
///
/// # Errors
///
/// [`StorageError::UnknownObject`] if there is no such revision, or the object is gone with it.
pub fn load_serial(
    storage: &Generation,
    oid: Oid,
    serial: Tid,
    visible: Tid,
) -> Result<Bytes, StorageError> {
    let unknown = StorageError::UnknownObject { oid };
    if visible < serial {
        return Err(unknown);
    }
    for revision in revisions(storage, oid, true) {
        let (position, header) = revision?;
        if header.serial == serial {
            return Ok(storage.read_data(position, true)?.ok_or(unknown)?.bytes);
        }
        // Serials fall along the chain: what is not passed yet is not to come.
        if header.serial < serial {
            break;
        }
    }
    Err(unknown)
}

/// The serial of the current revision: see [`super::Storage::serial`].
///
/// # Errors
///
/// [`StorageError::UnknownObject`] if the object is not there, or gone.
pub fn serial(storage: &Generation, oid: Oid, visible: Tid) -> Result<Tid, StorageError> {
    newest(storage, oid, visible)?
        .filter(|(_, header)| !header.is_gone())
        .map(|(_, header)| header.serial)
        .ok_or(StorageError::UnknownObject { oid })
}

/// The newest revisions, the ones that the object is gone with among them: see
/// [`super::Storage::history`].
///
/// # Errors
///
/// [`StorageError::UnknownObject`] if there never was such an object.
pub fn history(
    storage: &Generation,
    oid: Oid,
    count: usize,
    visible: Tid,
) -> Result<Vec<HistoryEntry>, StorageError> {
    let (mut entries, mut known, mut bytes) = (Vec::new(), false, 0);
    for revision in revisions(storage, oid, true) {
        let (_, header) = revision?;
        if visible < header.serial {
            continue;
        }
        known = true;
        if count <= entries.len() || METADATA_BYTES_MAX <= bytes {
            break;
        }
        let transaction = storage.transaction_at(header.transaction, true)?;
        let metadata = storage.metadata_at(header.transaction, &transaction, true)?;
        bytes += metadata.length();
        entries.push(HistoryEntry { tid: header.serial, size: header.length, metadata });
    }
    if known { Ok(entries) } else { Err(StorageError::UnknownObject { oid }) }
}

/// The object with the smallest oid that is at least `from`: see [`super::Storage::record_next`].
///
/// # Errors
///
/// [`StorageError::UnknownObject`] if that object is gone: a walk that meets one ends, as it does
/// in `record_iternext` of `ZODB/FileStorage/FileStorage.py`.
pub fn record_next(
    storage: &Generation,
    from: Oid,
    visible: Tid,
) -> Result<Option<NextRecord>, StorageError> {
    let Some((oid, position, serial)) = next_known(storage, Some(from), visible)? else {
        return Ok(None);
    };
    let data = storage.read_data(position, true)?.ok_or(StorageError::UnknownObject { oid })?;
    let after = oid.0.checked_add(1).map(Oid);
    // An oid promised here must be there when it is asked for, with the same `visible`.
    let next = next_known(storage, after, visible)?.map(|(oid, ..)| oid);
    Ok(Some(NextRecord { oid, serial, data: data.bytes, next }))
}

/// The next object with a visible revision, gone or not: oid, position and serial of its record.
fn next_known(
    storage: &Generation,
    mut from: Option<Oid>,
    visible: Tid,
) -> Result<Option<(Oid, u64, Tid)>, StorageError> {
    while let Some(oid) = from.and_then(|from| storage.next_oid(from)) {
        if let Some((position, header)) = newest(storage, oid, visible)? {
            return Ok(Some((oid, position, header.serial)));
        }
        from = oid.0.checked_add(1).map(Oid);
    }
    Ok(None)
}

/// Position and header of the newest record that is not later than `visible`.
fn newest(
    storage: &Generation,
    oid: Oid,
    visible: Tid,
) -> Result<Option<(u64, DataHeader)>, StorageError> {
    let known = |revision: &Result<(u64, DataHeader), StorageError>| {
        revision.as_ref().map_or(true, |(_, header)| header.serial <= visible)
    };
    revisions(storage, oid, true).find(known).transpose()
}

/// Position and header of each record of an object, newest first. Ends after the first error.
///
/// Nothing, if there never was such an object. Of a transaction that has several records of the
/// object, this is the last.
pub(crate) fn revisions(storage: &Generation, oid: Oid, patience: bool) -> Revisions<'_> {
    Revisions { storage, oid, patience, position: storage.position(oid).unwrap_or(0) }
}

/// See [`revisions`].
#[derive(Debug)]
pub(crate) struct Revisions<'a> {
    storage: &'a Generation,
    oid: Oid,
    patience: bool,
    /// Of the next record; 0 at the end.
    position: u64,
}

impl Revisions<'_> {
    fn read(&self, position: u64) -> Result<(u64, DataHeader), StorageError> {
        let header = self.storage.record_at(position, self.patience)?;
        if header.oid != self.oid {
            return Err(StorageError::Corrupt { position, expected: "a record of the object" });
        }
        Ok((position, header))
    }
}

impl Iterator for Revisions<'_> {
    type Item = Result<(u64, DataHeader), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let position = self.position;
        if position == 0 {
            return None;
        }
        let revision = self.read(position);
        self.position = revision.as_ref().map_or(0, |(_, header)| header.previous);
        Some(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Storage;
    use crate::storage::testing::{Folder, Write, commit};

    /// Object 1: one, two, one again, gone, five. Object 4 comes at 60, object 7 is gone.
    fn past(folder: &Folder) -> (std::sync::Arc<crate::storage::file::FileStorage>, impl Sized) {
        let (storage, mut appender) = folder.open().unwrap();
        commit(&mut appender, 10, &[(1, Write::Data(b"one"))]);
        let one = storage.current().position(Oid(1)).unwrap();
        commit(&mut appender, 20, &[(1, Write::Data(b"first")), (1, Write::Data(b"second"))]);
        commit(&mut appender, 30, &[(1, Write::Same(one)), (7, Write::Data(b"seven"))]);
        commit(&mut appender, 40, &[(1, Write::Gone), (7, Write::Gone)]);
        commit(&mut appender, 50, &[(1, Write::Data(b"five"))]);
        commit(&mut appender, 60, &[(4, Write::Data(b"four"))]);
        (storage, appender)
    }

    #[test]
    fn history_goes_from_the_newest_visible_revision_back() {
        let folder = Folder::new();
        let (storage, _appender) = past(&folder);
        let all = [(50, 4), (40, 0), (30, 0), (20, 6), (10, 3)];
        type Row<'a> = (usize, u64, &'a [(u64, u64)]);
        let rows: [Row<'_>; 6] = [
            (100, 100, &all),
            (usize::MAX, 100, &all),
            (1, 100, &all[..1]),
            (0, 100, &[]),
            (2, 40, &all[1..3]),
            (100, 10, &all[4..]),
        ];
        for (count, visible, expected) in rows {
            let found = storage.history(Oid(1), count, Tid(visible)).unwrap();
            let pairs: Vec<_> = found.iter().map(|entry| (entry.tid.0, entry.size)).collect();
            assert_eq!(pairs, expected, "{count} {visible}");
            assert!(found.iter().all(|entry| entry.metadata.user == "user"));
        }
        for (oid, visible) in [(1, 9), (4, 59), (9, 100)] {
            let found = storage.history(Oid(oid), 1, Tid(visible));
            assert!(matches!(found, Err(StorageError::UnknownObject { .. })), "{found:?}");
        }
    }

    #[test]
    fn a_serial_has_its_data_and_a_time_its_serial() {
        let folder = Folder::new();
        let (storage, _appender) = past(&folder);
        let rows = [
            (10, 100, Some("one")),
            (20, 100, Some("second")),
            (30, 100, Some("one")),
            (40, 100, None),
            (50, 100, Some("five")),
            (50, 49, None),
            (15, 100, None),
            (5, 100, None),
            (60, 100, None),
        ];
        for (serial, visible, expected) in rows {
            let found = storage.load_serial(Oid(1), Tid(serial), Tid(visible)).ok();
            let found = found.as_deref();
            assert_eq!(found, expected.map(str::as_bytes), "{serial} {visible}");
        }
        let rows = [
            (1, 100, Some(50)),
            (1, 49, None),
            (1, 39, Some(30)),
            (1, 9, None),
            (4, 59, None),
            (9, 100, None),
        ];
        for (oid, visible, expected) in rows {
            let found = storage.serial(Oid(oid), Tid(visible)).ok();
            assert_eq!(found, expected.map(Tid), "{oid} {visible}");
        }
    }

    #[test]
    fn a_walk_over_all_objects_is_promised_only_what_it_may_see() {
        let folder = Folder::new();
        let (storage, _appender) = past(&folder);
        type Next<'a> = Option<(u64, u64, &'a str, Option<u64>)>;
        let rows: [(u64, u64, Next<'_>); 6] = [
            (0, 100, Some((1, 50, "five", Some(4)))),
            (1, 59, Some((1, 50, "five", Some(7)))),
            (2, 35, Some((7, 30, "seven", None))),
            (2, 100, Some((4, 60, "four", Some(7)))),
            (8, 100, None),
            (0, 9, None),
        ];
        for (from, visible, expected) in rows {
            let found = storage.record_next(Oid(from), Tid(visible)).unwrap();
            let expected = expected.map(|(oid, serial, data, next)| NextRecord {
                oid: Oid(oid),
                serial: Tid(serial),
                data: Bytes::copy_from_slice(data.as_bytes()),
                next: next.map(Oid),
            });
            assert_eq!(found, expected, "{from} {visible}");
        }
        let gone = storage.record_next(Oid(5), Tid(100));
        assert!(matches!(gone, Err(StorageError::UnknownObject { oid: Oid(7) })), "{gone:?}");
    }
}
