//! Locks between processes, of the kind that Python's clients take (package zc.lockfile): `flock`
//! on a file that holds a space, the process id and a line feed. The file is never deleted, as a
//! process could else lock a file that has lost its name.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held while it lives. Two of one process exclude each other like those of two.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; `None` if somebody else has it. Never waits.
    pub(super) fn take(path: &Path) -> io::Result<Option<Self>> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Who has it is for people to read. The lock must be had on a full disk too: to free it.
        let line = format!(" {}\n", std::process::id());
        let _ = file.set_len(0).and_then(|()| file.write_all(line.as_bytes()));
        Ok(Some(Self { _file: file }))
    }
}
