//! What a client may ask a server: every method, with its arguments' types
//! (`ZEO/StorageServer.py`, `registered_methods`).

use std::borrow::Cow;

use super::value::Value;
use super::{Codec, DEPTH_MAX, MessageId, NODES_MAX, WireError, msgpack, pickle};
use crate::ids::{Oid, Tid};

mod read;
mod write;

use self::read::Arguments;
pub use self::read::tid_of_base64;
pub use self::write::{base64_of_tid, encode_call, encode_keep_alive, encode_load};

/// Which transaction a client means: a number of its own choosing.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TransactionId(pub u64);

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub struct Call<'a> {
    /// What the reply is to carry.
    pub id: MessageId,
    /// Whether no reply is wanted.
    pub oneway: bool,
    /// What is asked.
    pub request: Request<'a>,
}

/// What a client has sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming<'a> {
    /// A call.
    Call(Call<'a>),
    /// A sign of life: clients send one every minute.
    KeepAlive,
}

/// A method and its arguments. Names are the methods' own, in `snake_case` where they are not.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are those of ZEO's methods and their arguments")]
pub enum Request<'a> {
    Register {
        storage: Cow<'a, str>,
        read_only: bool,
    },
    GetInfo,
    LastTransaction,
    GetInvalidations {
        tid: Tid,
    },
    NewOids {
        count: i64,
    },
    LoadBefore {
        oid: Oid,
        before: Tid,
    },
    LoadSerial {
        oid: Oid,
        serial: Tid,
    },
    GetTid {
        oid: Oid,
    },
    History {
        oid: Oid,
        count: i64,
    },
    RecordIternext {
        from: Option<Oid>,
    },
    UndoLog {
        first: i64,
        last: i64,
    },
    UndoInfo {
        first: i64,
        last: i64,
        filter: Option<Value<'a>>,
    },
    Pack {
        time: f64,
        wait: bool,
    },
    Ping,
    ServerStatus,
    SetClientLabel {
        label: Cow<'a, str>,
    },
    TpcBegin {
        id: TransactionId,
        user: Cow<'a, [u8]>,
        description: Cow<'a, [u8]>,
        /// As it is to be stored: nothing, or the pickle of a dictionary.
        extension: Cow<'a, [u8]>,
        tid: Option<Tid>,
        status: u8,
    },
    Storea {
        oid: Oid,
        serial: Tid,
        data: Cow<'a, [u8]>,
        id: TransactionId,
    },
    DeleteObject {
        oid: Oid,
        serial: Tid,
        id: TransactionId,
    },
    CheckCurrentSerial {
        oid: Oid,
        serial: Tid,
        id: TransactionId,
    },
    Restorea {
        oid: Oid,
        serial: Tid,
        data: Option<Cow<'a, [u8]>>,
        previous: Option<Tid>,
        id: TransactionId,
    },
    /// The transaction's base64, as undo logs have it, is decoded.
    Undoa {
        tid: Tid,
        id: TransactionId,
    },
    StoreBlobStart,
    StoreBlobChunk {
        chunk: Cow<'a, [u8]>,
    },
    StoreBlobEnd {
        oid: Oid,
        serial: Tid,
        data: Cow<'a, [u8]>,
        id: TransactionId,
    },
    StoreBlobShared {
        oid: Oid,
        serial: Tid,
        data: Cow<'a, [u8]>,
        filename: Cow<'a, str>,
        id: TransactionId,
    },
    SendBlob {
        oid: Oid,
        serial: Tid,
    },
    Vote {
        id: TransactionId,
    },
    TpcFinish {
        id: TransactionId,
    },
    TpcAbort {
        id: TransactionId,
    },
    IteratorStart {
        start: Option<Tid>,
        stop: Option<Tid>,
    },
    IteratorNext {
        iterator: i64,
    },
    IteratorRecordStart {
        iterator: i64,
        tid: Tid,
    },
    IteratorRecordNext {
        iterator: i64,
    },
    IteratorGc {
        iterators: Vec<i64>,
    },
    NewOid,
}

impl Request<'_> {
    /// The method's name on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Register { .. } => "register",
            Self::GetInfo => "get_info",
            Self::LastTransaction => "lastTransaction",
            Self::GetInvalidations { .. } => "getInvalidations",
            Self::NewOids { .. } => "new_oids",
            Self::LoadBefore { .. } => "loadBefore",
            Self::LoadSerial { .. } => "loadSerial",
            Self::GetTid { .. } => "getTid",
            Self::History { .. } => "history",
            Self::RecordIternext { .. } => "record_iternext",
            Self::UndoLog { .. } => "undoLog",
            Self::UndoInfo { .. } => "undoInfo",
            Self::Pack { .. } => "pack",
            Self::Ping => "ping",
            Self::ServerStatus => "server_status",
            Self::SetClientLabel { .. } => "set_client_label",
            Self::TpcBegin { .. } => "tpc_begin",
            Self::Storea { .. } => "storea",
            Self::DeleteObject { .. } => "deleteObject",
            Self::CheckCurrentSerial { .. } => "checkCurrentSerialInTransaction",
            Self::Restorea { .. } => "restorea",
            Self::Undoa { .. } => "undoa",
            Self::StoreBlobStart => "storeBlobStart",
            Self::StoreBlobChunk { .. } => "storeBlobChunk",
            Self::StoreBlobEnd { .. } => "storeBlobEnd",
            Self::StoreBlobShared { .. } => "storeBlobShared",
            Self::SendBlob { .. } => "sendBlob",
            Self::Vote { .. } => "vote",
            Self::TpcFinish { .. } => "tpc_finish",
            Self::TpcAbort { .. } => "tpc_abort",
            Self::IteratorStart { .. } => "iterator_start",
            Self::IteratorNext { .. } => "iterator_next",
            Self::IteratorRecordStart { .. } => "iterator_record_start",
            Self::IteratorRecordNext { .. } => "iterator_record_next",
            Self::IteratorGc { .. } => "iterator_gc",
            Self::NewOid => "new_oid",
        }
    }
}

/// Reads a client's message.
///
/// # Errors
///
/// [`WireError`]: the connection is to be closed.
pub fn decode_call(codec: Codec, body: &[u8]) -> Result<Incoming<'_>, WireError> {
    match python_load(codec, body).or_else(|| load_of(codec, body)) {
        Some(call) => Ok(Incoming::Call(call)),
        None => decode_any(codec, body),
    }
}

/// Knows a loadBefore whose id is the tuple `(oid, tid)`, as Python's clients have it. All lengths
/// are fixed, so nothing is searched for and the comparisons are a few machine words.
fn python_load(codec: Codec, body: &[u8]) -> Option<Call<'_>> {
    let (id, oid, before) = match codec {
        Codec::Msgpack => {
            let body: &[u8; 55] = body.try_into().ok()?;
            let fits = body[..4] == *b"\x94\x92\xc4\x08"
                && body[12..14] == *b"\xc4\x08"
                && body[22..34] == *b"\xc2\xaaloadBefore"
                && body[34..37] == *b"\x92\xc4\x08"
                && body[45..47] == *b"\xc4\x08";
            (fits.then_some(&body[1..22])?, &body[37..45], &body[47..])
        }
        Codec::Pickle => {
            let body: &[u8; 63] = body.try_into().ok()?;
            let fits = body[..5] == *b"\x80\x03(C\x08"
                && body[13..15] == *b"C\x08"
                && body[23] == 0x86
                && body[24..40] == *b"\x89X\x0a\0\0\0loadBefore"
                && body[40..42] == *b"C\x08"
                && body[50..52] == *b"C\x08"
                && body[60..] == *b"\x86t.";
            (fits.then_some(&body[3..24])?, &body[42..50], &body[52..60])
        }
    };
    let (oid, before) = (oid.try_into().ok()?, before.try_into().ok()?);
    let request =
        Request::LoadBefore { oid: Oid::from_bytes(oid), before: Tid::from_bytes(before) };
    Some(Call { id: MessageId::encoded(id), oneway: false, request })
}

/// Knows a loadBefore by its shape, without looking at values one by one.
///
/// ```text
///   M5   94 | id | c2 | aa loadBefore | 92 c4 08 oid c4 08 tid
///   Z5   80 03 28 | id | 89 | 58 0a000000 loadBefore | 43 08 oid 43 08 tid 86 | 74 2e
/// ```
fn load_of(codec: Codec, body: &[u8]) -> Option<Call<'_>> {
    let (start, middle, between, end): (&[u8], &[u8], &[u8], &[u8]) = match codec {
        Codec::Msgpack => (b"\x94", b"\xc2\xaaloadBefore\x92\xc4\x08", b"\xc4\x08", b""),
        Codec::Pickle => (b"\x80\x03(", b"\x89X\x0a\0\0\0loadBeforeC\x08", b"C\x08", b"\x86t."),
    };
    let rest = body.strip_prefix(start)?.strip_suffix(end)?;
    let (rest, tid) = rest.split_last_chunk()?;
    let (rest, oid) = rest.strip_suffix(between)?.split_last_chunk()?;
    let id = rest.strip_suffix(middle)?;
    if !is_plain_id(codec, id) {
        return None;
    }
    let request = Request::LoadBefore { oid: Oid::from_bytes(*oid), before: Tid::from_bytes(*tid) };
    Some(Call { id: MessageId::encoded(id), oneway: false, request })
}

/// Whether these bytes are one whole value that clients use for an id: a number that is not
/// negative, or two times eight bytes.
pub(super) fn is_plain_id(codec: Codec, id: &[u8]) -> bool {
    match (codec, id) {
        (Codec::Msgpack, [0x00..=0x7f] | [0xcc, _] | [0xcd, _, _] | [0xce, _, _, _, _]) => true,
        (Codec::Msgpack, [0x92, 0xc4, 8, rest @ ..]) => {
            rest.len() == 18 && rest[8..10] == [0xc4, 8]
        }
        (Codec::Pickle, [b'K', _] | [b'M', _, _] | [b'J', _, _, _, 0x00..=0x7f]) => true,
        (Codec::Pickle, [0x8a, 5, _, _, _, _, 0]) => true,
        (Codec::Pickle, [b'C', 8, rest @ .., 0x86]) => rest.len() == 18 && rest[8..10] == *b"C\x08",
        _ => false,
    }
}

fn decode_any(codec: Codec, body: &[u8]) -> Result<Incoming<'_>, WireError> {
    let (id, parts) = split_message(codec, body, NODES_MAX)?;
    let [key, flag, name, arguments] = parts;
    if key == Value::Int(-1) {
        return Ok(Incoming::KeepAlive);
    }
    let oneway = match flag {
        Value::Bool(flag) => flag,
        Value::Int(flag) => flag != 0,
        _ => return Err(WireError::Malformed("a message's flag is a boolean")),
    };
    let Value::Str(name) = name else {
        return Err(WireError::Malformed("a method's name is text"));
    };
    let (Value::Tuple(arguments) | Value::List(arguments)) = arguments else {
        return Err(WireError::Malformed("arguments are a tuple"));
    };
    let request = Arguments::read(&name, arguments)?;
    Ok(Incoming::Call(Call { id, oneway, request }))
}

/// Takes a message apart: its id as it is encoded, and its four values.
pub(super) fn split_message(
    codec: Codec,
    body: &[u8],
    nodes_max: usize,
) -> Result<(MessageId, [Value<'_>; 4]), WireError> {
    let shape = WireError::Malformed("a message has four parts");
    match codec {
        Codec::Msgpack => {
            let mut reader = msgpack::Reader::new(body, nodes_max);
            if reader.sequence()? != 4 {
                return Err(shape);
            }
            let before = reader.rest();
            let id = reader.value(DEPTH_MAX)?;
            let encoded = before.get(..before.len() - reader.rest().len()).unwrap_or_default();
            let encoded = MessageId::encoded(encoded);
            let rest =
                [reader.value(DEPTH_MAX)?, reader.value(DEPTH_MAX)?, reader.value(DEPTH_MAX)?];
            reader.end()?;
            let [flag, name, arguments] = rest;
            Ok((encoded, [id, flag, name, arguments]))
        }
        Codec::Pickle => {
            let (id, value) = pickle::decode_message(body, nodes_max)?;
            let Value::Tuple(parts) = value else {
                return Err(shape);
            };
            let parts = parts.try_into().map_err(|_| shape)?;
            Ok((MessageId::encoded(id), parts))
        }
    }
}
