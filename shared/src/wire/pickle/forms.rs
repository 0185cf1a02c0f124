//! The few names that a pickle may have, and the data that each of them stands for. None of them is
//! imported, and none but these gets past the reading of a name.

use super::{Item, Machine, Thing, UNDERFLOW};
use crate::wire::WireError;
use crate::wire::value::Value;

/// The names that stand for a form of data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Name {
    Binary,
    Encode,
    Reconstructor,
    Bytes,
    Dict,
    Prefix,
    Recon,
    UndoError,
}

impl<'a> Machine<'a> {
    pub(super) fn name(&mut self) -> Result<Name, WireError> {
        let module = self.line()?;
        let name = self.line()?;
        match (module, name) {
            (b"zodbpickle", b"binary") => Ok(Name::Binary),
            (b"_codecs", b"encode") => Ok(Name::Encode),
            (b"copyreg" | b"copy_reg", b"_reconstructor") => Ok(Name::Reconstructor),
            (b"builtins" | b"__builtin__", b"bytes" | b"str") => Ok(Name::Bytes),
            (b"builtins" | b"__builtin__", b"dict") => Ok(Name::Dict),
            (b"ZopeUndo.Prefix", b"Prefix") => Ok(Name::Prefix),
            (b"ZODB.POSException", b"_recon") => Ok(Name::Recon),
            (b"ZODB.POSException", b"UndoError") => Ok(Name::UndoError),
            _ => {
                let text = |bytes| String::from_utf8_lossy(bytes).chars().take(80).collect();
                let (module, name): (String, String) = (text(module), text(name));
                Err(WireError::Global(format!("{module}.{name}")))
            }
        }
    }

    /// REDUCE and NEWOBJ: what a name makes of its arguments.
    pub(super) fn call(&mut self, new: bool) -> Result<(), WireError> {
        let Item { thing: arguments, depth, .. } = self.pop()?;
        let item = self.pop()?;
        let Thing::Name(name) = item.thing else {
            return Err(WireError::Forbidden("a call of something that is no name"));
        };
        let arguments = match arguments {
            Thing::Value(Value::Tuple(values)) => values.into_iter().map(Thing::Value).collect(),
            Thing::Arguments(things) => things,
            _ => return Err(WireError::Malformed("arguments are a tuple")),
        };
        let thing = match (name, new, &arguments[..]) {
            (Name::Prefix, true, []) => Thing::Prefix,
            (Name::Dict, false, []) => Thing::Value(Value::Dict(Vec::new())),
            (Name::Dict, false, [Thing::Value(Value::Tuple(pairs) | Value::List(pairs))]) => {
                Thing::Value(dict_of(pairs)?)
            }
            (Name::Bytes, _, []) => Thing::Value(Value::Bytes(b"".into())),
            (Name::Binary, _, [Thing::Value(value @ Value::Bytes(_))])
            | (
                Name::Reconstructor,
                false,
                [
                    Thing::Name(Name::Binary),
                    Thing::Name(Name::Bytes),
                    Thing::Value(value @ Value::Bytes(_)),
                ],
            ) => Thing::Value(value.clone()),
            (
                Name::Encode,
                false,
                [Thing::Value(Value::Str(text)), Thing::Value(Value::Str(codec))],
            ) if matches!(&**codec, "latin1" | "latin-1" | "iso-8859-1") => {
                let bytes: Result<Vec<u8>, _> =
                    text.chars().map(|character| u8::try_from(u32::from(character))).collect();
                let bytes = bytes.map_err(|_| WireError::Malformed("text is not latin-1"))?;
                Thing::Value(Value::Bytes(bytes.into()))
            }
            (
                Name::Recon,
                false,
                [Thing::Name(Name::UndoError), Thing::Value(Value::Dict(state))],
            ) => Thing::Value(undo_error(state)?),
            _ => return Err(WireError::Forbidden("a call")),
        };
        // What is made of the arguments is no deeper than they are.
        self.stack.push(Item { thing, start: item.start, depth });
        Ok(())
    }

    /// BUILD: the state of a `Prefix`.
    pub(super) fn build(&mut self) -> Result<(), WireError> {
        let base = self.stack.len().checked_sub(1).ok_or(UNDERFLOW)?;
        let (mut state, _) = self.take(base)?;
        let Some(Item { thing: Thing::Prefix, start, .. }) = self.stack.pop() else {
            return Err(WireError::Forbidden("a state of something that has none"));
        };
        let Some(Value::Dict(state)) = state.pop() else {
            return Err(WireError::Malformed("the state of a Prefix is a dictionary"));
        };
        let (Some(Value::Int(length)), Some(Value::List(path))) =
            (entry(&state, "length"), entry(&state, "path"))
        else {
            return Err(WireError::Malformed("a Prefix has a length and a path"));
        };
        let path = path.iter().map(|element| match element {
            Value::Str(text) => Ok(text.clone().into_owned()),
            _ => Err(WireError::Malformed("a Prefix is a path of strings")),
        });
        let path = path.collect::<Result<_, _>>()?;
        self.push(Value::Prefix { length: *length, path }, start)
    }
}

/// The value of a key: the last one, as Python would have it.
fn entry<'v, 'a>(entries: &'v [(Value<'a>, Value<'a>)], name: &str) -> Option<&'v Value<'a>> {
    let is_it = |(key, _): &&(Value<'_>, Value<'_>)| matches!(key, Value::Str(key) if key == name);
    entries.iter().rev().find(is_it).map(|(_, value)| value)
}

/// What `dict` makes of a sequence of pairs.
fn dict_of<'a>(pairs: &[Value<'a>]) -> Result<Value<'a>, WireError> {
    let pair = |pair: &Value<'a>| match pair {
        Value::Tuple(pair) => <[Value<'a>; 2]>::try_from(pair.clone()).ok().map(<_>::from),
        _ => None,
    };
    let entries: Option<Vec<(Value<'a>, Value<'a>)>> = pairs.iter().map(pair).collect();
    entries.map(Value::Dict).ok_or(WireError::Malformed("a dictionary is made of pairs"))
}

fn undo_error<'a>(state: &[(Value<'a>, Value<'a>)]) -> Result<Value<'a>, WireError> {
    let Some(Value::Str(reason)) = entry(state, "_reason") else {
        return Err(WireError::Malformed("an UndoError has a reason"));
    };
    let oid = match entry(state, "_oid") {
        Some(Value::Bytes(oid)) => <[u8; 8]>::try_from(&**oid).ok(),
        _ => None,
    };
    Ok(Value::UndoError { reason: reason.clone(), oid })
}
