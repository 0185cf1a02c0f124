//! Writes what a pack keeps into a new file.
//!
//! ```text
//!   old   | before the border: some records are kept       | after it: everything    | end
//!   new   | status 'p', no pointers, data in place of them | same, pointers led anew |
//! ```
//!
//! After the border every transaction keeps its length, so a position there moves by what was saved
//! before. Only a back pointer whose record is not kept, of an undo that was committed while the
//! pack was under way, is written as the data itself, and moves what follows.
//!
//! The order and the bytes are those of `FileStoragePacker` of `ZODB/FileStorage/fspack.py`.

use zeoring_shared::ids::Oid;
use zeoring_shared::record::{
    BLOB_PREFIX, DataHeader, FIRST, PACKED, TransactionHeader, UNDONE, is_blob,
};

use super::blobs::Dropped;
use super::output::Output;
use super::progress::{Phase, Progress};
use super::reach::Kept;
use super::source::{self, Records};
use crate::storage::StorageError;
use crate::storage::generation::Generation;
use crate::storage::index::Index;
use crate::storage::window::Window;

/// The new file as far as it is written.
#[derive(Debug)]
pub(super) struct Copier {
    pub(super) output: Output,
    pub(super) index: Index,
    window: Window,
    /// For records behind back pointers, which are elsewhere.
    chain: Window,
    /// Up to where the old file is copied.
    pub(super) done: u64,
    /// The first transaction after the pack time, in the old file and in the new one.
    border: (u64, u64),
    /// Where the records went that back pointers lead to: from, to, by rising position.
    revived: Vec<(u64, u64)>,
    /// From which old position on records move by how much.
    shifts: Vec<(u64, i64)>,
    /// The records of one transaction, before they are written.
    plan: Vec<Planned>,
    /// Blobs of revisions that are not kept, if the storage has blobs.
    dropped: Option<Dropped>,
}

/// A record that is to be written.
#[derive(Clone, Copy, Debug)]
struct Planned {
    record: DataHeader,
    /// Behind it in the old file.
    end: u64,
    body: Body,
}

/// Which window brings a record's pickles.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The one that goes through the file: they are where the record is.
    Here,
    /// The one for back pointers.
    Elsewhere,
}

/// What follows a record's header.
#[derive(Clone, Copy, Debug)]
enum Body {
    /// Pickles, which stand at this position of the old file.
    Data { start: u64, length: u64, place: Place },
    /// A position in the new file; 0 if the object is gone.
    Back(u64),
}

impl Body {
    /// As the header says it.
    fn length(self) -> u64 {
        match self {
            Self::Data { length, .. } => length,
            Self::Back(_) => 0,
        }
    }
}

impl Copier {
    /// A new file without any transaction.
    pub(super) fn new(
        generation: &Generation,
        kept: &Kept,
        output: Output,
        dropped: Option<Dropped>,
        end: u64,
    ) -> Self {
        Self {
            output,
            index: Index::default(),
            window: Window::new(generation.file.clone(), end),
            chain: Window::scattered(generation.file.clone(), end),
            done: FIRST,
            border: (kept.border, kept.border),
            revived: Vec::new(),
            shifts: Vec::new(),
            plan: Vec::new(),
            dropped,
        }
    }

    /// Copies what is kept of the time before the pack time. Returns whether that saves anything.
    pub(super) fn up_to_border(
        &mut self,
        kept: &Kept,
        end: u64,
        progress: &Progress,
    ) -> Result<bool, StorageError> {
        progress.begin(Phase::Copy, kept.border);
        while self.done < kept.border {
            self.packed_transaction(kept, end)?;
            progress.reach(self.done)?;
        }
        if let Some(dropped) = &mut self.dropped {
            dropped.flush()?;
        }
        let new = self.output.position();
        self.border = (kept.border, new);
        self.shifts.push((kept.border, new as i64 - kept.border as i64));
        Ok(new != kept.border)
    }

    fn packed_transaction(&mut self, kept: &Kept, end: u64) -> Result<(), StorageError> {
        let position = self.done;
        let header = source::transaction(&mut self.window, position, end)?;
        let mut records = Records::of(position, &header);
        let mut started = None;
        while let Some((at, record)) = records.next(&mut self.window)? {
            if !kept.has(record.oid, at) {
                self.note_blob(at, &record, end)?;
                continue;
            }
            let new = match started {
                Some(new) => new,
                None => {
                    let new = self.output.position();
                    self.head(position, &TransactionHeader { status: PACKED, ..header })?;
                    started = Some(new);
                    new
                }
            };
            let body = self.data_of(at, &record, end)?;
            let new_at = self.output.position();
            self.record(DataHeader { previous: 0, transaction: new, ..record }, body)?;
            self.index.set(record.oid, new_at);
            if kept.revived.binary_search(&at).is_ok() {
                self.revived.push((at, new_at));
            }
        }
        if let Some(new) = started {
            let length = (self.output.position() - new).to_be_bytes();
            self.output.patch(new + TransactionHeader::LENGTH_AT, &length)?;
            self.output.buffer.extend_from_slice(&length);
            self.output.flush_if_big()?;
        }
        self.done = header.end(position);
        Ok(())
    }

    /// Notes the blob of a record that is not kept, if it has one.
    fn note_blob(&mut self, at: u64, record: &DataHeader, end: u64) -> Result<(), StorageError> {
        if self.dropped.is_none() {
            return Ok(());
        }
        let Body::Data { start, length, place } = self.data_of(at, record, end)? else {
            return Ok(());
        };
        let length = length.min(BLOB_PREFIX as u64) as usize;
        if is_blob(self.window_of(place).bytes(start, length)?)
            && let Some(dropped) = &mut self.dropped
        {
            dropped.note(record.oid, record.serial)?;
        }
        Ok(())
    }

    fn window_of(&mut self, place: Place) -> &mut Window {
        match place {
            Place::Here => &mut self.window,
            Place::Elsewhere => &mut self.chain,
        }
    }

    /// Copies the transactions up to `end`, which were committed after the pack time.
    pub(super) fn catch_up(&mut self, end: u64, progress: &Progress) -> Result<(), StorageError> {
        self.window.extend(end);
        self.chain.extend(end);
        while self.done < end {
            self.later_transaction(end)?;
            progress.reach(self.done)?;
        }
        Ok(())
    }

    fn later_transaction(&mut self, end: u64) -> Result<(), StorageError> {
        let position = self.done;
        let mut header = source::transaction(&mut self.window, position, end)?;
        let mut plan = std::mem::take(&mut self.plan);
        plan.clear();
        let after = header.end(position);
        let mut records = Records::of(position, &header);
        header.length = header.head_length();
        while let Some((at, record)) = records.next(&mut self.window)? {
            let body = self.later_body(at, &record, end)?;
            header.length += DataHeader::record_length(body.length());
            plan.push(Planned { record, end: record.end(at), body });
        }
        let new = self.output.position();
        self.head(position, &header)?;
        let mut new_at = new + header.head_length();
        for Planned { record, end, body } in &plan {
            // All records of a transaction name the one before it.
            let previous = self.index.position(record.oid).unwrap_or(0);
            let record = DataHeader { previous, transaction: new, ..*record };
            self.record(record, *body)?;
            let new_end = self.output.position();
            let shift = new_end as i64 - *end as i64;
            if self.shifts.last().is_some_and(|(_, last)| *last != shift) {
                self.shifts.push((*end, shift));
            }
        }
        for Planned { record, body, .. } in &plan {
            if header.status != UNDONE {
                self.index.set(record.oid, new_at);
            }
            new_at += DataHeader::record_length(body.length());
        }
        self.plan = plan;
        self.output.buffer.extend_from_slice(&header.length.to_be_bytes());
        self.output.flush_if_big()?;
        self.done = after;
        Ok(())
    }

    /// The pickles of a record, wherever back pointers lead.
    fn data_of(&mut self, at: u64, record: &DataHeader, end: u64) -> Result<Body, StorageError> {
        let data = |(at, record): (u64, DataHeader), place| Body::Data {
            start: at + DataHeader::LEN as u64,
            length: record.length,
            place,
        };
        if record.length != 0 {
            return Ok(data((at, *record), Place::Here));
        }
        let found = source::with_data(&mut self.chain, at, *record, end)?;
        Ok(found.map_or(Body::Back(0), |found| data(found, Place::Elsewhere)))
    }

    /// What a record after the border holds in the new file.
    fn later_body(&mut self, at: u64, record: &DataHeader, end: u64) -> Result<Body, StorageError> {
        if record.length == 0
            && record.back != 0
            && let Some(position) = self.image(record.oid, record.back, end)?
        {
            return Ok(Body::Back(position));
        }
        self.data_of(at, record, end)
    }

    /// Where in the new file the record is that stood at `back` of the old one, if it was kept.
    fn image(&mut self, oid: Oid, back: u64, end: u64) -> Result<Option<u64>, StorageError> {
        if self.border.0 <= back {
            let shift = self.shifts.partition_point(|(start, _)| *start <= back);
            let (_, shift) = self.shifts[shift - 1];
            return Ok(Some(back.strict_add_signed(shift)));
        }
        if let Ok(place) = self.revived.binary_search_by_key(&back, |(from, _)| *from) {
            return Ok(Some(self.revived[place].1));
        }
        // An undo that was committed while the pack was under way: back to what was current at the
        // pack time, which is at the end of the object's chain, or to what is not kept.
        let mut position = self.index.position(oid).unwrap_or(0);
        while self.border.1 <= position {
            position = self.output.record(position)?.previous;
        }
        if position == 0 {
            return Ok(None);
        }
        let old = source::record(&mut self.chain, back)?;
        let new = self.output.record(position)?;
        if old.serial != new.serial {
            return Ok(None);
        }
        // An object may have two records in a transaction.
        let Some((at, old)) = source::with_data(&mut self.chain, back, old, end)? else {
            return Ok((new.length == 0).then_some(position));
        };
        let same = old.length == new.length && self.is_same(at, position, old.length)?;
        Ok(same.then_some(position))
    }

    fn is_same(&mut self, old: u64, new: u64, length: u64) -> Result<bool, StorageError> {
        self.output.flush()?;
        let mut bytes = vec![0; length as usize];
        let start = new + DataHeader::LEN as u64;
        let read = self.output.file.read_exact_at(&mut bytes, start);
        read.map_err(|source| StorageError::Read { position: start, source })?;
        Ok(self.chain.bytes(old + DataHeader::LEN as u64, length as usize)? == bytes)
    }

    /// Appends a transaction's header, and the texts of the one at `position` of the old file.
    fn head(&mut self, position: u64, header: &TransactionHeader) -> Result<(), StorageError> {
        header.emit(&mut self.output.buffer);
        let texts = position + TransactionHeader::LEN as u64;
        self.output.copy(&mut self.window, texts, header.texts_length() as u64)
    }

    /// Appends a record.
    fn record(&mut self, record: DataHeader, body: Body) -> Result<(), StorageError> {
        DataHeader { length: body.length(), back: 0, ..record }.emit(&mut self.output.buffer);
        match body {
            Body::Back(back) => {
                self.output.buffer.extend_from_slice(&back.to_be_bytes());
                self.output.flush_if_big()
            }
            Body::Data { start, length, place } => {
                let window = match place {
                    Place::Here => &mut self.window,
                    Place::Elsewhere => &mut self.chain,
                };
                self.output.copy(window, start, length)
            }
        }
    }
}
