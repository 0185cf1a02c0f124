//! What a server tells a client: replies, errors, and calls that want no reply.

use std::borrow::Cow;

use super::frame::frame;
pub use super::refusal::ErrorReply;
use super::request::{is_plain_id, split_message};
use super::value::Value;
use super::{Codec, MessageId, WireError, msgpack, pickle};
use crate::ids::{Oid, Tid};

/// What a server has sent.
#[derive(Clone, Debug, PartialEq)]
pub enum FromServer<'a> {
    /// The answer to a call.
    Reply {
        /// Which call.
        id: MessageId,
        /// The answer.
        value: Value<'a>,
    },
    /// An answer of the shape that a load's has.
    Load {
        /// Which call.
        id: MessageId,
        /// The object's pickles.
        data: &'a [u8],
        /// The transaction that wrote them.
        serial: Tid,
        /// The next one that wrote the object, if there is one.
        end: Option<Tid>,
    },
    /// A call has failed.
    Error {
        /// Which call.
        id: MessageId,
        /// The exception's module and class.
        class: Cow<'a, str>,
        /// Its arguments or attributes.
        args: Value<'a>,
    },
    /// Somebody else's transaction.
    Invalidate {
        /// The transaction.
        tid: Tid,
        /// What it wrote.
        oids: Vec<Oid>,
    },
    /// Another call that wants no reply.
    Notice {
        /// Which method.
        name: Cow<'a, str>,
        /// Its arguments.
        args: Value<'a>,
    },
}

/// Appends the frame that answers a load. Copies the data once, and allocates nothing else.
pub fn load_reply(
    codec: Codec,
    id: &MessageId,
    data: &[u8],
    serial: Tid,
    end: Option<Tid>,
    out: &mut Vec<u8>,
) {
    out.reserve(data.len() + LOAD_OVERHEAD);
    frame(out, |body| match codec {
        Codec::Msgpack => {
            body.push(0x94);
            body.extend_from_slice(id.as_bytes());
            body.extend_from_slice(b"\0\xa6.reply\x93");
            msgpack::bytes(data, body);
            body.extend_from_slice(b"\xc4\x08");
            body.extend_from_slice(&serial.to_bytes());
            match end {
                None => body.push(0xc0),
                Some(end) => {
                    body.extend_from_slice(b"\xc4\x08");
                    body.extend_from_slice(&end.to_bytes());
                }
            }
        }
        Codec::Pickle => {
            body.extend_from_slice(b"\x80\x03(");
            body.extend_from_slice(id.as_bytes());
            body.extend_from_slice(b"K\0X\x06\0\0\0.reply");
            pickle::bytes(data, body);
            body.extend_from_slice(b"C\x08");
            body.extend_from_slice(&serial.to_bytes());
            match end {
                None => body.push(b'N'),
                Some(end) => {
                    body.extend_from_slice(b"C\x08");
                    body.extend_from_slice(&end.to_bytes());
                }
            }
            body.extend_from_slice(b"\x87t.");
        }
    });
}

/// Bytes of a load's answer beside its data, with an id of the usual size.
const LOAD_OVERHEAD: usize = 96;

/// Appends a reply's frame.
pub fn reply(codec: Codec, id: &MessageId, value: &Value<'_>, out: &mut Vec<u8>) {
    message(codec, id.as_bytes(), 0, ".reply", value, out);
}

/// Appends an error's frame.
pub fn error_reply(codec: Codec, id: &MessageId, error: &ErrorReply, out: &mut Vec<u8>) {
    let value = Value::Tuple(vec![Value::Str(error.class.into()), error.args.clone()]);
    message(codec, id.as_bytes(), 2, ".reply", &value, out);
}

/// Appends the frame of a call that wants no reply. `args` is a tuple.
pub fn notice(codec: Codec, name: &str, args: &Value<'_>, out: &mut Vec<u8>) {
    let zero: &[u8] = match codec {
        Codec::Msgpack => b"\0",
        Codec::Pickle => b"K\0",
    };
    message(codec, zero, 1, name, args, out);
}

/// Appends the frame that tells of somebody else's transaction.
pub fn invalidate_transaction(codec: Codec, tid: Tid, oids: &[Oid], out: &mut Vec<u8>) {
    out.reserve(LOAD_OVERHEAD + oids.len() * 10);
    frame(out, |body| match codec {
        Codec::Msgpack => {
            body.extend_from_slice(b"\x94\0\xc3\xb5invalidateTransaction\x92\xc4\x08");
            body.extend_from_slice(&tid.to_bytes());
            msgpack::sequence(oids.len(), body);
            for oid in oids {
                body.extend_from_slice(b"\xc4\x08");
                body.extend_from_slice(&oid.to_bytes());
            }
        }
        Codec::Pickle => {
            body.extend_from_slice(b"\x80\x03(K\0\x88X\x15\0\0\0invalidateTransactionC\x08");
            body.extend_from_slice(&tid.to_bytes());
            let (open, close): (&[u8], &[u8]) = match oids.len() {
                0 => (b"]", b""),
                1 => (b"]", b"a"),
                _ => (b"](", b"e"),
            };
            body.extend_from_slice(open);
            for oid in oids {
                body.extend_from_slice(b"C\x08");
                body.extend_from_slice(&oid.to_bytes());
            }
            body.extend_from_slice(close);
            body.extend_from_slice(b"\x86t.");
        }
    });
}

fn message(codec: Codec, id: &[u8], flag: u8, name: &str, value: &Value<'_>, out: &mut Vec<u8>) {
    // A call's flag is a boolean, as Python clients test for it; replies have numbers.
    let flag = match flag {
        1 => Value::Bool(true),
        number => Value::Int(i64::from(number)),
    };
    frame(out, |body| match codec {
        Codec::Msgpack => {
            msgpack::sequence(4, body);
            body.extend_from_slice(id);
            msgpack::encode(&flag, body);
            msgpack::text(name, body);
            msgpack::encode(value, body);
        }
        Codec::Pickle => {
            body.extend_from_slice(pickle::PROTOCOL);
            body.push(b'(');
            body.extend_from_slice(id);
            pickle::element(&flag, body);
            pickle::text(name, body);
            pickle::element(value, body);
            body.extend_from_slice(b"t.");
        }
    });
}

/// How many values a server's message may have: a list of what changed may be long.
const NODES_FROM_SERVER_MAX: usize = 16 * 1024 * 1024;

/// Reads a server's message.
///
/// # Errors
///
/// [`WireError`]: the connection is to be closed.
pub fn decode_from_server(codec: Codec, body: &[u8]) -> Result<FromServer<'_>, WireError> {
    if let Some(load) = load_of(codec, body) {
        return Ok(load);
    }
    let (id, [_, flag, name, value]) = split_message(codec, body, NODES_FROM_SERVER_MAX)?;
    let Value::Str(name) = name else {
        return Err(WireError::Malformed("a method's name is text"));
    };
    let flag = match flag {
        Value::Bool(flag) => i64::from(flag),
        Value::Int(flag) => flag,
        _ => return Err(WireError::Malformed("a message's flag is a number")),
    };
    match (&*name, flag) {
        (".reply", 0) => Ok(FromServer::Reply { id, value }),
        (".reply", _) => match value {
            Value::Tuple(parts) | Value::List(parts) => match <[_; 2]>::try_from(parts) {
                Ok([Value::Str(class), args]) => Ok(FromServer::Error { id, class, args }),
                _ => Err(WireError::Malformed("an error has a class and arguments")),
            },
            _ => Err(WireError::Malformed("an error has a class and arguments")),
        },
        ("invalidateTransaction", _) => invalidation(value),
        _ => Ok(FromServer::Notice { name, args: value }),
    }
}

fn invalidation(value: Value<'_>) -> Result<FromServer<'_>, WireError> {
    let shape = WireError::Malformed("an invalidation has a tid and oids");
    let (Value::Tuple(parts) | Value::List(parts)) = value else {
        return Err(shape);
    };
    let [Value::Bytes(tid), Value::Tuple(oids) | Value::List(oids)] = &parts[..] else {
        return Err(shape);
    };
    let eight = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).map_err(|_| shape.clone());
    let oid = |value: &Value<'_>| match value {
        Value::Bytes(bytes) => eight(bytes).map(Oid::from_bytes),
        _ => Err(shape.clone()),
    };
    let tid = Tid::from_bytes(eight(tid)?);
    Ok(FromServer::Invalidate { tid, oids: oids.iter().map(oid).collect::<Result<_, _>>()? })
}

/// Knows the answer to a load by its shape, if its id is the tuple that names a load or a number.
///
/// ```text
///   M5   94 | id | 00 a6 .reply 93 | c4 n data | c4 08 serial | c0, or c4 08 end
///   Z5   80 03 28 | id | 4b 00 58 06000000 .reply | 43 n data | 43 08 serial | 4e, or 43 08 end | 87 74 2e
/// ```
fn load_of(codec: Codec, body: &[u8]) -> Option<FromServer<'_>> {
    let (start, middle, eight, none, end): (&[u8], &[u8], &[u8; 2], u8, &[u8]) = match codec {
        Codec::Msgpack => (b"\x94", b"\0\xa6.reply\x93", b"\xc4\x08", 0xc0, b""),
        Codec::Pickle => (b"\x80\x03(", b"K\0X\x06\0\0\0.reply", b"C\x08", b'N', b"\x87t."),
    };
    let rest = body.strip_prefix(start)?.strip_suffix(end)?;
    let id_length = id_length(codec, rest)?;
    let (id, rest) = rest.split_at_checked(id_length)?;
    let rest = rest.strip_prefix(middle)?;
    let (data, rest) = data_of(codec, rest)?;
    let (serial, rest) = rest.strip_prefix(eight)?.split_first_chunk()?;
    let end = match rest {
        [byte] if *byte == none => None,
        _ => {
            let tid: &[u8; 8] = rest.strip_prefix(eight)?.try_into().ok()?;
            Some(Tid::from_bytes(*tid))
        }
    };
    let (id, serial) = (MessageId::encoded(id), Tid::from_bytes(*serial));
    Some(FromServer::Load { id, data, serial, end })
}

/// The length of an id that clients of ours use, from its first byte.
fn id_length(codec: Codec, bytes: &[u8]) -> Option<usize> {
    let length = match (codec, bytes) {
        (Codec::Msgpack, [0x92, ..]) | (Codec::Pickle, [b'C', ..]) => 21,
        (Codec::Pickle, [0x8a, ..]) => 7,
        (Codec::Msgpack, [0xce, ..]) | (Codec::Pickle, [b'J', ..]) => 5,
        (Codec::Msgpack, [0xcd, ..]) | (Codec::Pickle, [b'M', ..]) => 3,
        (Codec::Msgpack, [0xcc, ..]) | (Codec::Pickle, [b'K', ..]) => 2,
        (Codec::Msgpack, [0x00..=0x7f, ..]) => 1,
        _ => return None,
    };
    bytes.get(..length).is_some_and(|id| is_plain_id(codec, id)).then_some(length)
}

fn data_of(codec: Codec, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match (codec, bytes) {
        (Codec::Msgpack, [0xc4, length, rest @ ..])
        | (Codec::Pickle, [b'C', length, rest @ ..]) => (usize::from(*length), rest),
        (Codec::Msgpack, [0xc5, high, low, rest @ ..]) => {
            (usize::from(u16::from_be_bytes([*high, *low])), rest)
        }
        (Codec::Msgpack, [0xc6, rest @ ..]) => {
            let (length, rest) = rest.split_first_chunk()?;
            (u32::from_be_bytes(*length) as usize, rest)
        }
        (Codec::Pickle, [b'B', rest @ ..]) => {
            let (length, rest) = rest.split_first_chunk()?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}
