//! Room on the disk for transactions that were voted for.
//!
//! After its vote a transaction must not fail, so the vote sets aside what it needs: within the
//! quota, and on the disk by `fallocate`, which leaves the file's length as it is. Space is taken
//! in big steps, ahead of need, as each step is a change of the file system's own records:
//!
//! ```text
//!   0                      end           end + promised       reserved
//!   | transactions ...     | promised to votes  | ahead       |
//! ```
//!
//! A file system that copies on write, or that cannot reserve, promises nothing; there the write
//! itself may still find the disk full.

use std::sync::{Arc, PoisonError, TryLockError};

use zeoring_shared::io::DiskFile;

use super::StorageError;
use super::file::FileStorage;
use super::generation::Generation;
use crate::log::{self, Severity, Source};

/// Space is taken from the disk in steps of this many bytes.
const STEP: u64 = 4 * 1024 * 1024;

/// What is promised and reserved. The file's end is told at each call.
#[derive(Debug)]
pub(super) struct Space {
    promised: u64,
    reserved: u64,
    quota: Option<u64>,
}

/// Room for one transaction, from its vote until it is published or given up. Given back on drop.
#[derive(Debug)]
pub struct Reservation {
    pub(super) storage: Arc<FileStorage>,
    /// The file in which the positions lie that its vote has found.
    pub(super) generation: Arc<Generation>,
    bytes: u64,
}

impl Space {
    pub(super) fn new(end: u64, quota: Option<u64>) -> Self {
        Self { promised: 0, reserved: end, quota }
    }

    /// Sets aside in another file, which ends at `end`, what was promised in this one and some
    /// more. Returns up to where.
    pub(super) fn promise_in(&self, file: &dyn DiskFile, end: u64) -> Result<u64, StorageError> {
        let bytes = self.promised + STEP;
        let reserved = file.reserve(end, bytes);
        reserved.map(|()| end + bytes).map_err(|source| StorageError::NoSpace { source })
    }

    /// Goes on in the file of [`Space::promise_in`].
    pub(super) fn go_on(&mut self, reserved: u64) {
        self.reserved = reserved;
    }
}

impl FileStorage {
    /// Sets space aside for a transaction of at most that many bytes, checked against a generation.
    ///
    /// # Errors
    ///
    /// [`StorageError::Quota`], [`StorageError::NoSpace`]: nothing was set aside.
    pub fn reserve(
        &self,
        generation: &Arc<Generation>,
        bytes: u64,
    ) -> Result<Reservation, StorageError> {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        let (promised, needed) = self.needs(&space, bytes)?;
        self.extend(&mut space, needed)?;
        space.promised = promised;
        Ok(Reservation { storage: self.shared(), generation: Arc::clone(generation), bytes })
    }

    /// Sets space aside as [`FileStorage::reserve`] does, out of what was reserved before.
    ///
    /// # Errors
    ///
    /// [`StorageError::Quota`], or [`StorageError::WouldWait`] if the file system, or another
    /// thread, would have to be waited for: nothing was set aside.
    pub fn reserve_now(
        &self,
        generation: &Arc<Generation>,
        bytes: u64,
    ) -> Result<Reservation, StorageError> {
        let mut space = match self.space.try_lock() {
            Ok(space) => space,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(StorageError::WouldWait),
        };
        let (promised, needed) = self.needs(&space, bytes)?;
        if space.reserved < needed {
            return Err(StorageError::WouldWait);
        }
        space.promised = promised;
        Ok(Reservation { storage: self.shared(), generation: Arc::clone(generation), bytes })
    }

    /// Bytes promised and bytes needed if that many were set aside as well.
    fn needs(&self, space: &Space, bytes: u64) -> Result<(u64, u64), StorageError> {
        let promised = space.promised.saturating_add(bytes);
        let needed = self.end().saturating_add(promised);
        if space.quota.is_some_and(|quota| quota < needed) {
            return Err(StorageError::Quota);
        }
        Ok((promised, needed))
    }

    /// Takes space ahead of need, if half a step or less is left. A full disk is found by the next
    /// vote.
    pub(super) fn reserve_ahead(&self) {
        let mut space = self.space.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = self.end().saturating_add(space.promised).saturating_add(STEP / 2);
        if let Err(error) = self.extend(&mut space, needed) {
            let text = format_args!("{}: {error}", self.path.display());
            log::event(Source::FILE_STORAGE, Severity::Debug, "", text);
        }
    }

    fn extend(&self, space: &mut Space, needed: u64) -> Result<(), StorageError> {
        if needed <= space.reserved {
            return Ok(());
        }
        let target = needed.checked_next_multiple_of(STEP).unwrap_or(needed);
        let start = space.reserved;
        // A nearly full disk may have room for what is needed, though not for the whole step.
        let file = &self.current().file;
        file.reserve(start, target - start)
            .map(|()| space.reserved = target)
            .or_else(|_| file.reserve(start, needed - start).map(|()| space.reserved = needed))
            .map_err(|source| StorageError::NoSpace { source })
    }
}

impl Reservation {
    /// Sets more space aside.
    ///
    /// # Errors
    ///
    /// As [`FileStorage::reserve`].
    pub(super) fn enlarge(&mut self, bytes: u64) -> Result<(), StorageError> {
        let mut space = self.storage.space.lock().unwrap_or_else(PoisonError::into_inner);
        let (promised, needed) = self.storage.needs(&space, bytes)?;
        self.storage.extend(&mut space, needed)?;
        space.promised = promised;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut space = self.storage.space.lock().unwrap_or_else(PoisonError::into_inner);
        space.promised = space.promised.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::open::{Options, open};
    use crate::storage::testing::{Fault, FaultyDisk, Folder};

    #[test]
    fn a_vote_is_refused_where_there_is_no_room() {
        let folder = Folder::new();
        let (disk, machine) = FaultyDisk::machine();
        let options = Options { quota: Some(4 * STEP), ..Default::default() };
        let (storage, _appender) = open(&machine, &folder.path(), &options).unwrap();
        let first = storage.reserve(&storage.current(), 2 * STEP).unwrap();
        for bytes in [2 * STEP, u64::MAX] {
            assert!(matches!(storage.reserve(&storage.current(), bytes), Err(StorageError::Quota)));
        }
        disk.set(Fault::Reserve);
        // Up to the end of the third step, space was reserved ahead.
        let second = storage.reserve(&storage.current(), STEP / 2).unwrap();
        assert!(matches!(
            storage.reserve(&storage.current(), STEP),
            Err(StorageError::NoSpace { .. })
        ));
        drop((first, second));
        storage.reserve(&storage.current(), 2 * STEP).unwrap();
    }
}
