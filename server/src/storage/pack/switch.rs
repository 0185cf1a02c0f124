//! Puts a packed file in the place of the data file, so that a crash at any moment leaves either.
//!
//! ```text
//!   pack thread     .pack written and synced
//!                   .index removed        it would lead into the wrong file
//!                   .old removed, Data.fs linked as .old, if the old file is to be kept
//!                   folder synced
//!   commit thread   .pack caught up and synced
//!                   .pack renamed to Data.fs, folder synced       <- the one moment of the switch
//!   pack thread     .index saved
//! ```
//!
//! At every moment `Data.fs` is a whole database: the old one, or the packed one with everything
//! that was ever answered. Python's FileStorage renames twice, and a crash between the two leaves
//! none.

use std::sync::{Arc, PoisonError};

use super::output::failed;
use super::{Copier, Handover, Phase, Progress, Successor};
use crate::commit::draft::Draft;
use crate::log::{self, Severity, Source};
use crate::storage::append::FileAppender;
use crate::storage::error::Verdict;
use crate::storage::file::{FileStorage, Saving};
use crate::storage::generation::Generation;
use crate::storage::paths::{beside, folder};
use crate::storage::space::Reservation;
use crate::storage::{Body, Change, StorageError, View, history, index_file};

impl FileStorage {
    /// Has the commit thread put the file in place, with all names ready for it. Returns its size.
    pub(super) fn replace(
        &self,
        copier: Copier,
        generation: &Arc<Generation>,
        progress: &Progress,
        handover: &dyn Handover,
    ) -> Result<u64, StorageError> {
        progress.begin(Phase::Switch, generation.end());
        let switched = self.switch(copier, generation, handover);
        match &switched {
            Ok(_) if self.packing.keep_old => {
                // The space that was reserved behind its end.
                drop(generation.file.set_length(generation.end()));
            }
            Ok(_) => self.discard(&beside(&self.path, ".old")),
            Err(_) => {}
        }
        if let Err(error) = self.save_index() {
            let text = format_args!("{}: after a pack, {error}", self.path.display());
            log::event(Source::FILE_STORAGE, Severity::Warning, "", text);
        }
        switched.map(|_| self.end())
    }

    fn switch(
        &self,
        copier: Copier,
        generation: &Arc<Generation>,
        handover: &dyn Handover,
    ) -> Result<Arc<dyn View>, StorageError> {
        // Nobody saves the index of the file that is about to go.
        let mut saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        self.prepare_names()?;
        let (generation, progress) = (Arc::clone(generation), Progress::default());
        let switched = handover.hand_over(Successor { copier, generation, progress });
        match switched.as_ref().map_err(StorageError::verdict) {
            // Whichever file is found at the next start, it is read as it is.
            Err(Verdict::Poison) => *saving = Saving::Never,
            // A second name of the file that stays.
            Err(Verdict::Refuse) if self.packing.keep_old => {
                self.discard(&beside(&self.path, ".old"));
            }
            _ => {}
        }
        switched
    }

    /// Takes the index away and keeps the old file under a second name, durably.
    fn prepare_names(&self) -> Result<(), StorageError> {
        let disk = &*self.machine.disk;
        let index = index_file::path(&self.path);
        if disk.exists(&index).map_err(failed("looking for the index"))? {
            disk.remove(&index).map_err(failed("removing the index"))?;
        }
        if self.packing.keep_old {
            let old = beside(&self.path, ".old");
            if disk.exists(&old).map_err(failed("looking for the old file"))? {
                disk.remove(&old).map_err(failed("removing the old file"))?;
            }
            disk.link(&self.path, &old).map_err(failed("keeping the old file"))?;
        }
        disk.sync_folder(folder(&self.path)).map_err(failed("syncing the folder"))
    }

    /// Removes a file that a pack has made, or has made needless, if it is there.
    pub(super) fn discard(&self, path: &std::path::Path) {
        let disk = &*self.machine.disk;
        if disk.exists(path).is_ok_and(|there| !there) {
            return;
        }
        if let Err(error) = disk.remove(path) {
            let text = format_args!("pack: {} could not be removed: {error}", path.display());
            log::event(Source::FILE_STORAGE, Severity::Warning, "", text);
        }
    }
}

impl FileAppender {
    /// See [`crate::storage::Appender::succeed`]. All that was written is published.
    pub(in crate::storage) fn put_in_place(
        storage: &FileStorage,
        successor: Successor,
    ) -> Result<Arc<dyn View>, StorageError> {
        let Successor { mut copier, generation, progress } = successor;
        copier.catch_up(generation.end(), &progress)?;
        copier.output.sync()?;
        let end = copier.output.position();
        let disk = &*storage.machine.disk;
        let lock = || storage.space.lock().unwrap_or_else(PoisonError::into_inner);
        let reserved = lock().promise_in(&*copier.output.file, end)?;
        let renamed = disk.rename(&beside(&storage.path, ".pack"), &storage.path);
        renamed.map_err(failed("renaming the new file"))?;
        // If this fails, nobody knows which file is found after a power cut.
        let synced = disk.sync_folder(folder(&storage.path));
        synced.map_err(|source| StorageError::Write { position: end, source })?;
        let next = Arc::new(Generation::new(copier.output.file, copier.index, end));
        let mut space = lock();
        space.go_on(reserved);
        storage.set_current(Arc::clone(&next));
        drop(space);
        storage.reserve_ahead();
        Ok(next)
    }
}

impl Reservation {
    /// Leads the back pointers of a transaction, which was voted for before a pack put another file
    /// in place, to where the same records are now. What is there no more is written again.
    ///
    /// # Errors
    ///
    /// The data could not be read, or there is no room: the transaction must not be written.
    pub fn follow(
        &mut self,
        draft: &mut Draft,
        changes: &mut [Change],
    ) -> Result<(), StorageError> {
        let now = self.storage.current();
        if Arc::ptr_eq(&now, &self.generation) {
            return Ok(());
        }
        for change in changes {
            let Body::Same(position) = change.body else { continue };
            let then = self.generation.record_at(position, true)?;
            let image = history::revisions(&now, change.oid, true)
                .find(|found| found.as_ref().map_or(true, |(_, now)| now.serial <= then.serial))
                .transpose()?
                .filter(|(_, now)| now.serial == then.serial);
            change.body = match image {
                Some((position, _)) => Body::Same(position),
                None => match self.generation.read_data(position, true)? {
                    None => Body::Gone,
                    Some(data) => {
                        let span = draft.spool.push(&data.bytes);
                        let source = |source| StorageError::Read { position, source };
                        let span = span.map_err(source)?;
                        self.enlarge(span.length)?;
                        Body::Data(span)
                    }
                },
            };
        }
        self.generation = now;
        Ok(())
    }
}
