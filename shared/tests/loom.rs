//! Models of how threads hand things to each other, run by loom in every order that counts.
//!
//! Needs `--cfg loom`; `scripts/loom` runs it. A thread that is never woken is a deadlock, which
//! loom reports; so is every access to a slot's value that nothing orders after the one before.
//!
//! Loom has no clock: a sleep with a deadline is late at once, and others run before and after.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Count, Ordering};
use std::time::{Duration, Instant};

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicUsize};
use loom::thread;
use zeoring_shared::ring::{Doorbell, Helm, Slot, Turn};

/// Spinning is looking more often, of which a model shows nothing new.
const AT_ONCE: Duration = Duration::ZERO;

/// Runs the model in every order with at most so many preemptions, or in every order at all.
///
/// The bounds below keep each model within half a minute on one processor.
fn explore(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(model);
}

/// Any deadline: loom does not ask which.
fn deadline() -> Option<Instant> {
    Some(Instant::now())
}

/// A value that counts how often it was dropped.
struct Counted(Arc<Count>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_caller_finds_its_value_however_it_comes_upon_the_filler() {
    explore(None, || {
        let slot = Arc::new(Slot::new());
        let filler = thread::spawn({
            let slot = Arc::clone(&slot);
            move || slot.fill(String::from("value"))
        });
        assert_eq!(slot.wait(AT_ONCE, None).as_deref(), Some("value"));
        assert!(!slot.is_full());
        assert_eq!(slot.take(), None);
        filler.join().unwrap();
    });
}

#[test]
fn a_value_is_taken_once_by_whoever_is_first() {
    explore(None, || {
        let slot = Arc::new(Slot::new());
        let filler = thread::spawn({
            let slot = Arc::clone(&slot);
            move || slot.fill(String::from("value"))
        });
        let other = thread::spawn({
            let slot = Arc::clone(&slot);
            move || slot.take().is_some()
        });
        let mine = slot.take().is_some();
        let its = other.join().unwrap();
        filler.join().unwrap();
        let rest = slot.take().is_some();
        assert_eq!([mine, its, rest].into_iter().filter(|&taken| taken).count(), 1);
    });
}

#[test]
fn a_value_for_a_caller_that_has_left_is_dropped_once() {
    explore(None, || {
        let drops = Arc::new(Count::new(0));
        let slot = Arc::new(Slot::new());
        let filler = thread::spawn({
            let slot = Arc::clone(&slot);
            let value = Counted(Arc::clone(&drops));
            move || slot.fill(value)
        });
        drop(slot.wait(AT_ONCE, deadline()));
        drop(slot);
        filler.join().unwrap();
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_caller_that_was_late_may_wait_again() {
    explore(None, || {
        let slot = Arc::new(Slot::new());
        let filler = thread::spawn({
            let slot = Arc::clone(&slot);
            move || slot.fill(7)
        });
        let value = slot.wait(AT_ONCE, deadline()).or_else(|| slot.wait(AT_ONCE, None));
        assert_eq!(value, Some(7));
        filler.join().unwrap();
    });
}

/// A socket whose answers come in the order of the calls. Whoever leads reads them.
#[derive(Default)]
struct Socket {
    calls: Mutex<VecDeque<Arc<Slot<usize>>>>,
    /// How many answers were read. Counts right only if the helm lets the leaders in one by one,
    /// each knowing what the one before has done.
    read: AtomicUsize,
}

impl Socket {
    fn call(&self) -> Arc<Slot<usize>> {
        let slot = Arc::new(Slot::new());
        self.calls.lock().unwrap().push_back(Arc::clone(&slot));
        slot
    }

    /// Fills the slots of those who called before, and then one's own.
    fn read_until(&self, own: &Slot<usize>) {
        while !own.is_full() {
            let first = self.calls.lock().unwrap().pop_front().expect("its call is in the socket");
            self.read.store(self.read.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            first.fill(1);
        }
    }
}

fn call_at_the_helm(helm: &Helm, socket: &Socket) {
    let slot = socket.call();
    loop {
        match helm.wait(&slot, AT_ONCE, None) {
            Turn::Answer(answer) => break assert_eq!(answer, 1),
            Turn::Lead(lead) => {
                socket.read_until(&slot);
                drop(lead);
            }
            Turn::Late => unreachable!("there is no deadline"),
        }
    }
}

fn callers(threads: usize, calls: usize) {
    let shared = Arc::new((Helm::new(), Socket::default()));
    let others: Vec<_> = (1..threads)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || (0..calls).for_each(|_| call_at_the_helm(&shared.0, &shared.1)))
        })
        .collect();
    (0..calls).for_each(|_| call_at_the_helm(&shared.0, &shared.1));
    others.into_iter().for_each(|other| other.join().unwrap());
    assert!(shared.0.try_lead().is_some(), "everybody has left the helm");
    assert_eq!(shared.1.read.load(Ordering::Relaxed), threads * calls);
}

#[test]
fn two_callers_are_answered_by_whoever_leads() {
    explore(None, || callers(2, 1));
}

#[test]
fn two_callers_are_answered_twice_by_whoever_leads() {
    explore(Some(4), || callers(2, 2));
}

#[test]
fn three_callers_are_answered_by_whoever_leads() {
    explore(Some(3), || callers(3, 1));
}

/// Waits for the helm, and answers oneself there.
fn lead_and_answer(helm: &Helm, slot: &Arc<Slot<usize>>) {
    loop {
        match helm.wait(slot, AT_ONCE, None) {
            Turn::Answer(_) => break,
            Turn::Lead(_lead) => {
                if !slot.is_full() {
                    slot.fill(1);
                }
            }
            Turn::Late => unreachable!("there is no deadline"),
        }
    }
}

#[test]
fn a_follower_that_was_nudged_and_leaves_at_its_deadline_nudges_the_next() {
    explore(Some(4), || {
        let helm = Arc::new(Helm::new());
        let lead = helm.try_lead().unwrap();
        let hasty = thread::spawn({
            let helm = Arc::clone(&helm);
            move || drop(helm.wait(&Arc::new(Slot::<usize>::new()), AT_ONCE, deadline()))
        });
        let patient = thread::spawn({
            let helm = Arc::clone(&helm);
            move || lead_and_answer(&helm, &Arc::new(Slot::new()))
        });
        drop(lead);
        hasty.join().unwrap();
        patient.join().unwrap();
    });
}

#[test]
fn a_follower_that_was_nudged_and_has_its_answer_nudges_the_next() {
    explore(Some(3), || {
        let helm = Arc::new(Helm::new());
        let lead = helm.try_lead().unwrap();
        let slot = Arc::new(Slot::new());
        let answered = thread::spawn({
            let (helm, slot) = (Arc::clone(&helm), Arc::clone(&slot));
            // As a leader it has nothing to read: the answer is on its way.
            move || {
                while !matches!(helm.wait(&slot, AT_ONCE, None), Turn::Answer(_)) {
                    thread::yield_now();
                }
            }
        });
        let patient = thread::spawn({
            let helm = Arc::clone(&helm);
            move || lead_and_answer(&helm, &Arc::new(Slot::new()))
        });
        drop(lead);
        slot.fill(1);
        answered.join().unwrap();
        patient.join().unwrap();
    });
}

#[test]
fn a_ring_is_heard_by_whoever_dozes_off() {
    explore(None, || {
        let shared = Arc::new((Doorbell::for_thread(), AtomicBool::new(false)));
        let giver = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                // The weakest way of leaving something: all order comes from the bell.
                shared.1.store(true, Ordering::Relaxed);
                shared.0.ring();
            }
        });
        while !shared.1.load(Ordering::Relaxed) {
            shared.0.sleep_unless(|| shared.1.load(Ordering::Relaxed));
        }
        giver.join().unwrap();
    });
}

#[test]
fn a_sleeper_finds_what_two_givers_leave() {
    explore(Some(6), || {
        // The queue of a mailbox is not made of loom's atomics; a locked one orders no less.
        let shared = Arc::new((Doorbell::for_thread(), Mutex::new(VecDeque::new())));
        let givers = [1, 2].map(|thing| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                shared.1.lock().unwrap().push_back(thing);
                shared.0.ring();
            })
        });
        let mut sum = 0;
        while sum < 1 + 2 {
            let thing = shared.1.lock().unwrap().pop_front();
            match thing {
                Some(thing) => sum += thing,
                None => shared.0.sleep_unless(|| !shared.1.lock().unwrap().is_empty()),
            }
        }
        givers.into_iter().for_each(|giver| giver.join().unwrap());
    });
}
