//! loadBefore: the one call that everything is built for.
//!
//! A load whose records are in memory is answered at once. One that has to wait for the disk is
//! left at the desk; when its record has been read it goes on from there, or from the start if the
//! history has moved on meanwhile, so an answer is always true for the moment it is written.

use std::io;

use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::wire::MessageId;
use zeoring_shared::wire::reply::{self, ErrorReply};
use zeoring_shared::wire::value::Value;

use super::desk::{ColdLoad, Desk};
use super::{Session, State, refusal};
use crate::storage::load::{Step, Walk};
use crate::storage::{Loading, StorageError};

impl Session {
    /// Answers a load, or leaves it at the desk to wait for the disk.
    pub(super) fn load(&mut self, id: MessageId, oid: Oid, before: Tid, desk: &mut Desk) {
        let State::Open(open) = &self.state else {
            return;
        };
        desk.halls[open.storage].loads += 1;
        self.seek(id, oid, before, desk);
    }

    fn seek(&mut self, id: MessageId, oid: Oid, before: Tid, desk: &mut Desk) {
        let State::Open(open) = &self.state else {
            return;
        };
        let (codec, storage) = (open.codec, open.storage);
        let hall = &desk.halls[storage];
        match hall.view.load(oid, before, hall.visible) {
            Loading::Walk(walk) => self.walk(id, walk, oid, before, desk),
            Loading::Answer(Ok(Some(found))) => {
                reply::load_reply(
                    codec,
                    &id,
                    &found.data,
                    found.serial,
                    found.end,
                    &mut self.outbox,
                );
            }
            Loading::Answer(Ok(None)) => reply::reply(codec, &id, &Value::None, &mut self.outbox),
            Loading::Answer(Err(error)) => self.refuse("loadBefore", &id, &refusal::of(&error)),
        }
    }

    /// Goes on with a load whose record was read from disk. Returns the buffer when it is spare.
    pub fn resume(
        &mut self,
        load: ColdLoad,
        bytes: io::Result<Vec<u8>>,
        desk: &mut Desk,
    ) -> Option<Vec<u8>> {
        self.pending -= 1;
        let State::Open(open) = &self.state else {
            return None;
        };
        let ColdLoad { id, storage, oid, before, walk, want, views, .. } = load;
        debug_assert_eq!(storage, open.storage, "a session has one storage");
        if views != desk.halls[storage].views {
            // A pack has ended meanwhile, and what was read may be of either file.
            self.seek(id, oid, before, desk);
            return None;
        }
        match bytes {
            Err(source) => {
                let error = StorageError::Read { position: want.position, source };
                self.log(crate::log::Severity::Error, &format!("loadBefore of {oid}: {error}"));
                self.refuse("loadBefore", &id, &refusal::of(&error));
                return None;
            }
            Ok(bytes) => desk.reader.keep(storage, want.position, bytes),
        }
        let hall = &desk.halls[storage];
        let now = hall.view.load(oid, before, hall.visible);
        match now {
            Loading::Walk(fresh) if walk.is_overtaken_by(&fresh) => {
                self.walk(id, fresh, oid, before, desk);
            }
            _ => self.walk(id, walk, oid, before, desk),
        }
        desk.reader.settle()
    }

    fn walk(&mut self, id: MessageId, mut walk: Walk, oid: Oid, before: Tid, desk: &mut Desk) {
        let State::Open(open) = &self.state else {
            return;
        };
        let (codec, storage) = (open.codec, open.storage);
        let hall = &desk.halls[storage];
        let (views, file) =
            (hall.views, hall.file.as_ref().expect("a storage that walks has a file"));
        loop {
            let want = walk.want();
            let bytes = match desk.reader.read(storage, file, want) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pending += 1;
                    let connection = self.id;
                    desk.cold.push(ColdLoad {
                        connection,
                        id,
                        storage,
                        oid,
                        before,
                        walk,
                        want,
                        views,
                    });
                    return;
                }
                Err(source) => {
                    let error = StorageError::Read { position: want.position, source };
                    return self.refuse("loadBefore", &id, &refusal::of(&error));
                }
            };
            match walk.step(bytes) {
                Ok(Step::Read) => {}
                Ok(Step::Found { data, serial, end }) => {
                    let data = &bytes[data];
                    return reply::load_reply(codec, &id, data, serial, end, &mut self.outbox);
                }
                Ok(Step::Absent) => {
                    return reply::reply(codec, &id, &Value::None, &mut self.outbox);
                }
                Ok(Step::Gone) => {
                    return self.refuse("loadBefore", &id, &ErrorReply::pos_key_error(oid));
                }
                Err(error) => {
                    self.log(crate::log::Severity::Error, &format!("loadBefore of {oid}: {error}"));
                    return self.refuse("loadBefore", &id, &refusal::of(&error));
                }
            }
        }
    }
}
