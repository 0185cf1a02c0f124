//! How threads hand things to each other: bounded queues without locks, and a bell for sleepers.
//!
//! Waking a sleeping thread costs both sides more than a whole load over loopback, so nobody is
//! woken who is awake: a thread says when it goes to sleep, and only then is its bell rung.

pub mod doorbell;
pub mod mailbox;

pub use doorbell::Doorbell;
pub use mailbox::{Full, Mailbox};
