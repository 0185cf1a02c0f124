//! Where the current record of each object stands: oid to position, read by all threads.
//!
//! Readers take no lock and never wait; the one writer publishes each position with one atomic
//! store. The oid's bytes are the path through a tree, and the last byte picks a slot of a leaf, so
//! that oids given out one after another cost eight bytes each:
//!
//! ```text
//!   oid < 2^24    near: node --byte 2--> node --byte 1--> leaf --byte 0--> position
//!   oid < 2^40    far:  two nodes more in front
//!   the rest      a map behind a lock
//! ```
//!
//! Nobody gives out oids of 2^40 and more, but a client may store under any oid, and for one object
//! all by itself the tree pays 2 KiB of leaf and up to 12 KiB of nodes. The map pays some 40 bytes
//! wherever the oid lies, so scattering oids over 2^64 is no way to fill the memory.
//!
//! Nothing is taken out of an index that others see: an object that is gone keeps the position of
//! the record that says so. Only a pack, which builds one for itself, takes entries out of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, PoisonError, RwLock};

use zeoring_shared::ids::Oid;

/// Slots of a leaf and of a node: one for each value of a byte.
const SLOTS: usize = 256;

/// Oids from here on are kept in a map.
pub const OUTLANDISH: u64 = 1 << Far::BITS;

type Near = Node<Node<Leaf>>;
type Far = Node<Node<Near>>;

/// Oid to position of the current record. See the module.
#[derive(Default)]
pub struct Index {
    near: Near,
    far: Far,
    outlandish: RwLock<BTreeMap<u64, u64>>,
    length: AtomicU64,
}

impl Index {
    /// Where the object's current record stands, or `None` if there never was one.
    pub fn position(&self, oid: Oid) -> Option<u64> {
        let position = if oid.0 < 1 << Near::BITS {
            self.near.position(oid.0)
        } else if oid.0 < OUTLANDISH {
            self.far.position(oid.0)
        } else {
            let map = self.outlandish.read().unwrap_or_else(PoisonError::into_inner);
            map.get(&oid.0).copied().unwrap_or(0)
        };
        (position != 0).then_some(position)
    }

    /// Says where the object's current record stands, from now on. Only the commit thread does.
    ///
    /// What was written to the record's file before is seen by whoever sees the position.
    pub fn set(&self, oid: Oid, position: u64) {
        assert!(position != 0, "no record stands at the start of a file");
        let old = if oid.0 < 1 << Near::BITS {
            self.near.set(oid.0, position)
        } else if oid.0 < OUTLANDISH {
            self.far.set(oid.0, position)
        } else {
            let mut map = self.outlandish.write().unwrap_or_else(PoisonError::into_inner);
            map.insert(oid.0, position).unwrap_or(0)
        };
        if old == 0 {
            self.length.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes an object out. Only for an index that nobody else sees yet.
    pub fn remove(&mut self, oid: Oid) {
        let old = if oid.0 < 1 << Near::BITS {
            self.near.remove(oid.0)
        } else if oid.0 < OUTLANDISH {
            self.far.remove(oid.0)
        } else {
            let map = self.outlandish.get_mut().unwrap_or_else(PoisonError::into_inner);
            map.remove(&oid.0).unwrap_or(0)
        };
        *self.length.get_mut() -= u64::from(old != 0);
    }

    /// How many objects there are.
    pub fn len(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The smallest oid of an object that is at least `from`.
    pub fn next_at_or_after(&self, from: Oid) -> Option<Oid> {
        self.entry_at_or_after(from.0).map(|(oid, _)| Oid(oid))
    }

    /// All objects and their positions, by rising oid. Objects added meanwhile may be among them.
    pub fn iter(&self) -> impl Iterator<Item = (Oid, u64)> + '_ {
        let mut next = Some(0);
        std::iter::from_fn(move || {
            let (oid, position) = self.entry_at_or_after(next?)?;
            next = oid.checked_add(1);
            Some((Oid(oid), position))
        })
    }

    fn entry_at_or_after(&self, from: u64) -> Option<(u64, u64)> {
        // The first slots of the far tree stay empty: their oids are in the near one.
        let near = if from < 1 << Near::BITS { self.near.entry_at_or_after(from) } else { None };
        let far = || if from < OUTLANDISH { self.far.entry_at_or_after(from) } else { None };
        let outlandish = || {
            let map = self.outlandish.read().unwrap_or_else(PoisonError::into_inner);
            map.range(from..).next().map(|(&oid, &position)| (oid, position))
        };
        near.or_else(far).or_else(outlandish)
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A tree over the low bits of an oid. Position 0 stands for none.
trait Tree: Default {
    /// How many bits of an oid choose a slot in this tree.
    const BITS: u32;

    fn position(&self, oid: u64) -> u64;

    /// Returns the position before.
    fn set(&self, oid: u64, position: u64) -> u64;

    /// Returns the position before.
    fn remove(&mut self, oid: u64) -> u64;

    /// The first entry at or after `from`, as (low bits of its oid, position).
    fn entry_at_or_after(&self, from: u64) -> Option<(u64, u64)>;
}

struct Leaf([AtomicU64; SLOTS]);

impl Default for Leaf {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; SLOTS])
    }
}

impl Tree for Leaf {
    const BITS: u32 = 8;

    fn position(&self, oid: u64) -> u64 {
        self.0[oid as usize % SLOTS].load(Ordering::Acquire)
    }

    fn set(&self, oid: u64, position: u64) -> u64 {
        self.0[oid as usize % SLOTS].swap(position, Ordering::Release)
    }

    fn remove(&mut self, oid: u64) -> u64 {
        std::mem::take(self.0[oid as usize % SLOTS].get_mut())
    }

    fn entry_at_or_after(&self, from: u64) -> Option<(u64, u64)> {
        let from = from as usize % SLOTS;
        self.0[from..].iter().enumerate().find_map(|(at, slot)| {
            let position = slot.load(Ordering::Acquire);
            (position != 0).then_some(((from + at) as u64, position))
        })
    }
}

struct Node<T>([OnceLock<Box<T>>; SLOTS]);

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self([const { OnceLock::new() }; SLOTS])
    }
}

impl<T: Tree> Node<T> {
    const fn slot(oid: u64) -> usize {
        (oid >> T::BITS) as usize % SLOTS
    }
}

impl<T: Tree> Tree for Node<T> {
    const BITS: u32 = T::BITS + 8;

    fn position(&self, oid: u64) -> u64 {
        self.0[Self::slot(oid)].get().map_or(0, |tree| tree.position(oid))
    }

    fn set(&self, oid: u64, position: u64) -> u64 {
        self.0[Self::slot(oid)].get_or_init(Box::default).set(oid, position)
    }

    fn remove(&mut self, oid: u64) -> u64 {
        self.0[Self::slot(oid)].get_mut().map_or(0, |tree| tree.remove(oid))
    }

    fn entry_at_or_after(&self, from: u64) -> Option<(u64, u64)> {
        let first = Self::slot(from);
        (first..SLOTS).find_map(|slot| {
            let from = if slot == first { from } else { 0 };
            let (low, position) = self.0[slot].get()?.entry_at_or_after(from)?;
            Some(((slot as u64) << T::BITS | low, position))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_borders_of_the_trees_are_no_borders_to_a_reader() {
        let index = Index::default();
        let borders = [1 << 8, 1 << 16, 1 << 24, 1 << 32, 1 << 40, 1 << 63];
        let mut oids: Vec<u64> = borders.iter().flat_map(|at| [at - 1, *at, at + 1]).collect();
        oids.extend([0, u64::MAX]);
        oids.sort_unstable();
        for (at, oid) in oids.iter().enumerate() {
            assert_eq!(index.position(Oid(*oid)), None);
            index.set(Oid(*oid), 1 + at as u64);
        }
        let expected: Vec<_> =
            oids.iter().enumerate().map(|(at, oid)| (Oid(*oid), 1 + at as u64)).collect();
        assert_eq!(index.iter().collect::<Vec<_>>(), expected);
        assert_eq!(index.len(), oids.len() as u64);
        index.set(Oid(u64::MAX), 7);
        assert_eq!((index.len(), index.position(Oid(u64::MAX))), (oids.len() as u64, Some(7)));
    }

    proptest! {
        #[test]
        fn an_index_is_a_map(
            entries in prop::collection::vec((0_u32..44, any::<u64>(), 1_u64..1000), 0..200),
            asked in prop::collection::vec((0_u32..44, any::<u64>()), 0..50),
        ) {
            // Shifted so that near, far and outlandish oids all come often.
            let (mut index, mut map) = (Index::default(), BTreeMap::new());
            for (number, (shift, bits, position)) in entries.iter().copied().enumerate() {
                index.set(Oid(bits >> shift), position);
                map.insert(bits >> shift, position);
                if position % 4 == 0 {
                    let (shift, bits, _) = entries[number / 2];
                    index.remove(Oid(bits >> shift));
                    map.remove(&(bits >> shift));
                }
            }
            prop_assert_eq!(index.len(), map.len() as u64);
            for (shift, bits) in asked {
                let from = bits >> shift;
                prop_assert_eq!(index.position(Oid(from)), map.get(&from).copied());
                let next = map.range(from..).next().map(|(oid, _)| Oid(*oid));
                prop_assert_eq!(index.next_at_or_after(Oid(from)), next);
            }
            let all: Vec<_> = index.iter().map(|(oid, position)| (oid.0, position)).collect();
            prop_assert_eq!(all, map.into_iter().collect::<Vec<_>>());
        }
    }
}
