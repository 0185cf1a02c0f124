//! The blobs of revisions that a pack has dropped: noted while it copies, removed after the switch.
//!
//! The list is `.removed` in the blob folder, as Python's FileStorage writes it: a line for each
//! revision, 16 bytes in hexadecimal, oid and tid. A file is only removed if the storage has no such
//! revision, so a list that a crash has left is as good as any, and is seen to by the next pack. Of
//! an object that is gone all files go, those too that aborted transactions have left.
//!
//! ```text
//!   bushy   0x00/0x00/0x00/0x00/0x00/0x00/0x12/0x34/0x03fb11ca0d2c9d55.blob
//!   lawn    0x1234/0x03fb11ca0d2c9d55.blob
//! ```
//!
//! Nothing here fails a pack: a blob too many is a matter for the log.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::{Access, Disk, DiskFile};

use super::output::failed;
use crate::log::{self, Severity, Source};
use crate::storage::file::FileStorage;
use crate::storage::paths::beside;
use crate::storage::window::Window;
use crate::storage::{Storage, StorageError, history};

/// Where the blobs of a storage are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Blobs {
    /// Their folder.
    pub folder: PathBuf,
    /// Whether removed ones are kept in a folder beside it, `.old`.
    pub keep_old: bool,
}

/// Bytes of a line of the list.
const LINE: usize = 33;

/// Bytes gathered before they are written.
const PIECE: usize = 64 * 1024;

/// The list, while it is written.
#[derive(Debug)]
pub(super) struct Dropped {
    file: Arc<dyn DiskFile>,
    written: u64,
    pending: String,
}

impl Dropped {
    /// Begins a list.
    pub(super) fn create(disk: &dyn Disk, folder: &Path) -> Result<Self, StorageError> {
        let file = disk.open(&list_path(folder), Access::Truncate);
        let file = file.map_err(failed("making the list of blobs"))?;
        Ok(Self { file, written: 0, pending: String::new() })
    }

    /// Notes a revision.
    pub(super) fn note(&mut self, oid: Oid, serial: Tid) -> Result<(), StorageError> {
        writeln!(self.pending, "{oid}{serial}").expect("a string takes everything");
        if self.pending.len() < PIECE { Ok(()) } else { self.flush() }
    }

    /// Writes what was gathered.
    pub(super) fn flush(&mut self) -> Result<(), StorageError> {
        let written = self.file.write_all_at(self.pending.as_bytes(), self.written);
        written.map_err(failed("writing the list of blobs"))?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}

fn list_path(folder: &Path) -> PathBuf {
    folder.join(".removed")
}

/// Why there is a list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Occasion {
    /// A pack has ended.
    Packed,
    /// A crash has left it; whether before the switch or after it, the storage tells.
    Crashed,
}

/// How folders and files are named.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Layout {
    Bushy,
    Lawn,
}

impl Layout {
    /// The layout that a folder says it has, or that it has (`auto_layout_select` of
    /// `ZODB/blob.py`, where an empty marker is an error). `None`: one that no server has.
    fn of(disk: &dyn Disk, folder: &Path) -> io::Result<Option<Self>> {
        let mut marker = [0; 16];
        let length = match disk.open(&folder.join(".layout"), Access::Read) {
            Ok(file) => file.read_at(&mut marker, 0)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(match marker[..length].trim_ascii() {
            b"bushy" => Some(Self::Bushy),
            b"lawn" => Some(Self::Lawn),
            // All oids that a server gives out begin with a zero, and no blob has the oid zero.
            b"" if disk.exists(&folder.join("0x00"))? => Some(Self::Bushy),
            b"" => Some(Self::Lawn),
            _ => None,
        })
    }

    /// The folders of an object, outermost first.
    fn folders(self, oid: Oid) -> Vec<String> {
        match self {
            Self::Bushy => oid.to_bytes().map(|byte| format!("0x{byte:02x}")).into(),
            Self::Lawn => vec![short(oid.0)],
        }
    }
}

/// A number as `oid_repr` of `ZODB/utils.py` writes it: whole bytes, without leading zeros.
fn short(number: u64) -> String {
    let digits = format!("{number:x}");
    let odd = if digits.len() % 2 == 1 { "0" } else { "" };
    format!("0x{odd}{digits}")
}

impl FileStorage {
    /// Removes the blobs of all revisions on the list that are not there any more, and the list.
    pub(super) fn remove_blobs(&self, blobs: &Blobs, occasion: Occasion) {
        if let Err(error) = self.try_to_remove_blobs(blobs, occasion) {
            let text = format_args!("pack: blobs in {}: {error}", blobs.folder.display());
            log::event(Source::FILE_STORAGE, Severity::Error, "", text);
        }
    }

    /// Removes the list: nothing on it was dropped.
    pub(super) fn forget_blobs(&self, blobs: &Blobs) {
        self.discard(&list_path(&blobs.folder));
    }

    fn try_to_remove_blobs(&self, blobs: &Blobs, occasion: Occasion) -> Result<(), StorageError> {
        let (disk, Blobs { folder, keep_old }) = (&*self.machine.disk, blobs);
        let reading = || failed("reading the list of blobs");
        let list = match disk.open(&list_path(folder), Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            list => list.map_err(reading())?,
        };
        let layout = Layout::of(disk, folder).map_err(failed("reading the blobs' layout"))?;
        let Some(layout) = layout else {
            let text = "pack: the layout of the blobs is not known; none is removed";
            log::event(Source::FILE_STORAGE, Severity::Error, "", format_args!("{text}"));
            return Ok(());
        };
        let old = keep_old.then(|| beside(folder, ".old"));
        let removal = Removal { disk, folder, old: old.as_deref(), layout };
        let end = list.length().map_err(reading())?;
        let mut window = Window::new(list, end);
        let (mut position, mut count, mut begun) = (0, 0, false);
        let last = self.last_tid();
        if occasion == Occasion::Packed {
            removal.begin()?;
            begun = true;
        }
        while position < end {
            let line = std::str::from_utf8(window.bytes(position, LINE)?).unwrap_or_default();
            position += LINE as u64;
            let Some((oid, serial)) = parse(line) else { continue };
            if self.has_revision(oid, serial)? {
                continue;
            }
            if !std::mem::replace(&mut begun, true) {
                removal.begin()?;
            }
            count += match self.current().position(oid) {
                Some(_) => usize::from(removal.remove(oid, serial)?),
                None => removal.remove_all(oid, last)?,
            };
        }
        if let Some(old) = old.filter(|_| begun) {
            link_tree(disk, folder, &old).map_err(failed("keeping the other blobs"))?;
        }
        disk.remove(&list_path(folder)).map_err(failed("removing the list of blobs"))?;
        let text = format_args!("pack: {count} blobs removed");
        log::event(Source::FILE_STORAGE, Severity::Info, "", text);
        Ok(())
    }

    fn has_revision(&self, oid: Oid, serial: Tid) -> Result<bool, StorageError> {
        for revision in history::revisions(&self.current(), oid, true) {
            let (_, record) = revision?;
            if record.serial <= serial {
                return Ok(record.serial == serial);
            }
        }
        Ok(false)
    }
}

/// Oid and tid of a line.
fn parse(line: &str) -> Option<(Oid, Tid)> {
    let line = line.strip_suffix('\n').filter(|line| line.len() == LINE - 1 && line.is_ascii())?;
    let (oid, serial) = line.split_at(16);
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    Some((Oid(number(oid)?), Tid(number(serial)?)))
}

struct Removal<'a> {
    disk: &'a dyn Disk,
    folder: &'a Path,
    old: Option<&'a Path>,
    layout: Layout,
}

impl Removal<'_> {
    /// Makes room for removed blobs, if they are kept.
    fn begin(&self) -> Result<(), StorageError> {
        let Some(old) = self.old else { return Ok(()) };
        remove_tree(self.disk, old).map_err(failed("removing the old blobs"))?;
        self.disk.make_folder(old).map_err(failed("making the folder of old blobs"))
    }

    /// Removes all blobs of an object that were committed by `last`. Returns how many.
    fn remove_all(&self, oid: Oid, last: Tid) -> Result<usize, StorageError> {
        let folder = self.folder.join(self.layout.folders(oid).iter().collect::<PathBuf>());
        let names = match self.disk.list(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            names => names.map_err(failed("listing the blobs of an object"))?,
        };
        let mut count = 0;
        for name in names {
            let name = name.to_string_lossy();
            let digits = name.strip_prefix("0x").and_then(|name| name.strip_suffix(".blob"));
            let tid = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            if let Some(tid) = tid.map(Tid).filter(|tid| *tid <= last) {
                count += usize::from(self.remove(oid, tid)?);
            }
        }
        Ok(count)
    }

    /// Removes a blob, or moves it, and the folders that it leaves empty. Returns whether it was
    /// there.
    fn remove(&self, oid: Oid, serial: Tid) -> Result<bool, StorageError> {
        let name = format!("{}.blob", short(serial.0));
        let mut folders = self.layout.folders(oid);
        let within =
            |base: &Path, folders: &[String]| base.join(folders.iter().collect::<PathBuf>());
        let path = within(self.folder, &folders).join(&name);
        let removed = match self.old {
            None => self.disk.remove(&path),
            Some(_) if !self.disk.exists(&path).map_err(failed("looking for a blob"))? => {
                Err(io::ErrorKind::NotFound.into())
            }
            Some(old) => {
                let target = within(old, &folders);
                let made = self.disk.make_folder(&target);
                made.and_then(|()| self.disk.rename(&path, &target.join(&name)))
            }
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            removed => removed.map_err(failed("removing a blob"))?,
        }
        while !folders.is_empty() && self.disk.remove_folder(&within(self.folder, &folders)).is_ok()
        {
            folders.pop();
        }
        Ok(true)
    }
}

/// Removes a folder and all in it, if it is there.
fn remove_tree(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    let names = match disk.list(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for name in names {
        let path = folder.join(name);
        match disk.list(&path) {
            Ok(_) => remove_tree(disk, &path)?,
            Err(_) => disk.remove(&path)?,
        }
    }
    disk.remove_folder(folder)
}

/// Gives each blob in a folder, and the folder's marker, a second name at the same place in another.
fn link_tree(disk: &dyn Disk, folder: &Path, target: &Path) -> io::Result<()> {
    for name in disk.list(folder)? {
        let (path, text) = (folder.join(&name), name.to_string_lossy());
        if text.ends_with(".blob") || text == ".layout" {
            disk.make_folder(target)?;
            disk.link(&path, &target.join(&name))?;
        } else if text.starts_with("0x") {
            link_tree(disk, &path, &target.join(&name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_zodb() {
        // oid_repr and getBlobFilePath of ZODB 6.4.
        let rows = [(0, "0x00"), (1, "0x01"), (0x123, "0x0123"), (1 << 40, "0x010000000000")];
        for (number, expected) in rows {
            assert_eq!(short(number), expected);
        }
        let bushy = Layout::Bushy.folders(Oid(0x1234)).join("/");
        assert_eq!(bushy, "0x00/0x00/0x00/0x00/0x00/0x00/0x12/0x34");
        assert_eq!(Layout::Lawn.folders(Oid(0x1234)), ["0x1234"]);
    }

    #[test]
    fn a_line_is_two_numbers_and_anything_else_is_none() {
        let line = "0000000000000012040d34e335555555\n";
        assert_eq!(parse(line), Some((Oid(0x12), Tid(0x040d_34e3_3555_5555))));
        for line in ["", "\n", &line[1..], "0000000000000012\n", &line.replace('5', "x")] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}
