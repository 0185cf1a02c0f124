//! Which records a pack keeps.
//!
//! ```text
//!   4 | transactions up to the pack time ...        | later ones ...            | end
//!                                                   ^ border
//!     kept: the last record of each object that       kept as they are; records before the border
//!     the root leads to, by any way, as it was        that they point back to are kept, too, with
//!     at the pack time                                what these lead to
//! ```
//!
//! The rules are those of `GC` of `ZODB/FileStorage/fspack.py`, with three differences, in all of
//! which more is kept than by Python: a record that only a later back pointer leads to keeps what
//! *it* leads to, and does not stand in for the record of the pack time; a reference into nowhere is
//! reported, and does not end the pack; a record whose references cannot be told is reported, and
//! lets this pack keep all objects.
//!
//! Objects are found in the order of the file as far as possible: what lies ahead is taken first,
//! what lies behind waits for the next sweep. Memory is 8 bytes an object for its position, whose
//! highest bit says that it is reached, and at most 8 for those that wait.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::{DataHeader, FIRST, PACKED, References, UNDONE};

use super::progress::{Phase, Progress};
use super::source::{self, Records};
use crate::log::{self, Severity, Source};
use crate::storage::StorageError;
use crate::storage::generation::Generation;
use crate::storage::index::Index;
use crate::storage::window::Window;

/// References into nowhere, and records that cannot be read, that the log names one by one.
const NAMED_MAX: usize = 100;

/// What a pack keeps of the transactions before the border.
#[derive(Debug)]
pub(super) struct Kept {
    marks: Marks,
    /// Records that later back pointers lead to: by rising position, each once.
    pub(super) revived: Vec<u64>,
    /// The first transaction after the pack time.
    pub(super) border: u64,
}

impl Kept {
    /// Whether the object's record at that position is kept.
    pub(super) fn has(&self, oid: Oid, position: u64) -> bool {
        self.marks.is_reached_at(oid, position) || self.revived.binary_search(&position).is_ok()
    }
}

/// Finds out what a pack to `stop` keeps, given what was committed before `end`.
///
/// `None`: an earlier pack went as far, or further, or nothing has happened since.
pub(super) fn find(
    generation: &Generation,
    end: u64,
    stop: Tid,
    gc: bool,
    progress: &Progress,
) -> Result<Option<Kept>, StorageError> {
    let mut window = Window::new(generation.file.clone(), end);
    progress.begin(Phase::Index, end);
    let Some((marks, border)) = at_pack_time(&mut window, end, stop, progress)? else {
        return Ok(None);
    };
    let revived = revived(&mut window, border, end, progress)?;
    let mut search = Search {
        marks,
        window: Window::scattered(generation.file.clone(), end),
        chain: Window::scattered(generation.file.clone(), end),
        end,
        progress,
        waiting: Waiting::default(),
        references: References::default(),
        missing: BTreeMap::new(),
        unreadable: 0,
    };
    if gc {
        progress.begin(Phase::Mark, search.marks.len());
        search.everything(&revived)?;
    }
    if !gc || search.unreadable != 0 {
        search.marks.reach_all();
    }
    search.report(generation);
    Ok(Some(Kept { marks: search.marks, revived, border }))
}

/// The last record of each object at the pack time, and where the first later transaction stands.
/// `None` if the pack would be redundant.
fn at_pack_time(
    window: &mut Window,
    end: u64,
    stop: Tid,
    progress: &Progress,
) -> Result<Option<(Marks, u64)>, StorageError> {
    let (mut marks, mut last) = (Marks::default(), Tid::ZERO);
    let (mut position, mut unpacked, mut status) = (FIRST, false, None);
    while position < end {
        let header = source::transaction(window, position, end)?;
        status = Some(header.status);
        if stop < header.tid {
            break;
        }
        if header.tid <= last {
            return Err(StorageError::Corrupt { position, expected: "a later transaction" });
        }
        last = header.tid;
        unpacked |= header.status != PACKED;
        let mut records = Records::of(position, &header);
        while let Some((at, record)) = records.next(window)? {
            match header.status {
                // Undone in ancient ways: as if it were not there.
                UNDONE => {}
                _ if record.is_gone() => marks.remove(record.oid),
                _ => marks.set(record.oid, at),
            }
        }
        position = header.end(position);
        progress.reach(position)?;
    }
    let redundant = !unpacked && status == Some(PACKED);
    Ok((!redundant).then_some((marks, position)))
}

/// The records before the border that later back pointers lead to, by rising position.
fn revived(
    window: &mut Window,
    border: u64,
    end: u64,
    progress: &Progress,
) -> Result<Vec<u64>, StorageError> {
    let (mut revived, mut position) = (Vec::new(), border);
    while position < end {
        let header = source::transaction(window, position, end)?;
        let mut records = Records::of(position, &header);
        while let Some((_, record)) = records.next(window)? {
            if record.back != 0 && record.back < border {
                revived.push(record.back);
            }
        }
        position = header.end(position);
        progress.reach(position)?;
    }
    revived.sort_unstable();
    revived.dedup();
    Ok(revived)
}

/// The position of each object's record, and whether it is reached.
#[derive(Debug, Default)]
struct Marks(Index);

/// Of a position whose record is reached. Files end long before.
const REACHED: u64 = 1 << 63;

impl Marks {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn set(&mut self, oid: Oid, position: u64) {
        self.0.set(oid, position);
    }

    fn remove(&mut self, oid: Oid) {
        self.0.remove(oid);
    }

    fn is_reached_at(&self, oid: Oid, position: u64) -> bool {
        self.0.position(oid) == Some(position | REACHED)
    }

    /// Marks an object. `None`: there is no such object. Else its position, if it is new.
    fn reach(&mut self, oid: Oid) -> Option<Option<u64>> {
        let position = self.0.position(oid)?;
        if position & REACHED != 0 {
            return Some(None);
        }
        self.0.set(oid, position | REACHED);
        Some(Some(position))
    }

    fn reach_all(&mut self) {
        for (oid, position) in self.0.iter() {
            self.0.set(oid, position | REACHED);
        }
    }
}

/// Records that are to be read.
#[derive(Debug, Default)]
struct Waiting {
    /// Of this sweep, from `at` on.
    ahead: BinaryHeap<Reverse<u64>>,
    /// Of the next.
    behind: Vec<u64>,
    at: u64,
}

impl Waiting {
    fn push(&mut self, position: u64) {
        if self.at <= position {
            self.ahead.push(Reverse(position));
        } else {
            self.behind.push(position);
        }
    }

    fn pop(&mut self) -> Option<u64> {
        if self.ahead.is_empty() {
            self.ahead = std::mem::take(&mut self.behind).into_iter().map(Reverse).collect();
        }
        let Reverse(position) = self.ahead.pop()?;
        self.at = position;
        Some(position)
    }
}

/// The search for everything that the root leads to.
struct Search<'a> {
    marks: Marks,
    window: Window,
    /// For records behind back pointers, which are elsewhere.
    chain: Window,
    end: u64,
    progress: &'a Progress,
    waiting: Waiting,
    references: References,
    /// Objects that are referred to and not there, and who refers to them.
    missing: BTreeMap<Oid, Oid>,
    unreadable: usize,
}

impl Search<'_> {
    fn everything(&mut self, revived: &[u64]) -> Result<(), StorageError> {
        match self.marks.reach(Oid::ROOT) {
            Some(position) => self.waiting.ahead.extend(position.map(Reverse)),
            // Packed to a time before the root was made.
            None if self.marks.len() == 0 => {}
            // All objects would be garbage.
            None => return Err(StorageError::NoRoot),
        }
        for position in revived {
            self.waiting.push(*position);
        }
        let mut count = 0;
        while let Some(position) = self.waiting.pop() {
            self.follow(position)?;
            count += 1;
            self.progress.reach(count)?;
        }
        Ok(())
    }

    /// Marks what the record at a position refers to.
    fn follow(&mut self, position: u64) -> Result<(), StorageError> {
        let mut record = source::record(&mut self.window, position)?;
        let (oid, mut at, mut window) = (record.oid, position, &mut self.window);
        if record.length == 0 {
            match source::with_data(&mut self.chain, position, record, self.end)? {
                Some(found) => (at, record) = found,
                None => return Ok(()),
            }
            window = &mut self.chain;
        }
        let whole = DataHeader::record_length(record.length) as usize;
        let bytes = window.bytes(at, whole)?;
        let Some(data) = bytes.get(DataHeader::LEN..whole) else {
            let expected = "a record that ends within the file";
            return Err(StorageError::Corrupt { position: at, expected });
        };
        let (marks, waiting, missing) = (&mut self.marks, &mut self.waiting, &mut self.missing);
        let walked = self.references.walk(data, |referred| match marks.reach(referred) {
            Some(Some(position)) => waiting.push(position),
            Some(None) => {}
            None => drop(missing.entry(referred).or_insert(oid)),
        });
        if let Err(error) = walked {
            self.unreadable += 1;
            if self.unreadable <= NAMED_MAX {
                say(
                    Severity::Error,
                    &format!("pack: the references of {oid} cannot be told: {error}"),
                );
            }
        }
        Ok(())
    }

    /// Says in the log what was wrong.
    fn report(&self, generation: &Generation) {
        if self.unreadable != 0 {
            let text = format!(
                "pack: {} records could not be read, so no object is removed by this pack",
                self.unreadable
            );
            say(Severity::Error, &text);
        }
        // An object that comes later in the file than what refers to it is no cause for concern.
        let there =
            |oid: Oid| generation.position(oid).is_some_and(|_| !self.is_gone(generation, oid));
        let missing: Vec<_> = self.missing.iter().filter(|(oid, _)| !there(**oid)).collect();
        for (oid, referrer) in missing.iter().take(NAMED_MAX) {
            let text = format!("pack: {oid}, which {referrer} refers to, is not there");
            say(Severity::Error, &text);
        }
        if NAMED_MAX < missing.len() {
            let text =
                format!("pack: {} objects that are referred to are not there", missing.len());
            say(Severity::Error, &text);
        }
    }

    fn is_gone(&self, generation: &Generation, oid: Oid) -> bool {
        let record = generation.position(oid).map(|at| generation.record_at(at, true));
        matches!(record, Some(Ok(record)) if record.is_gone())
    }
}

fn say(severity: Severity, text: &str) {
    log::event(Source::FILE_STORAGE, severity, "", format_args!("{text}"));
}
