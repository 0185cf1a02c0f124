//! Reads the log of a cache file, and finds what the cache knew when it was written.
//!
//! The log is the server's stream as far as it was written, so any beginning of it is a state that
//! the cache once had, with its own, older last tid. That makes two rules enough:
//!
//! - The last segment counts up to its first record that is not whole. A write that a kill cut off
//!   and a damaged byte look alike, and are treated alike.
//! - Where an earlier segment is damaged, an invalidation may have been lost. All that was known up
//!   to there is dropped, and reading goes on with the next segment, whose header says what it is
//!   true for.
//!
//! The data of revisions are not looked at. They are checked when they are used.

use std::io;

use rustc_hash::FxHashMap;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::DiskFile;

use super::format::{End, Geometry, Kind, Record, Segment, oids};
use crate::cache::index::{Added, Entry, Index, Marks, OPEN, Place};

/// A segment whose records are in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Known {
    pub(super) sequence: u64,
    pub(super) nonce: u64,
    /// Where its records end.
    pub(super) end: u32,
}

/// What a log comes to.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// The segment in each slot.
    pub(super) segments: Vec<Option<Known>>,
    /// Where the log ends; `None` if there is none.
    pub(super) end: Option<End>,
    /// What the log is true for.
    pub(super) last_tid: Option<Tid>,
    /// The objects that have a current revision in the log, and the positions of its record.
    pub(super) current: FxHashMap<Oid, u64>,
    /// How many times something had to be dropped.
    pub(super) damaged: usize,
}

/// Reads the log of `epoch`, and puts what it says into `index`, which is empty.
///
/// # Errors
///
/// Those of the disk. Damage is no error.
pub(super) fn scan(
    file: &dyn DiskFile,
    geometry: Geometry,
    epoch: u64,
    index: &Index,
) -> io::Result<Scanned> {
    let segments = find_segments(file, geometry, epoch)?;
    let mut scanned =
        Scanned { segments: vec![None; geometry.segments as usize], ..Scanned::default() };
    let mut bytes = vec![0; geometry.segment_size as usize];
    for (place, segment) in segments.iter().enumerate() {
        if let Some(end) = scanned.end {
            let follows =
                end.sequence + 1 == segment.sequence && end.offset == segment.previous_end;
            if !follows {
                index.clear();
                scanned.current.clear();
                scanned.damaged += 1;
            }
        }
        scanned.last_tid = segment.last_tid;
        let slot = geometry.slot(segment.sequence);
        let position = geometry.position(slot);
        read_up_to(file, &mut bytes, position)?;
        let next = segments.get(place + 1).filter(|next| segment.sequence + 1 == next.sequence);
        let limit = next.map_or(bytes.len(), |next| bytes.len().min(next.previous_end as usize));
        let end = scanned.read_segment(&bytes[..limit], segment.nonce, position, index);
        let Segment { sequence, nonce, .. } = *segment;
        scanned.segments[slot] = Some(Known { sequence, nonce, end });
        scanned.end = Some(End { sequence, offset: end });
    }
    Ok(scanned)
}

/// The segments of the log, in its order.
fn find_segments(file: &dyn DiskFile, geometry: Geometry, epoch: u64) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for slot in 0..geometry.segments as usize {
        let mut head = [0; Segment::LENGTH];
        read_up_to(file, &mut head, geometry.position(slot))?;
        let is_ours = |segment: &Segment| {
            let is_possible = segment.sequence < u64::MAX / 2;
            is_possible && segment.epoch == epoch && geometry.slot(segment.sequence) == slot
        };
        segments.extend(Segment::decode(&head).filter(is_ours));
    }
    segments.sort_by_key(|segment| segment.sequence);
    Ok(segments)
}

/// Reads what there is. Where the file ends, zeros follow.
fn read_up_to(file: &dyn DiskFile, bytes: &mut [u8], position: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], position + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes[done..].fill(0);
    Ok(())
}

impl Scanned {
    /// Applies the records of one segment. Returns where they end.
    fn read_segment(&mut self, bytes: &[u8], nonce: u64, position: u64, index: &Index) -> u32 {
        let mut offset = Segment::LENGTH;
        while let Some((record, body)) = Record::decode_at(bytes, nonce, offset) {
            let at = position + offset as u64;
            match record.kind {
                Kind::Revision { oid, serial, end } => {
                    self.add(oid, serial, end, record.length, at, index);
                }
                Kind::End { tid } => {
                    oids(body).for_each(|oid| {
                        index.end(oid, tid);
                        self.current.remove(&oid);
                    });
                    self.last_tid = self.last_tid.max(Some(tid));
                }
                Kind::Forget => oids(body).for_each(|oid| {
                    index.forget(oid);
                    self.current.remove(&oid);
                }),
                Kind::Advance { tid } => self.last_tid = Some(tid),
            }
            offset += Record::LENGTH + body.len();
        }
        u32::try_from(offset).expect("a segment's size has 32 bits")
    }

    fn add(&mut self, oid: Oid, serial: Tid, end: Tid, length: u32, at: u64, index: &Index) {
        let is_told = |tid| self.last_tid.is_some_and(|last| tid <= last);
        if !is_told(serial) || !(end == OPEN || is_told(end)) {
            return;
        }
        let place = Place::At(at);
        let (data, stamp, marks) = (None, 0, Marks::default());
        let added = index.add(oid, Entry { serial, end, data, place, length, stamp, marks });
        match added {
            Added::New { .. } => {}
            // It was written again when the place of the first one was recycled, or forgotten and
            // loaded again.
            Added::Known { .. } => {
                index.change(oid, serial, |entry| {
                    (entry.place, entry.length) = (place, length);
                    false
                });
            }
            Added::Refused => return,
        }
        if end == OPEN {
            self.current.insert(oid, at);
        }
    }
}
