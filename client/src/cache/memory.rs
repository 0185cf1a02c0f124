//! Which revisions stay in memory: S3-FIFO.
//!
//! Three queues, first in, first out (Yang, Zhang, Qiu, Yue, Vinayak: "FIFO queues are all you need
//! for cache eviction", SOSP 2023):
//!
//! ```text
//!   new --> | small: a tenth | --used meanwhile--> | main: the rest | --not used since--> gone
//!                |                                      |     ^
//!                '--not used--> ghost (names only)      '-used-'  goes around once more
//!                                 '--comes back while its name is there--> main
//! ```
//!
//! What a scan brings passes through the small queue and never pushes out what the main queue
//! holds. A hit moves nothing: it only leaves a mark on the entry.
//!
//! An entry that is taken out of the index leaves its item behind; the item is passed over when its
//! turn comes, or swept up when such items are the most of a queue.

use std::collections::VecDeque;

use bytes::Bytes;
use rustc_hash::FxHashSet;
use zeoring_shared::ids::{Oid, Tid};

use super::index::{Entry, Index, Place};

/// What an entry takes besides its data, in bytes: itself in a table that is not full, its item in
/// a queue, a name in the ghost queue, and the heap's and the reference count's share.
pub(super) const OVERHEAD: usize = 200;

/// Left-over items are not worth a sweep while there are fewer.
const SWEEP_MIN: usize = 256;

/// Names kept at least, so that a cache of a few large objects remembers something.
const GHOSTS_MIN: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Item {
    oid: Oid,
    serial: Tid,
    stamp: u32,
}

/// The queues of the revisions whose data are in memory.
///
/// Invariant: each such entry has one item with its stamp, in the queue that its mark says;
/// `small_bytes` and `main_bytes` are the sums of their costs.
#[derive(Debug)]
pub(super) struct Queues {
    budget: usize,
    small: VecDeque<Item>,
    main: VecDeque<Item>,
    small_bytes: usize,
    main_bytes: usize,
    entries: usize,
    ghosts: VecDeque<u64>,
    ghost_names: FxHashSet<u64>,
    next_stamp: u32,
}

/// What to do with the entry whose turn it is.
enum Turn {
    LeftOver,
    Stays { length: usize },
    Goes { length: usize, data: Option<Bytes> },
}

fn cost(length: usize) -> usize {
    OVERHEAD + length
}

/// One in four billion pairs of revisions has a name in common: then one is kept a little longer.
fn name(oid: Oid, serial: Tid) -> u64 {
    (oid.0.wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(32) ^ serial.0
}

impl Queues {
    pub(super) fn new(budget: usize) -> Self {
        Self {
            budget,
            small: VecDeque::new(),
            main: VecDeque::new(),
            small_bytes: 0,
            main_bytes: 0,
            entries: 0,
            ghosts: VecDeque::new(),
            ghost_names: FxHashSet::default(),
            next_stamp: 0,
        }
    }

    /// Whether data of this length may be kept at all.
    pub(super) fn takes(&self, length: usize) -> bool {
        cost(length) <= self.budget
    }

    /// Revisions in memory, and their cost in bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries, self.small_bytes + self.main_bytes)
    }

    /// Queues an entry that is being given its data. [`Queues::shrink`] has to follow.
    pub(super) fn admit(&mut self, oid: Oid, entry: &mut Entry) {
        let is_main = self.ghost_names.remove(&name(oid, entry.serial));
        self.next_stamp = self.next_stamp.wrapping_add(1);
        entry.stamp = self.next_stamp;
        entry.marks.set_main(is_main);
        entry.marks.set_uses(0);
        let item = Item { oid, serial: entry.serial, stamp: entry.stamp };
        let cost = cost(entry.length as usize);
        if is_main {
            self.main.push_back(item);
            self.main_bytes += cost;
        } else {
            self.small.push_back(item);
            self.small_bytes += cost;
        }
        self.entries += 1;
    }

    /// Takes note that an entry was taken out of the index.
    pub(super) fn removed(&mut self, index: &Index, entry: &Entry) {
        if entry.data.is_none() {
            return;
        }
        let cost = cost(entry.length as usize);
        self.entries -= 1;
        if entry.marks.is_main() {
            self.main_bytes -= cost;
        } else {
            self.small_bytes -= cost;
        }
        let items = self.small.len() + self.main.len();
        if SWEEP_MIN + 2 * self.entries < items {
            let lives = |item: &Item| {
                let mut lives = false;
                index.change(item.oid, item.serial, |entry| {
                    lives = entry.data.is_some() && entry.stamp == item.stamp;
                    false
                });
                lives
            };
            self.small.retain(lives);
            self.main.retain(lives);
        }
    }

    /// Forgets everything, also what was here before.
    pub(super) fn clear(&mut self) {
        *self = Self { next_stamp: self.next_stamp, ..Self::new(self.budget) };
    }

    /// Takes data out of memory until the rest fits the budget. Gives back what was taken, to be
    /// freed where no lock is held.
    pub(super) fn shrink(&mut self, index: &Index) -> Vec<Bytes> {
        let mut taken = Vec::new();
        while self.budget < self.small_bytes + self.main_bytes {
            let small_is_full = self.budget / 10 < self.small_bytes;
            if small_is_full || self.main_bytes == 0 {
                self.turn_small(index, &mut taken);
            } else {
                self.turn_main(index, &mut taken);
            }
        }
        taken
    }

    fn turn_small(&mut self, index: &Index, taken: &mut Vec<Bytes>) {
        let item = self.small.pop_front().expect("bytes in a queue are of an item in it");
        let turn = Self::turn(index, item, |entry| {
            let stays = 0 < entry.marks.uses();
            entry.marks.set_main(stays);
            entry.marks.set_uses(0);
            stays
        });
        match turn {
            Turn::LeftOver => {}
            Turn::Stays { length } => {
                self.small_bytes -= cost(length);
                self.main_bytes += cost(length);
                self.main.push_back(item);
            }
            Turn::Goes { length, data } => {
                self.small_bytes -= cost(length);
                self.entries -= 1;
                taken.extend(data);
                self.remember(name(item.oid, item.serial));
            }
        }
    }

    fn turn_main(&mut self, index: &Index, taken: &mut Vec<Bytes>) {
        let item = self.main.pop_front().expect("bytes in a queue are of an item in it");
        let turn = Self::turn(index, item, |entry| {
            let uses = entry.marks.uses();
            entry.marks.set_uses(uses.saturating_sub(1));
            0 < uses
        });
        match turn {
            Turn::LeftOver => {}
            Turn::Stays { .. } => self.main.push_back(item),
            Turn::Goes { length, data } => {
                self.main_bytes -= cost(length);
                self.entries -= 1;
                taken.extend(data);
            }
        }
    }

    fn turn(index: &Index, item: Item, stays: impl FnOnce(&mut Entry) -> bool) -> Turn {
        let mut turn = Turn::LeftOver;
        index.change(item.oid, item.serial, |entry| {
            let is_left_over = entry.data.is_none() || entry.stamp != item.stamp;
            if is_left_over {
                return false;
            }
            let length = entry.length as usize;
            if stays(entry) {
                turn = Turn::Stays { length };
                return false;
            }
            turn = Turn::Goes { length, data: entry.data.take() };
            entry.place == Place::Nowhere
        });
        turn
    }

    fn remember(&mut self, name: u64) {
        if self.ghost_names.insert(name) {
            self.ghosts.push_back(name);
        }
        // Names that came back are still in the queue, so it may be longer than the set.
        while self.entries.max(GHOSTS_MIN) < self.ghosts.len() {
            let oldest = self.ghosts.pop_front().expect("it is longer than that");
            self.ghost_names.remove(&oldest);
        }
    }
}
