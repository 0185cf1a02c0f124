//! A data file and its index, as they are from one pack to the next.
//!
//! A pack puts another file, with another index, in the place of both. Whoever holds a generation
//! goes on in the old file and comes to the right end there: it holds all that was committed while
//! it was the current one, and positions that were read in it lead to what they always led to. What
//! is committed later is in the next generation only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::DiskFile;
use zeoring_shared::record::{Damage, DataHeader, TransactionHeader};

use super::index::Index;
use super::load::Walk;
use super::{Loading, Metadata, StorageError, View};

/// A data file and its index. Shared by all threads.
///
/// Invariant: published <= readable, and every position in the index is below `readable`.
#[derive(Debug)]
pub struct Generation {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) index: Index,
    /// Records before this position may be read: it rises before the index does.
    readable: AtomicU64,
    /// All records before this position are in the index: it rises after the index did.
    published: AtomicU64,
}

/// The pickles of a revision, wherever a back pointer led to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Data {
    /// The pickles.
    pub bytes: Bytes,
    /// The serial of the record that has them.
    pub serial: Tid,
    /// The position of the record that has them.
    pub position: u64,
}

impl Generation {
    /// A file whose transactions up to `end` are all in the index.
    pub(super) fn new(file: Arc<dyn DiskFile>, index: Index, end: u64) -> Self {
        Self { file, index, readable: AtomicU64::new(end), published: AtomicU64::new(end) }
    }

    /// Where the object's current record stands.
    pub fn position(&self, oid: Oid) -> Option<u64> {
        self.index.position(oid)
    }

    /// The smallest oid of an object that is at least `from`.
    pub fn next_oid(&self, from: Oid) -> Option<Oid> {
        self.index.next_at_or_after(from)
    }

    /// Behind the last published transaction.
    pub fn end(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Fills `buffer` from `position` of the data file.
    ///
    /// # Errors
    ///
    /// [`StorageError::Corrupt`] if that much was not published, [`StorageError::WouldWait`] if
    /// some of it is not in memory and `patience` is false, [`StorageError::Read`].
    pub fn read(
        &self,
        position: u64,
        buffer: &mut [u8],
        patience: bool,
    ) -> Result<(), StorageError> {
        let inside = position
            .checked_add(buffer.len() as u64)
            .is_some_and(|end| end <= self.readable.load(Ordering::Acquire));
        if !inside {
            let expected = "a position within the file";
            return Err(StorageError::Corrupt { position, expected });
        }
        let result = if patience {
            self.file.read_exact_at(buffer, position)
        } else {
            read_exact_now(&*self.file, buffer, position)
        };
        result.map_err(|source| match source.kind() {
            std::io::ErrorKind::WouldBlock => StorageError::WouldWait,
            _ => StorageError::Read { position, source },
        })
    }

    /// The data record at a position.
    ///
    /// # Errors
    ///
    /// As [`Generation::read`]; [`StorageError::Corrupt`] if the bytes are no record. That they
    /// are a record of some object is for the caller to check.
    pub fn record_at(&self, position: u64, patience: bool) -> Result<DataHeader, StorageError> {
        let mut bytes = [0; DataHeader::LEN_WITH_BACK];
        self.read(position, &mut bytes, patience)?;
        Ok(DataHeader::parse(&bytes, position)?)
    }

    /// The pickles of the record at a position, or of the one that its back pointers lead to.
    ///
    /// `None`: the object is gone with this record.
    ///
    /// # Errors
    ///
    /// As [`Generation::record_at`]; [`StorageError::Corrupt`] if a back pointer leads to another
    /// object.
    pub fn read_data(&self, position: u64, patience: bool) -> Result<Option<Data>, StorageError> {
        let (mut at, mut header) = (position, self.record_at(position, patience)?);
        while header.length == 0 {
            if header.back == 0 {
                return Ok(None);
            }
            let older = self.record_at(header.back, patience)?;
            if older.oid != header.oid {
                let expected = "a back pointer to the same object";
                return Err(StorageError::Corrupt { position: at, expected });
            }
            (at, header) = (header.back, older);
        }
        // Nothing is reserved for a length that the file does not have.
        let end = header.end(at);
        if self.readable.load(Ordering::Acquire) < end {
            let expected = "a record that ends within the file";
            return Err(StorageError::Corrupt { position: at, expected });
        }
        let mut bytes = vec![0; header.length as usize];
        self.read(at + DataHeader::LEN as u64, &mut bytes, patience)?;
        Ok(Some(Data { bytes: bytes.into(), serial: header.serial, position: at }))
    }

    /// The transaction at a position. Its lengths fit into the file.
    ///
    /// # Errors
    ///
    /// As [`Generation::read`]; [`StorageError::Corrupt`] if the bytes are no transaction.
    pub fn transaction_at(
        &self,
        position: u64,
        patience: bool,
    ) -> Result<TransactionHeader, StorageError> {
        let mut bytes = [0; TransactionHeader::LEN];
        self.read(position, &mut bytes, patience)?;
        let header = TransactionHeader::parse(&bytes, position)?;
        header.fits(position, self.readable.load(Ordering::Acquire))?;
        Ok(header)
    }

    /// User, description and extension of the transaction at a position.
    ///
    /// # Errors
    ///
    /// As [`Generation::read`].
    pub fn metadata_at(
        &self,
        position: u64,
        header: &TransactionHeader,
        patience: bool,
    ) -> Result<Metadata, StorageError> {
        let mut texts = vec![0; header.texts_length()];
        self.read(position + TransactionHeader::LEN as u64, &mut texts, patience)?;
        let mut texts = Bytes::from(texts);
        let user = texts.split_to(header.user.into());
        let description = texts.split_to(header.description.into());
        Ok(Metadata { user, description, extension: texts })
    }

    /// Where the transaction begins that ends at `end`, or `None` if `end` is the file's beginning.
    ///
    /// # Errors
    ///
    /// As [`Generation::read`]; [`StorageError::Corrupt`] if the length before `end` is none.
    pub fn transaction_before(
        &self,
        end: u64,
        patience: bool,
    ) -> Result<Option<u64>, StorageError> {
        use zeoring_shared::record::{FIRST, header::TRAILER};
        if end <= FIRST {
            return Ok(None);
        }
        let corrupt = StorageError::Corrupt {
            position: end.saturating_sub(TRAILER as u64),
            expected: "the transaction length, repeated",
        };
        let Some(trailer) = end.checked_sub(TRAILER as u64).filter(|at| FIRST <= *at) else {
            return Err(corrupt);
        };
        let mut bytes = [0; TRAILER];
        self.read(trailer, &mut bytes, patience)?;
        let start = trailer.checked_sub(u64::from_be_bytes(bytes));
        start.filter(|start| (FIRST..trailer).contains(start)).map(Some).ok_or(corrupt)
    }

    /// Makes records up to `end` readable. The index may lead to them next.
    pub(super) fn set_readable(&self, end: u64) {
        self.readable.store(end, Ordering::Release);
    }

    /// Says that the index knows all records before `end`.
    pub(super) fn set_published(&self, end: u64) {
        self.published.store(end, Ordering::Release);
    }
}

impl View for Generation {
    fn load(&self, oid: Oid, before: Tid, visible: Tid) -> Loading {
        match self.index.position(oid) {
            // The file's end is read after the position, and rose before it.
            Some(head) => Loading::Walk(Walk::new(
                oid,
                before,
                visible,
                head,
                self.readable.load(Ordering::Acquire),
            )),
            None => Loading::Answer(Err(StorageError::UnknownObject { oid })),
        }
    }

    fn data_file(&self) -> Option<Arc<dyn DiskFile>> {
        Some(self.file.clone())
    }
}

fn read_exact_now(file: &dyn DiskFile, buffer: &mut [u8], position: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at_now(&mut buffer[done..], position + done as u64) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl From<Damage> for StorageError {
    fn from(Damage { position, expected }: Damage) -> Self {
        Self::Corrupt { position, expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::open::{Options, open};
    use crate::storage::testing::{Fault, FaultyDisk, Folder, Write, commit};

    #[test]
    fn without_patience_what_is_not_in_memory_is_not_waited_for() {
        let folder = Folder::new();
        let (disk, machine) = FaultyDisk::machine();
        let (storage, mut appender) = open(&machine, &folder.path(), &Options::default()).unwrap();
        commit(&mut appender, 10, &[(1, Write::Data(b"data"))]);
        let position = storage.current().position(Oid(1)).unwrap();
        let expected = Data { bytes: Bytes::from_static(b"data"), serial: Tid(10), position };
        for (fault, patience, answers) in
            [(Fault::None, false, true), (Fault::Cold, true, true), (Fault::Cold, false, false)]
        {
            disk.set(fault);
            let found = storage.current().read_data(position, patience);
            if answers {
                assert_eq!(found.unwrap().as_ref(), Some(&expected));
            } else {
                assert!(matches!(found, Err(StorageError::WouldWait)), "{found:?}");
            }
        }
    }

    #[test]
    fn transactions_are_found_from_the_end_backwards() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        let mut borders = vec![storage.end()];
        for tid in 1..4 {
            commit(&mut appender, tid, &[(tid, Write::Data(b"data"))]);
            borders.push(storage.end());
        }
        for (tid, pair) in (1..4).zip(borders.windows(2)) {
            assert_eq!(storage.current().transaction_before(pair[1], true).unwrap(), Some(pair[0]));
            let header = storage.current().transaction_at(pair[0], true).unwrap();
            assert_eq!((header.tid, header.end(pair[0])), (Tid(tid), pair[1]));
            let metadata = storage.current().metadata_at(pair[0], &header, true).unwrap();
            assert_eq!((&metadata.user[..], &metadata.extension[..]), (&b"user"[..], &b""[..]));
        }
        assert_eq!(storage.current().transaction_before(borders[0], true).unwrap(), None);
        for position in [borders[1] + 1, 5, 11, storage.end() + 1, u64::MAX] {
            assert!(storage.current().transaction_before(position, true).is_err(), "{position}");
        }
    }
}
