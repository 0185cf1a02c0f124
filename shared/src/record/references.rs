//! Which objects a record refers to: its pickles read opcode by opcode, never executed.
//!
//! A record is two pickles, the class and the state, that share a memo (`ZODB/serialize.py`). A
//! reference is whatever stands on the stack when a persistent id is asked for:
//!
//! | form                                        | what it is                        | counts |
//! |---------------------------------------------|-----------------------------------|--------|
//! | `oid`, `(oid, class)`                       | an object of this database        | yes    |
//! | `['m', (database, oid, class)]`, `['n', …]` | an object of another database     | no     |
//! | `['w', (oid,)]`, `['w', (oid, database)]`   | a weak reference                  | no     |
//! | `[oid]`                                     | a weak reference of ancient times | no     |
//!
//! The walk keeps of each value only what such an id can be made of, so a pickle of any size is
//! walked in the memory of its stack and its memo. Everything that is not understood is an error:
//! whoever collects garbage must not take an object away because of a pickle that he cannot read.

use crate::ids::Oid;

/// A record whose references cannot be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("at byte {at} of the pickles: expected {expected}")]
pub struct Unreadable {
    /// Where in the record's data.
    pub at: usize,
    /// What should have been there.
    pub expected: &'static str,
}

/// Walks over records, one after another, in the same memory.
///
/// ```
/// use zeoring_shared::record::References;
///
/// let mut oids = Vec::new();
/// // None, and the persistent id b"\0\0\0\0\0\0\0\7", as protocol 3 writes them.
/// let record = b"\x80\x03N.\x80\x03C\x08\0\0\0\0\0\0\0\x07Q.";
/// References::default().walk(record, |oid| oids.push(oid.0)).unwrap();
/// assert_eq!(oids, [7]);
/// ```
#[derive(Debug, Default)]
pub struct References {
    stack: Vec<Item>,
    /// How high the stack was at each mark that is open.
    marks: Vec<usize>,
    memo: Vec<Item>,
}

/// What is kept of a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Item {
    /// Text or bytes that may be an oid.
    Oid(Oid),
    /// A tuple that begins with an oid.
    Tuple(Oid),
    /// A list, filled or not.
    List,
    /// Anything else.
    Other,
    /// A place of the memo that was never filled.
    Nothing,
}

/// Bytes of a text that may be an oid.
const OID_LENGTH: usize = 8;

impl References {
    /// Tells `found` of each ordinary reference of a record, in the order of the pickles; of one
    /// that is there twice, twice.
    ///
    /// # Errors
    ///
    /// [`Unreadable`]. What was told before is true, but not all.
    pub fn walk(&mut self, data: &[u8], mut found: impl FnMut(Oid)) -> Result<(), Unreadable> {
        self.memo.clear();
        let mut input = Input { data, at: 0 };
        for _ in 0..2 {
            self.stack.clear();
            self.marks.clear();
            while self.step(&mut input, &mut found)? {}
        }
        Ok(())
    }

    /// Takes one opcode. Returns whether the pickle goes on.
    fn step(
        &mut self,
        input: &mut Input<'_>,
        found: &mut impl FnMut(Oid),
    ) -> Result<bool, Unreadable> {
        let start = input.at;
        let broken = |expected| Unreadable { at: start, expected };
        match input.byte()? {
            // STOP
            b'.' => {
                self.pop().ok_or(broken("a value to end with"))?;
                return Ok(false);
            }
            // PROTO, FRAME
            0x80 => input.skip(1)?,
            0x95 => input.skip(8)?,
            // MARK, POP, POP_MARK, DUP
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.pop_or_mark().ok_or(broken("a value to take away"))?,
            b'1' => drop(self.take_to_mark().ok_or(broken("a mark"))?),
            b'2' => {
                let top = self.top().ok_or(broken("a value to repeat"))?;
                self.stack.push(top);
            }
            // Numbers and the like: NONE, NEWTRUE, NEWFALSE, BININT1, BININT2, BININT, BINFLOAT,
            // INT, LONG, FLOAT, LONG1, LONG4
            b'N' | 0x88 | 0x89 => self.push(Item::Other),
            b'K' => self.skipped(input, 1)?,
            b'M' => self.skipped(input, 2)?,
            b'J' => self.skipped(input, 4)?,
            b'G' => self.skipped(input, 8)?,
            b'I' | b'L' | b'F' => {
                input.line()?;
                self.push(Item::Other);
            }
            0x8a => {
                let length = input.length(1)?;
                self.skipped(input, length)?;
            }
            0x8b => {
                let length = input.length(4)?;
                self.skipped(input, length)?;
            }
            // Texts and bytes: SHORT_BINSTRING, SHORT_BINBYTES, SHORT_BINUNICODE; BINSTRING,
            // BINBYTES, BINUNICODE; BINBYTES8, BINUNICODE8
            b'U' | b'C' | 0x8c => self.text(input, 1)?,
            b'T' | b'B' | b'X' => self.text(input, 4)?,
            0x8e | 0x8d => self.text(input, 8)?,
            // BYTEARRAY8, NEXT_BUFFER, READONLY_BUFFER
            0x96 => {
                let length = input.length(8)?;
                self.skipped(input, length)?;
            }
            0x97 => self.push(Item::Other),
            0x98 => {}
            // STRING, UNICODE
            b'S' => {
                let item = quoted(input.line()?);
                self.push(item);
            }
            b'V' => {
                let item = item_of(input.line()?);
                self.push(item);
            }
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => self.push(Item::Other),
            opcode @ 0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let first = self.take(count).ok_or(broken("the elements of a tuple"))?;
                self.push(tuple(Some(first)));
            }
            b't' => {
                let first = self.take_to_mark().ok_or(broken("a mark"))?;
                self.push(tuple(first));
            }
            // EMPTY_LIST, LIST; EMPTY_DICT, DICT, EMPTY_SET, FROZENSET
            b']' => self.push(Item::List),
            b'l' => {
                self.take_to_mark().ok_or(broken("a mark"))?;
                self.push(Item::List);
            }
            b'}' | 0x8f => self.push(Item::Other),
            b'd' | 0x91 => {
                self.take_to_mark().ok_or(broken("a mark"))?;
                self.push(Item::Other);
            }
            // APPEND, SETITEM, BUILD: what is on top goes into what is below
            b'a' | b'b' => drop(self.take(1).ok_or(broken("an element"))?),
            b's' => drop(self.take(2).ok_or(broken("a key and a value"))?),
            // APPENDS, SETITEMS, ADDITEMS
            b'e' | b'u' | 0x90 => drop(self.take_to_mark().ok_or(broken("a mark"))?),
            // GLOBAL, STACK_GLOBAL, INST, EXT1, EXT2, EXT4
            b'c' => {
                input.line()?;
                input.line()?;
                self.push(Item::Other);
            }
            0x93 => self.made_of(2).ok_or(broken("a module and a name"))?,
            b'i' => {
                input.line()?;
                input.line()?;
                self.take_to_mark().ok_or(broken("a mark"))?;
                self.push(Item::Other);
            }
            0x82 => self.skipped(input, 1)?,
            0x83 => self.skipped(input, 2)?,
            0x84 => self.skipped(input, 4)?,
            // REDUCE, NEWOBJ, NEWOBJ_EX, OBJ
            b'R' | 0x81 => self.made_of(2).ok_or(broken("a class and its arguments"))?,
            0x92 => self.made_of(3).ok_or(broken("a class and its arguments"))?,
            b'o' => {
                self.take_to_mark().ok_or(broken("a mark"))?;
                self.push(Item::Other);
            }
            // PUT, BINPUT, LONG_BINPUT, MEMOIZE
            b'p' => {
                let place = number(input.line()?).ok_or(broken("a place in the memo"))?;
                self.remember(place, input).ok_or(broken("a place in the memo"))?;
            }
            b'q' => {
                let place = input.length(1)?;
                self.remember(place, input).ok_or(broken("a place in the memo"))?;
            }
            b'r' => {
                let place = input.length(4)?;
                self.remember(place, input).ok_or(broken("a place in the memo"))?;
            }
            0x94 => {
                let place = self.memo.len();
                self.remember(place, input).ok_or(broken("a value to remember"))?;
            }
            // GET, BINGET, LONG_BINGET
            b'g' => {
                let place = number(input.line()?);
                self.recall(place).ok_or(broken("a filled place in the memo"))?;
            }
            b'h' => {
                let place = input.length(1)?;
                self.recall(Some(place)).ok_or(broken("a filled place in the memo"))?;
            }
            b'j' => {
                let place = input.length(4)?;
                self.recall(Some(place)).ok_or(broken("a filled place in the memo"))?;
            }
            // PERSID, BINPERSID
            b'P' => {
                let reference = item_of(input.line()?);
                tell(reference, found).ok_or(broken("a persistent id"))?;
                self.push(Item::Other);
            }
            b'Q' => {
                let reference = self.pop().ok_or(broken("a persistent id"))?;
                tell(reference, found).ok_or(broken("a persistent id"))?;
                self.push(Item::Other);
            }
            _ => return Err(broken("an opcode")),
        }
        Ok(true)
    }

    fn push(&mut self, item: Item) {
        self.stack.push(item);
    }

    /// How many values there are above the last mark.
    fn height(&self) -> usize {
        self.stack.len() - self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Option<Item> {
        if self.height() == 0 { None } else { self.stack.last().copied() }
    }

    fn pop(&mut self) -> Option<Item> {
        if self.height() == 0 { None } else { self.stack.pop() }
    }

    /// `POP` takes a mark away if one is on top.
    fn pop_or_mark(&mut self) -> Option<()> {
        match self.pop() {
            Some(_) => Some(()),
            None => self.marks.pop().map(drop),
        }
    }

    /// Takes values off the top; returns the lowest.
    fn take(&mut self, count: usize) -> Option<Item> {
        let rest = self.stack.len().checked_sub(count).filter(|_| count <= self.height())?;
        let first = self.stack.get(rest).copied();
        self.stack.truncate(rest);
        first
    }

    /// Takes the last mark and the values above it; returns the lowest, if there is one.
    fn take_to_mark(&mut self) -> Option<Option<Item>> {
        let mark = self.marks.pop()?;
        let first = self.stack.get(mark).copied();
        self.stack.truncate(mark);
        Some(first)
    }

    /// Puts something opaque in the place of values.
    fn made_of(&mut self, count: usize) -> Option<()> {
        self.take(count)?;
        self.push(Item::Other);
        Some(())
    }

    fn skipped(&mut self, input: &mut Input<'_>, length: usize) -> Result<(), Unreadable> {
        input.skip(length)?;
        self.push(Item::Other);
        Ok(())
    }

    fn text(&mut self, input: &mut Input<'_>, width: usize) -> Result<(), Unreadable> {
        let length = input.length(width)?;
        let item = item_of(input.bytes(length)?);
        self.push(item);
        Ok(())
    }

    fn remember(&mut self, place: usize, input: &Input<'_>) -> Option<()> {
        let top = self.top()?;
        // Picklers count the places up, one for each opcode at most.
        if input.data.len() <= place {
            return None;
        }
        if self.memo.len() <= place {
            self.memo.resize(place + 1, Item::Nothing);
        }
        self.memo[place] = top;
        Some(())
    }

    fn recall(&mut self, place: Option<usize>) -> Option<()> {
        let item = place.and_then(|place| self.memo.get(place)).copied()?;
        if item == Item::Nothing {
            return None;
        }
        self.push(item);
        Some(())
    }
}

/// Tells of a reference if it counts; `None` if it is none.
fn tell(reference: Item, found: &mut impl FnMut(Oid)) -> Option<()> {
    match reference {
        Item::Oid(oid) | Item::Tuple(oid) => found(oid),
        Item::List => {}
        Item::Other | Item::Nothing => return None,
    }
    Some(())
}

fn item_of(text: &[u8]) -> Item {
    text.try_into().map_or(Item::Other, |bytes| Item::Oid(Oid::from_bytes(bytes)))
}

fn tuple(first: Option<Item>) -> Item {
    match first {
        Some(Item::Oid(oid)) => Item::Tuple(oid),
        _ => Item::Other,
    }
}

/// The text of a `STRING`: quoted and escaped as Python's `repr` does it.
fn quoted(line: &[u8]) -> Item {
    let ([b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"']) = line.trim_ascii() else {
        return Item::Other;
    };
    let mut text = [0; OID_LENGTH];
    let (mut length, mut rest) = (0, inner.iter().copied());
    while let Some(byte) = rest.next() {
        let byte = if byte == b'\\' { escaped(&mut rest) } else { Some(byte) };
        let (Some(byte), Some(place)) = (byte, text.get_mut(length)) else {
            return Item::Other;
        };
        *place = byte;
        length += 1;
    }
    item_of(&text[..length])
}

/// What follows a backslash.
fn escaped(rest: &mut (impl Iterator<Item = u8> + Clone)) -> Option<u8> {
    let digit = |byte: u8, base| char::from(byte).to_digit(base).map(|digit| digit as u8);
    Some(match rest.next()? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'a' => 0x07,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'v' => 0x0b,
        b'x' => digit(rest.next()?, 16)? << 4 | digit(rest.next()?, 16)?,
        byte @ b'0'..=b'7' => {
            let mut value = u32::from(byte - b'0');
            for _ in 0..2 {
                let Some(next) = rest.clone().next().and_then(|byte| digit(byte, 8)) else { break };
                value = value << 3 | u32::from(next);
                rest.next();
            }
            value as u8
        }
        byte => byte,
    })
}

fn number(line: &[u8]) -> Option<usize> {
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// The record's bytes, and how far they have been read.
///
/// Invariant: `at <= data.len()`
struct Input<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Unreadable> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let Some(bytes) = rest.get(..length) else {
            return Err(Unreadable { at: self.data.len(), expected: "more of a pickle" });
        };
        self.at += length;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Unreadable> {
        let bytes = self.bytes(1)?;
        bytes.first().copied().ok_or(Unreadable { at: self.at, expected: "more of a pickle" })
    }

    fn skip(&mut self, length: usize) -> Result<(), Unreadable> {
        self.bytes(length).map(drop)
    }

    /// A length, or a place in the memo: little endian, as in all pickles.
    fn length(&mut self, width: usize) -> Result<usize, Unreadable> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.bytes(width)?);
        let too_long = Unreadable { at: self.at, expected: "a length that memory can have" };
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| too_long)
    }

    /// Up to the next line feed, which is left out.
    fn line(&mut self) -> Result<&'a [u8], Unreadable> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err(Unreadable { at: self.data.len(), expected: "the end of a line" });
        };
        let line = self.bytes(length)?;
        self.at += 1;
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn walk(data: &[u8]) -> Result<Vec<u64>, Unreadable> {
        let mut oids = Vec::new();
        References::default().walk(data, |oid| oids.push(oid.0)).map(|()| oids)
    }

    const SEVEN: &[u8] = b"\0\0\0\0\0\0\0\x07";

    /// A class pickle, and then one with this state.
    fn record(parts: &[&[u8]]) -> Vec<u8> {
        [b"\x80\x03cm\nC\nq\x00.", &parts.concat()[..], b"."].concat()
    }

    /// `scripts/python/references.py` holds generated records against Python's own reader.
    #[test]
    fn every_form_of_a_reference_is_known_and_only_ordinary_ones_count() {
        let short = [b"C\x08", SEVEN].concat();
        let rows: [(&[&[u8]], &[u64]); 20] = [
            (&[b"N"], &[]),
            (&[&short, b"Q"], &[7]),
            (&[b"U\x08", SEVEN, b"Q"], &[7]),
            (&[b"T\x08\0\0\0", SEVEN, b"Q"], &[7]),
            (&[b"B\x08\0\0\0", SEVEN, b"Q"], &[7]),
            (&[b"X\x08\0\0\0", SEVEN, b"Q"], &[7]),
            (&[b"\x8c\x08", SEVEN, b"Q"], &[7]),
            (&[b"\x8e\x08\0\0\0\0\0\0\0", SEVEN, b"Q"], &[7]),
            (&[b"S'\\x00\\x00\\x00\\x00\\x00\\x00\\n\\''\nQ"], &[0x0a27]),
            (&[b"S\"\\0\\000\\0\\0\\0\\0\\0\\101\"\nQ"], &[0x41]),
            (&[b"V        \nQ"], &[0x2020_2020_2020_2020]),
            (&[b"PABCDEFGH\n"], &[0x4142_4344_4546_4748]),
            // (oid, class), of which the class comes from the memo of the first pickle.
            (&[&short, b"h\0\x86Q"], &[7]),
            (&[b"(", &short, b"h\0tQ"], &[7]),
            // The oid itself from the memo, twice.
            (&[b"(", &short, b"q\x05h\0\x86Qh\x05h\0\x86Qt"], &[7, 7]),
            (&[b"(", &short, b"r\x05\0\0\0Qj\x05\0\0\0Qt"], &[7, 7]),
            (&[b"(", &short, b"p5\nQg5\nQ\x940t"], &[7, 7]),
            // Weak ones, and those into other databases.
            (&[b"]q\x01(U\x01w", &short, b"\x85eQ"], &[]),
            (&[b"(U\x01m(U\x02db", &short, b"h\0tlQ"], &[]),
            (&[b"]", &short, b"aQ"], &[]),
        ];
        for (parts, expected) in rows {
            let record = record(parts);
            assert_eq!(walk(&record).as_deref(), Ok(expected), "{}", record.escape_ascii());
        }
    }

    #[test]
    fn references_of_both_pickles_count_and_those_of_a_third_do_not() {
        let one = [b"C\x08", SEVEN, b"Q."].concat();
        assert_eq!(walk(&[&one[..], &one].concat()), Ok(vec![7, 7]));
        assert_eq!(walk(&[&one[..], &one, &one].concat()), Ok(vec![7, 7]));
        assert_eq!(walk(&[&one[..], &one, b"\xff"].concat()), Ok(vec![7, 7]));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_a_record_without_references() {
        let rows: [&[u8]; 16] = [
            b"",
            b"N.",
            b"N.N",
            b"N.\xff",
            b"N..",
            b"N.Q.",
            b"N.NQ.",
            b"N.U\x07\0\0\0\0\0\0\x07Q.",
            b"N.NN\x86Q.",
            b"N.)Q.",
            b"N.h\x01.",
            b"N.(Nt0.",
            b"N.(a.",
            b"N.B\xff\xff\xff\xff.",
            b"N.\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
            b"N.Nr\xff\xff\xff\xff.",
        ];
        for data in rows {
            assert!(walk(data).is_err(), "{}", data.escape_ascii());
        }
        let whole = record(&[b"(", b"C\x08", SEVEN, b"q\x05h\0\x86Qh\x05h\0\x86Qt"]);
        for cut in 0..whole.len() {
            assert!(walk(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_walk_do_worse_than_fail(
            data in prop::collection::vec(any::<u8>(), 0..200),
            opcodes in prop::collection::vec(
                prop::sample::select(&b"(0N2]}ate\x85\x86\x94hqQR.lsubU"[..]), 0..200),
        ) {
            drop(walk(&data));
            drop(walk(&opcodes));
        }
    }
}
