//! Where the result of one call is put, by whoever completes it, for the one thread that waits.
//!
//! ```text
//!   caller                                   filler
//!   looks a while at the word                value, then FULL
//!   SLEEPING, and sleeps if the word           SLEEPING was there -> wake
//!   has not changed since                      else               -> nothing to do
//! ```
//!
//! One word tells all, so there is no order between two places to get wrong: each change of the
//! word comes either before the caller said SLEEPING, and the caller sees it, or after, and whoever
//! made it sees SLEEPING.

use std::fmt;
use std::hint;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::sync::{Futex, Sleep, UnsafeCell};
use crate::uring::{Spin, SpinBudget};

/// Somebody fills, or has filled: the value is theirs to write.
const CLAIMED: u32 = 1;
/// The value has been written.
const FULL: u32 = 2;
/// The value is no longer there, or about to go: it is the taker's.
const TAKEN: u32 = 4;
/// The caller sleeps on the word, or is about to.
const SLEEPING: u32 = 8;
/// The rest of the word counts the nudges, so that each one changes it.
const ONE_NUDGE: u32 = 16;

/// The place of one result. Shared by `Arc` between the caller and the thread that completes it.
///
/// ```
/// use std::sync::Arc;
/// use std::thread;
/// use std::time::Duration;
///
/// use zeoring_shared::ring::Slot;
///
/// let slot = Arc::new(Slot::new());
/// let completing = Arc::clone(&slot);
/// let other = thread::spawn(move || completing.fill(42));
/// assert_eq!(slot.wait(Duration::from_micros(50), None), Some(42));
/// # other.join().unwrap();
/// ```
///
/// A value that nobody takes is dropped with the slot; a caller may leave without one.
pub struct Slot<T> {
    word: Futex,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: `fill` and `take` uphold it: the value is touched by the one thread that set CLAIMED,
// until that one sets FULL, and afterwards by the one that set TAKEN. So a shared slot moves a
// value from a thread to another and never shares it, for which `T: Send` is enough.
unsafe impl<T: Send> Sync for Slot<T> {}

impl<T> Slot<T> {
    /// A slot without a value.
    pub fn new() -> Self {
        Self { word: Futex::new(0), value: UnsafeCell::new(None) }
    }

    /// Puts the value in. Wakes the caller if it sleeps; makes no system call otherwise.
    ///
    /// # Panics
    ///
    /// The slot has been filled before: a call has one result.
    pub fn fill(&self, value: T) {
        let claimed = self.word.fetch_or(CLAIMED, Ordering::Relaxed);
        assert!(claimed & CLAIMED == 0, "a call has one result");
        self.value.with_mut(|place| {
            // SAFETY: only the thread that turned CLAIMED on comes here, once in the slot's life,
            // and `take` does not touch the value before FULL, which follows.
            unsafe { *place = Some(value) }
        });
        let before = self.word.fetch_or(FULL, Ordering::Release);
        if before & SLEEPING != 0 {
            self.word.call();
        }
    }

    /// Whether the value is there to take.
    pub fn is_full(&self) -> bool {
        self.word.load(Ordering::Acquire) & (FULL | TAKEN) == FULL
    }

    /// Takes the value out if it is there. It is given once.
    pub fn take(&self) -> Option<T> {
        if self.word.load(Ordering::Relaxed) & (FULL | TAKEN) != FULL {
            return None;
        }
        let before = self.word.fetch_or(TAKEN, Ordering::Acquire);
        if before & TAKEN != 0 {
            return None;
        }
        self.value.with_mut(|place| {
            // SAFETY: FULL was there, so the filler is done with the value, and the load of the
            // word has acquired its write. Only the thread that turned TAKEN on comes here.
            unsafe { (*place).take() }
        })
    }

    /// Waits for the value, and takes it: looks for about `spin`, then sleeps. `None` when the
    /// deadline has passed; the value may still come, and may be waited for again.
    ///
    /// One thread waits at a time. The clock is first read when the value was not there after a
    /// few looks, and then once every few looks.
    ///
    /// # Panics
    ///
    /// The value has been taken already, and the caller would sleep for ever.
    pub fn wait(&self, spin: Duration, deadline: Option<Instant>) -> Option<T> {
        if let Some(value) = look_for(spin, deadline, || self.take()) {
            return Some(value);
        }
        loop {
            let word = self.lie_down();
            let sleep = self.sleep(word, deadline);
            self.get_up();
            let value = self.take();
            if value.is_some() || sleep == Sleep::Late {
                return value;
            }
        }
    }

    /// Says that the caller is about to sleep. Returns the word that it is to sleep on: whatever
    /// comes from now on changes it.
    pub(super) fn lie_down(&self) -> u32 {
        let word = self.word.fetch_or(SLEEPING, Ordering::Relaxed) | SLEEPING;
        assert!(word & TAKEN == 0, "nobody waits for a value that was taken");
        word
    }

    /// Sleeps until the word is no longer the one that [`Slot::lie_down`] returned.
    pub(super) fn sleep(&self, word: u32, deadline: Option<Instant>) -> Sleep {
        if word & FULL != 0 { Sleep::Over } else { self.word.sleep(word, deadline) }
    }

    /// Says that the caller is awake: nobody need call.
    pub(super) fn get_up(&self) {
        self.word.fetch_and(!SLEEPING, Ordering::Relaxed);
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("full", &self.is_full()).finish_non_exhaustive()
    }
}

/// A caller that sleeps until it has its result, whatever that is.
pub(super) trait Sleeper: Send + Sync {
    /// Whether the result has come.
    fn answered(&self) -> bool;

    /// Wakes the caller without a result.
    fn nudge(&self);
}

impl<T: Send> Sleeper for Slot<T> {
    fn answered(&self) -> bool {
        self.word.load(Ordering::Relaxed) & FULL != 0
    }

    fn nudge(&self) {
        let before = self.word.fetch_add(ONE_NUDGE, Ordering::Relaxed);
        if before & SLEEPING != 0 {
            self.word.call();
        }
    }
}

/// Looks until there is something, for about `budget` and not past the deadline. At least once.
///
/// Every few looks the processor is given to whom it may concern, as spinners may outnumber
/// processors, and the clock is read.
pub(super) fn look_for<R>(
    budget: Duration,
    deadline: Option<Instant>,
    look: impl Fn() -> Option<R>,
) -> Option<R> {
    let found = look();
    if found.is_some() || budget.is_zero() {
        return found;
    }
    let mut spin = Spin::new(SpinBudget::Fixed(budget), 1);
    let mut begun = None;
    loop {
        hint::spin_loop();
        let found = look();
        if found.is_some() {
            return found;
        }
        if spin.look() {
            std::thread::yield_now();
            let now = Instant::now();
            let spent = now - *begun.get_or_insert(now);
            if spin.budget() <= spent || deadline.is_some_and(|deadline| deadline <= now) {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;
    use crate::ring::dice::Dice;

    const CALLS: usize = if cfg!(miri) { 40 } else { 20_000 };

    /// How long to look: not at all, for a while, for longer than any test takes.
    const SPINS: [Duration; 3] =
        [Duration::ZERO, Duration::from_micros(20), Duration::from_secs(100)];

    fn now() -> Option<Instant> {
        Some(Instant::now())
    }

    /// A value that counts how often it was dropped.
    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn every_call_gets_its_own_result_from_another_thread() {
        for spin in SPINS {
            let (calls, inbox) = mpsc::channel::<(usize, Arc<Slot<Box<usize>>>)>();
            let completing = thread::spawn(move || {
                let mut dice = Dice::new(0);
                for (number, slot) in inbox {
                    dice.dawdle();
                    slot.fill(Box::new(number));
                }
            });
            let callers: Vec<_> = (1..3)
                .map(|caller| {
                    let calls = calls.clone();
                    thread::spawn(move || {
                        let mut dice = Dice::new(caller);
                        for number in 0..CALLS / SPINS.len() {
                            let slot = Arc::new(Slot::new());
                            calls.send((number, Arc::clone(&slot))).unwrap();
                            dice.dawdle();
                            assert_eq!(slot.wait(spin, None), Some(Box::new(number)));
                        }
                    })
                })
                .collect();
            drop(calls);
            callers.into_iter().for_each(|caller| caller.join().unwrap());
            completing.join().unwrap();
        }
    }

    #[test]
    fn every_value_is_dropped_once_whether_its_caller_stays_or_leaves() {
        let drops = Arc::new(AtomicUsize::new(0));
        let (calls, inbox) = mpsc::channel::<Arc<Slot<Counted>>>();
        let completing = thread::spawn({
            let drops = Arc::clone(&drops);
            move || {
                let mut dice = Dice::new(0);
                for slot in inbox {
                    dice.dawdle();
                    slot.fill(Counted(Arc::clone(&drops)));
                }
            }
        });
        let mut dice = Dice::new(1);
        for _ in 0..CALLS {
            let slot = Arc::new(Slot::new());
            calls.send(Arc::clone(&slot)).unwrap();
            dice.dawdle();
            let patience = Duration::from_micros(dice.roll(30));
            slot.wait(Duration::from_micros(dice.roll(10)), Some(Instant::now() + patience));
        }
        drop(calls);
        completing.join().unwrap();
        assert_eq!(drops.load(Ordering::Relaxed), CALLS);
    }

    #[test]
    fn who_is_late_gets_nothing_and_finds_the_value_when_it_has_come() {
        for spin in SPINS {
            let slot = Slot::new();
            assert_eq!(slot.wait(spin, now()), None);
            assert!(!slot.is_full());
            slot.fill("value");
            assert!(slot.is_full());
            assert_eq!(slot.wait(spin, now()), Some("value"));
            assert!(!slot.is_full());
            assert_eq!(slot.take(), None);
        }
    }

    #[test]
    fn a_nudge_is_no_value() {
        let slot = Slot::new();
        slot.nudge();
        assert_eq!((slot.is_full(), slot.answered()), (false, false));
        assert_eq!(slot.wait(Duration::ZERO, now()), None);
        slot.fill(1);
        slot.nudge();
        assert_eq!(slot.wait(Duration::ZERO, None), Some(1));
    }

    #[test]
    fn a_value_may_be_taken_by_any_of_several_threads_and_by_one_only() {
        for seed in 0..CALLS / 40 {
            let slot = Slot::new();
            let taken = AtomicUsize::new(0);
            thread::scope(|scope| {
                for taker in 0..2 {
                    let (slot, taken) = (&slot, &taken);
                    scope.spawn(move || {
                        let mut dice = Dice::new(seed + taker);
                        while !slot.answered() {
                            dice.dawdle();
                        }
                        taken.fetch_add(slot.take().map_or(0, |value| value), Ordering::Relaxed);
                    });
                }
                slot.fill(1);
            });
            assert_eq!(taken.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    #[should_panic(expected = "a call has one result")]
    fn a_second_value_is_a_bug() {
        let slot = Slot::new();
        slot.fill(1);
        slot.fill(2);
    }

    #[test]
    #[should_panic(expected = "nobody waits for a value that was taken")]
    fn to_wait_for_a_value_that_was_taken_is_a_bug() {
        let slot = Slot::new();
        slot.fill(1);
        assert_eq!(slot.take(), Some(1));
        slot.wait(Duration::ZERO, None);
    }
}
