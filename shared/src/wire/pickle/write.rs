//! Writes pickles of protocol 3 without a memo, as ZEO's `fast` pickler does: the opcodes of a value
//! stand for it wherever they are put.

use crate::wire::value::Value;

/// Appends a whole pickle of protocol 3.
pub fn encode(value: &Value<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(PROTOCOL);
    element(value, out);
    out.push(b'.');
}

/// What every pickle of ours begins with.
pub(in crate::wire) const PROTOCOL: &[u8] = b"\x80\x03";

/// Appends the opcodes that push one value.
pub(in crate::wire) fn element(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::None => out.push(b'N'),
        Value::Bool(true) => out.push(0x88),
        Value::Bool(false) => out.push(0x89),
        Value::Int(number) => int(*number, out),
        Value::Unsigned(number) => {
            out.extend_from_slice(&[0x8a, 9]);
            out.extend_from_slice(&number.to_le_bytes());
            out.push(0);
        }
        Value::Float(number) => {
            out.push(b'G');
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Bytes(value) => bytes(value, out),
        Value::Str(value) => text(value, out),
        Value::Tuple(values) => {
            let short = match values.len() {
                0 => return out.push(b')'),
                1 => Some(0x85),
                2 => Some(0x86),
                3 => Some(0x87),
                _ => None,
            };
            if short.is_none() {
                out.push(b'(');
            }
            values.iter().for_each(|value| element(value, out));
            out.push(short.unwrap_or(b't'));
        }
        Value::List(values) => {
            out.push(b']');
            match &values[..] {
                [] => {}
                [only] => {
                    element(only, out);
                    out.push(b'a');
                }
                values => {
                    out.push(b'(');
                    values.iter().for_each(|value| element(value, out));
                    out.push(b'e');
                }
            }
        }
        Value::Dict(entries) => {
            out.push(b'}');
            if 1 < entries.len() {
                out.push(b'(');
            }
            for (key, value) in entries {
                element(key, out);
                element(value, out);
            }
            match entries.len() {
                0 => {}
                1 => out.push(b's'),
                _ => out.push(b'u'),
            }
        }
        Value::Prefix { length, path } => {
            out.extend_from_slice(b"cZopeUndo.Prefix\nPrefix\n)\x81");
            let path = path.iter().map(|element| Value::Str(element.into())).collect();
            let state = [("length", Value::Int(*length)), ("path", Value::List(path))];
            let state = state.map(|(key, value)| (Value::Str(key.into()), value));
            element(&Value::Dict(state.into()), out);
            out.push(b'b');
        }
        // As `POSError.__reduce__` makes it: `_recon(UndoError, state)`.
        Value::UndoError { reason, oid } => {
            out.extend_from_slice(b"cZODB.POSException\n_recon\ncZODB.POSException\nUndoError\n");
            let oid = oid.map_or(Value::None, |oid| Value::Bytes(oid.to_vec().into()));
            let arguments = Value::Tuple(vec![Value::Str(reason.clone()), oid.clone()]);
            let state =
                [("_reason", Value::Str(reason.clone())), ("_oid", oid), ("args", arguments)];
            let state = state.map(|(key, value)| (Value::Str(key.into()), value));
            element(&Value::Dict(state.into()), out);
            out.extend_from_slice(b"\x86R");
        }
    }
}

pub(in crate::wire) fn int(number: i64, out: &mut Vec<u8>) {
    match number {
        0..=0xff => out.extend_from_slice(&[b'K', number as u8]),
        0x100..=0xffff => {
            out.push(b'M');
            out.extend_from_slice(&(number as u16).to_le_bytes());
        }
        -0x8000_0000..=0x7fff_ffff => {
            out.push(b'J');
            out.extend_from_slice(&(number as i32).to_le_bytes());
        }
        _ => {
            let bytes = number.to_le_bytes();
            // As few bytes as keep the sign, as Python's pickler writes it.
            let fill = if number < 0 { 0xff } else { 0 };
            let sign = |byte: &u8| (*byte < 0x80) == (fill == 0);
            let needed = bytes.iter().rposition(|byte| *byte != fill).map_or(1, |last| last + 1);
            let keeps_sign = bytes.get(needed - 1).is_some_and(sign);
            let length = if keeps_sign { needed } else { needed + 1 };
            out.extend_from_slice(&[0x8a, length as u8]);
            out.extend_from_slice(bytes.get(..length).unwrap_or(&bytes));
        }
    }
}

pub(in crate::wire) fn bytes(value: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[b'C', length]),
        Err(_) => {
            out.push(b'B');
            let length = u32::try_from(value.len()).expect("our values are shorter than 4 GiB");
            out.extend_from_slice(&length.to_le_bytes());
        }
    }
    out.extend_from_slice(value);
}

pub(in crate::wire) fn text(value: &str, out: &mut Vec<u8>) {
    out.push(b'X');
    let length = u32::try_from(value.len()).expect("our values are shorter than 4 GiB");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(value.as_bytes());
}
