//! The arguments of every method: how many, of which types, how long.

use std::borrow::Cow;

use super::{Request, TransactionId};
use crate::ids::{Oid, Tid};
use crate::wire::value::Value;
use crate::wire::{WireError, pickle};

/// Bytes of user, description and extension: their lengths have 16 bits in a data file.
const METADATA_MAX: usize = 65_535;

/// The arguments of a call, taken one by one.
pub(super) struct Arguments<'a> {
    method: &'static str,
    values: std::vec::IntoIter<Value<'a>>,
}

impl<'a> Arguments<'a> {
    pub(super) fn read(name: &str, values: Vec<Value<'a>>) -> Result<Request<'a>, WireError> {
        let Some(method) = METHODS.iter().find(|method| **method == name) else {
            return Err(WireError::UnknownMethod(name.chars().take(80).collect()));
        };
        let mut arguments = Self { method, values: values.into_iter() };
        let request = arguments.request()?;
        match arguments.values.next() {
            None => Ok(request),
            Some(_) => Err(arguments.wrong("number of arguments")),
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each method, in the order of the enum")]
    fn request(&mut self) -> Result<Request<'a>, WireError> {
        Ok(match self.method {
            "register" => {
                Request::Register { storage: self.text("storage")?, read_only: self.flag()? }
            }
            "get_info" => Request::GetInfo,
            "lastTransaction" => Request::LastTransaction,
            "getInvalidations" => Request::GetInvalidations { tid: self.tid()? },
            "new_oids" => Request::NewOids { count: self.number_or(100)? },
            "loadBefore" => Request::LoadBefore { oid: self.oid()?, before: self.tid()? },
            "loadSerial" => Request::LoadSerial { oid: self.oid()?, serial: self.tid()? },
            "getTid" => Request::GetTid { oid: self.oid()? },
            "history" => Request::History { oid: self.oid()?, count: self.number_or(1)? },
            "record_iternext" => {
                Request::RecordIternext { from: self.optional()?.map(Oid::from_bytes) }
            }
            "undoLog" => Request::UndoLog { first: self.number_or(0)?, last: self.number_or(-20)? },
            "undoInfo" => {
                let (first, last) = (self.number_or(0)?, self.number_or(-20)?);
                let filter = match self.values.next() {
                    None | Some(Value::None) => None,
                    filter => filter,
                };
                Request::UndoInfo { first, last, filter }
            }
            "pack" => {
                let time = match self.value("time")? {
                    Value::Float(time) => time,
                    Value::Int(time) => time as f64,
                    _ => return Err(self.wrong("time")),
                };
                let wait = if self.values.len() == 0 { true } else { self.flag()? };
                Request::Pack { time, wait }
            }
            "ping" => Request::Ping,
            "server_status" => Request::ServerStatus,
            "set_client_label" => Request::SetClientLabel { label: self.text("label")? },
            "tpc_begin" => Request::TpcBegin {
                id: self.transaction()?,
                user: self.metadata("user")?,
                description: self.metadata("description")?,
                extension: self.extension()?,
                tid: self.optional()?.map(Tid::from_bytes),
                status: self.status()?,
            },
            "storea" => Request::Storea {
                oid: self.oid()?,
                serial: self.new_serial()?,
                data: self.bytes("data")?,
                id: self.transaction()?,
            },
            "deleteObject" => Request::DeleteObject {
                oid: self.oid()?,
                serial: self.tid()?,
                id: self.transaction()?,
            },
            "checkCurrentSerialInTransaction" => Request::CheckCurrentSerial {
                oid: self.oid()?,
                serial: self.tid()?,
                id: self.transaction()?,
            },
            "restorea" => Request::Restorea {
                oid: self.oid()?,
                serial: self.tid()?,
                data: match self.value("data")? {
                    Value::None => None,
                    Value::Bytes(data) => Some(data),
                    _ => return Err(self.wrong("data")),
                },
                previous: self.optional()?.map(Tid::from_bytes),
                id: self.transaction()?,
            },
            "undoa" => {
                let text = match self.value("transaction id")? {
                    Value::Bytes(text) => text,
                    Value::Str(text) => Cow::Owned(text.as_bytes().to_vec()),
                    _ => return Err(self.wrong("transaction id")),
                };
                let tid = tid_of_base64(&text).ok_or_else(|| self.wrong("transaction id"))?;
                Request::Undoa { tid, id: self.transaction()? }
            }
            "storeBlobStart" => Request::StoreBlobStart,
            "storeBlobChunk" => Request::StoreBlobChunk { chunk: self.bytes("chunk")? },
            "storeBlobEnd" => Request::StoreBlobEnd {
                oid: self.oid()?,
                serial: self.tid()?,
                data: self.bytes("data")?,
                id: self.transaction()?,
            },
            "storeBlobShared" => Request::StoreBlobShared {
                oid: self.oid()?,
                serial: self.tid()?,
                data: self.bytes("data")?,
                filename: self.text("filename")?,
                id: self.transaction()?,
            },
            "sendBlob" => Request::SendBlob { oid: self.oid()?, serial: self.tid()? },
            "vote" => Request::Vote { id: self.transaction()? },
            "tpc_finish" => Request::TpcFinish { id: self.transaction()? },
            "tpc_abort" => Request::TpcAbort { id: self.transaction()? },
            "iterator_start" => Request::IteratorStart {
                start: self.optional()?.map(Tid::from_bytes),
                stop: self.optional()?.map(Tid::from_bytes),
            },
            "iterator_next" => Request::IteratorNext { iterator: self.number("iterator")? },
            "iterator_record_start" => Request::IteratorRecordStart {
                iterator: self.number("iterator")?,
                tid: self.tid()?,
            },
            "iterator_record_next" => {
                Request::IteratorRecordNext { iterator: self.number("iterator")? }
            }
            "iterator_gc" => {
                let (Value::Tuple(values) | Value::List(values)) = self.value("iterators")? else {
                    return Err(self.wrong("iterators"));
                };
                let number = |value: &Value<'_>| match value {
                    Value::Int(number) => Ok(*number),
                    _ => Err(self.wrong("iterators")),
                };
                let iterators = values.iter().map(number).collect::<Result<_, _>>()?;
                Request::IteratorGc { iterators }
            }
            "new_oid" => Request::NewOid,
            other => return Err(WireError::UnknownMethod(other.to_owned())),
        })
    }

    fn wrong(&self, argument: &'static str) -> WireError {
        WireError::Argument { method: self.method, argument }
    }

    fn value(&mut self, argument: &'static str) -> Result<Value<'a>, WireError> {
        self.values.next().ok_or_else(|| self.wrong(argument))
    }

    fn eight(&mut self, argument: &'static str) -> Result<[u8; 8], WireError> {
        match self.value(argument)? {
            Value::Bytes(bytes) => (*bytes).try_into().map_err(|_| self.wrong(argument)),
            _ => Err(self.wrong(argument)),
        }
    }

    fn oid(&mut self) -> Result<Oid, WireError> {
        self.eight("oid").map(Oid::from_bytes)
    }

    fn tid(&mut self) -> Result<Tid, WireError> {
        self.eight("tid").map(Tid::from_bytes)
    }

    /// The serial of a store: a new object may have none, or, as ZODB's tests have it, text of NULs.
    fn new_serial(&mut self) -> Result<Tid, WireError> {
        let value = self.value("serial")?;
        let bytes = match &value {
            Value::None => return Ok(Tid::ZERO),
            Value::Bytes(bytes) => bytes,
            Value::Str(text) => text.as_bytes(),
            _ => return Err(self.wrong("serial")),
        };
        bytes.try_into().map(Tid::from_bytes).map_err(|_| self.wrong("serial"))
    }

    /// Eight bytes, or None, or nothing at all.
    fn optional(&mut self) -> Result<Option<[u8; 8]>, WireError> {
        match self.values.next() {
            None | Some(Value::None) => Ok(None),
            Some(Value::Bytes(bytes)) => {
                (*bytes).try_into().map(Some).map_err(|_| self.wrong("oid or tid"))
            }
            Some(_) => Err(self.wrong("oid or tid")),
        }
    }

    fn transaction(&mut self) -> Result<TransactionId, WireError> {
        match self.value("transaction")? {
            Value::Int(id) => Ok(TransactionId(id as u64)),
            Value::Unsigned(id) => Ok(TransactionId(id)),
            _ => Err(self.wrong("transaction")),
        }
    }

    fn number(&mut self, argument: &'static str) -> Result<i64, WireError> {
        match self.value(argument)? {
            Value::Int(number) => Ok(number),
            Value::Unsigned(_) => Ok(i64::MAX),
            _ => Err(self.wrong(argument)),
        }
    }

    fn number_or(&mut self, default: i64) -> Result<i64, WireError> {
        if self.values.len() == 0 { Ok(default) } else { self.number("number") }
    }

    fn flag(&mut self) -> Result<bool, WireError> {
        match self.value("flag")? {
            Value::Bool(flag) => Ok(flag),
            Value::Int(flag) => Ok(flag != 0),
            Value::None => Ok(false),
            _ => Err(self.wrong("flag")),
        }
    }

    fn bytes(&mut self, argument: &'static str) -> Result<Cow<'a, [u8]>, WireError> {
        match self.value(argument)? {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong(argument)),
        }
    }

    fn text(&mut self, argument: &'static str) -> Result<Cow<'a, str>, WireError> {
        match self.value(argument)? {
            Value::Str(text) => Ok(text),
            _ => Err(self.wrong(argument)),
        }
    }

    fn metadata(&mut self, argument: &'static str) -> Result<Cow<'a, [u8]>, WireError> {
        let bytes = match self.value(argument)? {
            Value::Bytes(bytes) => bytes,
            Value::Str(Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
            Value::Str(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
            _ => return Err(self.wrong(argument)),
        };
        if METADATA_MAX < bytes.len() { Err(self.wrong(argument)) } else { Ok(bytes) }
    }

    /// An extension as a data file stores it: nothing for an empty one (`ZODB/Connection.py`).
    fn extension(&mut self) -> Result<Cow<'a, [u8]>, WireError> {
        let bytes = match self.value("extension")? {
            Value::None => Cow::Borrowed(&b""[..]),
            Value::Bytes(bytes) => bytes,
            Value::Dict(entries) if entries.is_empty() => Cow::Borrowed(&b""[..]),
            value @ Value::Dict(_) => {
                let mut bytes = Vec::new();
                pickle::encode(&value, &mut bytes);
                Cow::Owned(bytes)
            }
            _ => return Err(self.wrong("extension")),
        };
        if METADATA_MAX < bytes.len() { Err(self.wrong("extension")) } else { Ok(bytes) }
    }

    /// The status of a restored transaction: committed, or committed and packed.
    fn status(&mut self) -> Result<u8, WireError> {
        let status = match self.values.next() {
            None => return Ok(b' '),
            Some(Value::Str(text)) => text.as_bytes().to_vec(),
            Some(Value::Bytes(bytes)) => bytes.into_owned(),
            Some(_) => return Err(self.wrong("status")),
        };
        match status[..] {
            [status @ (b' ' | b'p')] => Ok(status),
            _ => Err(self.wrong("status")),
        }
    }
}

/// The methods that there are.
const METHODS: [&str; 36] = [
    "loadBefore",
    "storea",
    "vote",
    "tpc_finish",
    "tpc_begin",
    "tpc_abort",
    "register",
    "get_info",
    "lastTransaction",
    "getInvalidations",
    "new_oids",
    "loadSerial",
    "getTid",
    "history",
    "record_iternext",
    "undoLog",
    "undoInfo",
    "pack",
    "ping",
    "server_status",
    "set_client_label",
    "deleteObject",
    "checkCurrentSerialInTransaction",
    "restorea",
    "undoa",
    "storeBlobStart",
    "storeBlobChunk",
    "storeBlobEnd",
    "storeBlobShared",
    "sendBlob",
    "iterator_start",
    "iterator_next",
    "iterator_record_start",
    "iterator_record_next",
    "iterator_gc",
    "new_oid",
];

/// The tid whose base64 an undo log shows: twelve characters, perhaps with a line's end. `None` for
/// any other text.
pub fn tid_of_base64(text: &[u8]) -> Option<Tid> {
    let digits = text.strip_suffix(b"\n").unwrap_or(text).strip_suffix(b"=")?;
    if digits.len() != 11 {
        return None;
    }
    let bits = digits.iter().try_fold(0_u128, |bits, digit| {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        Some(bits << 6 | u128::from(value))
    })?;
    Some(Tid((bits >> 2) as u64))
}

#[cfg(test)]
mod tests {
    use super::super::base64_of_tid;
    use super::*;

    #[test]
    fn a_tid_and_its_base64_name_each_other() {
        let cases = [
            (*b"\x03\xd0\xab\xcd\x12\x34\x56\x78", "A9CrzRI0Vng="),
            ([0; 8], "AAAAAAAAAAA="),
            ([0xff; 8], "//////////8="),
        ];
        for (bytes, text) in cases {
            let tid = Tid::from_bytes(bytes);
            assert_eq!(base64_of_tid(tid), text);
            assert_eq!(tid_of_base64(text.as_bytes()), Some(tid));
            assert_eq!(tid_of_base64(format!("{text}\n").as_bytes()), Some(tid));
        }
        for wrong in ["", "A9CrzRI0Vng", "A9CrzRI0Vn=", "A9Crz*I0Vng=", "A9CrzRI0VngA="] {
            assert_eq!(tid_of_base64(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
