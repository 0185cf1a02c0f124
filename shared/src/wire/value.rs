//! Data of any shape, as messages carry it: borrowed from the message where that can be.

use std::borrow::Cow;

/// A value of Python that is plain data.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// `None`
    None,
    /// `True` or `False`
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// An integer past [`i64::MAX`].
    Unsigned(u64),
    /// `float`
    Float(f64),
    /// `bytes`
    Bytes(Cow<'a, [u8]>),
    /// `str`
    Str(Cow<'a, str>),
    /// `tuple`; every sequence of msgpack is one
    Tuple(Vec<Self>),
    /// `list`
    List(Vec<Self>),
    /// `dict`, in the order of its entries
    Dict(Vec<(Self, Self)>),
    /// `ZopeUndo.Prefix.Prefix`: fits every path that begins so.
    Prefix {
        /// How many elements count.
        length: i64,
        /// The elements.
        path: Vec<String>,
    },
    /// `ZODB.POSException.UndoError`, within a `MultipleUndoErrors`.
    UndoError {
        /// Why, in ZODB's words.
        reason: Cow<'a, str>,
        /// The eight bytes of the object's id.
        oid: Option<[u8; 8]>,
    },
}

impl Value<'_> {
    /// The same, without borrowing.
    pub fn into_owned(self) -> Value<'static> {
        let all = |values: Vec<Self>| values.into_iter().map(Self::into_owned).collect();
        match self {
            Self::None => Value::None,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(value) => Value::Int(value),
            Self::Unsigned(value) => Value::Unsigned(value),
            Self::Float(value) => Value::Float(value),
            Self::Bytes(value) => Value::Bytes(Cow::Owned(value.into_owned())),
            Self::Str(value) => Value::Str(Cow::Owned(value.into_owned())),
            Self::Tuple(values) => Value::Tuple(all(values)),
            Self::List(values) => Value::List(all(values)),
            Self::Dict(entries) => {
                let owned = |(key, value): (Self, Self)| (key.into_owned(), value.into_owned());
                Value::Dict(entries.into_iter().map(owned).collect())
            }
            Self::Prefix { length, path } => Value::Prefix { length, path },
            Self::UndoError { reason, oid } => {
                Value::UndoError { reason: Cow::Owned(reason.into_owned()), oid }
            }
        }
    }
}
