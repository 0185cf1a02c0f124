//! Calls as a client sends them.

use std::borrow::Cow;

use super::{Call, Request, TransactionId};
use crate::ids::{Oid, Tid};
use crate::wire::frame::frame;
use crate::wire::value::Value;
use crate::wire::{Codec, MessageId, msgpack, pickle};

/// Appends the frame of a loadBefore whose id is the tuple that names it. Allocates nothing but
/// `out`'s growth: a prefetch writes a thousand of them.
pub fn encode_load(codec: Codec, oid: Oid, before: Tid, out: &mut Vec<u8>) {
    let id = MessageId::load(codec, oid, before);
    frame(out, |body| match codec {
        Codec::Msgpack => {
            body.push(0x94);
            body.extend_from_slice(id.as_bytes());
            // The id and the arguments are the same tuple.
            body.extend_from_slice(b"\xc2\xaaloadBefore");
            body.extend_from_slice(id.as_bytes());
        }
        Codec::Pickle => {
            body.extend_from_slice(pickle::PROTOCOL);
            body.push(b'(');
            body.extend_from_slice(id.as_bytes());
            body.extend_from_slice(b"\x89X\x0a\0\0\0loadBefore");
            body.extend_from_slice(id.as_bytes());
            body.extend_from_slice(b"t.");
        }
    });
}

/// Appends a call's frame.
pub fn encode_call(codec: Codec, call: &Call<'_>, out: &mut Vec<u8>) {
    let arguments = arguments_of(&call.request);
    frame(out, |body| {
        let name = call.request.name();
        match codec {
            Codec::Msgpack => {
                msgpack::sequence(4, body);
                body.extend_from_slice(call.id.as_bytes());
                msgpack::encode(&Value::Bool(call.oneway), body);
                msgpack::text(name, body);
                msgpack::encode(&arguments, body);
            }
            Codec::Pickle => {
                body.extend_from_slice(pickle::PROTOCOL);
                body.push(b'(');
                body.extend_from_slice(call.id.as_bytes());
                pickle::element(&Value::Bool(call.oneway), body);
                pickle::text(name, body);
                pickle::element(&arguments, body);
                body.extend_from_slice(b"t.");
            }
        }
    });
}

/// Appends the frame of a client's sign of life: a reply to the call -1, which nobody made.
pub fn encode_keep_alive(codec: Codec, out: &mut Vec<u8>) {
    frame(out, |body| match codec {
        Codec::Msgpack => body.extend_from_slice(b"\x94\xff\0\xa6.reply\xc0"),
        Codec::Pickle => {
            body.extend_from_slice(b"\x80\x03(J\xff\xff\xff\xffK\0X\x06\0\0\0.replyNt.")
        }
    });
}

fn arguments_of<'a>(request: &'a Request<'_>) -> Value<'a> {
    let tid = |tid: Tid| Value::Bytes(tid.to_bytes().to_vec().into());
    let oid = |oid: Oid| Value::Bytes(oid.to_bytes().to_vec().into());
    let maybe = |value: Option<Tid>| value.map_or(Value::None, tid);
    let id = |id: &TransactionId| i64::try_from(id.0).map_or(Value::Unsigned(id.0), Value::Int);
    let bytes = |bytes: &'a Cow<'_, [u8]>| Value::Bytes(Cow::Borrowed(&**bytes));
    let text = |text: &'a Cow<'_, str>| Value::Str(Cow::Borrowed(&**text));
    Value::Tuple(match request {
        Request::GetInfo
        | Request::LastTransaction
        | Request::Ping
        | Request::ServerStatus
        | Request::StoreBlobStart
        | Request::NewOid => Vec::new(),
        Request::Register { storage, read_only } => vec![text(storage), Value::Bool(*read_only)],
        Request::GetInvalidations { tid: after } => vec![tid(*after)],
        Request::NewOids { count } => vec![Value::Int(*count)],
        Request::LoadBefore { oid: of, before: at }
        | Request::LoadSerial { oid: of, serial: at }
        | Request::SendBlob { oid: of, serial: at } => vec![oid(*of), tid(*at)],
        Request::GetTid { oid: of } => vec![oid(*of)],
        Request::History { oid: of, count } => vec![oid(*of), Value::Int(*count)],
        Request::RecordIternext { from } => vec![from.map_or(Value::None, oid)],
        Request::UndoLog { first, last } => vec![Value::Int(*first), Value::Int(*last)],
        Request::UndoInfo { first, last, filter } => {
            let filter = filter.clone().map_or(Value::None, Value::into_owned);
            vec![Value::Int(*first), Value::Int(*last), filter]
        }
        Request::Pack { time, wait } => vec![Value::Float(*time), Value::Bool(*wait)],
        Request::SetClientLabel { label } => vec![text(label)],
        Request::TpcBegin { id: begun, user, description, extension, tid: wanted, status } => {
            let status = Value::Str(char::from(*status).to_string().into());
            let (user, description) = (bytes(user), bytes(description));
            vec![id(begun), user, description, bytes(extension), maybe(*wanted), status]
        }
        Request::Storea { oid: of, serial, data, id: within }
        | Request::StoreBlobEnd { oid: of, serial, data, id: within } => {
            vec![oid(*of), tid(*serial), bytes(data), id(within)]
        }
        Request::DeleteObject { oid: of, serial, id: within }
        | Request::CheckCurrentSerial { oid: of, serial, id: within } => {
            vec![oid(*of), tid(*serial), id(within)]
        }
        Request::Restorea { oid: of, serial, data, previous, id: within } => {
            let data = data.as_ref().map_or(Value::None, bytes);
            vec![oid(*of), tid(*serial), data, maybe(*previous), id(within)]
        }
        Request::Undoa { tid: undone, id: within } => {
            vec![Value::Bytes(base64_of_tid(*undone).into_bytes().into()), id(within)]
        }
        Request::StoreBlobChunk { chunk } => vec![bytes(chunk)],
        Request::StoreBlobShared { oid: of, serial, data, filename, id: within } => {
            vec![oid(*of), tid(*serial), bytes(data), text(filename), id(within)]
        }
        Request::Vote { id: voted } => vec![id(voted)],
        Request::TpcFinish { id: finished } => vec![id(finished)],
        Request::TpcAbort { id: aborted } => vec![id(aborted)],
        Request::IteratorStart { start, stop } => vec![maybe(*start), maybe(*stop)],
        Request::IteratorNext { iterator } | Request::IteratorRecordNext { iterator } => {
            vec![Value::Int(*iterator)]
        }
        Request::IteratorRecordStart { iterator, tid: of } => vec![Value::Int(*iterator), tid(*of)],
        Request::IteratorGc { iterators } => {
            vec![Value::List(iterators.iter().copied().map(Value::Int).collect())]
        }
    })
}

/// The base64 by which undo logs name a transaction.
pub fn base64_of_tid(tid: Tid) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u128::from(tid.0) << 2;
    let digit = |index: u32| (bits >> (60 - 6 * index)) as usize & 63;
    let digits = (0..11).filter_map(|index| DIGITS.get(digit(index)).copied().map(char::from));
    digits.chain(['=']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_of_life_is_one_to_a_server() {
        for codec in [Codec::Msgpack, Codec::Pickle] {
            let mut out = Vec::new();
            encode_keep_alive(codec, &mut out);
            let frame = crate::wire::frame::split_frame(&out, 100).unwrap().unwrap();
            let decoded = super::super::decode_call(codec, frame.body);
            assert_eq!(decoded, Ok(super::super::Incoming::KeepAlive));
        }
    }

    #[test]
    fn the_short_way_to_write_a_load_writes_what_the_long_one_does() {
        for codec in [Codec::Msgpack, Codec::Pickle] {
            let (oid, before) = (Oid(0x1234_5678), Tid::MAX);
            let id = MessageId::load(codec, oid, before);
            let call = Call { id, oneway: false, request: Request::LoadBefore { oid, before } };
            let (mut long, mut short) = (b"dirty".to_vec(), b"dirty".to_vec());
            encode_call(codec, &call, &mut long);
            encode_load(codec, oid, before, &mut short);
            assert_eq!(short, long);
        }
    }
}
