//! What tests of a FileStorage begin with: a folder, a file in it, and commits in one line.

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::{Access, Disk, DiskFile, Machine, RealDisk};

use super::append::FileAppender;
use super::file::FileStorage;
use super::load::Step;
use super::open::{OpenError, Options, open};
use super::{Appender, Body, Change, Checked, Commit, Loading, Revision, Storage, StorageError};
use crate::commit::draft::{Draft, Operation};

/// A data file in a folder that goes with it.
#[derive(Debug)]
pub(crate) struct Folder {
    pub(crate) temporary: tempfile::TempDir,
}

/// What a test writes under an oid.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Write<'a> {
    Data(&'a [u8]),
    Same(u64),
    Gone,
}

impl Folder {
    pub(crate) fn new() -> Self {
        Self { temporary: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.temporary.path().join("Data.fs")
    }

    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        super::paths::beside(&self.path(), suffix)
    }

    pub(crate) fn open(&self) -> Result<(Arc<FileStorage>, FileAppender), OpenError> {
        self.open_with(&Options::default())
    }

    pub(crate) fn open_with(
        &self,
        options: &Options,
    ) -> Result<(Arc<FileStorage>, FileAppender), OpenError> {
        open(&Machine::real(), &self.path(), options)
    }
}

/// A transaction that is ready to be written.
pub(crate) fn transaction(tid: Tid, writes: &[(u64, Write<'_>)]) -> Commit {
    let mut draft = Draft {
        user: Bytes::from_static(b"user"),
        description: Bytes::from_static(b"what"),
        ..Draft::default()
    };
    let changes = writes
        .iter()
        .map(|(oid, write)| Change {
            oid: Oid(*oid),
            serial: None,
            body: match write {
                Write::Data(data) => Body::Data(draft.spool.push(data).unwrap()),
                Write::Same(position) => Body::Same(*position),
                Write::Gone => Body::Gone,
            },
        })
        .collect();
    Commit { tid, draft, changes }
}

/// Writes and publishes one transaction.
pub(crate) fn commit(appender: &mut FileAppender, tid: u64, writes: &[(u64, Write<'_>)]) {
    let batch = [transaction(Tid(tid), writes)];
    appender.write(&batch).unwrap();
    appender.publish(&batch);
}

/// What a client asks for in a transaction: oids, serials and tids as numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask<'a> {
    Store(u64, u64, &'a [u8]),
    Delete(u64, u64),
    Check(u64, u64),
    Restore(u64, u64, Option<&'a [u8]>, Option<u64>),
    Undo(u64),
}

/// A transaction as a client builds it up.
pub(crate) fn draft(asked: &[Ask<'_>]) -> Draft {
    let mut draft = Draft::default();
    for ask in asked {
        let mut push = |data: &[u8]| draft.spool.push(data).unwrap();
        let operation = match *ask {
            Ask::Store(oid, serial, data) => {
                Operation::Store { oid: Oid(oid), serial: Tid(serial), data: push(data) }
            }
            Ask::Delete(oid, serial) => Operation::Delete { oid: Oid(oid), serial: Tid(serial) },
            Ask::Check(oid, serial) => Operation::Check { oid: Oid(oid), serial: Tid(serial) },
            Ask::Restore(oid, serial, data, previous) => Operation::Restore {
                oid: Oid(oid),
                serial: Tid(serial),
                data: data.map(push),
                previous: previous.map(Tid),
            },
            Ask::Undo(tid) => Operation::Undo { tid: Tid(tid) },
        };
        draft.operations.push(operation);
    }
    draft
}

/// Checks a transaction, writes and publishes it.
pub(crate) fn carry_out(
    storage: &dyn Storage,
    appender: &mut dyn Appender,
    tid: u64,
    draft: Draft,
) {
    let Checked { changes, conflicts, .. } = storage.check(&draft, true).unwrap();
    assert_eq!(conflicts, [], "in {tid}");
    let batch = [Commit { tid: Tid(tid), draft, changes }];
    appender.write(&batch).unwrap();
    appender.publish(&batch);
}

/// Loads as a patient reactor does.
pub(crate) fn load(
    storage: &FileStorage,
    oid: u64,
    before: Tid,
    visible: Tid,
) -> Result<Option<Revision>, StorageError> {
    let oid = Oid(oid);
    let mut walk = match storage.view().load(oid, before, visible) {
        Loading::Answer(answer) => return answer,
        Loading::Walk(walk) => walk,
    };
    loop {
        let want = walk.want();
        let mut bytes = vec![0; want.length];
        storage.current().read(want.position, &mut bytes, true)?;
        match walk.step(&bytes)? {
            Step::Read => {}
            Step::Found { data, serial, end } => {
                let data = Bytes::copy_from_slice(&bytes[data]);
                return Ok(Some(Revision { data, serial, end }));
            }
            Step::Absent => return Ok(None),
            Step::Gone => return Err(StorageError::UnknownObject { oid }),
        }
    }
}

/// What goes wrong in a [`FaultyDisk`], until it is set to something else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    None,
    /// Writes take half their bytes and fail.
    Write,
    Sync,
    /// Names are not made durable.
    Folder,
    /// Nothing can be reserved.
    Reserve,
    /// Nothing is in memory.
    Cold,
}

/// The real disk, but for a fault.
#[derive(Clone, Debug)]
pub(crate) struct FaultyDisk {
    pub(crate) fault: Arc<Mutex<Fault>>,
}

#[derive(Debug)]
struct FaultyFile {
    fault: Arc<Mutex<Fault>>,
    file: Arc<dyn DiskFile>,
}

impl FaultyDisk {
    pub(crate) fn machine() -> (Self, Machine) {
        let disk = Self { fault: Arc::new(Mutex::new(Fault::None)) };
        let machine = Machine { disk: Arc::new(disk.clone()), ..Machine::real() };
        (disk, machine)
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let file = RealDisk.open(path, access)?;
        Ok(Arc::new(FaultyFile { fault: self.fault.clone(), file }))
    }

    fn rename(&self, source: &Path, target: &Path) -> io::Result<()> {
        RealDisk.rename(source, target)
    }

    fn link(&self, source: &Path, target: &Path) -> io::Result<()> {
        RealDisk.link(source, target)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        RealDisk.exists(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        RealDisk.list(folder)
    }

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        RealDisk.make_folder(folder)
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        RealDisk.remove_folder(folder)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        if *self.fault.lock().unwrap() == Fault::Folder {
            return Err(io::Error::from_raw_os_error(5));
        }
        RealDisk.sync_folder(folder)
    }
}

impl FaultyFile {
    fn has(&self, fault: Fault) -> bool {
        *self.fault.lock().unwrap() == fault
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(buffer, position)
    }

    fn read_at_now(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        if self.has(Fault::Cold) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.file.read_at_now(buffer, position)
    }

    fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        if self.has(Fault::Write) {
            self.file.write_all_at(&bytes[..bytes.len() / 2], position)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.has(Fault::Sync) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_length(length)
    }

    fn reserve(&self, position: u64, length: u64) -> io::Result<()> {
        if self.has(Fault::Reserve) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.reserve(position, length)
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.file.try_lock()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
