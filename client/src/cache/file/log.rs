//! Appends to the log of a cache file, and recycles its oldest segment when it is full.
//!
//! Why no revision comes back to life as a current one after it was invalidated:
//!
//! - The log has what the server said in the order in which it said it, and only its oldest part is
//!   ever recycled. So when the note of an invalidation is recycled, the revision that it was about
//!   has been recycled before it, or together with it.
//! - A revision that is still in use is written again when its segment is recycled, as the *index*
//!   has it. The index is never behind the log: an invalidation goes to the index first and is
//!   written later. So one that the index holds as current is that for the log, too, and what ends
//!   it will be written after it. One that the index does not have is not written again, nor one
//!   whose end is later than what the log is true for.
//! - An invalidation is left out only if the log has no current revision of that object, which the
//!   log itself keeps book of (`current`), in the order of the log.
//! - A beginning of the log is a state that the cache once had (see `scan.rs`), so it does not
//!   matter where a kill cuts it off. What a power cut may leave is no beginning; it is not read.

use std::io;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::{Chance, DiskFile};

use super::format::{End, Geometry, Header, Kind, Record, Segment};
use super::inbox::Note;
use super::scan::{Known, Scanned};
use crate::cache::contents::Contents;
use crate::cache::index::{OPEN, Place};

/// Bytes gathered for one write.
const WRITE_LENGTH: usize = 256 * 1024;

/// The log says at least every so many transactions what it is true for.
const BEHIND_MAX: usize = 64;

/// The end of the log, where it grows.
///
/// Invariant: the segment's records up to `written` are in the file, the rest is in `buffer`; the
/// places of those in `buffer` are in `waiting`.
#[derive(Debug)]
pub(super) struct Log {
    file: Arc<dyn DiskFile>,
    chance: Arc<dyn Chance>,
    header: Header,
    segments: Vec<Option<Known>>,
    sequence: u64,
    nonce: u64,
    written: usize,
    buffer: Vec<u8>,
    /// Nothing may be appended to the segment any more.
    is_sealed: bool,
    waiting: Vec<(Oid, Tid, u64)>,
    /// Objects that have a current revision in the log, and where its last record is.
    current: FxHashMap<Oid, u64>,
    logged_tid: Option<Tid>,
    last_tid: Option<Tid>,
    /// Transactions since `logged_tid`.
    behind: usize,
    /// Bytes that may be written again when segments are recycled. Grows with what is new, so that
    /// in the long run no more is written again than is new, however much of the file is in use.
    credit: usize,
}

/// A record of a segment that is being recycled.
struct Kept {
    oid: Oid,
    serial: Tid,
    end: Tid,
    start: usize,
    length: usize,
}

impl Log {
    /// Goes on with what was found in a file. [`Log::begin_anew`] has to follow if that is nothing.
    ///
    /// With `header.clean`, nothing was cut off, and the last segment is filled up.
    pub(super) fn new(
        file: Arc<dyn DiskFile>,
        chance: Arc<dyn Chance>,
        header: Header,
        scanned: Scanned,
    ) -> Self {
        let end = scanned.end.unwrap_or(End { sequence: 0, offset: 0 });
        let last = scanned.segments.get(header.geometry.slot(end.sequence)).copied().flatten();
        let credit = credit_max(header.geometry);
        Self {
            file,
            chance,
            segments: scanned.segments,
            sequence: end.sequence,
            nonce: last.map_or(0, |known| known.nonce),
            written: end.offset as usize,
            buffer: Vec::new(),
            is_sealed: header.clean != Some(end),
            header: Header { clean: None, ..header },
            waiting: Vec::new(),
            current: scanned.current,
            logged_tid: scanned.last_tid,
            last_tid: scanned.last_tid,
            behind: 0,
            credit,
        }
    }

    /// Marks the file as in use: from here on, a power cut makes it worthless.
    pub(super) fn mark_used(&self) -> io::Result<()> {
        self.file.write_all_at(&self.header.encode(), 0)?;
        self.file.sync_data()
    }

    /// Begins a log without any revision, true for `last_tid`.
    pub(super) fn begin_anew(&mut self, last_tid: Option<Tid>) -> io::Result<()> {
        self.header.epoch = self.chance.bits();
        self.segments = vec![None; self.header.geometry.segments as usize];
        self.buffer.clear();
        self.waiting.clear();
        self.current.clear();
        (self.logged_tid, self.last_tid, self.behind) = (last_tid, last_tid, 0);
        self.file.write_all_at(&self.header.encode(), 0)?;
        self.begin_segment(0, 0);
        self.flush_bytes()
    }

    /// Writes down what has changed.
    pub(super) fn write(&mut self, notes: &[Note], contents: &Contents) -> io::Result<()> {
        for note in notes {
            match note {
                Note::Revision { oid, serial, end, data } => {
                    self.write_last_tid(contents)?;
                    self.append_revision(*oid, *serial, *end, data, contents)?;
                    let credit = self.credit + Record::LENGTH + data.len();
                    self.credit = credit.min(credit_max(self.geometry()));
                }
                Note::End { tid, oids } => {
                    if self.append_oids(Kind::End { tid: *tid }, oids, contents)? {
                        self.logged_tid = self.logged_tid.max(Some(*tid));
                    }
                    self.advance(*tid);
                }
                Note::Forget { oids } => {
                    self.append_oids(Kind::Forget, oids, contents)?;
                }
                Note::Advance { tid } => self.advance(*tid),
            }
            if WRITE_LENGTH <= self.buffer.len() {
                self.flush(contents)?;
            }
        }
        if BEHIND_MAX <= self.behind {
            self.write_last_tid(contents)?;
        }
        self.flush(contents)
    }

    /// Writes the last, makes all durable, and says so in the header.
    pub(super) fn close(&mut self, contents: &Contents) -> io::Result<()> {
        self.write_last_tid(contents)?;
        self.flush(contents)?;
        self.file.sync_data()?;
        // A sealed segment is not gone on with, the next time either.
        let sequence = if self.is_sealed { u64::MAX } else { self.sequence };
        let end = End { sequence, offset: self.offset() as u32 };
        let header = Header { clean: Some(end), ..self.header.clone() };
        self.file.write_all_at(&header.encode(), 0)?;
        self.file.sync_data()
    }

    /// Bytes that the log takes in the file.
    pub(super) fn bytes(&self) -> u64 {
        let ends = self.segments.iter().flatten().map(|known| u64::from(known.end));
        ends.sum::<u64>() + self.buffer.len() as u64
    }

    fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    fn offset(&self) -> usize {
        self.written + self.buffer.len()
    }

    fn position(&self) -> u64 {
        self.geometry().position(self.geometry().slot(self.sequence))
    }

    fn advance(&mut self, tid: Tid) {
        self.last_tid = self.last_tid.max(Some(tid));
        self.behind = if self.last_tid == self.logged_tid { 0 } else { self.behind + 1 };
    }

    fn write_last_tid(&mut self, contents: &Contents) -> io::Result<()> {
        if let Some(tid) = self.last_tid.filter(|_| self.last_tid != self.logged_tid) {
            self.append(Kind::Advance { tid }, &[], contents)?;
            self.logged_tid = self.last_tid;
            self.behind = 0;
        }
        Ok(())
    }

    fn append_revision(
        &mut self,
        oid: Oid,
        serial: Tid,
        end: Tid,
        data: &[u8],
        contents: &Contents,
    ) -> io::Result<()> {
        let at = self.append(Kind::Revision { oid, serial, end }, data, contents)?;
        self.waiting.push((oid, serial, at));
        if end == OPEN {
            self.current.insert(oid, at);
        }
        Ok(())
    }

    /// Appends a note on those of the objects that have a current revision in the log. Returns
    /// whether there are any.
    fn append_oids(&mut self, kind: Kind, oids: &[Oid], contents: &Contents) -> io::Result<bool> {
        let concerned = oids.iter().filter(|&oid| self.current.remove(oid).is_some());
        let body: Vec<u8> = concerned.flat_map(|oid| oid.to_bytes()).collect();
        // One record says that the log is true for a transaction. What does not fit into it is
        // forgotten before.
        let length_max = self.geometry().data_max() / 8 * 8;
        let (mut part, mut rest) = body.split_at(body.len().min(length_max));
        while !rest.is_empty() {
            self.append(Kind::Forget, part, contents)?;
            (part, rest) = rest.split_at(rest.len().min(length_max));
        }
        if !part.is_empty() {
            self.append(kind, part, contents)?;
        }
        Ok(!part.is_empty())
    }

    /// Appends a record, in the next segment if this one has no room. Returns its position.
    fn append(&mut self, kind: Kind, body: &[u8], contents: &Contents) -> io::Result<u64> {
        let length = Record::LENGTH + body.len();
        let has_room = self.offset() + length <= self.geometry().segment_size as usize;
        if self.is_sealed || !has_room {
            self.next_segment(length, contents)?;
        }
        let offset = self.offset();
        self.buffer.extend(Record::new(kind, body).encode(self.nonce, offset));
        self.buffer.extend(body);
        Ok(self.position() + offset as u64)
    }

    /// Goes on in the oldest segment, which is recycled, and leaves room for `length` bytes.
    fn next_segment(&mut self, length: usize, contents: &Contents) -> io::Result<()> {
        self.flush(contents)?;
        let (sequence, previous_end) = (self.sequence + 1, self.offset());
        let slot = self.geometry().slot(sequence);
        let size = self.geometry().segment_size as usize;
        let mut old = Vec::new();
        let mut kept = Vec::new();
        if let Some(known) = self.segments[slot].take() {
            old.resize(known.end as usize, 0);
            self.file.read_exact_at(&mut old, self.geometry().position(slot))?;
            let room = self.credit.min(size - Segment::LENGTH - length);
            kept = self.recycle(&old, known, slot, room, contents)?;
        }
        self.begin_segment(sequence, previous_end as u32);
        for Kept { oid, serial, end, start, length } in kept {
            let data = &old[start..start + length];
            self.append_revision(oid, serial, end, data, contents)?;
        }
        Ok(())
    }

    /// Takes all revisions of a segment out of the index, but for those that were hit since they
    /// were written, as many as have `room`.
    fn recycle(
        &mut self,
        old: &[u8],
        known: Known,
        slot: usize,
        room: usize,
        contents: &Contents,
    ) -> io::Result<Vec<Kept>> {
        let mut kept = Vec::new();
        let mut kept_length = 0;
        let last_tid = self.last_tid;
        let mut offset = Segment::LENGTH;
        while let Some((record, body)) = Record::decode_at(old, known.nonce, offset) {
            let at = self.geometry().position(slot) + offset as u64;
            let start = offset + Record::LENGTH;
            offset = start + body.len();
            let Kind::Revision { oid, serial, .. } = record.kind else { continue };
            if self.current.get(&oid) == Some(&at) {
                self.current.remove(&oid);
            }
            let length = Record::LENGTH + body.len();
            let fits = kept_length + length <= room && record.fits(body);
            contents.index.change(oid, serial, |entry| {
                if entry.place != Place::At(at) {
                    return false;
                }
                let is_told = entry.end == OPEN || Some(entry.end) <= last_tid;
                if entry.marks.take_touched() && fits && is_told {
                    entry.place = Place::Awaited;
                    kept_length += length;
                    kept.push(Kept { oid, serial, end: entry.end, start, length: body.len() });
                    return false;
                }
                entry.place = Place::Nowhere;
                entry.data.is_none()
            });
        }
        self.credit -= kept_length;
        let is_whole = offset == known.end as usize;
        if is_whole { Ok(kept) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn begin_segment(&mut self, sequence: u64, previous_end: u32) {
        (self.sequence, self.nonce) = (sequence, self.chance.bits());
        self.written = 0;
        self.is_sealed = false;
        (self.logged_tid, self.behind) = (self.last_tid, 0);
        let segment = Segment {
            epoch: self.header.epoch,
            sequence,
            nonce: self.nonce,
            last_tid: self.logged_tid,
            previous_end,
        };
        self.buffer.extend(segment.encode());
    }

    /// Writes what was gathered, and tells the index where it is.
    fn flush(&mut self, contents: &Contents) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.flush_bytes()?;
        for (oid, serial, at) in self.waiting.drain(..) {
            contents.index.change(oid, serial, |entry| {
                if entry.place == Place::Awaited {
                    entry.place = Place::At(at);
                }
                false
            });
        }
        Ok(())
    }

    fn flush_bytes(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.position() + self.written as u64)?;
        self.written += self.buffer.len();
        self.buffer.clear();
        let known = Known { sequence: self.sequence, nonce: self.nonce, end: self.written as u32 };
        let slot = self.geometry().slot(self.sequence);
        self.segments[slot] = Some(known);
        Ok(())
    }
}

/// Half of the file may be written again at once: what is used together often lies together.
fn credit_max(geometry: Geometry) -> usize {
    geometry.file_size() as usize / 2
}
