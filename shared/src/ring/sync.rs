//! Atomics, locks and the futex that this folder is made of: the machine's, or loom's in a model.

#[cfg(not(loom))]
pub(super) use std::sync::Mutex;
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, fence};
#[cfg(not(loom))]
pub(super) use std::thread::{self, Thread};

#[cfg(loom)]
pub(super) use loom::cell::UnsafeCell;
#[cfg(loom)]
pub(super) use loom::sync::Mutex;
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, fence};
#[cfg(loom)]
pub(super) use loom::thread::{self, Thread};

#[cfg(not(any(loom, miri)))]
pub(super) use kernel::Futex;
#[cfg(any(loom, miri))]
pub(super) use twin::Futex;

/// How a sleep has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sleep {
    /// Somebody called, or the word was another one, or for no reason at all: look again.
    Over,
    /// The deadline has passed.
    Late,
}

/// [`std::cell::UnsafeCell`] with the shape of loom's.
#[cfg(not(loom))]
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(super) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Lends the place. Whoever writes through the pointer says why nobody else does.
    pub(super) fn with_mut<R>(&self, act: impl FnOnce(*mut T) -> R) -> R {
        act(self.0.get())
    }
}

#[cfg(not(any(loom, miri)))]
mod kernel {
    use std::ops::Deref;
    use std::time::Instant;

    use rustix::io::Errno;
    use rustix::thread::Timespec;
    use rustix::thread::futex::{self, Flags};

    use super::{AtomicU32, Sleep};

    /// A word that one thread of this process can sleep on.
    pub(in super::super) struct Futex(AtomicU32);

    impl Futex {
        pub(in super::super) fn new(word: u32) -> Self {
            Self(AtomicU32::new(word))
        }

        /// Sleeps if the word is `expected`, until [`Futex::call`] or the deadline.
        pub(in super::super) fn sleep(&self, expected: u32, deadline: Option<Instant>) -> Sleep {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Sleep::Late;
            }
            // More seconds than the kernel can count are no deadline.
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match futex::wait(&self.0, Flags::PRIVATE, expected, left.as_ref()) {
                Err(Errno::TIMEDOUT) => Sleep::Late,
                slept => {
                    debug_assert!(
                        matches!(slept, Ok(()) | Err(Errno::AGAIN | Errno::INTR)),
                        "the kernel can read a word of ours"
                    );
                    Sleep::Over
                }
            }
        }

        /// Wakes whoever sleeps on the word.
        pub(in super::super) fn call(&self) {
            let called = futex::wake(&self.0, Flags::PRIVATE, 1);
            debug_assert!(called.is_ok(), "the kernel can find a word of ours");
        }
    }

    impl Deref for Futex {
        type Target = AtomicU32;

        fn deref(&self) -> &AtomicU32 {
            &self.0
        }
    }
}

/// The futex without a kernel, for loom and Miri: as there, one lock is held while the word is
/// compared and the sleeper put in line. (Miri knows the system call, but not as rustix makes it.)
#[cfg(any(loom, miri))]
mod twin {
    use std::ops::Deref;
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    #[cfg(loom)]
    use loom::sync::Condvar;
    #[cfg(not(loom))]
    use std::sync::Condvar;

    use super::{AtomicU32, Mutex, Sleep};

    pub(in super::super) struct Futex {
        word: AtomicU32,
        line: Mutex<()>,
        bell: Condvar,
    }

    impl Futex {
        pub(in super::super) fn new(word: u32) -> Self {
            Self { word: AtomicU32::new(word), line: Mutex::new(()), bell: Condvar::new() }
        }

        pub(in super::super) fn sleep(&self, expected: u32, deadline: Option<Instant>) -> Sleep {
            // Loom has no clock. Who is late at once shows every order of events that a deadline
            // can bring about, because others run before and after.
            if cfg!(loom) && deadline.is_some() {
                return Sleep::Late;
            }
            let line = self.line.lock().expect("nobody panics with this lock held");
            if self.word.load(Ordering::Relaxed) != expected {
                return Sleep::Over;
            }
            let Some(deadline) = deadline else {
                drop(self.bell.wait(line));
                return Sleep::Over;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let (_line, end) =
                self.bell.wait_timeout(line, left).expect("nobody panics with this lock held");
            if end.timed_out() { Sleep::Late } else { Sleep::Over }
        }

        pub(in super::super) fn call(&self) {
            drop(self.line.lock());
            self.bell.notify_one();
        }
    }

    impl Deref for Futex {
        type Target = AtomicU32;

        fn deref(&self) -> &AtomicU32 {
            &self.word
        }
    }
}
