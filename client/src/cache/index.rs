//! What is known of each object, and where its bytes are. One truth for memory and file.
//!
//! ```text
//!   shard of the oid --> oid --> | T1..T4 | T4..T9 | T9.. |     each: bytes in memory, in the file, or both
//! ```
//!
//! Revisions of an object never overlap in time, so at most one answers a question. A shard's lock
//! is held for a look-up and a count of references; never over a system call, and never while
//! another shard's is.

use std::slice;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use zeoring_shared::ids::{Oid, Tid};

/// The end of a revision that has none yet. Later than every transaction, so comparing is enough.
pub(super) const OPEN: Tid = Tid(u64::MAX);

/// More shards than threads that read at once, so that two seldom meet in one.
const SHARDS: usize = 64;

/// Where in the file a revision's bytes are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    /// Not there.
    Nowhere,
    /// They wait to be written.
    Awaited,
    /// A record begins at this position.
    At(u64),
}

/// One revision of an object.
///
/// Invariant: `data` is some, or `place` is somewhere; one that is in neither tier is removed.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) serial: Tid,
    /// The transaction that wrote the next revision, or [`OPEN`].
    pub(super) end: Tid,
    pub(super) data: Option<Bytes>,
    pub(super) place: Place,
    /// Bytes of data, also when they are in the file only.
    pub(super) length: u32,
    /// Names the entry's stay in memory: an item of a queue with another stamp is left over.
    pub(super) stamp: u32,
    pub(super) marks: Marks,
}

/// What hits leave on an entry. A hit writes only if that changes something, so a hot entry's cache
/// line stays shared between cores.
#[derive(Debug, Default)]
pub(super) struct Marks(AtomicU8);

impl Marks {
    const USES: u8 = 0b11;
    const TOUCHED: u8 = 0b100;
    const MAIN: u8 = 0b1000;

    /// Notes a hit. Two at once may count as one.
    fn hit(&self) {
        let marks = self.0.load(Ordering::Relaxed);
        let uses = ((marks & Self::USES) + 1).min(Self::USES);
        let after = marks & !Self::USES | uses | Self::TOUCHED;
        if after != marks {
            self.0.store(after, Ordering::Relaxed);
        }
    }

    /// Hits since the entry came to its place in a queue, up to three.
    pub(super) fn uses(&self) -> u8 {
        self.0.load(Ordering::Relaxed) & Self::USES
    }

    pub(super) fn set_uses(&mut self, uses: u8) {
        let marks = self.0.get_mut();
        *marks = *marks & !Self::USES | uses;
    }

    pub(super) fn is_main(&self) -> bool {
        self.0.load(Ordering::Relaxed) & Self::MAIN != 0
    }

    pub(super) fn set_main(&mut self, is_main: bool) {
        let marks = self.0.get_mut();
        *marks = *marks & !Self::MAIN | if is_main { Self::MAIN } else { 0 };
    }

    /// Whether there was a hit since the last call of this.
    pub(super) fn take_touched(&mut self) -> bool {
        let marks = self.0.get_mut();
        let touched = *marks & Self::TOUCHED != 0;
        *marks &= !Self::TOUCHED;
        touched
    }
}

/// The revisions of one object, by serial. Most objects have one.
#[derive(Debug)]
enum Chain {
    One(Entry),
    Many(Vec<Entry>),
}

impl Chain {
    fn entries(&self) -> &[Entry] {
        match self {
            Self::One(entry) => slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }

    fn entries_mut(&mut self) -> &mut [Entry] {
        match self {
            Self::One(entry) => slice::from_mut(entry),
            Self::Many(entries) => entries,
        }
    }

    fn into_vec(self) -> Vec<Entry> {
        match self {
            Self::One(entry) => vec![entry],
            Self::Many(entries) => entries,
        }
    }
}

type Objects = FxHashMap<Oid, Chain>;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    objects: RwLock<Objects>,
    hits: AtomicU64,
    file_hits: AtomicU64,
    misses: AtomicU64,
}

/// What a look-up came to.
#[derive(Debug)]
pub(super) enum Found {
    /// The bytes, from memory.
    Memory { data: Bytes, serial: Tid, end: Tid },
    /// The bytes have to be read.
    File { position: u64, length: u32, serial: Tid, end: Tid },
    /// No revision is known for certain.
    Nothing,
}

/// What became of a revision that was to be added.
#[derive(Debug)]
pub(super) enum Added {
    /// It is there now. It took the place of a revision that was wrongly held as current.
    New { replaced: Option<Entry> },
    /// It was there already.
    Known {
        /// Its end was not known, and now is.
        ended: bool,
    },
    /// It contradicts what is known for certain.
    Refused,
}

#[derive(Debug)]
pub(super) struct Index {
    shards: Box<[Shard]>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }

    fn shard(&self, oid: Oid) -> &Shard {
        // Fibonacci hashing: the high bits of the product are the well-mixed ones. The maps hash
        // with another factor, so objects of one shard spread over its map.
        let hash = oid.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(hash >> 58) as usize % SHARDS]
    }

    fn read(shard: &Shard) -> RwLockReadGuard<'_, Objects> {
        shard.objects.read().expect("no thread panics while it holds a shard")
    }

    fn write(&self, oid: Oid) -> RwLockWriteGuard<'_, Objects> {
        self.shard(oid).objects.write().expect("no thread panics while it holds a shard")
    }

    /// Finds the one revision that `matches`, and notes the hit.
    pub(super) fn find(&self, oid: Oid, matches: impl Fn(&Entry) -> bool) -> Found {
        let shard = self.shard(oid);
        let found = {
            let objects = Self::read(shard);
            let entries = objects.get(&oid).map_or(&[][..], Chain::entries);
            // The newest are asked for most.
            match entries.iter().rev().find(|entry| matches(entry)) {
                None => Found::Nothing,
                Some(Entry { serial, end, data: Some(data), marks, .. }) => {
                    marks.hit();
                    Found::Memory { data: data.clone(), serial: *serial, end: *end }
                }
                Some(Entry { serial, end, place: Place::At(position), length, marks, .. }) => {
                    marks.hit();
                    let (position, length) = (*position, *length);
                    Found::File { position, length, serial: *serial, end: *end }
                }
                Some(_) => Found::Nothing,
            }
        };
        match found {
            Found::Memory { .. } => shard.hits.fetch_add(1, Ordering::Relaxed),
            Found::Nothing => shard.misses.fetch_add(1, Ordering::Relaxed),
            // Whether it is a hit, the file has to say.
            Found::File { .. } => 0,
        };
        found
    }

    /// Counts what came of [`Found::File`].
    pub(super) fn count_file(&self, oid: Oid, is_hit: bool) {
        let shard = self.shard(oid);
        let counter = if is_hit { &shard.file_hits } else { &shard.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Hits in memory, hits in the file, misses.
    pub(super) fn counts(&self) -> [u64; 3] {
        let sum = |counter: fn(&Shard) -> &AtomicU64| {
            self.shards.iter().map(|shard| counter(shard).load(Ordering::Relaxed)).sum()
        };
        [sum(|shard| &shard.hits), sum(|shard| &shard.file_hits), sum(|shard| &shard.misses)]
    }

    /// Adds a revision, unless it contradicts one that is there.
    pub(super) fn add(&self, oid: Oid, entry: Entry) -> Added {
        let mut objects = self.write(oid);
        let Some(chain) = objects.get_mut(&oid) else {
            objects.insert(oid, Chain::One(entry));
            return Added::New { replaced: None };
        };
        let entries = chain.entries_mut();
        let at = entries.partition_point(|other| other.serial < entry.serial);
        if let Some(next) = entries.get_mut(at) {
            if next.serial == entry.serial {
                let ended = next.end == OPEN && entry.end != OPEN;
                if ended {
                    next.end = entry.end;
                }
                return Added::Known { ended };
            }
            if next.serial < entry.end {
                return Added::Refused;
            }
        }
        let mut replaced = None;
        let mut many = match at.checked_sub(1).map(|before| &entries[before]) {
            Some(before) if entry.serial < before.end && before.end != OPEN => {
                return Added::Refused;
            }
            // Something else was written since, which nobody told us of: when, is not known.
            Some(before) if before.end == OPEN => {
                let mut many = objects.remove(&oid).expect("it was just found").into_vec();
                replaced = Some(many.remove(at - 1));
                many.insert(at - 1, entry);
                many
            }
            _ => {
                let mut many = objects.remove(&oid).expect("it was just found").into_vec();
                many.insert(at, entry);
                many
            }
        };
        let chain = match many.len() {
            1 => Chain::One(many.pop().expect("there is one")),
            _ => Chain::Many(many),
        };
        objects.insert(oid, chain);
        Added::New { replaced }
    }

    /// Changes an entry, and takes it out if the change says so.
    pub(super) fn change(
        &self,
        oid: Oid,
        serial: Tid,
        change: impl FnOnce(&mut Entry) -> bool,
    ) -> Option<Entry> {
        let mut objects = self.write(oid);
        let entries = objects.get_mut(&oid)?.entries_mut();
        let at = entries.binary_search_by_key(&serial, |entry| entry.serial).ok()?;
        change(&mut entries[at]).then(|| Self::take(&mut objects, oid, at))
    }

    fn take(objects: &mut Objects, oid: Oid, at: usize) -> Entry {
        match objects.get_mut(&oid).expect("the caller found it") {
            Chain::Many(entries) if 1 < entries.len() => entries.remove(at),
            _ => {
                let chain = objects.remove(&oid).expect("it is there");
                chain.into_vec().pop().expect("a chain is never empty")
            }
        }
    }

    /// Says that `tid` wrote the object: its current revision ends there.
    pub(super) fn end(&self, oid: Oid, tid: Tid) {
        let mut objects = self.write(oid);
        if let Some(last) = objects.get_mut(&oid).and_then(|chain| chain.entries_mut().last_mut()) {
            // One that the transaction itself wrote is the current one.
            let ends = last.end == OPEN && last.serial < tid;
            if ends {
                last.end = tid;
            }
        }
    }

    /// Takes out the current revision, if there is one.
    pub(super) fn forget(&self, oid: Oid) -> Option<Entry> {
        let mut objects = self.write(oid);
        let entries = objects.get(&oid)?.entries();
        let last = entries.len() - 1;
        (entries[last].end == OPEN).then(|| Self::take(&mut objects, oid, last))
    }

    /// Changes every entry, and takes out those for which the change says so.
    pub(super) fn change_all(&self, mut change: impl FnMut(&mut Entry) -> bool) {
        for shard in &self.shards {
            let mut objects =
                shard.objects.write().expect("no thread panics while it holds a shard");
            objects.retain(|_, chain| match chain {
                Chain::One(entry) => !change(entry),
                Chain::Many(entries) => {
                    entries.retain_mut(|entry| !change(entry));
                    !entries.is_empty()
                }
            });
        }
    }

    /// Takes everything out. What was taken is freed outside the locks.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let mut objects =
                shard.objects.write().expect("no thread panics while it holds a shard");
            let taken = std::mem::take(&mut *objects);
            drop(objects);
            drop(taken);
        }
    }

    /// How many revisions there are.
    pub(super) fn revisions(&self) -> usize {
        let count = |shard| Self::read(shard).values().map(|chain| chain.entries().len()).sum();
        self.shards.iter().map(count).collect::<Vec<usize>>().into_iter().sum()
    }
}
