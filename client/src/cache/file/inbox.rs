//! What the writer of the file has to be told, in order.
//!
//! Nobody waits for a disk here. When the writer cannot keep up, revisions are left out of the
//! file. What others wrote may never be left out, so when even that has no room, all that waits is
//! dropped and the file has to begin anew.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard};

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};

/// Bytes that may wait before revisions are left out: a fraction of a second of a slow disk.
const REVISIONS_MAX: usize = 32 * 1024 * 1024;

/// Bytes that may wait before the file begins anew.
const NOTES_MAX: usize = 2 * REVISIONS_MAX;

/// What a note takes besides what it refers to.
const NOTE_LENGTH: usize = size_of::<Note>();

/// A change of the cache.
#[derive(Debug)]
pub(in crate::cache) enum Note {
    /// A revision was added.
    Revision { oid: Oid, serial: Tid, end: Tid, data: Bytes },
    /// A transaction wrote these, and the contents are true for it.
    End { tid: Tid, oids: Box<[Oid]> },
    /// It is not known any more what is current of these.
    Forget { oids: Box<[Oid]> },
    /// The contents are true for this transaction.
    Advance { tid: Tid },
}

/// Between the threads that change the cache and the one that writes.
#[derive(Debug, Default)]
pub(in crate::cache) struct Inbox {
    state: Mutex<State>,
    /// There is something to do.
    work: Condvar,
    /// All was done.
    rest: Condvar,
}

#[derive(Debug, Default)]
struct State {
    notes: Vec<Note>,
    bytes: usize,
    /// The file does not follow the cache any more, and has to begin anew.
    is_lost: bool,
    is_busy: bool,
    ending: Option<Ending>,
    /// The writer is gone: nothing is taken any more.
    is_over: bool,
}

/// How the writer shall end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::cache) enum Ending {
    /// Having written all.
    Close,
    /// At once.
    Stop,
}

/// What the writer is to do next.
#[derive(Debug)]
pub(super) enum Task {
    /// Write these.
    Write(Vec<Note>),
    /// Begin the file anew, from what [`Inbox::begin_anew`] says.
    BeginAnew,
    /// End.
    End(Ending),
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the inbox")
    }

    /// Leaves a note. `false` if the note is for nothing: then a revision is not in the file.
    pub(in crate::cache) fn push(&self, note: Note) -> bool {
        let (length, length_max) = match &note {
            Note::Revision { data, .. } => (data.len(), REVISIONS_MAX),
            Note::End { oids, .. } | Note::Forget { oids } => (size_of_val(&**oids), NOTES_MAX),
            Note::Advance { .. } => (0, NOTES_MAX),
        };
        let mut state = self.lock();
        if state.is_lost || state.is_over {
            return false;
        }
        if let (Note::Advance { tid }, Some(Note::Advance { tid: last })) =
            (&note, state.notes.last_mut())
        {
            *last = *tid;
            return true;
        }
        let bytes = state.bytes + NOTE_LENGTH + length;
        if length_max < bytes {
            let may_be_left_out = matches!(note, Note::Revision { .. });
            drop(state);
            if !may_be_left_out {
                self.lose();
            }
            return false;
        }
        state.bytes = bytes;
        let was_empty = state.notes.is_empty();
        state.notes.push(note);
        drop(state);
        if was_empty {
            self.work.notify_one();
        }
        true
    }

    /// Says that the file cannot follow: what waits is dropped, and the file begins anew.
    pub(in crate::cache) fn lose(&self) {
        let mut state = self.lock();
        if !state.is_over {
            state.is_lost = true;
            state.bytes = 0;
            let dropped = mem::take(&mut state.notes);
            drop(state);
            drop(dropped);
            self.work.notify_one();
        }
    }

    /// Takes notes again. To be called in a moment when the cache does not change.
    pub(super) fn begin_anew(&self) {
        self.lock().is_lost = false;
    }

    /// Waits for something to do.
    pub(super) fn take(&self) -> Task {
        let mut state = self.lock();
        state.is_busy = false;
        self.rest.notify_all();
        loop {
            let is_stopped = state.ending == Some(Ending::Stop);
            if is_stopped {
                return Task::End(Ending::Stop);
            }
            state.is_busy = true;
            if state.is_lost {
                return Task::BeginAnew;
            }
            if !state.notes.is_empty() {
                state.bytes = 0;
                return Task::Write(mem::take(&mut state.notes));
            }
            state.is_busy = false;
            if let Some(ending) = state.ending {
                return Task::End(ending);
            }
            state = self.work.wait(state).expect("no thread panics while it holds the inbox");
        }
    }

    /// Waits until the writer has done all that it was told so far, or is gone.
    pub(in crate::cache) fn settle(&self) {
        let is_working = |state: &mut State| {
            let has_work = state.is_busy || state.is_lost || !state.notes.is_empty();
            has_work && !state.is_over
        };
        let rest = self.rest.wait_while(self.lock(), is_working);
        drop(rest.expect("no thread panics while it holds the inbox"));
    }

    /// Tells the writer to end.
    pub(in crate::cache) fn end(&self, ending: Ending) {
        self.lock().ending = Some(ending);
        self.work.notify_one();
    }

    /// Says that there is no writer any more.
    pub(super) fn over(&self) {
        let mut state = self.lock();
        state.is_over = true;
        state.notes.clear();
        self.rest.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_left_out_and_what_may_not_be_left_out_begins_the_file_anew() {
        let inbox = Inbox::default();
        let data = Bytes::from(vec![0; 1 << 20]);
        let revision = || {
            let (oid, serial, end) = (Oid(1), Tid(2), Tid(3));
            inbox.push(Note::Revision { oid, serial, end, data: data.clone() })
        };
        let end = |count| inbox.push(Note::End { tid: Tid(4), oids: vec![Oid(1); count].into() });
        assert_eq!((0..40).filter(|_| revision()).count(), 31);
        assert!(end(1) && end(1 << 20) && !revision());
        assert!(!end(4 << 20));
        assert!(!end(1) && !revision());
        assert!(matches!(inbox.take(), Task::BeginAnew));
        inbox.begin_anew();
        assert!(end(1) && revision());
        let Task::Write(notes) = inbox.take() else { panic!("there is something to write") };
        assert_eq!(notes.len(), 2);
    }

    #[test]
    fn only_the_last_of_many_tids_waits() {
        let inbox = Inbox::default();
        assert!((1..100).all(|tid| inbox.push(Note::Advance { tid: Tid(tid) })));
        let Task::Write(notes) = inbox.take() else { panic!("there is something to write") };
        assert!(matches!(notes[..], [Note::Advance { tid: Tid(99) }]));
    }

    #[test]
    fn who_comes_when_the_writer_is_gone_is_sent_away() {
        let inbox = Inbox::default();
        assert!(inbox.push(Note::Advance { tid: Tid(1) }));
        inbox.over();
        assert!(!inbox.push(Note::Advance { tid: Tid(2) }));
        inbox.settle();
    }
}
