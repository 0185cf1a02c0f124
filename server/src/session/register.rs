//! What a client learns before it works: which storage, what it can do, how the server is.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use zeoring_shared::wire::Codec;
use zeoring_shared::wire::frame::frame;
use zeoring_shared::wire::reply::{self, ErrorReply};
use zeoring_shared::wire::request::{Call, Request};
use zeoring_shared::wire::value::Value;

use super::desk::{Desk, Hall};
use super::{Farewell, Open, Session, State, query};
use crate::log::Severity;

impl Session {
    /// Takes the first call of a client, which has to be `register`.
    ///
    /// From the moment of the reply on the client is told of every commit: the tid that it gets
    /// and the first invalidation fit together because both come from this reactor's history.
    pub(super) fn register(
        &mut self,
        codec: Codec,
        call: Call<'_>,
        desk: &mut Desk,
    ) -> Result<(), Farewell> {
        let Call { id, oneway, request } = call;
        let method = request.name();
        let Request::Register { storage: name, read_only } = request else {
            return Err(Farewell::Call(format!("`{method}` was called before register")));
        };
        if oneway {
            return Err(Farewell::Call("register was called without a reply wanted".to_owned()));
        }
        let place = desk.halls.iter().position(|hall| hall.service.name == *name);
        let error = match place {
            None => {
                let name: String = name.chars().take(super::LABEL_MAX).collect();
                self.log(Severity::Info, &format!("unknown storage_id: {name}"));
                ErrorReply::value_error(&format!("unknown storage: {name}"))
            }
            Some(place)
                if !read_only
                    && (desk.limits.read_only
                        || desk.halls[place].service.storage.facts().read_only) =>
            {
                ErrorReply::read_only()
            }
            Some(place) => {
                let hall = &mut desk.halls[place];
                hall.members.insert(self.id);
                hall.service.stats.connections.fetch_add(1, Ordering::Relaxed);
                let last = query::tid_value(hall.visible);
                reply::reply(codec, &id, &last, &mut self.outbox);
                self.state = State::Open(Open {
                    codec,
                    storage: place,
                    read_only: read_only || desk.limits.read_only,
                    transactions_begun: 0,
                    transaction: None,
                    iterators: Some(Box::default()),
                    questions: std::collections::VecDeque::new(),
                });
                return Ok(());
            }
        };
        reply::error_reply(codec, &id, &error, &mut self.outbox);
        Ok(())
    }
}

/// The answer to `get_info`.
pub(super) fn info(hall: &Hall) -> Value<'static> {
    let storage = &hall.service.storage;
    let facts = storage.facts();
    let interfaces = facts.interfaces.iter().map(|(module, name)| {
        Value::Tuple(vec![Value::Str((*module).into()), Value::Str((*name).into())])
    });
    let entries = [
        ("length", Value::Int(storage.object_count() as i64)),
        ("size", Value::Int(storage.size() as i64)),
        ("name", Value::Str(facts.name.clone().into())),
        ("supportsUndo", Value::Bool(facts.supports_undo)),
        ("supports_record_iternext", Value::Bool(facts.supports_record_iternext)),
        ("interfaces", Value::Tuple(interfaces.collect())),
    ];
    Value::Dict(entries.into_iter().map(|(key, value)| (Value::Str(key.into()), value)).collect())
}

/// The part of `get_info` that a commit changes: sent to the committer before its reply.
pub(super) fn sizes(object_count: u64, size: u64) -> Value<'static> {
    let entries = [("length", object_count), ("size", size)];
    let entry =
        |(key, value): (&'static str, u64)| (Value::Str(key.into()), Value::Int(value as i64));
    Value::Dict(entries.into_iter().map(entry).collect())
}

/// Answers `ruok`: the status of all storages as JSON, in one frame (`ZEO/asyncio/server.py`).
pub(super) fn tell_status(desk: &Desk, outbox: &mut Vec<u8>) {
    let statuses: BTreeMap<&str, Value<'static>> =
        desk.halls.iter().map(|hall| (&*hall.service.name, hall.service.status())).collect();
    let entries: Vec<_> = statuses
        .into_iter()
        .map(|(name, status)| (Value::Str(name.to_owned().into()), status))
        .collect();
    frame(outbox, |body| json(&Value::Dict(entries), body));
}

/// Writes what a status is made of as JSON.
fn json(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Dict(entries) => {
            out.push(b'{');
            for (index, (key, value)) in entries.iter().enumerate() {
                if index != 0 {
                    out.extend_from_slice(b", ");
                }
                json(key, out);
                out.extend_from_slice(b": ");
                json(value, out);
            }
            out.push(b'}');
        }
        Value::Str(text) => {
            out.push(b'"');
            for character in text.chars() {
                match character {
                    '"' | '\\' => out.extend_from_slice(format!("\\{character}").as_bytes()),
                    ' '..='~' => out.push(character as u8),
                    other => {
                        let mut units = [0; 2];
                        for unit in other.encode_utf16(&mut units) {
                            out.extend_from_slice(format!("\\u{unit:04x}").as_bytes());
                        }
                    }
                }
            }
            out.push(b'"');
        }
        Value::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Float(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        _ => out.extend_from_slice(b"null"),
    }
}
