//! A blob on its way from the server: bytes that gather in a file of another name, which becomes
//! the blob's when all are there and on the disk.
//!
//! ```text
//!   Receiving --write, ..., end--> finish --> Received --publish--> the blob's file
//!       `-- dropped: nothing is left              `-- dropped: published all the same
//! ```
//!
//! Whoever moves the bytes of a connection writes, and never waits for the disk; the caller who
//! wanted the blob does, when it publishes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zeoring_shared::ids::{Oid, Tid};

use super::BlobError;
use super::directory::remove;
use super::eviction::Usage;
use super::lock::Lock;

/// End the names of files that are on their way: ours, and those of Python's clients
/// (`ZEO/ClientStorage.py`, `receiveBlobStart`). They are two because a Python client that finds the
/// second left over from a process that died cannot fetch that blob any more.
pub(super) const PARTIAL: [&str; 2] = [".part", ".dl"];

/// Readable by its owner, changed by nobody: what Python's clients give it.
const MODE: u32 = 0o400;

/// Nobody else's business while it is on its way.
const DRAFT_MODE: u32 = 0o600;

/// A blob of which not all bytes have come.
#[derive(Debug)]
pub struct Receiving {
    partial: Partial,
    oid: Oid,
    serial: Tid,
    failure: Option<io::Error>,
    is_whole: bool,
}

/// A blob of which all bytes have come. It may not be on the disk yet.
#[derive(Debug)]
pub struct Received {
    partial: Partial,
    /// Whether that was tried.
    is_published: AtomicBool,
}

/// A file under the name of those on their way, and the lock of its folder. What was not published
/// is removed when it goes.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    target: PathBuf,
    usage: Arc<Usage>,
    /// Goes after the file.
    _lock: Lock,
}

impl Receiving {
    pub(super) fn new(partial: Partial, oid: Oid, serial: Tid) -> Self {
        Self { partial, oid, serial, failure: None, is_whole: false }
    }

    /// Takes the next bytes. What goes wrong is told at the end; the rest is dropped then.
    pub(crate) fn write(&mut self, chunk: &[u8]) {
        if self.failure.is_some() {
            return;
        }
        if let Err(error) = self.partial.file.write_all(chunk) {
            self.failure = Some(error);
            // The disk may be full, and the rest of the blob be long in coming.
            let _ = self.partial.file.set_len(0);
        }
    }

    /// Hears that no more bytes come.
    pub(crate) fn end(&mut self) {
        self.is_whole = true;
    }

    /// Ends it, when the server has answered that the blob was sent.
    ///
    /// # Errors
    ///
    /// What went wrong with writing, or that the blob is not whole. No file is left then.
    pub(crate) fn finish(self) -> Result<Received, BlobError> {
        let Self { partial, oid, serial, failure, is_whole } = self;
        if let Some(error) = failure {
            return Err(BlobError::io("write", &partial.path, error));
        }
        if !is_whole {
            return Err(BlobError::CutShort { oid, serial });
        }
        Ok(Received { partial, is_published: AtomicBool::new(false) })
    }
}

impl Received {
    /// Puts the blob where it belongs, for all to see. Waits for the disk.
    ///
    /// # Errors
    ///
    /// What the file system says. No file is left then.
    pub(crate) fn publish(&self) -> Result<PathBuf, BlobError> {
        if !self.is_published.swap(true, Ordering::AcqRel) {
            self.partial.publish()?;
        }
        Ok(self.partial.target.clone())
    }
}

impl Drop for Received {
    /// The caller may have waited no longer; whoever asks next finds it.
    fn drop(&mut self) {
        let _ = self.publish();
    }
}

impl PartialEq for Received {
    fn eq(&self, other: &Self) -> bool {
        self.partial.target == other.partial.target
    }
}

impl Partial {
    /// Begins a file beside the one it is to become. What is there already was left by a process
    /// that died, as we have the lock; it may have been made one that nobody writes.
    pub(super) fn begin(target: PathBuf, lock: Lock, usage: Arc<Usage>) -> Result<Self, BlobError> {
        let paths = PARTIAL.map(|suffix| {
            let mut path = target.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        });
        paths.iter().for_each(|path| remove(path));
        let [path, _] = paths;
        let file = OpenOptions::new().write(true).create_new(true).mode(DRAFT_MODE).open(&path);
        match file {
            Ok(file) => Ok(Self { file, path, target, usage, _lock: lock }),
            Err(error) => Err(BlobError::io("write", &path, error)),
        }
    }

    /// The file that gathers bytes.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// The name under which they gather.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name, once its bytes are on the disk.
    pub(super) fn publish(&self) -> Result<(), BlobError> {
        let written = settle(&self.file, Permissions::from_mode(MODE));
        let length = written.map_err(|error| BlobError::io("write", &self.path, error))?;
        let renamed = fs::rename(&self.path, &self.target);
        renamed.map_err(|error| BlobError::io("make", &self.target, error))?;
        self.usage.add(length);
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Not there any more if it was published.
        remove(&self.path);
    }
}

/// Makes a file one that nobody changes, and waits until its bytes are on the disk: a name that
/// came through a power cut without its bytes would be taken for the blob. Tells its length.
pub(super) fn settle(file: &File, permissions: Permissions) -> io::Result<u64> {
    file.set_permissions(permissions)?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_full_is_told_at_the_end_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (target, usage) = (folder.path().join("1.blob"), Arc::new(Usage::new(None)));
        let lock = Lock::take(&folder.path().join(".lock")).unwrap().unwrap();
        let mut partial = Partial::begin(target.clone(), lock, usage).unwrap();
        let path = partial.path.clone();
        partial.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut receiving = Receiving::new(partial, Oid(1), Tid(2));
        receiving.write(b"more than");
        receiving.write(b"there is room for");
        receiving.end();
        let error = receiving.finish().unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot write {}: No space left", path.display())));
        assert!(!path.exists() && !target.exists());
        assert!(Lock::take(&folder.path().join(".lock")).unwrap().is_some());
    }
}
