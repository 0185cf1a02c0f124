//! How far a pack has come, for the log and the status, and how it is told to give up.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::log::{self, Severity, Source};
use crate::storage::StorageError;

/// What a pack is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// It reads which records there are. Counted in bytes.
    Index,
    /// It looks for objects that are referred to. Counted in objects.
    Mark,
    /// It writes what is kept of the time before the pack time. Counted in bytes read.
    Copy,
    /// It writes what was committed later. Counted in bytes read.
    CatchUp,
    /// It puts the new file in place.
    Switch,
}

/// How far a pack has come. Shared between the thread that packs and those that ask.
#[derive(Debug)]
pub struct Progress {
    phase: Mutex<Phase>,
    done: AtomicU64,
    total: AtomicU64,
    given_up: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            phase: Mutex::new(Phase::Index),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            given_up: AtomicBool::new(false),
        }
    }
}

impl Phase {
    /// As the log and the status name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Mark => "mark",
            Self::Copy => "copy",
            Self::CatchUp => "catch up",
            Self::Switch => "switch",
        }
    }
}

impl Progress {
    /// What is being done, how much of it is done, and how much there is.
    pub fn now(&self) -> (Phase, u64, u64) {
        let phase = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        (phase, self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Makes the pack end soon, with everything as it was before.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Goes on to another phase.
    pub(super) fn begin(&self, phase: Phase, total: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        let text = format_args!("pack: {} ({total})", phase.name());
        log::event(Source::FILE_STORAGE, Severity::Info, "", text);
    }

    /// Says how much is done.
    ///
    /// # Errors
    ///
    /// [`StorageError::GivenUp`] if the pack is to end.
    pub(super) fn reach(&self, done: u64) -> Result<(), StorageError> {
        let before = self.done.swap(done, Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        let tenth = (total / 10).max(LOGGED_MIN);
        if total != 0 && before / tenth < done / tenth {
            let (phase, ..) = self.now();
            let text = format_args!("pack: {} ({done} of {total})", phase.name());
            log::event(Source::FILE_STORAGE, Severity::Info, "", text);
        }
        if self.given_up.load(Ordering::Relaxed) { Err(StorageError::GivenUp) } else { Ok(()) }
    }
}

/// Progress that is worth a line of the log, at least: objects or bytes.
const LOGGED_MIN: u64 = 1_000_000;
