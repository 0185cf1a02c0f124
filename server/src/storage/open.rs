//! Opens a data file: lock, index, the transactions behind the index, and whether all is well.
//!
//! Every way that this can go wrong ends in an [`OpenError`] that names the file and the remedy. A
//! file is changed only to cut off a transaction that was never finished, and made only where
//! nothing speaks of one that should be there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeoring_shared::ids::Tid;
use zeoring_shared::io::{Access, DiskFile, Machine};
use zeoring_shared::record::{Damage, FIRST, MAGIC};

use super::append::FileAppender;
use super::file::{FileStorage, Opened};
use super::index::Index;
use super::index_read::{self, Loaded};
use super::lockfile::{LockError, LockFile};
use super::pack::Blobs;
use super::paths::{beside, folder};
use super::recover::{self, Proof, Rest};
use super::{StorageError, index_file};
use crate::log::{self, Severity, Source};

/// How far in the future the last transaction may be. Clocks of one site differ by less, and every
/// later tid would be as wrong.
const FUTURE_MAX: Duration = Duration::from_secs(60 * 60);

/// How a data file is packed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packing {
    /// A pack also removes objects that nothing refers to.
    pub gc: bool,
    /// A pack keeps the file as it was before, as `.old`.
    pub keep_old: bool,
    /// The blobs that are packed along.
    pub blobs: Option<Blobs>,
}

impl Default for Packing {
    /// As ZODB does it.
    fn default() -> Self {
        Self { gc: true, keep_old: true, blobs: None }
    }
}

/// How to open a data file.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Start with an empty database, in place of the one that is there.
    pub create: bool,
    /// Only read: no lock is taken and no file is changed or made.
    pub read_only: bool,
    /// The size past which the data file must not grow, in bytes.
    pub quota: Option<u64>,
    /// Open a file whose last transaction is far in the future, as a clock set wrong leaves it.
    pub future_allowed: bool,
    /// How it is packed.
    pub packing: Packing,
}

/// A data file cannot be opened. Says which one, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the lock.
    #[error(
        "{}: in use by process {holder}, which holds its .lock file; stop that process, or open \
         another file", path.display()
    )]
    Locked {
        /// The data file.
        path: PathBuf,
        /// What the lock file says about the other process.
        holder: String,
    },
    /// A file could not be opened, read or written.
    #[error(
        "{}: {doing} failed: {source}; check that the file is there and may be used",
        path.display()
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no data file, or an empty one, but something that only a database leaves.
    #[error(
        "{}: missing or empty, but {} is there, so there was a database; put the data file back, \
         or move that file away to start with an empty database", path.display(), leftover.display()
    )]
    Leftover {
        /// The data file.
        path: PathBuf,
        /// What is there.
        leftover: PathBuf,
    },
    /// The file begins otherwise.
    #[error(
        "{}: not a data file of ZODB on Python 3, which begins with FS30; a file of Python 2 \
         begins with FS21 and is converted by zodbupdate", path.display()
    )]
    Format {
        /// The data file.
        path: PathBuf,
    },
    /// There is damage that a crash does not explain.
    #[error(
        "{}: damaged at {}: expected {}; nothing was cut off, as {proof}; restore the file \
         from a backup, or recover what is left with ZODB's fsrecover",
        path.display(), damage.position, damage.expected
    )]
    Damaged {
        /// The data file.
        path: PathBuf,
        /// Where, and what should have been there.
        damage: Damage,
        /// What shows that a crash does not explain it.
        proof: Proof,
    },
    /// The last transaction is too far in the future.
    #[error(
        "{}: the last transaction, {tid}, is {seconds} s in the future, and every later one would \
         be too; set the clock right, or allow it if the clock was wrong before", path.display()
    )]
    Future {
        /// The data file.
        path: PathBuf,
        /// The last transaction.
        tid: Tid,
        /// How far.
        seconds: u64,
    },
    /// The options contradict each other.
    #[error("{}: a file that is opened read-only cannot be created; choose one", path.display())]
    Options {
        /// The data file.
        path: PathBuf,
    },
}

/// Opens the data file at `path`, or makes it.
///
/// The storage is for all threads, the appender for the commit thread. A read-only storage's
/// appender refuses to write.
///
/// # Errors
///
/// [`OpenError`]. Nothing was changed, but for the lock file and an unfinished transaction.
pub fn open(
    machine: &Machine,
    path: &Path,
    options: &Options,
) -> Result<(Arc<FileStorage>, FileAppender), OpenError> {
    if options.read_only && options.create {
        return Err(OpenError::Options { path: path.into() });
    }
    let opening = Opening { machine, path, options };
    let lock = if options.read_only { None } else { Some(opening.lock()?) };
    let file = opening.data_file()?;
    let size = file.length().map_err(opening.failed("stat"))?;
    let start = opening.start(&file, size)?;
    let whole_scan = start.end == FIRST;
    let scanned = recover::scan(&file, size, start.end, start.last, &start.index)
        .map_err(|error| opening.read_failed(error))?;
    if let Some(rest) = scanned.rest {
        opening.cut_off(&*file, scanned.end, size, &rest)?;
    }
    opening.check_clock(scanned.last)?;
    if !options.read_only {
        opening.tidy();
    }
    let storage = FileStorage::new(Opened {
        machine: machine.clone(),
        path: path.into(),
        file,
        index: start.index,
        packing: options.packing.clone(),
        quota: options.quota,
        read_only: options.read_only,
        end: scanned.end,
        last: scanned.last,
    });
    if whole_scan && let Err(error) = storage.save_index() {
        log::event(
            Source::FILE_STORAGE,
            Severity::Warning,
            "",
            format_args!("{}: {error}", path.display()),
        );
    }
    let appender = FileAppender::new(storage.clone(), lock);
    Ok((storage, appender))
}

struct Opening<'a> {
    machine: &'a Machine,
    path: &'a Path,
    options: &'a Options,
}

/// Where the scan begins.
struct Start {
    index: Index,
    end: u64,
    last: Tid,
}

impl Opening<'_> {
    fn failed(&self, doing: &'static str) -> impl Fn(io::Error) -> OpenError + use<> {
        let path = self.path.to_owned();
        move |source| OpenError::Io { path: path.clone(), doing, source }
    }

    fn read_failed(&self, error: StorageError) -> OpenError {
        let source = match error {
            StorageError::Read { source, .. } => source,
            other => io::Error::other(other),
        };
        self.failed("read")(source)
    }

    fn lock(&self) -> Result<LockFile, OpenError> {
        LockFile::take(&*self.machine.disk, self.path).map_err(|error| match error {
            LockError::Taken(holder) => OpenError::Locked { path: self.path.into(), holder },
            LockError::Io(source) => {
                let path = super::lockfile::path(self.path);
                OpenError::Io { path, doing: "lock", source }
            }
        })
    }

    /// Opens the data file. One that is missing or empty is made, if it may be.
    fn data_file(&self) -> Result<Arc<dyn DiskFile>, OpenError> {
        let disk = &*self.machine.disk;
        if self.options.read_only {
            let file = disk.open(self.path, Access::Read).map_err(self.failed("open"))?;
            let size = file.length().map_err(self.failed("stat"))?;
            if size != 0 {
                self.check_magic(&*file)?;
            }
            return Ok(file);
        }
        if self.options.create {
            let file = disk.open(self.path, Access::Truncate).map_err(self.failed("create"))?;
            let index = index_file::path(self.path);
            if disk.exists(&index).map_err(self.failed("stat"))? {
                disk.remove(&index).map_err(self.failed("removal of the index"))?;
            }
            self.begin(&*file)?;
            return Ok(file);
        }
        if disk.exists(self.path).map_err(self.failed("stat"))? {
            let file = disk.open(self.path, Access::Write).map_err(self.failed("open"))?;
            let size = file.length().map_err(self.failed("stat"))?;
            if FIRST < size {
                self.check_magic(&*file)?;
                return Ok(file);
            }
            self.check_leftovers(size == FIRST)?;
            if size == FIRST {
                self.check_magic(&*file)?;
            } else {
                // A file that was just being made when the power went.
                self.begin(&*file)?;
            }
            return Ok(file);
        }
        self.check_leftovers(false)?;
        let file = disk.open(self.path, Access::Create).map_err(self.failed("create"))?;
        self.begin(&*file)?;
        Ok(file)
    }

    /// Writes what an empty database is made of.
    fn begin(&self, file: &dyn DiskFile) -> Result<(), OpenError> {
        file.write_all_at(&MAGIC, 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| self.machine.disk.sync_folder(folder(self.path)))
            .map_err(self.failed("write"))
    }

    fn check_magic(&self, file: &dyn DiskFile) -> Result<(), OpenError> {
        let mut magic = [0; MAGIC.len()];
        match file.read_exact_at(&mut magic, 0) {
            Ok(()) if magic == MAGIC => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(self.failed("read")(error))
            }
            _ => Err(OpenError::Format { path: self.path.into() }),
        }
    }

    /// Refuses to begin a database where one has been. A data file that is well-formed and empty
    /// may have a packed one beside it, but no index of objects.
    fn check_leftovers(&self, well_formed: bool) -> Result<(), OpenError> {
        let disk = &*self.machine.disk;
        let mut suspects = Vec::new();
        if !well_formed {
            suspects.extend([beside(self.path, ".old"), beside(self.path, ".pack")]);
        }
        let index = index_file::path(self.path);
        if let Some(file) = self.open_index()? {
            let of_nothing = match index_read::load(file.clone()) {
                Ok(Loaded { end, .. }) => end <= FIRST,
                Err(_) => file.length().map_err(self.failed("stat"))? == 0,
            };
            if !of_nothing {
                suspects.push(index);
            }
        }
        for leftover in suspects {
            if disk.exists(&leftover).map_err(self.failed("stat"))? {
                return Err(OpenError::Leftover { path: self.path.into(), leftover });
            }
        }
        Ok(())
    }

    fn open_index(&self) -> Result<Option<Arc<dyn DiskFile>>, OpenError> {
        match self.machine.disk.open(&index_file::path(self.path), Access::Read) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => {
                let path = index_file::path(self.path);
                Err(OpenError::Io { path, doing: "open", source })
            }
        }
    }

    /// Where to begin to scan: behind what a good index file knows, or at the first transaction.
    fn start(&self, file: &Arc<dyn DiskFile>, size: u64) -> Result<Start, OpenError> {
        if let Some(index_file) = self.open_index()? {
            match index_read::load(index_file) {
                // The index of an empty database saves no reading.
                Ok(Loaded { end, .. }) if end <= FIRST => {}
                Ok(Loaded { index, end }) => {
                    let last = recover::last_transaction(file, size, end, &index)
                        .map_err(|error| self.read_failed(error))?;
                    if let Some(last) = last {
                        return Ok(Start { index, end, last });
                    }
                    log::event(
                        Source::FILE_STORAGE,
                        Severity::Warning,
                        "",
                        format_args!(
                            "{}.index does not fit the file; reading all",
                            self.path.display()
                        ),
                    );
                }
                Err(error) => {
                    log::event(
                        Source::FILE_STORAGE,
                        Severity::Warning,
                        "",
                        format_args!(
                            "{}.index is of no use: {error}; reading all",
                            self.path.display()
                        ),
                    );
                }
            }
        }
        Ok(Start { index: Index::default(), end: FIRST.min(size), last: Tid::ZERO })
    }

    /// Cuts off a bad end, or refuses if it is damage in the middle.
    fn cut_off(
        &self,
        file: &dyn DiskFile,
        end: u64,
        size: u64,
        rest: &Rest,
    ) -> Result<(), OpenError> {
        let Rest { damage, proof } = *rest;
        if let Some(proof) = proof {
            return Err(OpenError::Damaged { path: self.path.into(), damage, proof });
        }
        let Damage { position, expected } = damage;
        let path = self.path.display();
        if self.options.read_only {
            log::event(
                Source::FILE_STORAGE,
                Severity::Warning,
                "",
                format_args!(
                    "{path}: the last {} bytes are not read: expected {expected} at {position}",
                    size - end
                ),
            );
            return Ok(());
        }
        let disk = &*self.machine.disk;
        let saved = recover::save_and_cut(disk, file, self.path, end, size)
            .map_err(self.failed("cutting off an unfinished transaction"))?;
        log::event(
            Source::FILE_STORAGE,
            Severity::Warning,
            "",
            format_args!(
                "{path}: expected {expected} at {position}; the last {} bytes, of a transaction that \
             was never finished, are now in {}",
                size - end,
                saved.display()
            ),
        );
        Ok(())
    }

    /// Removes what a pack has left that was cut short. The data file is there, so no pack has
    /// put this in its place.
    fn tidy(&self) {
        let pack = beside(self.path, ".pack");
        let disk = &*self.machine.disk;
        if disk.exists(&pack).is_ok_and(|there| there) {
            let removed = disk.remove(&pack);
            let text = format_args!("{}: left by a pack; removed: {removed:?}", pack.display());
            log::event(Source::FILE_STORAGE, Severity::Warning, "", text);
        }
    }

    fn check_clock(&self, last: Tid) -> Result<(), OpenError> {
        let now = self.machine.clock.since_1970();
        if last <= Tid::at(now) {
            return Ok(());
        }
        let seconds = (last.seconds_since_1970() - now.as_secs_f64()) as u64;
        let path = self.path.display();
        // Who only reads gives out no tids.
        let allowed = self.options.future_allowed || self.options.read_only;
        if Tid::at(now + FUTURE_MAX) < last && !allowed {
            return Err(OpenError::Future { path: self.path.into(), tid: last, seconds });
        }
        log::event(
            Source::FILE_STORAGE,
            Severity::Warning,
            "",
            format_args!("{path}: the last transaction, {last}, is {seconds} s in the future"),
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use zeoring_shared::ids::Oid;

    use super::*;
    use crate::storage::testing::{Folder, Write, commit, load};
    use crate::storage::{Appender, Storage};

    #[test]
    fn a_new_file_is_an_empty_database_and_stays_one() {
        let folder = Folder::new();
        for _ in 0..2 {
            let (storage, mut appender) = folder.open().unwrap();
            let state = (storage.end(), storage.last_tid(), storage.object_count());
            assert_eq!(state, (FIRST, Tid::ZERO, 0));
            assert_eq!(storage.new_oids(2).unwrap(), [Oid(1), Oid(2)]);
            appender.close().unwrap();
            assert_eq!(fs::read(folder.path()).unwrap(), MAGIC);
        }
        let pid = format!(" {}\n", std::process::id());
        assert_eq!(fs::read_to_string(folder.beside(".lock")).unwrap(), pid);
    }

    #[test]
    fn what_was_committed_is_there_after_a_close_and_after_a_kill() {
        let folder = Folder::new();
        for (round, closes) in [(1, true), (2, false), (3, false), (4, true), (5, true)] {
            let (storage, mut appender) = folder.open().unwrap();
            assert_eq!((storage.last_tid(), storage.object_count()), (Tid(round - 1), round - 1));
            for oid in 1..round {
                let found = load(&storage, oid, Tid::MAX, Tid::MAX).unwrap().unwrap();
                assert_eq!((&found.data[..], found.serial), (b"data".as_slice(), Tid(oid)));
            }
            assert_eq!(storage.new_oids(1).unwrap(), [Oid(round)]);
            commit(&mut appender, round, &[(round, Write::Data(b"data"))]);
            if closes {
                appender.close().unwrap();
            }
        }
    }

    #[test]
    fn an_index_that_does_not_fit_the_file_is_not_used() {
        let folder = Folder::new();
        let (_, mut appender) = folder.open().unwrap();
        for tid in 1..9 {
            commit(&mut appender, tid, &[(tid, Write::Data(&[7; 50])), (0, Write::Data(b"root"))]);
        }
        appender.close().unwrap();
        drop(appender);
        let good = fs::read(folder.beside(".index")).unwrap();
        let mut rows: Vec<Vec<u8>> = (0..good.len()).map(|cut| good[..cut].to_vec()).collect();
        for at in 0..good.len() {
            let mut index = good.clone();
            index[at] ^= 0x10;
            rows.push(index);
        }
        for index in rows {
            fs::write(folder.beside(".index"), &index).unwrap();
            let (storage, _appender) = folder.open().unwrap();
            assert_eq!((storage.last_tid(), storage.end()), (Tid(8), folder_length(&folder)));
            // A wrong position is an error of that object, never another object's data.
            for oid in 0..9 {
                let Ok(Some(found)) = load(&storage, oid, Tid::MAX, Tid::MAX) else { continue };
                assert_eq!(found.data.len(), if oid == 0 { 4 } else { 50 });
            }
        }
    }

    fn folder_length(folder: &Folder) -> u64 {
        fs::metadata(folder.path()).unwrap().len()
    }

    #[test]
    fn no_database_is_made_where_one_has_been() {
        let whole = Folder::new();
        let (_, mut appender) = whole.open().unwrap();
        commit(&mut appender, 1, &[(1, Write::Data(b"data"))]);
        appender.close().unwrap();
        let index = fs::read(whole.beside(".index")).unwrap();
        let old = fs::read(whole.path()).unwrap();
        let empty_index = b"\x80\x03K\x04.\x80\x03N.";

        type Row<'a> = (Option<&'a [u8]>, &'a str, &'a [u8], bool);
        let rows: [Row<'_>; 11] = [
            (None, ".old", &old, false),
            (None, ".pack", b"", false),
            (None, ".index", &index, false),
            (None, ".index", b"garbage", false),
            (None, ".index", b"", true),
            (None, ".index", empty_index, true),
            (None, ".tr0", b"torn", true),
            (Some(b""), ".old", &old, false),
            (Some(b"FS"), ".index", &index, false),
            (Some(b"FS30"), ".old", &old, true),
            (Some(b"FS30"), ".index", &index, false),
        ];
        for (data, suffix, leftover, opens) in rows {
            let folder = Folder::new();
            if let Some(data) = data {
                fs::write(folder.path(), data).unwrap();
            }
            fs::write(folder.beside(suffix), leftover).unwrap();
            let result = folder.open();
            let what = format!("{data:?} beside {suffix}");
            if opens {
                assert_eq!(result.unwrap().0.object_count(), 0, "{what}");
                continue;
            }
            let Err(OpenError::Leftover { leftover: found, .. }) = result else {
                panic!("{what} is refused")
            };
            assert_eq!(found, folder.beside(suffix));
            assert_eq!(fs::read(folder.path()).ok().as_deref(), data, "{what} is left alone");
        }
    }

    #[test]
    fn create_replaces_what_is_there() {
        let folder = Folder::new();
        let (_, mut appender) = folder.open().unwrap();
        commit(&mut appender, 1, &[(1, Write::Data(b"data"))]);
        appender.close().unwrap();
        drop(appender);
        let options = Options { create: true, ..Default::default() };
        let (storage, _appender) = folder.open_with(&options).unwrap();
        assert_eq!((storage.end(), storage.object_count()), (FIRST, 0));
    }

    #[test]
    fn what_cannot_be_opened_says_why() {
        let read_only = Options { read_only: true, ..Default::default() };
        let folder = Folder::new();
        let missing = folder.open_with(&read_only);
        assert!(matches!(missing, Err(OpenError::Io { doing: "open", .. })));
        assert!(!folder.path().exists());
        for content in [b"FS21".as_slice(), b"FS21 and more", b"something else"] {
            fs::write(folder.path(), content).unwrap();
            assert!(matches!(folder.open(), Err(OpenError::Format { .. })), "{content:?}");
            assert_eq!(fs::read(folder.path()).unwrap(), content);
        }
        fs::remove_file(folder.path()).unwrap();
        let (_storage, mut appender) = folder.open().unwrap();
        let Err(error @ OpenError::Locked { .. }) = folder.open() else { panic!("it is locked") };
        let text = error.to_string();
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        assert!(text.contains("Data.fs"), "{text}");

        let ahead = |hours: u32| Machine::real().clock.since_1970() + FUTURE_MAX * hours;
        commit(&mut appender, Tid::at(ahead(1)).0 - (1 << 32), &[]);
        appender.close().unwrap();
        let (_storage, mut appender) = folder.open().unwrap();
        commit(&mut appender, Tid::at(ahead(2)).0, &[]);
        appender.close().unwrap();
        assert!(matches!(folder.open(), Err(OpenError::Future { .. })));
        let allowed = Options { future_allowed: true, ..Default::default() };
        for options in [allowed, read_only] {
            folder.open_with(&options).unwrap();
        }
    }
}
