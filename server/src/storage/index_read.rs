//! Reads `Data.fs.index` in the forms that Python's FileStorage has written.
//!
//! The pickles are run by a machine that knows the few opcodes they are made of and makes data
//! only. It reads through a window, so that a long index needs little memory beside the result. See
//! [`super::index_file`] for the form of today; the older one is a single dictionary with `pos` and
//! `index`, the latter again a dictionary or a pickled `fsIndex`.

use std::collections::BTreeMap;
use std::sync::Arc;

use zeoring_shared::ids::Oid;
use zeoring_shared::io::DiskFile;
use zeoring_shared::record::{FIRST, TransactionHeader};

use super::StorageError;
use super::index::Index;
use super::window::Window;

/// An index, and the position in the data file up to which it is complete.
#[derive(Debug)]
pub struct Loaded {
    /// Oid to position.
    pub index: Index,
    /// Behind the last transaction that the index knows.
    pub end: u64,
}

/// Why an index file is of no use. The data file has to be read instead.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// These are no pickles of an index.
    #[error("the byte at {position} is not as {expected} has it")]
    Form {
        /// Byte offset in the index file.
        position: u64,
        /// What was being read.
        expected: &'static str,
    },
    /// The index names a position that no record can have.
    #[error("{oid} is said to stand at {position}")]
    Position {
        /// Which object.
        oid: Oid,
        /// Where it cannot be.
        position: u64,
    },
    /// The file could not be read.
    #[error(transparent)]
    Read(#[from] StorageError),
}

/// Reads a whole index file.
///
/// # Errors
///
/// [`Unusable`]. What is returned is well-formed, and not yet compared with any data file.
pub fn load(file: Arc<dyn DiskFile>) -> Result<Loaded, Unusable> {
    let length = file
        .length()
        .map_err(|source| Unusable::Read(StorageError::Read { position: 0, source }))?;
    let mut machine = Machine::new(Window::new(file, length), length);
    match machine.run()? {
        Item::Number(end) => {
            let index = Index::default();
            loop {
                match machine.run()? {
                    Item::None => return Ok(Loaded { index, end }),
                    pair => add_bucket(&index, end, &pair).map_err(|e| machine.blame(e))?,
                }
            }
        }
        Item::Dict(entries) => from_dictionary(&entries).map_err(|e| machine.blame(e)),
        _ => Err(machine.blame(Odd::Form("an index"))),
    }
}

/// Something odd in data that is well pickled.
enum Odd {
    Form(&'static str),
    Position(Oid, u64),
}

fn from_dictionary(entries: &[(Item, Item)]) -> Result<Loaded, Odd> {
    let entry = |entries: &[(Item, Item)], name: &str| -> Option<usize> {
        entries.iter().position(|(key, _)| matches!(key, Item::Bytes(b) if b == name.as_bytes()))
    };
    let Some(Item::Number(end)) = entry(entries, "pos").map(|at| &entries[at].1) else {
        return Err(Odd::Form("the position of an index"));
    };
    let index = Index::default();
    match entry(entries, "index").map(|at| &entries[at].1) {
        Some(Item::Dict(objects)) => {
            for (oid, position) in objects {
                let (Item::Bytes(oid), Item::Number(position)) = (oid, position) else {
                    return Err(Odd::Form("an entry of an index"));
                };
                let oid = oid.as_slice().try_into().map_err(|_| Odd::Form("an oid"))?;
                add(&index, *end, Oid::from_bytes(oid), *position)?;
            }
        }
        Some(Item::Object(state)) => {
            let Item::Dict(state) = &**state else { return Err(Odd::Form("an fsIndex")) };
            let data = entry(state, "_data").map(|at| &state[at].1);
            let Some(Item::List(buckets)) = data else { return Err(Odd::Form("an fsIndex")) };
            for pair in buckets {
                add_bucket(&index, *end, pair)?;
            }
        }
        _ => return Err(Odd::Form("an index")),
    }
    Ok(Loaded { index, end: *end })
}

/// Adds a pair of the first six bytes of oids and a bucket: suffixes of two bytes, then as many
/// positions of six.
fn add_bucket(index: &Index, end: u64, pair: &Item) -> Result<(), Odd> {
    let Item::List(pair) = pair else { return Err(Odd::Form("a pair")) };
    let [Item::Bytes(prefix), Item::Bytes(bucket)] = &pair[..] else {
        return Err(Odd::Form("a prefix and a bucket"));
    };
    if prefix.len() != 6 || bucket.len() % 8 != 0 {
        return Err(Odd::Form("a prefix of six bytes and a bucket of eights"));
    }
    let prefix = number(prefix);
    let (suffixes, positions) = bucket.split_at(bucket.len() / 4);
    for (suffix, position) in suffixes.chunks_exact(2).zip(positions.chunks_exact(6)) {
        add(index, end, Oid(prefix << 16 | number(suffix)), number(position))?;
    }
    Ok(())
}

fn add(index: &Index, end: u64, oid: Oid, position: u64) -> Result<(), Odd> {
    let first = FIRST + TransactionHeader::LEN as u64;
    if !(first..end).contains(&position) {
        return Err(Odd::Position(oid, position));
    }
    index.set(oid, position);
    Ok(())
}

/// A big-endian number of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What pickles of an index are made of.
#[derive(Clone, Debug)]
enum Item {
    None,
    Number(u64),
    /// Bytes or text.
    Bytes(Vec<u8>),
    /// A list or a tuple.
    List(Vec<Self>),
    Dict(Vec<(Self, Self)>),
    /// A class, or an object of one whose state has not come yet.
    Class,
    /// An object, by its state.
    Object(Box<Self>),
}

/// Items that wait on the stack at most: picklers gather 1,000 pairs before they add them. Bounds
/// how deep items nest, too, as what contains others waits below them.
const STACK_MAX: usize = 4096;

/// Longer strings are never referred to again.
const REMEMBERED_MAX: usize = 16;

/// A bucket of 65,536 objects, eight bytes each; nothing in an index is longer.
const BYTES_MAX: u32 = 65_536 * 8;

struct Machine {
    window: Window,
    length: u64,
    position: u64,
    stack: Vec<Item>,
    marks: Vec<usize>,
    memo: BTreeMap<u32, Item>,
}

impl Machine {
    fn new(window: Window, length: u64) -> Self {
        Self {
            window,
            length,
            position: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
        }
    }

    fn blame(&self, odd: Odd) -> Unusable {
        match odd {
            Odd::Form(expected) => Unusable::Form { position: self.position, expected },
            Odd::Position(oid, position) => Unusable::Position { oid, position },
        }
    }

    fn bad(&self, expected: &'static str) -> Unusable {
        Unusable::Form { position: self.position, expected }
    }

    /// Runs one pickle.
    fn run(&mut self) -> Result<Item, Unusable> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            if STACK_MAX < self.stack.len().max(self.marks.len()) {
                return Err(self.bad("a shallow pickle"));
            }
            let [opcode] = self.array()?;
            match opcode {
                b'.' => return self.pop(),
                0x80 => self.skip(1)?,
                0x95 => self.skip(8)?,
                b'N' => self.stack.push(Item::None),
                b'K' => self.number(1)?,
                b'M' => self.number(2)?,
                b'J' => self.number(4)?,
                0x8a => {
                    let [length] = self.array()?;
                    self.number(length.into())?;
                }
                b'C' | b'U' | 0x8c => {
                    let [length] = self.array()?;
                    self.string(length.into())?;
                }
                b'B' | b'T' | b'X' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.string(length)?;
                }
                b'}' => self.stack.push(Item::Dict(Vec::new())),
                b']' | b')' => self.stack.push(Item::List(Vec::new())),
                b'(' => self.marks.push(self.stack.len()),
                0x86 => {
                    let (second, first) = (self.pop()?, self.pop()?);
                    // A pair begins with a prefix. Were it a pair, pairs could nest for ever.
                    if !matches!(first, Item::Bytes(_)) {
                        return Err(self.bad("a pair"));
                    }
                    self.stack.push(Item::List(vec![first, second]));
                }
                b't' => {
                    let items = self.marked()?;
                    self.stack.push(Item::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.marked()?;
                    self.append(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.marked()?;
                    self.set_items(items)?;
                }
                b'q' => {
                    let [slot] = self.array()?;
                    self.remember(slot.into());
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.remember(slot);
                }
                0x94 => self.remember(self.memo.len() as u32),
                b'h' => {
                    let [slot] = self.array()?;
                    self.recall(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.recall(slot)?;
                }
                b'c' => self.class()?,
                0x81 => {
                    let (_arguments, _class) = (self.pop()?, self.pop()?);
                    self.stack.push(Item::Class);
                }
                b'b' => {
                    let (state, _object) = (self.pop()?, self.pop()?);
                    self.stack.push(Item::Object(Box::new(state)));
                }
                _ => return Err(self.bad("an index")),
            }
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unusable> {
        let bytes = self.window.bytes(self.position, N)?;
        let Ok(bytes) = bytes.try_into() else { return Err(self.bad("a whole pickle")) };
        self.position += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, length: u64) -> Result<(), Unusable> {
        if self.length - self.position < length {
            return Err(self.bad("a whole pickle"));
        }
        self.position += length;
        Ok(())
    }

    /// A little-endian number that is not negative.
    fn number(&mut self, length: usize) -> Result<(), Unusable> {
        let bytes = self.window.bytes(self.position, length)?;
        if bytes.len() != length || 8 < length {
            return Err(self.bad("a number of at most eight bytes"));
        }
        let number = bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        // BININT and LONG1 are signed, and no position is negative.
        let signed = matches!(length, 3..);
        if signed && bytes.last().is_some_and(|byte| 0x80 <= *byte) {
            return Err(self.bad("a position"));
        }
        self.position += length as u64;
        self.stack.push(Item::Number(number));
        Ok(())
    }

    fn string(&mut self, length: u32) -> Result<(), Unusable> {
        if BYTES_MAX < length {
            return Err(self.bad("a bucket of at most 65,536 objects"));
        }
        let bytes = self.window.bytes(self.position, length as usize)?.to_vec();
        if bytes.len() != length as usize {
            return Err(self.bad("a whole pickle"));
        }
        self.position += u64::from(length);
        self.stack.push(Item::Bytes(bytes));
        Ok(())
    }

    /// Two lines, the names of a module and of a class. Whatever they are, nothing is imported.
    fn class(&mut self) -> Result<(), Unusable> {
        let mut lines = 0;
        while lines < 2 {
            let [byte] = self.array()?;
            lines += u32::from(byte == b'\n');
        }
        self.stack.push(Item::Class);
        Ok(())
    }

    fn pop(&mut self) -> Result<Item, Unusable> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.bad("a pickle"));
        }
        Ok(self.stack.pop().expect("it is longer than its floor"))
    }

    fn marked(&mut self) -> Result<Vec<Item>, Unusable> {
        let Some(mark) = self.marks.pop() else { return Err(self.bad("a pickle")) };
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, mut items: Vec<Item>) -> Result<(), Unusable> {
        let Some(Item::List(list)) = self.stack.last_mut() else {
            return Err(self.bad("a list"));
        };
        list.append(&mut items);
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Item>) -> Result<(), Unusable> {
        let Some(Item::Dict(dict)) = self.stack.last_mut() else {
            return Err(self.bad("a dictionary"));
        };
        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            let Some(value) = items.next() else { return Err(self.bad("a key and a value")) };
            dict.push((key, value));
        }
        Ok(())
    }

    fn remember(&mut self, slot: u32) {
        // Containers are remembered by picklers too, but never referred to in an index.
        let item = match self.stack.last() {
            Some(Item::Bytes(bytes)) if bytes.len() <= REMEMBERED_MAX => Item::Bytes(bytes.clone()),
            _ => Item::None,
        };
        self.memo.insert(slot, item);
    }

    fn recall(&mut self, slot: u32) -> Result<(), Unusable> {
        let Some(Item::Bytes(bytes)) = self.memo.get(&slot) else {
            return Err(self.bad("a short string that came before"));
        };
        self.stack.push(Item::Bytes(bytes.clone()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeoring_shared::io::{Access, Disk, RealDisk};

    use super::*;

    fn read(bytes: &[u8]) -> Result<Loaded, Unusable> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        std::fs::write(&path, bytes).unwrap();
        load(RealDisk.open(&path, Access::Read).unwrap())
    }

    const END: u64 = 5000;

    /// As `fsIndex.save` of ZODB 6.4 wrote it.
    const OF_TODAY: &[u8] = b"\x80\x03M\x88\x13.\x80\x03C\x06\0\0\0\0\0\0C\x18\0\0\0\x01\0\x02\
        \0\0\0\0\0\x44\0\0\0\0\0\x45\0\0\0\0\0\x46\x86.\
        \x80\x03C\x06\x80\0\0\0\0\0C\x08\0\x05\0\0\0\0\x03\x31\x86.\x80\x03N.";

    /// A dictionary with a pickled `fsIndex`, which refers to strings it had before.
    const OLDER: &[u8] = b"\x80\x03}q\0(X\x03\0\0\0posq\x01M\x88\x13X\x05\0\0\0indexq\x02\
        cZODB.fsIndex\nfsIndex\nq\x03)\x81q\x04}q\x05(X\x0d\0\0\0state_versionq\x06K\x01\
        X\x05\0\0\0_dataq\x07]q\x08(C\x06\0\0\0\0\0\0q\x09\
        C\x18\0\0\0\x01\0\x02\0\0\0\0\0\x44\0\0\0\0\0\x45\0\0\0\0\0\x46q\x0a\x86q\x0b\
        C\x06\x80\0\0\0\0\0q\x0cC\x08\0\x05\0\0\0\0\x03\x31q\x0d\x86q\x0eeubu.";

    /// A dictionary of oids and positions.
    const OLDEST: &[u8] = b"\x80\x03}q\0(X\x03\0\0\0posM\x88\x13X\x05\0\0\0index}(\
        C\x08\0\0\0\0\0\0\0\0K\x44C\x08\0\0\0\0\0\0\0\x01K\x45C\x08\0\0\0\0\0\0\0\x02K\x46\
        C\x08\x80\0\0\0\0\0\0\x05M\x31\x03uu.";

    #[test]
    fn all_forms_say_the_same() {
        let expected: Vec<_> = [(0, 0x44), (1, 0x45), (2, 0x46), ((1 << 63) + 5, 0x331)]
            .map(|(oid, position)| (Oid(oid), position))
            .into();
        for (form, name) in [(OF_TODAY, "today"), (OLDER, "older"), (OLDEST, "oldest")] {
            let Loaded { index, end } = read(form).unwrap();
            assert_eq!(end, END, "{name}");
            assert_eq!(index.iter().collect::<Vec<_>>(), expected, "{name}");
        }
    }

    #[test]
    fn every_prefix_is_of_no_use() {
        for form in [OF_TODAY, OLDER, OLDEST] {
            for cut in 0..form.len() {
                assert!(read(&form[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn positions_that_no_record_can_have_are_of_no_use() {
        let at = OF_TODAY.iter().position(|byte| *byte == 0x44).unwrap();
        for position in [0, 4, 26, END, 0xffff_ffff_ffff] {
            let mut form = OF_TODAY.to_vec();
            form[at - 5..=at].copy_from_slice(&position.to_be_bytes()[2..]);
            assert!(matches!(read(&form), Err(Unusable::Position { .. })), "{position}");
        }
    }

    #[test]
    fn no_nesting_is_deep_enough_to_matter() {
        for (opening, closing) in
            [("N", "N\u{86}"), ("(", "t"), ("]", "a"), ("}", "Ns"), ("N", "b")]
        {
            let latin = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<u8>>();
            let form = [latin(opening).repeat(1_000_000), latin(closing).repeat(1_000_000)];
            assert!(read(&form.concat()).is_err());
            assert!(read(&[latin(opening), latin(closing).repeat(1_000_000)].concat()).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_bytes_are_read_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            opcodes in prop::collection::vec(
                prop::sample::select(b"(}])tNes.uabqhK\x80\x81\x86\x94C".as_slice()), 0..60),
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let _ = read(&bytes);
            let _ = read(&opcodes);
            for form in [OF_TODAY, OLDER, OLDEST] {
                let mut form = form.to_vec();
                for (at, value) in &places {
                    let at = at.index(form.len());
                    form[at] = *value;
                }
                let _ = read(&form);
            }
        }
    }
}
