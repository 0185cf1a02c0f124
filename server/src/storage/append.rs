//! The one writer of a data file: lays transactions out, writes, syncs, publishes.
//!
//! A batch is one write and one sync, however many transactions it holds. The status byte is final
//! from the start: a transaction that is torn by a crash was answered to nobody, and is cut off
//! when the file is opened again.
//!
//! Never tries again: after a failed write or sync the storage takes no more commits, as nobody can
//! know what the disk holds (a second `fdatasync` may succeed though the first one lost the data).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::{Builder, COMMITTED, PACKED};

use super::error::Verdict;
use super::file::FileStorage;
use super::generation::Generation;
use super::lockfile::LockFile;
use super::pack::Successor;
use super::{Appender, Body, Commit, Storage, StorageError, View};
use crate::log::{self, Severity, Source};

/// Bytes gathered before they are written: a batch that is longer takes several writes.
const PIECE: usize = 8 * 1024 * 1024;

/// Appends to the data file of a [`FileStorage`]. Lives on the commit thread.
#[derive(Debug)]
pub struct FileAppender {
    storage: Arc<FileStorage>,
    /// `None` for a storage that is read-only, and once closed.
    lock: Option<LockFile>,
    state: State,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// All that was written is published.
    Ready,
    /// A batch is durable and waits to be published.
    Written(Written),
    /// A write or a sync failed.
    Poisoned,
    /// Read-only, or closed.
    Closed,
}

/// What a batch changes in the index.
#[derive(Debug)]
struct Written {
    /// Behind the batch.
    end: u64,
    last: Tid,
    /// Where each object's current record will stand.
    positions: HashMap<Oid, u64>,
}

impl FileAppender {
    pub(super) fn new(storage: Arc<FileStorage>, lock: Option<LockFile>) -> Self {
        let state = if lock.is_some() { State::Ready } else { State::Closed };
        let appender = Self { storage, lock, state, buffer: Vec::new() };
        if matches!(appender.state, State::Ready) {
            appender.storage.reserve_ahead();
        }
        appender
    }

    fn append(&mut self, batch: &[Commit]) -> Result<Written, StorageError> {
        let start = self.storage.end();
        let generation = self.storage.current();
        let mut output = Output { generation: &generation, buffer: &mut self.buffer, at: start };
        let mut written =
            Written { end: start, last: self.storage.last_tid(), positions: HashMap::new() };
        output.buffer.clear();
        let laid_out = batch
            .iter()
            .try_for_each(|commit| output.transaction(commit, &mut written))
            .and_then(|()| output.flush());
        if let Err(source) = laid_out {
            // Nothing of the batch was synced or answered, and all before it was synced long ago,
            // so to cut it off loses nothing. It spares the client a transaction that it was told
            // had failed, if the disk still works; if it does not, the next open does the same.
            let cut = generation.file.set_length(start);
            log::event(
                Source::FILE_STORAGE,
                Severity::Error,
                "",
                format_args!(
                    "{}: write at {start} failed: {source}; cut off again: {cut:?}",
                    self.storage.path().display()
                ),
            );
            return Err(StorageError::Write { position: start, source });
        }
        // After a failed sync the file is left alone: whether the batch is on the disk cannot be
        // known, and the next open decides by reading it.
        generation
            .file
            .sync_data()
            .map_err(|source| StorageError::Write { position: start, source })?;
        Ok(written)
    }
}

impl Appender for FileAppender {
    fn write(&mut self, batch: &[Commit]) -> Result<(), StorageError> {
        match self.state {
            State::Ready => {}
            State::Poisoned => return Err(StorageError::Poisoned),
            State::Closed => return Err(StorageError::ReadOnly),
            State::Written(_) => panic!("a batch is published before the next is written"),
        }
        let result = self.append(batch);
        self.buffer.clear();
        // One huge object must not keep its memory for ever.
        self.buffer.shrink_to(PIECE);
        match result {
            Ok(written) => {
                self.state = State::Written(written);
                Ok(())
            }
            Err(error) => {
                self.state = State::Poisoned;
                Err(error)
            }
        }
    }

    fn publish(&mut self, batch: &[Commit]) {
        let State::Written(written) = std::mem::replace(&mut self.state, State::Ready) else {
            panic!("only what was written is published");
        };
        let last = batch.last().map_or(written.last, |commit| commit.tid);
        assert_eq!(last, written.last, "the batch published is the batch written");
        // In this order: what the index leads to can be read, and what is told about is in the
        // index.
        let generation = self.storage.current();
        generation.set_readable(written.end);
        for (oid, position) in written.positions {
            generation.index.set(oid, position);
            self.storage.note_oid(oid);
        }
        self.storage.set_published(written.end, last);
        self.storage.reserve_ahead();
    }

    fn succeed(&mut self, successor: Successor) -> Result<Arc<dyn View>, StorageError> {
        match self.state {
            State::Ready => {}
            State::Poisoned => return Err(StorageError::Poisoned),
            State::Closed => return Err(StorageError::ReadOnly),
            State::Written(_) => panic!("a batch is published before the next thing is done"),
        }
        let result = Self::put_in_place(&self.storage, successor);
        if result.as_ref().is_err_and(|error| error.verdict() == Verdict::Poison) {
            self.state = State::Poisoned;
        }
        result
    }

    fn close(&mut self) -> Result<(), StorageError> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        let state = std::mem::replace(&mut self.state, State::Closed);
        let cut = match state {
            // Gives back the space that was reserved behind the end.
            State::Ready => {
                let generation = self.storage.current();
                let position = generation.end();
                let cut = generation.file.set_length(position);
                cut.map_err(|source| StorageError::Write { position, source })
            }
            State::Written(_) | State::Poisoned | State::Closed => Ok(()),
        };
        let saved = self.storage.save_index();
        // The lock goes last: whoever has it finds a file that nobody writes.
        drop(lock);
        cut.and(saved)
    }
}

/// Bytes on their way into the file.
struct Output<'a> {
    generation: &'a Generation,
    buffer: &'a mut Vec<u8>,
    /// Where in the file the buffer's first byte goes.
    at: u64,
}

impl Output<'_> {
    fn transaction(&mut self, commit: &Commit, written: &mut Written) -> io::Result<()> {
        let Commit { tid, draft, changes } = commit;
        assert!(written.last < *tid, "the commit thread gives out rising ids");
        let start = written.end;
        let status = if draft.packed { PACKED } else { COMMITTED };
        let texts = [&draft.user[..], &draft.description[..], &draft.extension[..]];
        let lengths = changes.iter().map(|change| match change.body {
            Body::Data(span) => span.length,
            Body::Same(_) | Body::Gone => 0,
        });
        let mut builder = Builder::start(start, *tid, status, texts, lengths, self.buffer)
            .expect("the texts of a draft are at most 65,535 bytes long");
        let mut positions = Vec::with_capacity(changes.len());
        for change in changes {
            let serial = change.serial.unwrap_or(*tid);
            // Records of one transaction do not know of each other: all name the one before it.
            let previous = written.positions.get(&change.oid).copied();
            let previous = previous.or_else(|| self.generation.position(change.oid)).unwrap_or(0);
            let position = match change.body {
                Body::Data(span) if span.length != 0 => {
                    let position =
                        builder.data_head(change.oid, serial, previous, span.length, self.buffer);
                    draft.spool.read(span, self.buffer)?;
                    position
                }
                Body::Same(back) => builder.back(change.oid, serial, previous, back, self.buffer),
                // No pickle is empty: a record without any says that the object is gone.
                Body::Data(_) | Body::Gone => {
                    builder.back(change.oid, serial, previous, 0, self.buffer)
                }
            };
            positions.push((change.oid, position));
            if PIECE <= self.buffer.len() {
                self.flush()?;
            }
        }
        written.end = builder.finish(self.buffer);
        written.last = *tid;
        written.positions.extend(positions);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.generation.file.write_all_at(self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::open::{Options, open};
    use crate::storage::testing::{Fault, FaultyDisk, Folder, Write, commit, load, transaction};

    #[test]
    fn nobody_sees_a_batch_before_it_is_published() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        commit(&mut appender, 10, &[(1, Write::Data(b"old"))]);
        let end = storage.end();
        let batch = [
            transaction(Tid(20), &[(1, Write::Data(b"new")), (2, Write::Data(b"x"))]),
            transaction(Tid(30), &[(2, Write::Data(b"y"))]),
        ];
        appender.write(&batch).unwrap();
        assert_eq!((storage.end(), storage.last_tid(), storage.object_count()), (end, Tid(10), 1));
        assert_eq!(load(&storage, 1, Tid::MAX, Tid::MAX).unwrap().unwrap().serial, Tid(10));
        appender.publish(&batch);
        assert_eq!((storage.last_tid(), storage.object_count()), (Tid(30), 2));
        assert_eq!(load(&storage, 1, Tid(30), Tid::MAX).unwrap().unwrap().data, "new");
        assert_eq!(load(&storage, 2, Tid::MAX, Tid::MAX).unwrap().unwrap().data, "y");
        // Records of one batch, but of two transactions, are chained.
        assert_eq!(load(&storage, 2, Tid(30), Tid::MAX).unwrap().unwrap().data, "x");
    }

    #[test]
    fn of_an_oid_that_comes_twice_the_last_record_counts_and_both_name_the_one_before() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        commit(&mut appender, 10, &[(1, Write::Data(b"old"))]);
        let old = storage.current().position(Oid(1)).unwrap();
        commit(&mut appender, 20, &[(1, Write::Data(b"first")), (1, Write::Data(b"second"))]);
        let position = storage.current().position(Oid(1)).unwrap();
        let found = load(&storage, 1, Tid::MAX, Tid::MAX).unwrap().unwrap();
        assert_eq!((&found.data[..], found.serial), (b"second".as_slice(), Tid(20)));
        for position in [position, position - 42 - 5] {
            assert_eq!(storage.current().record_at(position, true).unwrap().previous, old);
        }
    }

    #[test]
    fn a_batch_longer_than_a_piece_is_written_whole() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        let big: Vec<Vec<u8>> = (0..5_u8).map(|n| vec![n; PIECE / 2 + usize::from(n)]).collect();
        let writes: Vec<_> = big.iter().zip(1..).map(|(b, oid)| (oid, Write::Data(b))).collect();
        commit(&mut appender, 10, &writes);
        appender.close().unwrap();
        drop((appender, storage));
        std::fs::remove_file(folder.beside(".index")).unwrap();
        let (storage, _appender) = folder.open().unwrap();
        for (data, oid) in big.iter().zip(1..) {
            assert_eq!(load(&storage, oid, Tid::MAX, Tid::MAX).unwrap().unwrap().data, data);
        }
    }

    #[test]
    fn close_gives_back_what_was_reserved_and_the_lock() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        commit(&mut appender, 10, &[(1, Write::Data(b"old"))]);
        assert!(folder.open().is_err(), "it is locked");
        appender.close().unwrap();
        let length = std::fs::metadata(folder.path()).unwrap().len();
        assert_eq!(length, storage.end());
        assert!(matches!(appender.write(&[]), Err(StorageError::ReadOnly)));
        folder.open().unwrap();
    }

    #[test]
    fn a_failed_write_is_cut_off_and_a_failed_sync_left_alone_and_both_end_all_commits() {
        for fault in [Fault::Write, Fault::Sync] {
            let folder = Folder::new();
            let (disk, machine) = FaultyDisk::machine();
            let (storage, mut appender) =
                open(&machine, &folder.path(), &Options::default()).unwrap();
            commit(&mut appender, 10, &[(1, Write::Data(b"old"))]);
            let good = storage.end();
            disk.set(fault);
            let batch = [transaction(Tid(20), &[(1, Write::Data(b"new"))])];
            let Err(error) = appender.write(&batch) else { panic!("{fault:?}") };
            assert_eq!(error.verdict(), Verdict::Poison);
            let length = std::fs::metadata(folder.path()).unwrap().len();
            assert_eq!(length == good, fault == Fault::Write);
            disk.set(Fault::None);
            assert!(matches!(appender.write(&batch), Err(StorageError::Poisoned)));
            assert_eq!((storage.last_tid(), storage.end()), (Tid(10), good));
            assert_eq!(load(&storage, 1, Tid::MAX, Tid::MAX).unwrap().unwrap().data, "old");
            appender.close().unwrap();
            assert_eq!(std::fs::metadata(folder.path()).unwrap().len(), length);
            // After a failed sync, what the file says decides.
            let (storage, _appender) = folder.open().unwrap();
            let expected = if fault == Fault::Write { Tid(10) } else { Tid(20) };
            assert_eq!(storage.last_tid(), expected, "{fault:?}");
        }
    }
}
