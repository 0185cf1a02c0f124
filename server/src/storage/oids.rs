//! Oids that nobody has: what `new_oids` gives out.
//!
//! The source keeps a mark, the highest oid that is taken, and gives out what follows. An oid is
//! *outlandish* if it is more than 2^32 above the mark: a client that stores under `ff..ff` would
//! else leave nothing to give out. Outlandish oids leave the mark where it is, and when the mark
//! comes near them, the source steps over those that exist.

use std::sync::atomic::{AtomicU64, Ordering};

use zeoring_shared::ids::Oid;

use super::StorageError;
use super::index::Index;

/// How far above the mark an oid may be and still raise it.
const STRIDE_MAX: u64 = 1 << 32;

/// Gives out oids, to any thread.
#[derive(Debug)]
pub(super) struct OidSource {
    mark: AtomicU64,
}

impl OidSource {
    /// A source of oids that are not in the index.
    pub(super) fn above(index: &Index) -> Self {
        let source = Self { mark: AtomicU64::new(0) };
        for (oid, _) in index.iter() {
            source.note(oid);
        }
        source
    }

    /// Hears of an oid that is taken.
    pub(super) fn note(&self, oid: Oid) {
        let near = |mark: u64| mark < oid.0 && oid.0 - mark <= STRIDE_MAX;
        // The mark only rises, so an oid that is not near it now is below it or outlandish.
        let _ = self
            .mark
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |mark| near(mark).then_some(oid.0));
    }

    /// Takes `count` oids that no object has.
    ///
    /// # Errors
    ///
    /// [`StorageError::Refused`] if there are none left.
    pub(super) fn take(&self, count: usize, index: &Index) -> Result<Vec<Oid>, StorageError> {
        let mut oids = Vec::new();
        while oids.len() < count {
            let rise = |mark: u64| mark.checked_add(1);
            let Ok(mark) = self.mark.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rise)
            else {
                return Err(StorageError::Refused("no oids are left".into()));
            };
            let oid = Oid(mark + 1);
            if index.position(oid).is_none() {
                oids.push(oid);
            }
        }
        Ok(oids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_oid_that_exists_or_was_given_out_is_given_out() {
        let index = Index::default();
        for oid in [0, 5, 5 + STRIDE_MAX, u64::MAX] {
            index.set(Oid(oid), 4);
        }
        let source = OidSource::above(&index);
        let first = 5 + STRIDE_MAX;
        assert_eq!(source.take(2, &index).unwrap(), [Oid(first + 1), Oid(first + 2)]);
        source.note(Oid(first + 10));
        source.note(Oid(3));
        source.note(Oid(1 << 60));
        index.set(Oid(first + 12), 4);
        assert_eq!(source.take(2, &index).unwrap(), [Oid(first + 11), Oid(first + 13)]);
    }

    #[test]
    fn the_last_oid_of_all_is_not_followed_by_the_first() {
        let index = Index::default();
        let source = OidSource { mark: AtomicU64::new(u64::MAX - 2) };
        assert_eq!(source.take(2, &index).unwrap(), [Oid(u64::MAX - 1), Oid(u64::MAX)]);
        assert!(matches!(source.take(1, &index), Err(StorageError::Refused(_))));
    }
}
