//! How often this process was forked, at the cost of a look at memory.
//!
//! A child shares its parent's sockets and rings and has none of its threads, so whoever keeps such
//! things looks here before using them. To ask for the process's id is a system call, 0.2 us on a
//! virtual machine, which a load would feel.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static FORKS: AtomicU32 = AtomicU32::new(0);

/// A process as it was when this was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Process(u32);

impl Process {
    /// This process.
    pub fn this() -> Self {
        static WATCHING: Once = Once::new();
        WATCHING.call_once(watch);
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether the calling process is a fork of that one (`fork` of the C library; one that goes
    /// around it, by the bare system call, is not noticed).
    pub fn was_forked(self) -> bool {
        FORKS.load(Ordering::Relaxed) != self.0
    }
}

extern "C" fn count() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

fn watch() {
    // SAFETY: the function that the child calls, in its only thread and before `fork` returns, does
    // nothing but add to an atomic number, which is allowed there, and is never unloaded.
    let watched = unsafe { libc::pthread_atfork(None, None, Some(count)) };
    assert_eq!(watched, 0, "there is memory for the address of a function");
}
