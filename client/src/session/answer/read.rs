//! Plain values of Python as the types that stand for them. Lenient where Python is (a number is a
//! truth value and a string is text, whichever type it came as); ids are eight bytes and nothing
//! else.

use bytes::Bytes;
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::value::Value;

/// The entries of a dictionary, in its order.
pub(super) type Entries<'v, 'a> = &'v [(Value<'a>, Value<'a>)];

/// The value under a key that is a string.
pub(crate) fn find<'v, 'a>(entries: Entries<'v, 'a>, key: &str) -> Option<&'v Value<'a>> {
    entries.iter().find_map(|(name, value)| is_key(name, key).then_some(value))
}

pub(super) fn is_key(name: &Value<'_>, key: &str) -> bool {
    matches!(name, Value::Str(name) if name == key)
}

pub(super) fn entries<'v, 'a>(value: &'v Value<'a>) -> Option<Entries<'v, 'a>> {
    match value {
        Value::Dict(entries) => Some(entries),
        _ => None,
    }
}

/// A list or a tuple: what is a list in a pickle is a tuple in msgpack.
pub(crate) fn sequence<'v, 'a>(value: &'v Value<'a>) -> Option<&'v [Value<'a>]> {
    match value {
        Value::Tuple(items) | Value::List(items) => Some(items),
        _ => None,
    }
}

/// A sequence of which every item is read by `item`.
pub(super) fn all<T>(value: &Value<'_>, item: impl Fn(&Value<'_>) -> Option<T>) -> Option<Vec<T>> {
    sequence(value)?.iter().map(item).collect()
}

/// `None`, or what `item` reads.
pub(super) fn optional<T>(
    value: &Value<'_>,
    item: impl Fn(&Value<'_>) -> Option<T>,
) -> Option<Option<T>> {
    match value {
        Value::None => Some(None),
        value => item(value).map(Some),
    }
}

pub(crate) fn oid(value: &Value<'_>) -> Option<Oid> {
    eight_bytes(value).map(Oid::from_bytes)
}

pub(crate) fn tid(value: &Value<'_>) -> Option<Tid> {
    eight_bytes(value).map(Tid::from_bytes)
}

fn eight_bytes(value: &Value<'_>) -> Option<[u8; 8]> {
    let Value::Bytes(bytes) = value else { return None };
    bytes.as_ref().try_into().ok()
}

/// A record's data.
pub(super) fn data(value: &Value<'_>) -> Option<Bytes> {
    let Value::Bytes(data) = value else { return None };
    Some(Bytes::copy_from_slice(data))
}

/// Text as a data file stores it: its bytes.
pub(super) fn text(value: &Value<'_>) -> Option<Vec<u8>> {
    match value {
        Value::Bytes(bytes) => Some(bytes.to_vec()),
        Value::Str(text) => Some(text.as_bytes().to_vec()),
        _ => None,
    }
}

pub(super) fn number(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::Bool(truth) => Some(i64::from(*truth)),
        _ => None,
    }
}

/// A number of things or of bytes: not negative.
pub(super) fn count(value: &Value<'_>) -> Option<u64> {
    match value {
        Value::Unsigned(count) => Some(*count),
        value => u64::try_from(number(value)?).ok(),
    }
}

pub(super) fn seconds(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Float(seconds) => Some(*seconds),
        Value::Unsigned(seconds) => Some(*seconds as f64),
        value => number(value).map(|seconds| seconds as f64),
    }
}

/// The entries that `keys` does not name.
pub(super) fn others(
    entries: Entries<'_, '_>,
    keys: &[&str],
) -> Vec<(Value<'static>, Value<'static>)> {
    let is_other = |(name, _): &&(Value<'_>, Value<'_>)| !keys.iter().any(|key| is_key(name, key));
    let owned = |(name, value): &(Value<'_>, Value<'_>)| {
        (name.clone().into_owned(), value.clone().into_owned())
    };
    entries.iter().filter(is_other).map(owned).collect()
}
