//! `Data.fs.index`: the index as a file, so that a start need not read the whole data file.
//!
//! Python's FileStorage reads what we write and we read what it writes (`ZODB/fsIndex.py`): pickles
//! one after another, first the position up to which the index is complete, then for each prefix of
//! six bytes of oid a pair of the prefix and a bucket, then `None`. Positions have 48 bits.
//!
//! ```text
//!   80 03 M <position> .   80 03 ( C 6 <prefix>, B <length> <bucket> ) .   ...   80 03 N .
//!   bucket    n suffixes of 2 bytes, by rising oid, then n positions of 6 bytes
//! ```
//!
//! An older form, one pickled dictionary, is read too. Nothing here is believed: what was read is
//! checked against the data file in [`super::open`].

use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use zeoring_shared::ids::Oid;
use zeoring_shared::io::{Access, Disk, DiskFile};

use super::StorageError;
use super::file::{FileStorage, Saving};
use super::generation::Generation;
use super::paths::{beside, folder};

/// Positions from here on do not fit into an index file (256 TiB).
const POSITION_MAX: u64 = 1 << 48;

/// Oids of one bucket differ in these low bits only.
const SUFFIX_BITS: u32 = 16;

/// Bytes gathered before they are written.
const PIECE: usize = 1024 * 1024;

/// `Data.fs.index`.
pub fn path(data_file: &Path) -> PathBuf {
    beside(data_file, ".index")
}

impl FileStorage {
    /// Saves the index beside the data file, in place of the one that is there.
    ///
    /// May run on any thread while commits go on: what is saved is the index as it was at one
    /// published transaction's end. Does nothing if the storage is read-only.
    ///
    /// # Errors
    ///
    /// A read or a write failed; the index file of before is still there, or the new one whole.
    pub fn save_index(&self) -> Result<(), StorageError> {
        if self.is_read_only() {
            return Ok(());
        }
        let one_at_a_time = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        if *one_at_a_time == Saving::Never {
            return Ok(());
        }
        let generation = self.current();
        // The index knows all records before this position; of later ones it may know some.
        let end = generation.end();
        let entries = generation.index.iter().filter_map(|(oid, position)| {
            let found = generation.position_before(oid, position, end);
            found.map(|found| Some((oid, found?))).transpose()
        });
        save(&*self.machine.disk, &path(&self.path), end, entries)
    }
}

impl Generation {
    /// Goes back from a record to the object's newest before `end`; `None` if there is none.
    fn position_before(
        &self,
        oid: Oid,
        mut position: u64,
        end: u64,
    ) -> Result<Option<u64>, StorageError> {
        while end <= position {
            let header = self.record_at(position, true)?;
            if header.oid != oid {
                return Err(StorageError::Corrupt { position, expected: "a record of the object" });
            }
            position = header.previous;
        }
        Ok((position != 0).then_some(position))
    }
}

/// Writes an index file: entries by rising oid, complete up to `end` of the data file.
fn save(
    disk: &dyn Disk,
    path: &Path,
    end: u64,
    entries: impl Iterator<Item = Result<(Oid, u64), StorageError>>,
) -> Result<(), StorageError> {
    let temporary = beside(path, ".index_tmp");
    let failed = |source| StorageError::SaveIndex { source };
    let file = disk.open(&temporary, Access::Truncate).map_err(failed)?;
    let mut writer = Writer { file: &*file, written: 0, pending: Vec::with_capacity(PIECE) };
    pickle_position(end, &mut writer.pending);
    let mut bucket = Bucket::default();
    for entry in entries {
        let (oid, position) = entry?;
        if POSITION_MAX <= position {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        let prefix = oid.0 >> SUFFIX_BITS;
        if prefix != bucket.prefix {
            bucket.flush(&mut writer.pending);
            bucket.prefix = prefix;
            writer.flush_if_big().map_err(failed)?;
        }
        bucket.suffixes.extend_from_slice(&(oid.0 as u16).to_be_bytes());
        bucket.positions.extend_from_slice(&position.to_be_bytes()[2..]);
    }
    bucket.flush(&mut writer.pending);
    writer.pending.extend_from_slice(b"\x80\x03N.");
    writer.flush().map_err(failed)?;
    file.sync_data().map_err(failed)?;
    disk.rename(&temporary, path).map_err(failed)?;
    disk.sync_folder(folder(path)).map_err(failed)
}

struct Writer<'a> {
    file: &'a dyn DiskFile,
    written: u64,
    pending: Vec<u8>,
}

impl Writer<'_> {
    fn flush_if_big(&mut self) -> io::Result<()> {
        if self.pending.len() < PIECE { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.pending, self.written)?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}

#[derive(Default)]
struct Bucket {
    prefix: u64,
    suffixes: Vec<u8>,
    positions: Vec<u8>,
}

impl Bucket {
    fn flush(&mut self, out: &mut Vec<u8>) {
        if self.suffixes.is_empty() {
            return;
        }
        out.extend_from_slice(b"\x80\x03C\x06");
        out.extend_from_slice(&self.prefix.to_be_bytes()[2..]);
        // BINBYTES, whose length is little endian as in all pickles.
        out.push(b'B');
        let length = (self.suffixes.len() + self.positions.len()) as u32;
        out.extend_from_slice(&length.to_le_bytes());
        out.append(&mut self.suffixes);
        out.append(&mut self.positions);
        out.extend_from_slice(b"\x86.");
    }
}

fn pickle_position(position: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\x80\x03\x8a\x08");
    // LONG1: eight bytes are enough, as a position is below 2^63.
    out.extend_from_slice(&position.to_le_bytes());
    out.push(b'.');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use zeoring_shared::ids::Tid;
    use zeoring_shared::io::RealDisk;

    use super::*;
    use crate::storage::index_read;
    use crate::storage::testing::{Folder, Write, commit};
    use crate::storage::{Appender, Storage};

    fn read(path: &Path) -> (u64, Vec<(Oid, u64)>) {
        let loaded = index_read::load(RealDisk.open(path, Access::Read).unwrap()).unwrap();
        (loaded.end, loaded.index.iter().collect())
    }

    #[test]
    fn an_index_is_read_as_it_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let dense = (0..70_000).map(|oid| (Oid(oid), oid + 100));
        let far = [1 << 20, 1 << 33, 1 << 60, u64::MAX].map(|oid| (Oid(oid), 1 << 40));
        let entries: Vec<_> = dense.chain(far).collect();
        for end in [1_u64 << 41, POSITION_MAX, (1 << 62) - 1] {
            save(&RealDisk, &path, end, entries.iter().copied().map(Ok)).unwrap();
            assert_eq!(read(&path), (end, entries.clone()));
        }
        let far = [Ok((Oid(1), POSITION_MAX))].into_iter();
        assert!(matches!(save(&RealDisk, &path, 0, far), Err(StorageError::SaveIndex { .. })));
        assert_eq!(read(&path).1, entries, "what was saved before is still there");
    }

    #[test]
    fn what_is_saved_while_commits_go_on_is_the_index_of_one_moment() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        let stop = AtomicBool::new(false);
        let mut moments = BTreeMap::new();
        let transactions = thread::scope(|scope| {
            let committer = scope.spawn(|| {
                let mut tid = 0;
                while !stop.load(Ordering::Acquire) {
                    tid += 1;
                    // Some objects change each time, some come anew.
                    let oids = [1, 2, 3, 100 + tid, 100_000 * tid];
                    let writes: Vec<_> = oids.map(|oid| (oid, Write::Data(b"data"))).into();
                    commit(&mut appender, tid, &writes);
                }
                tid
            });
            while moments.len() < 30 {
                storage.save_index().unwrap();
                moments.extend([read(&path(&folder.path()))]);
            }
            stop.store(true, Ordering::Release);
            committer.join().unwrap()
        });
        // Every transaction has the same length, so an end tells how many there are before it.
        let length = (storage.end() - 4) / transactions;
        for (end, entries) in moments {
            let count = (end - 4) / length;
            let last = 4 + (count.max(1) - 1) * length;
            assert_eq!(entries.len() as u64, if count == 0 { 0 } else { 3 + 2 * count });
            for (oid, position) in entries {
                assert!(position < end, "{oid} at {position}, saved at {end}");
                assert_eq!(storage.current().record_at(position, true).unwrap().oid, oid);
                assert!(3 < oid.0 || last <= position, "{oid} is not the current one");
            }
        }
        assert_eq!(storage.last_tid(), Tid(transactions));
        appender.close().unwrap();
        assert_eq!(read(&path(&folder.path())).0, storage.end());
    }

    #[test]
    fn an_entry_past_the_end_is_walked_back() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        commit(&mut appender, 1, &[(1, Write::Data(b"one"))]);
        let (end, first) = (storage.end(), storage.current().position(Oid(1)).unwrap());
        commit(&mut appender, 2, &[(1, Write::Data(b"two")), (2, Write::Data(b"two"))]);
        commit(&mut appender, 3, &[(1, Write::Data(b"three")), (2, Write::Data(b"three"))]);
        let back = |oid| {
            let position = storage.current().position(Oid(oid)).unwrap();
            storage.current().position_before(Oid(oid), position, end).unwrap()
        };
        assert_eq!((back(1), back(2)), (Some(first), None));
    }
}
