//! Wakes a thread that sleeps, and costs one load of memory if it does not.
//!
//! ```text
//!   giver                          sleeper
//!   leaves something               AWAKE
//!   ring: fence, look at state     doze: state = ASLEEP, fence, look for what was left
//!     AWAKE  -> nothing to do      found something -> wake
//!     ASLEEP -> RUNG, and wake     nothing         -> sleep, then wake: state = AWAKE
//! ```
//!
//! The two fences stand between "leave, then look at the state" and "set the state, then look for
//! what was left", so at least one of the two sees the other: no ring is lost.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use rustix::event::{EventfdFlags, eventfd};

use super::sync::{AtomicU32, Thread, fence, thread};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const RUNG: u32 = 2;

/// What a ring adds to an eventfd's counter: any number that is neither 0 nor 2^64 - 1 wakes its
/// reader, whatever the order of its bytes.
const ONE_RING: [u8; 8] = [0, 0, 0, 1, 1, 0, 0, 0];

/// The bell of one thread.
#[derive(Debug)]
pub struct Doorbell {
    state: AtomicU32,
    waker: Waker,
}

/// What ends the thread's sleep.
#[derive(Debug)]
enum Waker {
    /// An eventfd that the thread's ring reads.
    Event(OwnedFd),
    /// The thread parks.
    Thread(OnceLock<Thread>),
}

impl Doorbell {
    /// A bell for a thread that sleeps in its ring: the ring must read [`Doorbell::event`].
    ///
    /// # Errors
    ///
    /// No eventfd could be made: too many open files.
    pub fn for_ring() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { state: AtomicU32::new(AWAKE), waker: Waker::Event(event) })
    }

    /// A bell for a thread that sleeps in [`Doorbell::sleep_unless`].
    pub fn for_thread() -> Self {
        Self { state: AtomicU32::new(AWAKE), waker: Waker::Thread(OnceLock::new()) }
    }

    /// Wakes the thread if it sleeps. Call it after leaving what the thread is to find.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) == AWAKE {
            return;
        }
        let slept =
            self.state.compare_exchange(ASLEEP, RUNG, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        if !slept {
            return;
        }
        match &self.waker {
            // The counter does not overflow: it is rung once a sleep, and read before the next.
            Waker::Event(event) => {
                let written = rustix::io::write(event, &ONE_RING);
                debug_assert!(written.is_ok(), "an eventfd that is read takes a ring");
            }
            Waker::Thread(thread) => {
                thread.get().expect("a thread that dozes has told its name").unpark();
            }
        }
    }

    /// Says that the thread is about to sleep. It must look for what was left once more, and then
    /// either sleep or not; [`Doorbell::wake`] comes next in both cases.
    pub fn doze(&self) {
        if let Waker::Thread(thread) = &self.waker {
            thread.get_or_init(thread::current);
        }
        self.state.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that the thread is awake: nobody need ring.
    pub fn wake(&self) {
        self.state.store(AWAKE, Ordering::Release);
    }

    /// Parks the calling thread until the bell rings, unless `ready` says there is something to do.
    ///
    /// May return early; the caller looks for work in a loop. Always the same thread calls it.
    pub fn sleep_unless(&self, ready: impl Fn() -> bool) {
        self.doze();
        if !ready() {
            thread::park();
        }
        self.wake();
    }

    /// The eventfd that the thread's ring has to read, for a bell made by [`Doorbell::for_ring`].
    pub fn event(&self) -> Option<impl AsFd + '_> {
        match &self.waker {
            Waker::Event(event) => Some(event),
            Waker::Thread(_) => None,
        }
    }
}
