//! What the cache holds, in both tiers, and how the server's stream changes it.
//!
//! Changes happen one at a time, under one lock, and are told to the file's writer in the same
//! order. Hits do not take that lock, and nothing is freed, read or written under it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};

use super::file::{Note, Tier};
use super::index::{Added, Entry, Index, Marks, OPEN, Place};
use super::memory::Queues;
use super::recent::Recent;
use crate::session::Revision;

/// Invariant: for the last tid L, an entry without an end is the newest revision up to L; the end of
/// any other is the next revision's serial, and not later than L.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) index: Index,
    state: Mutex<State>,
    /// [`OPEN`] while nothing is known. Changed under the lock, after the index.
    last_tid: AtomicU64,
    tier: Option<Tier>,
}

/// What only changes need.
#[derive(Debug)]
struct State {
    queues: Queues,
    recent: Recent,
    is_closed: bool,
}

impl Contents {
    pub(super) fn new(memory_max: usize, tier: Option<Tier>) -> Self {
        let queues = Queues::new(memory_max);
        Self {
            index: Index::new(),
            state: Mutex::new(State { queues, recent: Recent::default(), is_closed: false }),
            last_tid: AtomicU64::new(OPEN.0),
            tier,
        }
    }

    pub(super) fn tier(&self) -> Option<&Tier> {
        self.tier.as_ref()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it changes the cache")
    }

    pub(super) fn last_tid(&self) -> Option<Tid> {
        let tid = Tid(self.last_tid.load(Ordering::Acquire));
        (tid != OPEN).then_some(tid)
    }

    fn set_last_tid(&self, tid: Option<Tid>) {
        self.last_tid.store(tid.unwrap_or(OPEN).0, Ordering::Release);
    }

    /// Says what an index is true for that was just read from a file.
    pub(super) fn restore(&self, last_tid: Option<Tid>) {
        self.set_last_tid(last_tid);
    }

    pub(super) fn insert(&self, oid: Oid, revision: &Revision) {
        let Revision { data, serial, end } = revision;
        let serial = *serial;
        let Ok(length) = u32::try_from(data.len()) else { return };
        let mut state = self.lock();
        let Some(last) = self.last_tid() else { return };
        let end = end.unwrap_or(OPEN);
        // One that begins or ends later than what we were told of will be asked for again. So
        // nothing here is younger than the last tid, by which a history is recognized.
        let is_told = serial <= last && (end == OPEN || end <= last);
        let is_late = end == OPEN && state.recent.changed_after(oid, serial);
        if !is_told || end <= serial || is_late || state.is_closed {
            return;
        }
        let file = self.tier.as_ref().filter(|tier| tier.takes(data.len()));
        if file.is_none() && !state.queues.takes(data.len()) {
            return;
        }
        let place = if file.is_some() { Place::Awaited } else { Place::Nowhere };
        let marks = Marks::default();
        let entry = Entry { serial, end, data: None, place, length, stamp: 0, marks };
        match self.index.add(oid, entry) {
            Added::Refused => return,
            Added::Known { ended: false } => {}
            Added::Known { ended: true } => {
                self.tell(|| Note::End { tid: end, oids: [oid].into() });
            }
            Added::New { replaced } => {
                if let Some(replaced) = replaced {
                    state.queues.removed(&self.index, &replaced);
                    self.tell(|| Note::Forget { oids: [oid].into() });
                }
                let is_written = file.is_some()
                    && self.tell(|| Note::Revision { oid, serial, end, data: data.clone() });
                if !is_written {
                    self.index.change(oid, serial, |entry| {
                        entry.place = Place::Nowhere;
                        false
                    });
                }
            }
        }
        let freed = self.keep_locked(&mut state, oid, serial, data);
        drop(state);
        drop(freed);
    }

    /// Tells the writer of the file, if there is one. `false` if it will not be in the file.
    fn tell(&self, note: impl FnOnce() -> Note) -> bool {
        self.tier.as_ref().is_some_and(|tier| tier.inbox.push(note()))
    }

    /// Gives a revision that is known its data, if it has none, and makes room for them.
    #[must_use = "data are freed where no lock is held"]
    fn keep_locked(&self, state: &mut State, oid: Oid, serial: Tid, data: &Bytes) -> Vec<Bytes> {
        let takes = state.queues.takes(data.len());
        self.index.change(oid, serial, |entry| {
            if takes && entry.data.is_none() && entry.length as usize == data.len() {
                state.queues.admit(oid, entry);
                // The first clone of bytes allocates the count of references. Hits clone this one,
                // which has it.
                entry.data = Some(data.clone());
            }
            entry.data.is_none() && entry.place == Place::Nowhere
        });
        state.queues.shrink(&self.index)
    }

    /// Keeps in memory what was read from this position of the file.
    pub(super) fn keep(&self, oid: Oid, serial: Tid, position: u64, data: &Bytes) {
        let mut state = self.lock();
        let mut is_there = false;
        self.index.change(oid, serial, |entry| {
            is_there = entry.place == Place::At(position);
            false
        });
        if is_there {
            let freed = self.keep_locked(&mut state, oid, serial, data);
            drop(state);
            drop(freed);
        }
    }

    /// Takes note that the revision is not in this position of the file. Returns whether it was
    /// thought to be.
    pub(super) fn lose(&self, oid: Oid, serial: Tid, position: u64) -> bool {
        let mut was_there = false;
        self.index.change(oid, serial, |entry| {
            was_there = entry.place == Place::At(position);
            if was_there {
                entry.place = Place::Nowhere;
            }
            entry.data.is_none() && entry.place == Place::Nowhere
        });
        was_there
    }

    /// Forgets what is in the file, in a moment when nothing changes. Returns what the rest is true
    /// for.
    pub(super) fn leave_file(&self, then: impl FnOnce()) -> Option<Tid> {
        let _state = self.lock();
        self.index.change_all(|entry| {
            entry.place = Place::Nowhere;
            entry.data.is_none()
        });
        then();
        self.last_tid()
    }

    pub(super) fn invalidate(&self, tid: Tid, oids: &[Oid]) {
        let mut state = self.lock();
        if !self.is_next(tid) {
            // Which of the revisions is current, such a server cannot tell.
            return self.forget_locked(&mut state, oids);
        }
        for &oid in oids {
            self.index.end(oid, tid);
            state.recent.note(oid, tid);
        }
        self.set_last_tid(Some(tid));
        self.tell(|| match oids {
            [] => Note::Advance { tid },
            _ => Note::End { tid, oids: oids.into() },
        });
    }

    pub(super) fn forget(&self, oids: &[Oid]) {
        self.forget_locked(&mut self.lock(), oids);
    }

    fn forget_locked(&self, state: &mut State, oids: &[Oid]) {
        for entry in oids.iter().filter_map(|&oid| self.index.forget(oid)) {
            state.queues.removed(&self.index, &entry);
        }
        if !oids.is_empty() {
            self.tell(|| Note::Forget { oids: oids.into() });
        }
    }

    pub(super) fn advance(&self, tid: Tid) {
        let _state = self.lock();
        if self.is_next(tid) {
            self.set_last_tid(Some(tid));
            self.tell(|| Note::Advance { tid });
        }
    }

    fn is_next(&self, tid: Tid) -> bool {
        tid <= Tid::MAX && self.last_tid().is_none_or(|last| last < tid)
    }

    pub(super) fn clear(&self) {
        let mut state = self.lock();
        // Whoever still sees the old tid finds nothing.
        self.index.clear();
        state.queues.clear();
        state.recent.clear();
        self.set_last_tid(None);
        if let Some(tier) = &self.tier {
            tier.inbox.lose();
        }
    }

    /// Takes nothing more in.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Revisions in memory, and what they cost in bytes.
    pub(super) fn memory(&self) -> (usize, usize) {
        self.lock().queues.size()
    }
}
