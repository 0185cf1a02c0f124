//! What was asked and is not yet answered: who waits for it, and how several wait together.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;

use rustc_hash::FxHashMap;
use zeoring_shared::ids::{Oid, Tid};

use super::answer::{Kind, Revision};
use super::order::Finish;
use crate::blob::Receiving;
use crate::error::ServerError;

/// Numbers of calls run up to here and begin anew; one in use is passed over.
const NUMBER_MAX: u32 = 0x7fff_ffff;

/// Who is told of an answer.
#[derive(Debug)]
pub(super) enum Waiter<W> {
    /// The caller.
    One(W),
    /// A caller who asked for many objects, of which this is one.
    Part {
        /// Which batch.
        batch: u32,
        /// Which of its objects.
        index: u32,
    },
    /// The session itself: it is coming up.
    Session,
    /// Nobody: it is only that the call was made.
    Nobody,
}

/// A load that is under way. Equal loads share it.
#[derive(Debug)]
pub(super) struct Load<W> {
    pub(super) first: Waiter<W>,
    pub(super) others: Vec<Waiter<W>>,
    /// The last transaction that wrote the object since this load was sent.
    pub(super) overtaken: Option<Tid>,
}

/// Another call that is under way.
#[derive(Debug)]
pub(super) struct Call<W> {
    pub(super) kind: Kind,
    pub(super) waiter: Waiter<W>,
    pub(super) use_of_answer: UseOfAnswer,
}

/// What is to be done with an answer before its caller hears of it.
#[derive(Debug)]
pub(super) enum UseOfAnswer {
    /// Nothing.
    Plain,
    /// The caches learn what was committed.
    Finish(Box<Finish>),
    /// The chunks that came before it make a file.
    Blob {
        /// The object.
        oid: Oid,
        /// The blob's revision.
        serial: Tid,
    },
}

/// The files of blobs that are on their way. One may be asked for again while it comes, by somebody
/// whose first try was too late: they come one after the other, as they were asked for.
#[derive(Debug, Default)]
pub(super) struct Blobs(FxHashMap<(Oid, Tid), VecDeque<Receiving>>);

impl Blobs {
    pub(super) fn insert(&mut self, blob: (Oid, Tid), into: Receiving) {
        self.0.entry(blob).or_default().push_back(into);
    }

    /// The file that gets what comes now.
    pub(super) fn get_mut(&mut self, blob: &(Oid, Tid)) -> Option<&mut Receiving> {
        self.0.get_mut(blob)?.front_mut()
    }

    /// The file that has got everything.
    pub(super) fn remove(&mut self, blob: &(Oid, Tid)) -> Option<Receiving> {
        let Entry::Occupied(mut files) = self.0.entry(*blob) else { return None };
        let file = files.get_mut().pop_front();
        if files.get().is_empty() {
            files.remove();
        }
        file
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Many loads that one caller waits for.
#[derive(Debug)]
struct Batch<W> {
    results: Vec<Result<Option<Revision>, ServerError>>,
    missing: usize,
    waiter: W,
}

/// The result of a batch, and who waits for it.
pub(super) type Batched<W> = (W, Vec<Result<Option<Revision>, ServerError>>);

/// All that is under way on one connection.
#[derive(Debug)]
pub(super) struct Pending<W> {
    pub(super) loads: FxHashMap<(Oid, Tid), Load<W>>,
    pub(super) calls: FxHashMap<u32, Call<W>>,
    /// Where the chunks of the blobs go that are on their way.
    pub(super) blobs: Blobs,
    batches: FxHashMap<u32, Batch<W>>,
    /// Who got an answer that ends the session: they are told when it is given up.
    doomed: Vec<W>,
    next_number: u32,
}

impl<W> Load<W> {
    /// Everybody who waits for it.
    pub(super) fn waiters(self) -> impl Iterator<Item = Waiter<W>> {
        std::iter::once(self.first).chain(self.others)
    }
}

impl<W> Pending<W> {
    pub(super) fn new() -> Self {
        Self {
            loads: FxHashMap::default(),
            calls: FxHashMap::default(),
            blobs: Blobs::default(),
            batches: FxHashMap::default(),
            doomed: Vec::new(),
            next_number: 1,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.loads.is_empty() && self.calls.is_empty()
    }

    /// Adds a load. Returns whether it has to be sent: an equal one may be under way.
    pub(super) fn add_load(&mut self, oid: Oid, before: Tid, waiter: Waiter<W>) -> bool {
        match self.loads.entry((oid, before)) {
            Entry::Occupied(mut same) => {
                same.get_mut().others.push(waiter);
                false
            }
            Entry::Vacant(free) => {
                free.insert(Load { first: waiter, others: Vec::new(), overtaken: None });
                true
            }
        }
    }

    /// Adds a call, and gives it its number.
    pub(super) fn add_call(&mut self, call: Call<W>) -> u32 {
        let number = self.number(|pending, number| pending.calls.contains_key(&number));
        self.calls.insert(number, call);
        number
    }

    /// Adds a batch of so many loads, and names it for its parts.
    pub(super) fn add_batch(&mut self, count: usize, waiter: W) -> u32 {
        let number = self.number(|pending, number| pending.batches.contains_key(&number));
        let mut results = Vec::with_capacity(count);
        results.resize_with(count, || Ok(None));
        self.batches.insert(number, Batch { results, missing: count, waiter });
        number
    }

    /// Takes one result of a batch. Returns the batch once it is whole.
    pub(super) fn fill_batch(
        &mut self,
        batch: u32,
        index: u32,
        result: Result<Option<Revision>, ServerError>,
    ) -> Option<Batched<W>> {
        let filled = self.batches.get_mut(&batch).expect("a batch stays until it is whole");
        filled.results[index as usize] = result;
        filled.missing -= 1;
        if filled.missing != 0 {
            return None;
        }
        let whole = self.batches.remove(&batch).expect("it was there just now");
        Some((whole.waiter, whole.results))
    }

    /// Marks the loads under way of objects that a transaction wrote: their answers may be older
    /// than it.
    pub(super) fn overtake(&mut self, tid: Tid, oids: &[Oid]) {
        if self.loads.is_empty() {
            return;
        }
        let is_in = |oid: &Oid| oids.contains(oid);
        // Long lists are looked through once, not once a load.
        let many: Option<rustc_hash::FxHashSet<Oid>> =
            (32 < oids.len()).then(|| oids.iter().copied().collect());
        for ((oid, _), load) in &mut self.loads {
            let is_written = many.as_ref().map_or_else(|| is_in(oid), |many| many.contains(oid));
            if is_written {
                load.overtaken = Some(tid);
            }
        }
    }

    /// Takes back those whose answer ends the session: they wait for its end.
    pub(super) fn doom(&mut self, waiters: impl IntoIterator<Item = Waiter<W>>) {
        self.doomed.extend(waiters.into_iter().filter_map(|waiter| match waiter {
            Waiter::One(waiter) => Some(waiter),
            // A batch has its waiter itself.
            Waiter::Part { .. } | Waiter::Session | Waiter::Nobody => None,
        }));
    }

    /// Gives up everything, and names all callers that wait.
    pub(super) fn drain(&mut self) -> Vec<W> {
        let mut waiters = std::mem::take(&mut self.doomed);
        let mut tell = |waiter| {
            if let Waiter::One(waiter) = waiter {
                waiters.push(waiter);
            }
        };
        for (_, load) in self.loads.drain() {
            tell(load.first);
            load.others.into_iter().for_each(&mut tell);
        }
        self.calls.drain().for_each(|(_, call)| tell(call.waiter));
        self.blobs.clear();
        waiters.extend(self.batches.drain().map(|(_, batch)| batch.waiter));
        waiters
    }

    fn number(&mut self, is_used: impl Fn(&Self, u32) -> bool) -> u32 {
        loop {
            let number = self.next_number;
            self.next_number = if number == NUMBER_MAX { 1 } else { number + 1 };
            if !is_used(self, number) {
                return number;
            }
        }
    }
}
