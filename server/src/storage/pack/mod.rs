//! Pack: writes a data file anew, without what nobody can ask for any more.
//!
//! ```text
//!   pack thread     index -> mark -> copy -> catch up, again and again -> hand over
//!   commit thread   ... commits ...          commits ...                  catch up -> switch
//! ```
//!
//! A pack reads what is published, and writes beside it, to `.pack`. Loads and commits go on, and
//! nothing that it does is seen by anybody until the commit thread, between two batches, copies the
//! last transactions and renames. Until then a pack may fail, or be killed, and there was none.
//!
//! The result is, byte for byte, that of `ZODB/FileStorage/fspack.py`, but where that would lose an
//! object or give up: see `reach.rs` and `docs/conformance.md`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeoring_shared::ids::Tid;

mod blobs;
mod copy;
mod output;
mod progress;
mod reach;
mod source;
mod switch;
#[cfg(test)]
mod tests;

pub use self::blobs::Blobs;
use self::blobs::{Dropped, Occasion};
use self::copy::Copier;
use self::output::Output;
pub use self::progress::{Phase, Progress};
use self::reach::Kept;
use super::file::FileStorage;
use super::generation::Generation;
use super::paths::beside;
use super::{StorageError, View};

/// Bytes of transactions that the commit thread may have to copy at the end: milliseconds.
const LAST_BYTES_MAX: u64 = 1024 * 1024;

/// How often to catch up with commits before the commit thread has to wait, however much is left.
const ROUNDS_MAX: usize = 32;

/// What came of a pack.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The file is smaller.
    Packed {
        /// Its size when the pack began.
        before: u64,
        /// Its size when the pack ended.
        after: u64,
    },
    /// Nothing has changed: the database is empty, or nothing would be saved.
    Nothing,
    /// Nothing has changed: an earlier pack went as far, or further, or nothing has happened since.
    Redundant,
}

/// The way to the one who may put another file in place.
pub trait Handover {
    /// Has [`super::Appender::succeed`] called, and waits for it.
    ///
    /// # Errors
    ///
    /// As that.
    fn hand_over(&self, successor: Successor) -> Result<Arc<dyn View>, StorageError>;
}

/// A packed file, nearly up to date.
#[derive(Debug)]
pub struct Successor {
    copier: Copier,
    generation: Arc<Generation>,
    progress: Progress,
}

impl FileStorage {
    /// See [`super::Storage::pack`].
    pub(super) fn pack_to(
        &self,
        stop: Tid,
        progress: &Progress,
        handover: &dyn Handover,
    ) -> Result<Outcome, StorageError> {
        if self.is_read_only() {
            return Err(StorageError::ReadOnly);
        }
        let generation = self.current();
        if generation.index.is_empty() {
            return Ok(Outcome::Nothing);
        }
        if let Some(blobs) = &self.packing.blobs {
            // What a pack has left that was killed between its switch and its end.
            self.remove_blobs(blobs, Occasion::Crashed);
        }
        let before = generation.end();
        let kept = reach::find(&generation, before, stop, self.packing.gc, progress)?;
        let Some(kept) = kept else { return Ok(Outcome::Redundant) };
        let path = self.pack_path();
        let packed = self.copy(&generation, kept, before, progress).and_then(|copier| {
            let Some(mut copier) = copier else { return Ok(None) };
            catch_up(&mut copier, &generation, progress)?;
            self.replace(copier, &generation, progress, handover).map(Some)
        });
        match packed {
            Ok(Some(after)) => {
                if let Some(blobs) = &self.packing.blobs {
                    self.remove_blobs(blobs, Occasion::Packed);
                }
                Ok(Outcome::Packed { before, after })
            }
            Ok(None) => {
                self.abandon(&path);
                Ok(Outcome::Nothing)
            }
            Err(error) => {
                self.abandon(&path);
                Err(error)
            }
        }
    }

    /// Removes what a pack has written that ends without a switch.
    fn abandon(&self, path: &Path) {
        self.discard(path);
        if let Some(blobs) = &self.packing.blobs {
            self.forget_blobs(blobs);
        }
    }

    /// Copies what is kept of the time before the pack time, if that saves anything.
    fn copy(
        &self,
        generation: &Generation,
        kept: Kept,
        end: u64,
        progress: &Progress,
    ) -> Result<Option<Copier>, StorageError> {
        let disk = &*self.machine.disk;
        let output = Output::create(disk, &self.pack_path(), &*generation.file)?;
        // Without a folder there are no blobs.
        let blobs = self.packing.blobs.as_ref();
        let blobs = blobs.filter(|blobs| disk.exists(&blobs.folder).is_ok_and(|there| there));
        let dropped = blobs.map(|blobs| Dropped::create(disk, &blobs.folder)).transpose()?;
        let mut copier = Copier::new(generation, &kept, output, dropped, end);
        let saves = copier.up_to_border(&kept, end, progress)?;
        Ok(saves.then_some(copier))
    }

    /// Where a pack writes.
    fn pack_path(&self) -> PathBuf {
        beside(&self.path, ".pack")
    }
}

/// Copies what was committed meanwhile, until so little is left that commits may wait for it.
fn catch_up(
    copier: &mut Copier,
    generation: &Generation,
    progress: &Progress,
) -> Result<(), StorageError> {
    progress.begin(Phase::CatchUp, generation.end());
    for _ in 0..ROUNDS_MAX {
        let end = generation.end();
        let left = end - copier.done;
        copier.catch_up(end, progress)?;
        // What was written is synced here, so that the commit thread has little to sync.
        copier.output.sync()?;
        if left <= LAST_BYTES_MAX {
            break;
        }
    }
    Ok(())
}
