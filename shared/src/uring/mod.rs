//! The ring: start an operation, submit, spin or sleep, take what has finished.
//!
//! A [`Reactor`] belongs to the thread that made it. Whatever the kernel may still write to or read
//! from is owned by the reactor until its completion has come, so no caller can free it too early.

mod flight;
mod pool;
mod probe;
mod reactor;
mod spin;

pub use pool::Chunk;
pub use probe::{Kernel, NoRing};
pub use reactor::{Event, Options, Reactor, Receiving, Token};
pub use spin::{Spin, SpinBudget};
