//! Who may write which objects: every object has a line, and a vote stands in all its lines at once.
//!
//! ```text
//!   object 1   | A writes | B writes |            A goes first; B waits for A
//!   object 2   | C reads  | D reads  | B writes   C and D go together; B waits for both
//! ```
//!
//! The storage itself has a line, too, in which all stand as readers but those that bring their own
//! tid: such a one goes alone, so that its tid is still a later one when it is written.
//!
//! A transaction joins all its lines in one step and never joins another one later, so no two can
//! wait for each other, and who came first goes first.

use std::collections::{HashMap, HashSet, VecDeque};

use zeoring_shared::ids::Oid;

use crate::note::Ticket;

/// The lines of one storage.
#[derive(Debug, Default)]
pub struct Locks {
    lines: HashMap<Line, VecDeque<Claim>>,
    claimants: HashMap<Ticket, Claimant>,
    waiting: usize,
}

/// What one may stand in line for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Line {
    Storage,
    Object(Oid),
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    ticket: Ticket,
    writes: bool,
}

/// Invariant: `blocked` counts the lines in which the claimant cannot go yet.
#[derive(Debug)]
struct Claimant {
    lines: Vec<Line>,
    blocked: usize,
}

impl Locks {
    /// Joins the lines of all these objects. Returns whether the transaction may go at once; if
    /// not, a later [`Locks::release`] names it.
    ///
    /// An object that is both read and written is written. `alone`: no other transaction goes
    /// meanwhile.
    pub fn claim(
        &mut self,
        ticket: Ticket,
        alone: bool,
        writes: impl IntoIterator<Item = Oid>,
        reads: impl IntoIterator<Item = Oid>,
    ) -> bool {
        let mut seen = HashSet::new();
        let mut lines = Vec::new();
        let mut blocked = 0;
        let writes = writes.into_iter().map(|oid| (Line::Object(oid), true));
        let reads = reads.into_iter().map(|oid| (Line::Object(oid), false));
        for (name, writes) in std::iter::once((Line::Storage, alone)).chain(writes).chain(reads) {
            if seen.insert(name) {
                let line = self.lines.entry(name).or_default();
                line.push_back(Claim { ticket, writes });
                blocked += usize::from(going(line) < line.len());
                lines.push(name);
            }
        }
        self.waiting += usize::from(blocked != 0);
        let former = self.claimants.insert(ticket, Claimant { lines, blocked });
        assert!(former.is_none(), "a transaction stands in line once");
        blocked == 0
    }

    /// Leaves all lines, whether the transaction went or waited. Returns those that may go now.
    ///
    /// A ticket that is not in line is no error: every end of a transaction releases.
    pub fn release(&mut self, ticket: Ticket) -> Vec<Ticket> {
        let Some(leaver) = self.claimants.remove(&ticket) else {
            return Vec::new();
        };
        self.waiting -= usize::from(leaver.blocked != 0);
        let mut granted = Vec::new();
        for name in leaver.lines {
            let line = self.lines.get_mut(&name).expect("a claimant stands in its lines");
            let went = going(line);
            let place = line.iter().position(|claim| claim.ticket == ticket);
            let place = place.expect("a claimant stands in its lines");
            line.remove(place);
            let still = went - usize::from(place < went);
            for claim in line.range(still..going(line)) {
                let claimant = self.claimants.get_mut(&claim.ticket);
                let claimant = claimant.expect("whoever stands in line is a claimant");
                claimant.blocked -= 1;
                if claimant.blocked == 0 {
                    granted.push(claim.ticket);
                }
            }
            if line.is_empty() {
                self.lines.remove(&name);
            }
        }
        self.waiting -= granted.len();
        granted
    }

    /// How many transactions wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many transactions hold locks.
    pub fn holding(&self) -> usize {
        self.claimants.len() - self.waiting
    }
}

/// How many at the front of a line may go: one that writes, or all readers before the first writer.
fn going(line: &VecDeque<Claim>) -> usize {
    match line.front() {
        Some(first) if first.writes => 1,
        _ => line.iter().take_while(|claim| !claim.writes).count(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::note::ConnectionId;

    fn ticket(number: u32) -> Ticket {
        Ticket { connection: ConnectionId(u64::from(number)), number }
    }

    fn oids(numbers: &[u64]) -> Vec<Oid> {
        numbers.iter().copied().map(Oid).collect()
    }

    #[test]
    fn disjoint_writers_go_together_and_others_wait_their_turn() {
        let mut locks = Locks::default();
        assert!(locks.claim(ticket(1), false, oids(&[1, 2]), []));
        assert!(locks.claim(ticket(2), false, oids(&[3]), []));
        assert!(!locks.claim(ticket(3), false, oids(&[2, 3]), []));
        assert!(!locks.claim(ticket(4), false, oids(&[3]), []));
        assert_eq!((locks.holding(), locks.waiting()), (2, 2));
        assert_eq!(locks.release(ticket(1)), []);
        assert_eq!(locks.release(ticket(2)), [ticket(3)]);
        assert_eq!(locks.release(ticket(3)), [ticket(4)]);
        assert_eq!(locks.release(ticket(4)), []);
        assert!(locks.lines.is_empty());
    }

    #[test]
    fn readers_go_together_but_not_past_a_writer_that_came_before() {
        let mut locks = Locks::default();
        assert!(locks.claim(ticket(1), false, [], oids(&[1])));
        assert!(locks.claim(ticket(2), false, [], oids(&[1])));
        assert!(!locks.claim(ticket(3), false, oids(&[1]), oids(&[1])));
        assert!(!locks.claim(ticket(4), false, [], oids(&[1])));
        assert_eq!(locks.release(ticket(3)), [ticket(4)], "a waiting writer may give up");
        assert_eq!(locks.release(ticket(1)), []);
        assert_eq!(locks.release(ticket(1)), [], "releasing twice is no harm");
    }

    #[test]
    fn a_transaction_that_goes_alone_waits_for_all_and_lets_nobody_pass() {
        let mut locks = Locks::default();
        assert!(locks.claim(ticket(1), false, oids(&[1]), []));
        assert!(!locks.claim(ticket(2), true, oids(&[2]), []));
        assert!(!locks.claim(ticket(3), false, oids(&[3]), []));
        assert_eq!(locks.release(ticket(1)), [ticket(2)]);
        assert_eq!(locks.release(ticket(2)), [ticket(3)]);
    }

    proptest! {
        /// Whatever the claims: no two that conflict go at once, the first in every line goes, and
        /// everybody goes in the end.
        #[test]
        fn nobody_waits_for_ever_and_no_two_conflicting_go_together(
            claims in prop::collection::vec(
                (prop::collection::vec(0..6_u64, 0..4), prop::collection::vec(0..6_u64, 0..3),
                 prop::bool::weighted(0.1)), 1..20),
            order in prop::collection::vec(any::<prop::sample::Index>(), 20),
        ) {
            let mut locks = Locks::default();
            let mut going: Vec<u32> = Vec::new();
            for (number, (writes, reads, alone)) in claims.iter().enumerate() {
                if locks.claim(ticket(number as u32), *alone, oids(writes), oids(reads)) {
                    going.push(number as u32);
                }
            }
            let conflicts = |a: u32, b: u32| {
                let (a, b) = (&claims[a as usize], &claims[b as usize]);
                a.2 || b.2 || a.0.iter().any(|oid| b.0.contains(oid) || b.1.contains(oid))
                    || b.0.iter().any(|oid| a.1.contains(oid))
            };
            let mut done = 0;
            while let Some(last) = going.len().checked_sub(1) {
                for (index, a) in going.iter().enumerate() {
                    for b in &going[..index] {
                        prop_assert!(!conflicts(*a, *b), "{a} and {b} go together");
                    }
                }
                let leaver = going.remove(order[done % order.len()].index(last + 1));
                done += 1;
                going.extend(locks.release(ticket(leaver)).iter().map(|ticket| ticket.number));
            }
            prop_assert_eq!(done, claims.len());
            prop_assert!(locks.lines.is_empty() && locks.waiting() == 0);
        }
    }
}
