//! Finds one revision of an object: asks for reads, never reads.
//!
//! ```text
//!   index ---> | T5 | --previous--> | T3 | --previous--> | T1 |
//!                                     |
//!                                     `--back--> | T2 | has the pickles, if T3 was an undo
//! ```
//!
//! Before T4 the newest revision is T3, which ends at T5. Every pointer has to lead to a smaller
//! position, so that a walk comes to an end in any file.

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::DataHeader;

use super::{DataRange, StorageError};

/// What the first read takes beside the header: most objects are smaller, so one read is enough.
const FIRST_GUESS: u64 = 2048;

/// A piece of the data file that a [`Walk`] asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Want {
    /// Byte offset in the data file.
    pub position: u64,
    /// How many bytes; fewer only if the file ends before. At most what the file holds.
    pub length: usize,
}

/// How a [`Walk`] goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Read what [`Walk::want`] says now.
    Read,
    /// The bytes just given have the data.
    Found {
        /// Where in these bytes the pickles stand.
        data: DataRange,
        /// The revision's serial.
        serial: Tid,
        /// The next revision's serial, if there is one that the asker may know of.
        end: Option<Tid>,
    },
    /// The object has no revision that old.
    Absent,
    /// The object is not there: deleted, its creation undone, or later than the asker may know.
    Gone,
}

/// A search for the newest revision of an object that is older than a given time.
///
/// Read what [`Walk::want`] says, give it to [`Walk::step`], and repeat while that says
/// [`Step::Read`]. The walk keeps no bytes and allocates nothing.
#[derive(Clone, Debug)]
pub struct Walk {
    oid: Oid,
    before: Tid,
    visible: Tid,
    head: u64,
    file_end: u64,
    position: u64,
    length: u64,
    seeking: Seeking,
}

#[derive(Clone, Copy, Debug)]
enum Seeking {
    /// The revision; the one after it, if we have passed it; whether any was visible so far.
    Revision { end: Option<Tid>, visible: bool },
    /// The pickles of the revision that was found, behind its back pointer.
    Data { serial: Tid, end: Option<Tid> },
}

impl Walk {
    /// Begins at the object's current record, which the index said stands at `head_position`, in a
    /// file that was at least `file_end` long when it did.
    pub fn new(oid: Oid, before: Tid, visible: Tid, head_position: u64, file_end: u64) -> Self {
        Self {
            oid,
            before,
            visible,
            head: head_position,
            file_end,
            position: head_position,
            length: (DataHeader::LEN as u64 + FIRST_GUESS)
                .min(file_end.saturating_sub(head_position)),
            seeking: Seeking::Revision { end: None, visible: false },
        }
    }

    /// Which object is searched for.
    pub fn oid(&self) -> Oid {
        self.oid
    }

    /// Older than which time.
    pub fn before(&self) -> Tid {
        self.before
    }

    /// Whether a walk for the same load that begins now would see something else: a commit has
    /// overtaken a slow read.
    pub fn is_overtaken_by(&self, fresh: &Self) -> bool {
        (self.head, self.visible) != (fresh.head, fresh.visible)
    }

    /// What to read next.
    pub fn want(&self) -> Want {
        Want { position: self.position, length: self.length as usize }
    }

    /// Takes what was read at [`Walk::want`]. Fewer bytes than wanted mean that the file ends.
    ///
    /// # Errors
    ///
    /// [`StorageError::Corrupt`] if these are no records of the object.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, StorageError> {
        let position = self.position;
        let header = DataHeader::parse(bytes, position)?;
        if header.oid != self.oid {
            return Err(StorageError::Corrupt { position, expected: "a record of the object" });
        }
        let (serial, end) = match self.seeking {
            Seeking::Data { serial, end } => (serial, end),
            Seeking::Revision { end, visible } => {
                let known = header.serial <= self.visible;
                if known && header.serial < self.before {
                    (header.serial, end)
                } else if header.previous == 0 {
                    return Ok(if known || visible { Step::Absent } else { Step::Gone });
                } else {
                    let end = if known { Some(header.serial) } else { end };
                    self.seeking = Seeking::Revision { end, visible: visible || known };
                    return Ok(self.read_record(header.previous));
                }
            }
        };
        if header.is_gone() {
            return Ok(Step::Gone);
        }
        if header.length == 0 {
            self.seeking = Seeking::Data { serial, end };
            return Ok(self.read_record(header.back));
        }
        if self.file_end < header.end(position) {
            let expected = "a record that ends within the file";
            return Err(StorageError::Corrupt { position, expected });
        }
        let whole = DataHeader::record_length(header.length);
        if whole <= bytes.len() as u64 {
            return Ok(Step::Found { data: DataHeader::LEN..whole as usize, serial, end });
        }
        if self.length == whole {
            let expected = "a file as long as it was";
            return Err(StorageError::Corrupt { position, expected });
        }
        self.length = whole;
        Ok(Step::Read)
    }

    /// Goes to an older record. The header's parser has seen that it is at a smaller position.
    fn read_record(&mut self, position: u64) -> Step {
        self.position = position;
        self.length =
            (DataHeader::LEN as u64 + FIRST_GUESS).min(self.file_end.saturating_sub(position));
        Step::Read
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::testing::{Folder, Write, commit, load};

    #[test]
    fn each_time_has_its_revision_and_its_end() {
        let folder = Folder::new();
        let (storage, mut appender) = folder.open().unwrap();
        let long = vec![b'x'; 10_000];
        commit(&mut appender, 10, &[(1, Write::Data(b"one")), (2, Write::Data(b"other"))]);
        let first = storage.current().position(Oid(1)).unwrap();
        commit(&mut appender, 20, &[(1, Write::Data(&long))]);
        commit(&mut appender, 30, &[(1, Write::Same(first))]);
        let back = storage.current().position(Oid(1)).unwrap();
        commit(&mut appender, 40, &[(1, Write::Same(back))]);
        commit(&mut appender, 50, &[(1, Write::Gone)]);
        commit(&mut appender, 60, &[(1, Write::Data(b"again"))]);
        commit(&mut appender, 70, &[(3, Write::Data(b"new"))]);

        const ALL: u64 = 1000;
        type Answer<'a> = Result<Option<(&'a [u8], u64, Option<u64>)>, ()>;
        let rows: [(u64, u64, u64, Answer<'_>); 15] = [
            (1, 10, ALL, Ok(None)),
            (1, 11, ALL, Ok(Some((b"one", 10, Some(20))))),
            (1, 20, ALL, Ok(Some((b"one", 10, Some(20))))),
            (1, 21, ALL, Ok(Some((&long, 20, Some(30))))),
            (1, 31, ALL, Ok(Some((b"one", 30, Some(40))))),
            (1, 41, ALL, Ok(Some((b"one", 40, Some(50))))),
            (1, 51, ALL, Err(())),
            (1, 61, ALL, Ok(Some((b"again", 60, None)))),
            (1, 61, 40, Ok(Some((b"one", 40, None)))),
            (1, 21, 20, Ok(Some((&long, 20, None)))),
            (1, 21, 30, Ok(Some((&long, 20, Some(30))))),
            (1, 61, 9, Err(())),
            (3, 71, 60, Err(())),
            (3, 70, 70, Ok(None)),
            (4, 71, ALL, Err(())),
        ];
        for (oid, before, visible, expected) in rows {
            let found = load(&storage, oid, Tid(before), Tid(visible));
            let found = found.map_err(|error| {
                assert!(matches!(error, StorageError::UnknownObject { .. }), "{error}");
            });
            let found = found.as_ref().map(|revision| {
                let revision = revision.as_ref();
                revision.map(|r| (&r.data[..], r.serial.0, r.end.map(|tid| tid.0)))
            });
            assert_eq!(found, expected.as_ref().map(|a| *a), "{oid} before {before} at {visible}");
        }
    }

    #[test]
    fn a_damaged_record_is_an_error_and_not_an_answer() {
        let whole = |length: u64, previous: u64| {
            let mut bytes = Vec::new();
            let header = DataHeader {
                oid: Oid(1),
                serial: Tid(9),
                previous,
                transaction: 4,
                length,
                back: 0,
            };
            header.emit(&mut bytes);
            bytes.extend_from_slice(&[7; 8]);
            bytes
        };
        let rows = [
            (whole(u64::MAX, 0), "a length past every file"),
            (whole(1_000_000, 0), "a length past this file"),
            (whole(8, 1000), "a pointer to itself"),
            (whole(8, u64::MAX), "a pointer past the file"),
            (whole(0, 0), "a back pointer forward"),
            (whole(8, 0)[..41].to_vec(), "half a header"),
            (Vec::new(), "nothing"),
        ];
        for (bytes, what) in rows {
            let mut walk = Walk::new(Oid(1), Tid(100), Tid(100), 1000, 5000);
            assert_eq!(walk.want(), Want { position: 1000, length: 42 + 2048 });
            let step = walk.step(&bytes);
            assert!(matches!(step, Err(StorageError::Corrupt { .. })), "{what}: {step:?}");
        }
        let mut walk = Walk::new(Oid(2), Tid(100), Tid(100), 1000, 5000);
        let step = walk.step(&whole(8, 0));
        assert!(matches!(step, Err(StorageError::Corrupt { .. })), "another object: {step:?}");
    }

    #[test]
    fn a_file_that_shrinks_under_a_walk_does_not_keep_it_for_ever() {
        let mut bytes = Vec::new();
        let header = DataHeader {
            oid: Oid(1),
            serial: Tid(9),
            previous: 0,
            transaction: 4,
            length: 3000,
            back: 0,
        };
        header.emit(&mut bytes);
        let mut walk = Walk::new(Oid(1), Tid(100), Tid(100), 1000, 5000);
        bytes.resize(50, 0);
        assert_eq!(walk.step(&bytes).unwrap(), Step::Read);
        assert_eq!(walk.want(), Want { position: 1000, length: 3042 });
        assert!(walk.step(&bytes).is_err());
    }
}
