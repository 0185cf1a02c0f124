//! Which objects changed lately, for as long as an answer may be late.
//!
//! A server answers a load before it tells of a later change of the same object. One that does not
//! would have us keep an old revision as the current one for ever; this notices.

use std::mem;

use rustc_hash::FxHashMap;
use zeoring_shared::ids::{Oid, Tid};

/// Changes kept at least; twice as many at most, of 32 bytes each. More than this cannot come while
/// an answer is under way that the session still waits for, short of a flood.
const CHANGES: usize = 16 * 1024;

/// The last change of each object that changed lately, in two generations.
#[derive(Debug, Default)]
pub(super) struct Recent {
    young: FxHashMap<Oid, Tid>,
    old: FxHashMap<Oid, Tid>,
}

impl Recent {
    /// Notes that `tid` wrote the object. Tids come in order.
    pub(super) fn note(&mut self, oid: Oid, tid: Tid) {
        if CHANGES <= self.young.len() {
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(oid, tid);
    }

    /// Whether the object is known to have changed after `serial`.
    pub(super) fn changed_after(&self, oid: Oid, serial: Tid) -> bool {
        let changed = self.young.get(&oid).or_else(|| self.old.get(&oid));
        changed.is_some_and(|&changed| serial < changed)
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_known_for_at_least_as_many_changes_as_are_kept() {
        let mut recent = Recent::default();
        recent.note(Oid(1), Tid(1));
        for n in 2..=CHANGES as u64 {
            recent.note(Oid(n), Tid(n));
        }
        recent.note(Oid(0), Tid(CHANGES as u64 + 1));
        assert!(recent.changed_after(Oid(1), Tid(0)));
        assert!(!recent.changed_after(Oid(1), Tid(1)));
    }
}
