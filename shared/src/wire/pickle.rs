//! Pickles, as data and nothing else: a small machine that knows the opcodes that ZEO's messages
//! need, and can make only what [`Value`] can say.
//!
//! Names are never imported. A few are known as forms of data: `zodbpickle.binary`,
//! `_codecs.encode`, `copyreg._reconstructor` of a binary, `ZopeUndo.Prefix.Prefix`, and the
//! `UndoError` of an error reply.
//!
//! The memo holds leaves that the message itself holds, tuples of such, and names. No list or
//! dictionary is ever in two places, and nothing that had to be made, so a small pickle stays a
//! small value.

use std::collections::HashMap;

use super::value::Value;
use super::{DEPTH_MAX, NODES_MAX, WireError};

mod forms;
mod write;

use self::forms::Name;
pub use self::write::encode;
pub(super) use self::write::{PROTOCOL, bytes, element, text};

/// Memo entries that one pickle may have.
const MEMO_MAX: usize = 10_000;

/// Marks that may be open at once: each is a container that is being filled.
const MARKS_MAX: usize = 2 * DEPTH_MAX;

/// Bytes that an integer may have: 64 bits, and a sign byte.
const LONG_MAX: usize = 9;

/// Reads a pickle that a peer sent.
///
/// # Errors
///
/// [`WireError`]
pub fn decode(input: &[u8]) -> Result<Value<'_>, WireError> {
    Machine::run(input, NODES_MAX).map(|(value, _)| value)
}

/// Reads the extension of a stored transaction: a pickled dictionary, or nothing at all for an
/// empty one (`ZODB/Connection.py`, `TransactionMetaData`).
///
/// # Errors
///
/// [`WireError`]: it holds more than data.
pub fn decode_stored(input: &[u8]) -> Result<Value<'_>, WireError> {
    if input.is_empty() { Ok(Value::Dict(Vec::new())) } else { decode(input) }
}

/// Reads a message and the encoded bytes of its first element.
pub(super) fn decode_message(
    input: &[u8],
    nodes_max: usize,
) -> Result<(&[u8], Value<'_>), WireError> {
    let (value, first) = Machine::run(input, nodes_max)?;
    let first = first.and_then(|(start, end)| input.get(start..end));
    Ok((first.ok_or(WireError::Malformed("a message is a tuple"))?, value))
}

#[derive(Debug)]
struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    stack: Vec<Item<'a>>,
    marks: Vec<(usize, usize)>,
    memo: HashMap<u32, Kept<'a>>,
    nodes: usize,
    nodes_max: usize,
    /// Where the first element of the last tuple starts and ends.
    first: Option<(usize, usize)>,
}

#[derive(Debug)]
struct Item<'a> {
    thing: Thing<'a>,
    start: usize,
    depth: usize,
}

#[derive(Debug)]
enum Thing<'a> {
    Value(Value<'a>),
    Name(Name),
    /// A `Prefix` whose state has not come yet.
    Prefix,
    /// The arguments of a call, with names among them.
    Arguments(Vec<Self>),
}

/// A memo entry.
#[derive(Clone, Debug)]
enum Kept<'a> {
    Value(Value<'a>),
    Name(Name),
    /// Something that may be in one place only.
    Unshared,
}

impl<'a> Machine<'a> {
    fn run(
        input: &'a [u8],
        nodes_max: usize,
    ) -> Result<(Value<'a>, Option<(usize, usize)>), WireError> {
        let mut machine = Self {
            input,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            nodes: 0,
            nodes_max,
            first: None,
        };
        while machine.step()? {}
        let rest = input.len() - machine.at;
        if rest != 0 {
            return Err(WireError::Trailing(rest));
        }
        let last = machine.stack.pop();
        match (last, machine.stack.is_empty() && machine.marks.is_empty()) {
            (Some(Item { thing: Thing::Value(value), .. }), true) => Ok((value, machine.first)),
            _ => Err(WireError::Malformed("a pickle ends with one value")),
        }
    }

    /// Carries out one opcode. Returns whether there may be more.
    fn step(&mut self) -> Result<bool, WireError> {
        let start = self.at;
        let [opcode] = self.array()?;
        match opcode {
            b'.' => return Ok(false),
            0x80 => {
                let [protocol] = self.array()?;
                if 5 < protocol {
                    return Err(WireError::Forbidden("a pickle protocol above 5"));
                }
            }
            0x95 => {
                let length = u64::from_le_bytes(self.array()?);
                if (self.input.len() - self.at) as u64 != length {
                    return Err(WireError::Malformed("a pickle's frame has another length"));
                }
            }
            b'(' => self.mark(start)?,
            b'N' => self.push(Value::None, start)?,
            0x88 => self.push(Value::Bool(true), start)?,
            0x89 => self.push(Value::Bool(false), start)?,
            b'K' => {
                let [number] = self.array()?;
                self.push(Value::Int(i64::from(number)), start)?;
            }
            b'M' => {
                let number = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(i64::from(number)), start)?;
            }
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(i64::from(number)), start)?;
            }
            0x8a => {
                let [length] = self.array()?;
                self.long(usize::from(length), start)?;
            }
            0x8b => {
                let length = u32::from_le_bytes(self.array()?);
                self.long(length as usize, start)?;
            }
            b'I' | b'L' => self.decimal(start)?,
            b'G' => {
                let number = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(number), start)?;
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                self.text(length as usize, start)?;
            }
            0x8c => {
                let [length] = self.array()?;
                self.text(usize::from(length), start)?;
            }
            b'B' => {
                let length = u32::from_le_bytes(self.array()?);
                self.bytes(length as usize, start)?;
            }
            b'C' => {
                let [length] = self.array()?;
                self.bytes(usize::from(length), start)?;
            }
            b'U' => {
                let [length] = self.array()?;
                self.old_string(usize::from(length), start)?;
            }
            b'T' => {
                let length = u32::from_le_bytes(self.array()?);
                self.old_string(length as usize, start)?;
            }
            b')' => self.push(Value::Tuple(Vec::new()), start)?,
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let base = self.stack.len().checked_sub(count).ok_or(UNDERFLOW)?;
                let start = self.stack.get(base).ok_or(UNDERFLOW)?.start;
                self.tuple(base, start)?;
            }
            b't' => {
                let (base, start) = self.marks.pop().ok_or(UNDERFLOW)?;
                self.tuple(base, start)?;
            }
            b']' => self.push(Value::List(Vec::new()), start)?,
            b'l' => {
                let (base, start) = self.marks.pop().ok_or(UNDERFLOW)?;
                let (values, depth) = self.take(base)?;
                self.push_deep(Value::List(values), start, depth)?;
            }
            b'a' => {
                let base = self.stack.len().checked_sub(1).ok_or(UNDERFLOW)?;
                self.append(base)?;
            }
            b'e' => {
                let (base, _) = self.marks.pop().ok_or(UNDERFLOW)?;
                self.append(base)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()), start)?,
            b'd' => {
                let (base, start) = self.marks.pop().ok_or(UNDERFLOW)?;
                let (values, depth) = self.take(base)?;
                self.push_deep(Value::Dict(Vec::new()), start, 0)?;
                self.set_items(values, depth)?;
            }
            b's' => {
                let base = self.stack.len().checked_sub(2).ok_or(UNDERFLOW)?;
                let (values, depth) = self.take(base)?;
                self.set_items(values, depth)?;
            }
            b'u' => {
                let (base, _) = self.marks.pop().ok_or(UNDERFLOW)?;
                let (values, depth) = self.take(base)?;
                self.set_items(values, depth)?;
            }
            b'q' => {
                let [key] = self.array()?;
                self.put(u32::from(key))?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.put(key)?;
            }
            b'p' => {
                let key = self.line_number()?;
                self.put(key)?;
            }
            0x94 => {
                let key = self.memo.len() as u32;
                self.put(key)?;
            }
            b'h' => {
                let [key] = self.array()?;
                self.recall(u32::from(key), start)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key, start)?;
            }
            b'g' => {
                let key = self.line_number()?;
                self.recall(key, start)?;
            }
            b'c' => {
                let name = self.name()?;
                self.push_name(name, start)?;
            }
            b'R' | 0x81 => self.call(opcode == 0x81)?,
            b'b' => self.build()?,
            b'P' | b'Q' => return Err(WireError::Forbidden("a persistent reference")),
            b'i' | b'o' | 0x82..=0x84 | 0x92 | 0x93 => {
                return Err(WireError::Forbidden("an instance of a class"));
            }
            _ => return Err(WireError::Forbidden("a pickle opcode")),
        }
        Ok(true)
    }

    fn mark(&mut self, start: usize) -> Result<(), WireError> {
        if MARKS_MAX <= self.marks.len() {
            return Err(WireError::Limit("the depth that a message may have"));
        }
        self.marks.push((self.stack.len(), start));
        Ok(())
    }

    fn push(&mut self, value: Value<'a>, start: usize) -> Result<(), WireError> {
        self.push_deep(value, start, 0)
    }

    fn push_name(&mut self, name: Name, start: usize) -> Result<(), WireError> {
        self.count(1)?;
        self.stack.push(Item { thing: Thing::Name(name), start, depth: 0 });
        Ok(())
    }

    /// Counts values against the budget of the message: those on the stack, those that a memo
    /// keeps, and the copies that it gives out.
    fn count(&mut self, values: usize) -> Result<(), WireError> {
        self.nodes += values;
        if self.nodes_max < self.nodes {
            return Err(WireError::Limit("the number of values that a message may have"));
        }
        Ok(())
    }

    /// Pushes a value that has values within it, nested `depth` deep.
    fn push_deep(&mut self, value: Value<'a>, start: usize, depth: usize) -> Result<(), WireError> {
        self.count(1)?;
        if DEPTH_MAX < depth {
            return Err(WireError::Limit("the depth that a message may have"));
        }
        self.stack.push(Item { thing: Thing::Value(value), start, depth });
        Ok(())
    }

    /// Takes what stands above `base` off the stack, and says how deep it is if it is put into one.
    fn take(&mut self, base: usize) -> Result<(Vec<Value<'a>>, usize), WireError> {
        if self.stack.len() < base || self.marks.last().is_some_and(|(mark, _)| base < *mark) {
            return Err(UNDERFLOW);
        }
        let mut deepest = 0;
        let values = self.stack.drain(base..).map(|item| {
            deepest = deepest.max(item.depth);
            match item.thing {
                Thing::Value(value) => Ok(value),
                Thing::Name(_) | Thing::Prefix | Thing::Arguments(_) => {
                    Err(WireError::Forbidden("a name for a value"))
                }
            }
        });
        let values = values.collect::<Result<_, _>>()?;
        Ok((values, deepest + 1))
    }

    fn tuple(&mut self, base: usize, start: usize) -> Result<(), WireError> {
        let starts = (self.stack.get(base), self.stack.get(base + 1));
        if let (Some(first), Some(second)) = starts {
            self.first = Some((first.start, second.start));
        }
        let items = self.stack.get(base..).unwrap_or_default();
        if items.iter().any(|item| matches!(item.thing, Thing::Name(_))) {
            // Such tuples are no values, and nothing else bounds how deep they are.
            if items.iter().any(|item| matches!(item.thing, Thing::Arguments(_) | Thing::Prefix)) {
                return Err(WireError::Forbidden("arguments within arguments"));
            }
            if self.marks.last().is_some_and(|(mark, _)| base < *mark) {
                return Err(UNDERFLOW);
            }
            self.count(1)?;
            let arguments = self.stack.drain(base..).map(|item| item.thing).collect();
            self.stack.push(Item { thing: Thing::Arguments(arguments), start, depth: 0 });
            return Ok(());
        }
        let (values, depth) = self.take(base)?;
        self.push_deep(Value::Tuple(values), start, depth)
    }

    fn append(&mut self, base: usize) -> Result<(), WireError> {
        let (values, depth) = self.take(base)?;
        match self.top()? {
            Item { thing: Thing::Value(Value::List(list)), depth: own, .. } => {
                list.extend(values);
                *own = depth.max(*own);
                if DEPTH_MAX < *own {
                    return Err(WireError::Limit("the depth that a message may have"));
                }
                Ok(())
            }
            _ => Err(WireError::Malformed("only a list is appended to")),
        }
    }

    fn set_items(&mut self, values: Vec<Value<'a>>, depth: usize) -> Result<(), WireError> {
        if !values.len().is_multiple_of(2) {
            return Err(WireError::Malformed("a key without a value"));
        }
        let Item { thing: Thing::Value(Value::Dict(entries)), depth: own, .. } = self.top()? else {
            return Err(WireError::Malformed("only a dictionary has items"));
        };
        let mut values = values.into_iter();
        while let (Some(key), Some(value)) = (values.next(), values.next()) {
            if !is_hashable(&key) {
                return Err(WireError::Forbidden("a key that Python cannot hash"));
            }
            entries.push((key, value));
        }
        *own = depth.max(*own);
        if DEPTH_MAX < *own {
            return Err(WireError::Limit("the depth that a message may have"));
        }
        Ok(())
    }

    fn top(&mut self) -> Result<&mut Item<'a>, WireError> {
        if self.marks.last().is_some_and(|(mark, _)| *mark == self.stack.len()) {
            return Err(UNDERFLOW);
        }
        self.stack.last_mut().ok_or(UNDERFLOW)
    }

    fn put(&mut self, key: u32) -> Result<(), WireError> {
        if MEMO_MAX <= self.memo.len() {
            return Err(WireError::Limit("the entries of a pickle's memo"));
        }
        let kept = match &self.top()?.thing {
            Thing::Name(name) => Kept::Name(*name),
            Thing::Value(value) if is_lent(value) => Kept::Value(value.clone()),
            Thing::Value(Value::Tuple(values)) if values.iter().all(is_lent) => {
                Kept::Value(Value::Tuple(values.clone()))
            }
            _ => Kept::Unshared,
        };
        if let Kept::Value(Value::Tuple(values)) = &kept {
            self.count(values.len())?;
        }
        self.memo.insert(key, kept);
        Ok(())
    }

    fn recall(&mut self, key: u32, start: usize) -> Result<(), WireError> {
        match self.memo.get(&key) {
            Some(Kept::Name(name)) => self.push_name(*name, start),
            Some(Kept::Value(value)) => {
                let value = value.clone();
                let mut depth = 0;
                if let Value::Tuple(values) = &value {
                    self.count(values.len())?;
                    depth = 1;
                }
                self.push_deep(value, start, depth)
            }
            Some(Kept::Unshared) => Err(WireError::Forbidden("a container in two places")),
            None => Err(WireError::Malformed("a memo entry that was never made")),
        }
    }

    fn pop(&mut self) -> Result<Item<'a>, WireError> {
        self.top()?;
        self.stack.pop().ok_or(UNDERFLOW)
    }

    fn long(&mut self, length: usize, start: usize) -> Result<(), WireError> {
        if LONG_MAX < length {
            return Err(WireError::Limit("the 64 bits of an integer"));
        }
        let bytes = self.slice(length)?;
        let negative = bytes.last().is_some_and(|byte| 0x80 <= *byte);
        let mut whole = if negative { [0xff; 16] } else { [0; 16] };
        for (target, byte) in whole.iter_mut().zip(bytes) {
            *target = *byte;
        }
        let number = i128::from_le_bytes(whole);
        let value = match (i64::try_from(number), u64::try_from(number)) {
            (Ok(number), _) => Value::Int(number),
            (_, Ok(number)) => Value::Unsigned(number),
            _ => return Err(WireError::Limit("the 64 bits of an integer")),
        };
        self.push(value, start)
    }

    /// INT and LONG of protocol 0: digits, and for INT also the booleans `00` and `01`.
    fn decimal(&mut self, start: usize) -> Result<(), WireError> {
        let line = self.line()?;
        let value = match line {
            b"00" => Value::Bool(false),
            b"01" => Value::Bool(true),
            _ => {
                let digits = line.strip_suffix(b"L").unwrap_or(line);
                if 20 < digits.len() {
                    return Err(WireError::Limit("the 64 bits of an integer"));
                }
                let number = str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                Value::Int(number.ok_or(WireError::Malformed("a number has digits"))?)
            }
        };
        self.push(value, start)
    }

    fn text(&mut self, length: usize, start: usize) -> Result<(), WireError> {
        let bytes = self.slice(length)?;
        let text = str::from_utf8(bytes).map_err(|_| WireError::Malformed("text is not UTF-8"))?;
        self.push(Value::Str(text.into()), start)
    }

    fn bytes(&mut self, length: usize, start: usize) -> Result<(), WireError> {
        let bytes = self.slice(length)?;
        self.push(Value::Bytes(bytes.into()), start)
    }

    /// A string of Python 2: text if it is ASCII.
    fn old_string(&mut self, length: usize, start: usize) -> Result<(), WireError> {
        let bytes = self.slice(length)?;
        let value = match str::from_utf8(bytes) {
            Ok(text) if text.is_ascii() => Value::Str(text.into()),
            _ => Value::Bytes(bytes.into()),
        };
        self.push(value, start)
    }

    fn line(&mut self) -> Result<&'a [u8], WireError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let length = rest.iter().take(256).position(|byte| *byte == b'\n');
        let length = length.ok_or(WireError::Truncated("a line"))?;
        let line = self.slice(length)?;
        self.at += 1;
        Ok(line)
    }

    fn line_number(&mut self) -> Result<u32, WireError> {
        let line = str::from_utf8(self.line()?).ok();
        let number = line.and_then(|digits| digits.parse().ok());
        number.ok_or(WireError::Malformed("a memo entry has a number"))
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let slice = rest.get(..length).ok_or(WireError::Truncated("a value"))?;
        self.at += length;
        Ok(slice)
    }

    fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], WireError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let array = rest.first_chunk().ok_or(WireError::Truncated("a pickle"))?;
        self.at += LENGTH;
        Ok(*array)
    }
}

const UNDERFLOW: WireError = WireError::Malformed("a pickle takes what it has not put");

/// Whether a copy of the value costs nothing, because its bytes are the message's.
fn is_lent(value: &Value<'_>) -> bool {
    use std::borrow::Cow;
    match value {
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Unsigned(_) | Value::Float(_) => true,
        Value::Bytes(bytes) => matches!(bytes, Cow::Borrowed(_)),
        Value::Str(text) => matches!(text, Cow::Borrowed(_)),
        _ => false,
    }
}

/// Whether Python can have it for a key: a dictionary that it cannot make must not reach a data file.
fn is_hashable(value: &Value<'_>) -> bool {
    match value {
        Value::Tuple(values) => values.iter().all(is_hashable),
        Value::List(_) | Value::Dict(_) => false,
        _ => true,
    }
}
