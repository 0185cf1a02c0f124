//! Pack of objects in memory, as `ZODB/MappingStorage.py` does it: of each object that the root leads
//! to, by any revision that is kept, the last revision at the pack time stays, and all later ones.
//!
//! A reference into nowhere, or a record that cannot be read, is a matter for the log, as in a pack
//! of a file: see [`crate::storage::pack`].

use std::collections::HashSet;

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::{PACKED, References};

use super::{OBJECT_SIZE, REVISION_SIZE, Revisions, State};
use crate::log::{self, Severity, Source};
use crate::storage::StorageError;
use crate::storage::pack::Outcome;

/// Who speaks in the log.
const LOGGER: Source = Source("ZODB.MappingStorage");

impl State {
    /// Packs: see [`crate::storage::Storage::pack`]. Nobody else uses the storage meanwhile.
    pub(super) fn pack(&mut self, stop: Tid) -> Result<Outcome, StorageError> {
        let before = self.size;
        if self.objects.is_empty() || self.packed == Some(stop) {
            return Ok(Outcome::Nothing);
        }
        if self.packed.is_some_and(|packed| stop < packed) {
            return Err(StorageError::PackedLater);
        }
        let reached = self.reachable(stop)?;
        self.packed = Some(stop);
        self.keep(&reached, stop);
        Ok(Outcome::Packed { before, after: self.size })
    }

    /// The revisions of an object that a pack keeps: the last one at the pack time, and later ones.
    fn kept(revisions: &Revisions, stop: Tid) -> &[(Tid, Bytes)] {
        let later = revisions.partition_point(|(tid, _)| *tid <= stop);
        &revisions[later.saturating_sub(1)..]
    }

    /// The objects that the root leads to, by any revision that a pack keeps.
    fn reachable(&self, stop: Tid) -> Result<HashSet<Oid>, StorageError> {
        let (mut reached, mut waiting) = (HashSet::from([Oid::ROOT]), vec![Oid::ROOT]);
        let mut references = References::default();
        if !self.objects.contains_key(&Oid::ROOT) {
            return Err(StorageError::NoRoot);
        }
        while let Some(oid) = waiting.pop() {
            let Some(revisions) = self.objects.get(&oid) else {
                let text = format_args!("pack: {oid} is referred to, and not there");
                log::event(LOGGER, Severity::Error, "", text);
                continue;
            };
            for (_, data) in Self::kept(revisions, stop) {
                let walked = references.walk(data, |referred| {
                    if reached.insert(referred) {
                        waiting.push(referred);
                    }
                });
                if let Err(error) = walked {
                    let text = format_args!(
                        "pack: the references of {oid} cannot be told, so no object is removed: \
                         {error}"
                    );
                    log::event(LOGGER, Severity::Error, "", text);
                    return Ok(self.objects.keys().copied().collect());
                }
            }
        }
        Ok(reached)
    }

    /// Keeps these objects, as far back as the pack time.
    fn keep(&mut self, reached: &HashSet<Oid>, stop: Tid) {
        let Self { objects, transactions, size, .. } = self;
        objects.retain(|oid, revisions| {
            let stays = reached.contains(oid);
            let from = if stays {
                revisions.len() - Self::kept(revisions, stop).len()
            } else {
                revisions.len()
            };
            for (tid, data) in revisions.drain(..from) {
                *size -= REVISION_SIZE + data.len() as u64;
                let transaction = transactions.get_mut(&tid).expect("each revision has its own");
                transaction.status = PACKED;
                transaction.oids.retain(|other| other != oid);
            }
            *size -= if stays { 0 } else { OBJECT_SIZE };
            stays
        });
        transactions
            .retain(|_, transaction| transaction.status != PACKED || !transaction.oids.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Storage;
    use crate::storage::mapping::MappingStorage;
    use crate::storage::pack::{Handover, Progress, Successor};
    use crate::storage::testing::Ask::Store;
    use crate::storage::testing::{carry_out, draft};
    use crate::storage::{Loading, View};

    struct Nobody;

    impl Handover for Nobody {
        fn hand_over(&self, _: Successor) -> Result<std::sync::Arc<dyn View>, StorageError> {
            unreachable!("there is no file")
        }
    }

    #[test]
    fn what_the_root_leads_to_stays_from_the_pack_time_on() {
        let (storage, mut appender) = MappingStorage::create("test");
        let refers = |oid: u8| [b"N.C\x08\0\0\0\0\0\0\0", &[oid][..], b"Q."].concat();
        let past: [(u64, &[_]); 3] = [
            (10, &[Store(0, 0, &refers(1)), Store(1, 0, b"N.N."), Store(2, 0, &refers(1))]),
            (20, &[Store(1, 10, &refers(9))]),
            (30, &[Store(1, 20, b"N.N.")]),
        ];
        for (tid, asked) in past {
            carry_out(&*storage, &mut appender, tid, draft(asked));
        }
        let pack = |stop| storage.pack(Tid(stop), &Progress::default(), &Nobody);
        let before = storage.size();
        let outcome = pack(25).unwrap();
        assert_eq!(outcome, Outcome::Packed { before, after: storage.size() });
        assert_eq!(before - storage.size(), 2 * REVISION_SIZE + OBJECT_SIZE + 4 + 14);
        assert_eq!(storage.object_count(), 2);
        let serials = storage.history(Oid(1), 10, Tid::MAX).unwrap();
        assert_eq!(serials.iter().map(|entry| entry.tid.0).collect::<Vec<_>>(), [30, 20]);
        let gone = View::load(&*storage, Oid(2), Tid::MAX, Tid::MAX);
        assert!(matches!(gone, Loading::Answer(Err(_))));
        assert_eq!(pack(25).unwrap(), Outcome::Nothing);
        assert!(matches!(pack(24), Err(StorageError::PackedLater)));
    }
}
