//! What others committed, kept until the application asks for it.

use std::collections::VecDeque;

use zeoring_shared::ids::{Oid, Tid};

/// So many oids may wait to be taken: 2 MiB of memory. An application that lets more come together
/// has to look at everything anew, which by then is the cheaper way.
const OIDS_MAX: usize = 256 * 1024;

/// A transaction that another client committed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Invalidation {
    /// The transaction. Tids of one connection rise.
    pub tid: Tid,
    /// Every object that it wrote.
    pub oids: Vec<Oid>,
}

/// What has changed since the last time one asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Invalidated {
    /// These transactions, in order, and nothing else; often none.
    Transactions(Vec<Invalidation>),
    /// So much that it was not kept: no revision that is held as current may be trusted.
    Everything {
        /// The last transaction that was heard of.
        until: Tid,
    },
}

/// Invariant: `oids` is the sum of the lengths in `kept`, and at most [`OIDS_MAX`]; transactions
/// count as one oid more, so that empty ones are bounded as well.
#[derive(Debug, Default)]
pub(crate) struct Invalidations {
    kept: VecDeque<Invalidation>,
    oids: usize,
    /// Set once something was dropped.
    lost_until: Option<Tid>,
}

impl Invalidations {
    /// Adds a transaction, or loses everything if it is too much.
    pub(crate) fn push(&mut self, invalidation: Invalidation) {
        self.oids += invalidation.oids.len() + 1;
        let is_full = OIDS_MAX < self.oids || self.lost_until.is_some();
        if is_full {
            return self.lose(invalidation.tid);
        }
        self.kept.push_back(invalidation);
    }

    /// What changed is not known.
    pub(crate) fn lose(&mut self, until: Tid) {
        self.lost_until = Some(until);
        self.kept.clear();
        self.oids = 0;
    }

    /// What has changed since the last time.
    pub(crate) fn take(&mut self) -> Invalidated {
        self.oids = 0;
        match self.lost_until.take() {
            Some(until) => Invalidated::Everything { until },
            None => Invalidated::Transactions(std::mem::take(&mut self.kept).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalidations_are_given_out_once_and_in_order() {
        let mut queue = Invalidations::default();
        let two = [1, 2].map(|n| Invalidation { tid: Tid(n), oids: vec![Oid(n)] });
        two.iter().cloned().for_each(|invalidation| queue.push(invalidation));
        assert_eq!(queue.take(), Invalidated::Transactions(two.to_vec()));
        assert_eq!(queue.take(), Invalidated::Transactions(vec![]));
    }

    #[test]
    fn more_than_can_be_kept_invalidates_everything() {
        let mut queue = Invalidations::default();
        for tid in 1..=3 {
            queue.push(Invalidation { tid: Tid(tid), oids: vec![Oid(0); OIDS_MAX / 2] });
        }
        assert_eq!(queue.take(), Invalidated::Everything { until: Tid(3) });
        queue.push(Invalidation { tid: Tid(4), oids: vec![] });
        let after = vec![Invalidation { tid: Tid(4), oids: vec![] }];
        assert_eq!(queue.take(), Invalidated::Transactions(after));
    }
}
