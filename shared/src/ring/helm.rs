//! The place of the thread that drives a socket for all who wait for it: one leads, the others
//! follow on their slots.
//!
//! ```text
//!   follower                                leader
//!   SLEEPING in its slot                    has its own answer
//!   into the list, count                    helm = FREE
//!   fence                                   fence
//!   helm = FREE  -> takes it, or             count = 0 -> nothing to do
//!   helm = TAKEN -> sleeps on its slot       else      -> the first without an answer out of the
//!                                                         list, and a nudge for it
//! ```
//!
//! At least one of the two sees the other, because of the fences. A nudge is a duty: while the helm
//! is free and somebody sleeps, some awake thread has been taken out of the list and not yet looked
//! at the helm. It takes the helm, or finds it taken by somebody whose leaving looks at the count,
//! or leaves with its answer or at its deadline, and then nudges the next one.
//!
//! The helm neither reads nor writes a socket, and never waits with the lock of its list held.

use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::slot::{Sleeper, Slot, look_for};
use super::sync::{AtomicBool, AtomicUsize, Mutex, Sleep, fence};

/// Who drives, and who sleeps meanwhile.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use zeoring_shared::ring::{Helm, Slot, Turn};
///
/// let (helm, slot) = (Helm::new(), Arc::new(Slot::new()));
/// let answer = loop {
///     match helm.wait(&slot, Duration::ZERO, None) {
///         Turn::Answer(answer) => break answer,
///         // Here the thread reads the socket and fills the slots of all, until its own is full.
///         Turn::Lead(_lead) => slot.fill("its answer"),
///         Turn::Late => panic!("there was no deadline"),
///     }
/// };
/// assert_eq!(answer, "its answer");
/// ```
pub struct Helm {
    taken: AtomicBool,
    /// As many as are in `sleepers`, to be read without the lock.
    count: AtomicUsize,
    /// Those who sleep or are about to, and have not been nudged; who came first is first.
    sleepers: Mutex<Vec<Arc<dyn Sleeper>>>,
}

/// What a thread that waits at the helm is to do.
#[derive(Debug)]
pub enum Turn<'h, T> {
    /// Go: this is the answer.
    Answer(T),
    /// Drive, until the answer is there; then wait again, or take it out of the slot.
    Lead(Lead<'h>),
    /// Go without an answer: the deadline has passed.
    Late,
}

/// The helm, held. Dropping it frees the helm, and wakes one follower if some sleep.
pub struct Lead<'h> {
    helm: &'h Helm,
}

impl Helm {
    /// A helm that nobody holds.
    pub fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            sleepers: Mutex::new(Vec::new()),
        }
    }

    /// Takes the helm if it is free.
    pub fn try_lead(&self) -> Option<Lead<'_>> {
        self.taken
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
            .then(|| Lead { helm: self })
    }

    /// Waits until the slot is full, or nobody leads and this thread takes the helm, or the
    /// deadline has passed. Looks for about `spin`, then sleeps on the slot.
    ///
    /// One thread waits for a slot at a time. An answer counts more than the helm and the deadline,
    /// and the deadline more than the helm, except that a call of `wait` whose first look finds the
    /// helm free takes it whatever the time is.
    ///
    /// # Panics
    ///
    /// The answer has been taken already, and the caller would sleep for ever.
    pub fn wait<'h, T: Send + 'static>(
        &'h self,
        slot: &Arc<Slot<T>>,
        spin: Duration,
        deadline: Option<Instant>,
    ) -> Turn<'h, T> {
        let look = || match slot.take() {
            Some(answer) => Some(Turn::Answer(answer)),
            None if self.is_free() => self.try_lead().map(Turn::Lead),
            None => None,
        };
        if let Some(turn) = look_for(spin, deadline, look) {
            return turn;
        }
        loop {
            let (sleep, nudged) = self.sleep(slot, deadline);
            let turn = match slot.take() {
                Some(answer) => Some(Turn::Answer(answer)),
                None if sleep == Sleep::Late => Some(Turn::Late),
                None => None,
            };
            if let Some(turn) = turn {
                // Whoever was nudged and goes leaves the duty to the next one. A helm that is
                // taken again has a leader who sees to it.
                if nudged && self.is_free() {
                    self.nudge_one();
                }
                return turn;
            }
            if let Some(lead) = self.try_lead() {
                return Turn::Lead(lead);
            }
        }
    }

    /// Sleeps once. Returns how that ended, and whether the caller was chosen to lead.
    fn sleep<T: Send + 'static>(
        &self,
        slot: &Arc<Slot<T>>,
        deadline: Option<Instant>,
    ) -> (Sleep, bool) {
        // Before the list: a nudge comes after, and changes this word.
        let word = slot.lie_down();
        self.with_sleepers(|sleepers| sleepers.push(Arc::clone(slot) as Arc<dyn Sleeper>));
        fence(Ordering::SeqCst);
        let sleep = if self.is_free() { Sleep::Over } else { slot.sleep(word, deadline) };
        slot.get_up();
        let nudged = self.with_sleepers(|sleepers| {
            let place = sleepers
                .iter()
                .position(|sleeper| ptr::addr_eq(Arc::as_ptr(sleeper), Arc::as_ptr(slot)));
            place.map(|place| sleepers.remove(place)).is_none()
        });
        (sleep, nudged)
    }

    /// Wakes the first sleeper that has no answer: it comes to lead.
    fn nudge_one(&self) {
        let chosen = self.with_sleepers(|sleepers| {
            let place = sleepers.iter().position(|sleeper| !sleeper.answered())?;
            Some(sleepers.remove(place))
        });
        if let Some(sleeper) = chosen {
            sleeper.nudge();
        }
    }

    fn with_sleepers<R>(&self, act: impl FnOnce(&mut Vec<Arc<dyn Sleeper>>) -> R) -> R {
        let mut sleepers = self.sleepers.lock().expect("nobody panics while holding the list");
        let result = act(&mut sleepers);
        self.count.store(sleepers.len(), Ordering::Relaxed);
        result
    }

    fn is_free(&self) -> bool {
        !self.taken.load(Ordering::Relaxed)
    }
}

impl Default for Helm {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Helm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Helm").field("taken", &self.taken).field("sleepers", &self.count).finish()
    }
}

impl fmt::Debug for Lead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lead")
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.helm.taken.store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.helm.count.load(Ordering::Relaxed) != 0 {
            self.helm.nudge_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;
    use crate::ring::dice::Dice;

    const THREADS: usize = 4;
    const CALLS: u64 = if cfg!(miri) { 15 } else { 5_000 };

    /// How long to look: not at all, for a while, for longer than any test takes.
    const SPINS: [Duration; 3] =
        [Duration::ZERO, Duration::from_micros(20), Duration::from_secs(100)];

    /// Answers calls in their order, each with what was sent, to whoever leads.
    #[derive(Default)]
    struct Socket {
        calls: Mutex<VecDeque<(u64, Arc<Slot<u64>>)>>,
        /// Counts right only if one leads at a time.
        read: AtomicU64,
    }

    impl Socket {
        fn call(&self, sent: u64) -> Arc<Slot<u64>> {
            let slot = Arc::new(Slot::new());
            self.calls.lock().unwrap().push_back((sent, Arc::clone(&slot)));
            slot
        }

        /// Reads until the slot is full, or nothing is left to read.
        fn read_until(&self, own: &Slot<u64>, dice: &mut Dice) {
            while !own.is_full() {
                let next = self.calls.lock().unwrap().pop_front();
                let Some((sent, slot)) = next else { break };
                self.read.store(self.read.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                dice.dawdle();
                slot.fill(sent);
            }
        }
    }

    /// Threads that call; every second call has a deadline if they are hasty.
    fn call_from_many_threads(spin: Duration, hasty: bool) {
        let (helm, socket) = (Helm::new(), Socket::default());
        thread::scope(|scope| {
            for caller in 0..THREADS {
                let (helm, socket) = (&helm, &socket);
                scope.spawn(move || {
                    let mut dice = Dice::new(caller);
                    for sent in 0..CALLS {
                        let slot = socket.call(sent);
                        dice.dawdle();
                        let patience = Duration::from_micros(dice.roll(40));
                        let deadline =
                            (hasty && dice.roll(2) == 0).then(|| Instant::now() + patience);
                        loop {
                            match helm.wait(&slot, spin, deadline) {
                                Turn::Answer(answer) => break assert_eq!(answer, sent),
                                Turn::Lead(_lead) => socket.read_until(&slot, &mut dice),
                                Turn::Late => break assert!(deadline.is_some()),
                            }
                        }
                    }
                });
            }
        });
        assert!(helm.try_lead().is_some());
        assert_eq!(helm.count.load(Ordering::Relaxed), 0);
        let unread = socket.calls.lock().unwrap().len() as u64;
        assert_eq!(socket.read.load(Ordering::Relaxed) + unread, THREADS as u64 * CALLS);
    }

    #[test]
    fn every_call_is_answered_by_whoever_leads() {
        SPINS.into_iter().for_each(|spin| call_from_many_threads(spin, false));
    }

    #[test]
    fn those_who_leave_at_their_deadlines_leave_nobody_asleep() {
        SPINS.into_iter().for_each(|spin| call_from_many_threads(spin, true));
    }

    #[test]
    fn one_leads_until_it_drops_the_helm() {
        let helm = Helm::new();
        let slot = Arc::new(Slot::<u64>::new());
        let lead = helm.try_lead().unwrap();
        assert!(helm.try_lead().is_none());
        for spin in SPINS {
            assert!(matches!(helm.wait(&slot, spin, Some(Instant::now())), Turn::Late));
        }
        drop(lead);
        assert!(matches!(helm.wait(&slot, Duration::ZERO, Some(Instant::now())), Turn::Lead(_)));
        slot.fill(1);
        assert!(matches!(helm.wait(&slot, Duration::ZERO, None), Turn::Answer(1)));
        assert!(helm.try_lead().is_some());
    }

    #[test]
    fn a_leader_that_panics_leaves_the_helm_to_a_sleeper() {
        let helm = Helm::new();
        let lead = helm.try_lead().unwrap();
        thread::scope(|scope| {
            let follower = scope.spawn(|| {
                matches!(
                    helm.wait(&Arc::new(Slot::<u64>::new()), Duration::ZERO, None),
                    Turn::Lead(_)
                )
            });
            let leader = scope.spawn(move || {
                let lead = lead;
                // Who is in the list sleeps, or is about to.
                while lead.helm.count.load(Ordering::Relaxed) == 0 {
                    thread::yield_now();
                }
                std::panic::resume_unwind(Box::new("a bug of the leader"));
            });
            assert!(leader.join().is_err());
            assert!(follower.join().unwrap());
        });
    }
}
