//! How threads hand things to each other: bounded queues without locks, a bell for sleepers, a slot
//! for one result, and the helm of a socket that its callers drive.
//!
//! Waking a sleeping thread costs both sides more than a whole load over loopback, so nobody is
//! woken who is awake: a thread says when it goes to sleep, and only then is it called.

pub mod doorbell;
pub mod helm;
pub mod mailbox;
pub mod slot;
mod sync;

pub use doorbell::Doorbell;
pub use helm::{Helm, Lead, Turn};
pub use mailbox::{Full, Mailbox};
pub use slot::Slot;

/// Chance for tests, the same in every run.
#[cfg(test)]
mod dice {
    use std::thread;

    pub(super) struct Dice(u64);

    impl Dice {
        pub(super) fn new(seed: usize) -> Self {
            Self(seed as u64 + 1)
        }

        /// A number below `sides`.
        pub(super) fn roll(&mut self, sides: u64) -> u64 {
            // Marsaglia's xorshift64.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }

        /// Lets others run, or not.
        pub(super) fn dawdle(&mut self) {
            for _ in 0..self.roll(4) {
                thread::yield_now();
            }
        }
    }
}
