//! The lock that keeps a second server, Python's or ours, away from a data file.
//!
//! The same file, lock and content as the package zc.lockfile that Python's FileStorage uses:
//! `flock` on `Data.fs.lock`, which then holds a space, the process id and a line feed. The file is
//! never deleted, as a process could else lock a file that has lost its name.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeoring_shared::io::{Access, Disk, DiskFile};

use super::paths::beside;

/// Held while it lives.
#[derive(Debug)]
pub struct LockFile {
    _file: Arc<dyn DiskFile>,
}

/// Why there is no lock.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it, and wrote this about itself.
    Taken(String),
    /// The file could not be made, locked or written.
    Io(io::Error),
}

impl LockFile {
    /// Takes the lock of a data file.
    ///
    /// # Errors
    ///
    /// See [`LockError`].
    pub fn take(disk: &dyn Disk, data_file: &Path) -> Result<Self, LockError> {
        let file = disk.open(&path(data_file), Access::Create).map_err(LockError::Io)?;
        if !file.try_lock().map_err(LockError::Io)? {
            let mut holder = [0; 80];
            let length = file.read_at(&mut holder, 0).unwrap_or(0);
            let holder = String::from_utf8_lossy(&holder[..length]);
            let holder = holder.chars().filter(|c| !c.is_control()).collect::<String>();
            return Err(LockError::Taken(holder.trim().to_owned()));
        }
        let line = format!(" {}\n", std::process::id());
        let written =
            file.write_all_at(line.as_bytes(), 0).and_then(|()| file.set_length(line.len() as u64));
        written.map_err(LockError::Io)?;
        Ok(Self { _file: file })
    }
}

/// `Data.fs.lock`.
pub fn path(data_file: &Path) -> PathBuf {
    beside(data_file, ".lock")
}
