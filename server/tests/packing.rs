//! Packing as clients see it: what goes on meanwhile, what is refused, and who is told.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may say so")]

mod support;

use std::path::Path;
use std::thread;

use support::{Client, Gate, Heard, Running, SlowDisk, begin, settings, tid};
use zeoring_server::config::{Settings, StorageKind};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::io::Machine;
use zeoring_shared::wire::request::{Request, TransactionId};
use zeoring_shared::wire::value::Value;
use zeoring_shared::wire::{Codec, MessageId};

const ROOT: Oid = Oid(0);
const O: Oid = Oid(1);
const GARBAGE: Oid = Oid(7);
const CODECS: [Codec; 2] = [Codec::Pickle, Codec::Msgpack];

/// Later than everything.
const NOW: f64 = 4_000_000_000.0;

/// Pickles that refer to `O`, or to nothing.
fn data(refers: bool, text: &str) -> Vec<u8> {
    let reference: &[u8] = if refers { b"C\x08\0\0\0\0\0\0\0\x01Q" } else { b"" };
    let length = [text.len() as u8];
    [b"\x80\x03N.\x80\x03(", reference, b"C", &length[..], text.as_bytes(), b"t."].concat()
}

fn pack(wait: bool) -> Request<'static> {
    Request::Pack { time: NOW, wait }
}

/// Garbage, and an object with two revisions. Returns the current serial of the object.
fn fill(client: &mut Client) -> Tid {
    let (root, one, garbage) = (data(true, "root"), data(false, "one"), data(true, "garbage"));
    client.store(1, &[(ROOT, Tid::ZERO, &root), (GARBAGE, Tid::ZERO, &garbage)]);
    client.commit(1);
    client.store(2, &[(O, Tid::ZERO, &one)]);
    let first = client.commit(2);
    let two = data(false, "two");
    client.store(3, &[(O, first, &two)]);
    client.commit(3)
}

fn is_nothing(heard: &Heard) -> bool {
    matches!(heard, Heard::Reply(_, Value::None))
}

/// The class of an error.
fn class(heard: &Heard) -> &str {
    match heard {
        Heard::Error(_, class, _) => class,
        other => panic!("{other:?} is no error"),
    }
}

fn revision(heard: &Heard) -> (Vec<u8>, Tid) {
    match heard {
        Heard::Load(_, data, serial, None) => (data.clone(), *serial),
        other => panic!("{other:?} is no current revision"),
    }
}

fn status(client: &mut Client, name: &str) -> Option<Value<'static>> {
    let Heard::Reply(_, Value::Dict(entries)) = client.call(Request::ServerStatus) else {
        panic!("a status is a dictionary");
    };
    entries.into_iter().find(|(key, _)| *key == Value::Str(name.into())).map(|(_, value)| value)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path.join("Data.fs")).unwrap().len()
}

#[test]
fn while_a_storage_is_packed_loads_and_commits_go_on_and_no_second_pack_begins() {
    for codec in CODECS {
        let folder = tempfile::tempdir().unwrap();
        let (machine, syncs) = SlowDisk::slow_to_sync();
        let server = Running::start(&settings(folder.path()), &machine);
        let (mut client, mut packer) = (server.client(codec), server.client(Codec::Msgpack));
        let serial = fill(&mut client);
        assert_eq!(status(&mut client, "pack"), None);
        syncs.hold(1);
        let first = packer.ask(pack(true));
        syncs.wait_for(1);

        assert!(matches!(status(&mut client, "pack"), Some(Value::Dict(_))));
        let second = client.call(pack(true));
        assert_eq!(class(&second), "ZODB.FileStorage.FileStorage.FileStorageError");
        assert!(is_nothing(&client.call(pack(false))), "nobody waits to hear of it");
        assert_eq!(revision(&client.load(O, Tid::MAX)), (data(false, "two"), serial));
        let three = data(false, "three");
        client.store(4, &[(O, serial, &three), (Oid(9), Tid::ZERO, &three)]);
        let serial = client.commit(4);
        assert_eq!(revision(&client.load(O, Tid::MAX)), (three.clone(), serial));
        assert_eq!(revision(&packer.load(O, Tid::MAX)), (three.clone(), serial));

        syncs.open();
        assert!(is_nothing(&packer.answer(&first)));
        assert_eq!(status(&mut client, "pack"), None);
        for _ in 0..2 {
            assert_eq!(revision(&client.load(O, Tid::MAX)), (three.clone(), serial));
            assert_eq!(revision(&client.load(Oid(9), Tid::MAX)), (three.clone(), serial));
            assert!(class(&client.load(GARBAGE, Tid::MAX)).ends_with("POSKeyError"));
        }
        let four = data(false, "four");
        client.store(5, &[(O, serial, &four)]);
        let serial = client.commit(5);
        assert_eq!(revision(&packer.load(O, Tid::MAX)), (four.clone(), serial));
        server.stop();
        let server = Running::start(&settings(folder.path()), &Machine::real());
        let mut client = server.client(codec);
        assert_eq!(revision(&client.load(O, Tid::MAX)), (four, serial));
    }
}

/// A server on a slow disk with [`fill`]ed storage.
fn slow_to_read() -> (tempfile::TempDir, Running, std::sync::Arc<Gate>, Tid) {
    let folder = tempfile::tempdir().unwrap();
    let (machine, reads) = SlowDisk::machine();
    let server = Running::start(&settings(folder.path()), &machine);
    let serial = fill(&mut server.client(Codec::Pickle));
    (folder, server, reads, serial)
}

#[test]
fn a_load_that_a_pack_overtakes_is_answered_from_the_new_file() {
    let (_folder, server, reads, serial) = slow_to_read();
    let (mut loader, mut packer) = (server.client(Codec::Msgpack), server.client(Codec::Pickle));
    reads.hold(1);
    let load = loader.ask(Request::LoadBefore { oid: O, before: Tid::MAX });
    reads.wait_for(1);
    assert!(is_nothing(&packer.call(pack(true))));
    reads.open();
    assert_eq!(revision(&loader.answer(&load)), (data(false, "two"), serial));
    assert_eq!(revision(&loader.load(ROOT, Tid::MAX)).0, data(true, "root"));
}

#[test]
fn a_transaction_that_was_voted_for_before_a_pack_ended_is_finished_after_it() {
    let (_folder, server, _, serial) = slow_to_read();
    let mut client = server.client(Codec::Pickle);
    let id = TransactionId(9);
    client.tell(begin(9));
    client.tell(Request::Undoa { tid: serial, id });
    assert!(matches!(client.call(Request::Vote { id }), Heard::Reply(..)));
    assert!(is_nothing(&server.client(Codec::Msgpack).call(pack(true))));
    let serial = tid(&client.call(Request::TpcFinish { id }));
    // The revision that it leads back to is packed away.
    assert_eq!(revision(&client.load(O, Tid::MAX)), (data(false, "one"), serial));
}

#[test]
fn a_read_only_client_may_pack_and_everyone_hears_the_new_size() {
    let folder = tempfile::tempdir().unwrap();
    let writing = Running::start(&settings(folder.path()), &Machine::real());
    fill(&mut writing.client(Codec::Pickle));
    writing.stop();
    let before = size(folder.path());
    let read_only = Settings { read_only: true, ..settings(folder.path()) };
    let server = Running::start(&read_only, &Machine::real());
    let connect = |codec| {
        let mut client = Client::greet(server.socket(), codec);
        client.call(Request::Register { storage: "1".into(), read_only: true });
        client
    };
    let (mut packer, mut other) = (connect(Codec::Pickle), connect(Codec::Msgpack));
    let id = packer.ask(pack(true));
    // In this order: the size, then the answer.
    assert_eq!(packer.hear(), Some(Heard::Notice("info".to_owned())));
    assert_eq!(packer.hear(), Some(Heard::Reply(id, Value::None)));
    assert_eq!(other.hear(), Some(Heard::Notice("info".to_owned())));
    server.stop();
    assert!(size(folder.path()) < before);
}

#[test]
fn a_pack_that_cannot_be_is_refused_as_python_refuses_it() {
    for codec in CODECS {
        let folder = tempfile::tempdir().unwrap();
        let server = Running::start(&settings(folder.path()), &Machine::real());
        let mut client = server.client(codec);
        assert!(is_nothing(&client.call(pack(true))), "an empty one is packed");
        client.store(1, &[(O, Tid::ZERO, &data(false, "one"))]);
        client.commit(1);
        let no_root = client.call(pack(true));
        let Heard::Error(_, class, args) = &no_root else { panic!("{no_root:?}") };
        assert_eq!(class, "builtins.KeyError");
        assert!(format!("{args:?}").contains("[0, 0, 0, 0, 0, 0, 0, 0]"), "{args:?}");
        for time in [f64::NAN, f64::INFINITY, -1e300] {
            let refused = client.call(Request::Pack { time, wait: true });
            let Heard::Error(_, class, _) = &refused else { panic!("{refused:?}") };
            assert_eq!(class, "ZODB.FileStorage.FileStorage.FileStorageError");
        }
        assert!(matches!(client.load(O, Tid::MAX), Heard::Load(..)));
    }
    let folder = tempfile::tempdir().unwrap();
    drop(Running::start(&settings(folder.path()), &Machine::real()));
    let mut read_only = settings(folder.path());
    if let StorageKind::File(file) = &mut read_only.storages[0].kind {
        file.read_only = true;
    }
    let server = Running::start(&read_only, &Machine::real());
    let mut client = Client::greet(server.socket(), Codec::Pickle);
    client.call(Request::Register { storage: "1".into(), read_only: true });
    assert_eq!(class(&client.call(pack(true))), "ZODB.POSException.ReadOnlyError");
}

#[test]
fn a_server_that_stops_makes_a_pack_give_up_and_leaves_a_whole_file() {
    let (folder, server, reads, serial) = slow_to_read();
    let mut packer = server.client(Codec::Msgpack);
    reads.hold(1);
    let id: MessageId = packer.ask(pack(true));
    reads.wait_for(1);
    let stopping = thread::spawn(move || server.stop());
    reads.open();
    stopping.join().unwrap();
    // It was told how it went, or that the server went.
    while let Some(heard) = packer.hear() {
        let told = matches!(&heard, Heard::Reply(told, _) | Heard::Error(told, ..) if *told == id);
        assert!(told || matches!(heard, Heard::Notice(_)), "{heard:?}");
    }
    assert!(!folder.path().join("Data.fs.pack").exists());
    let server = Running::start(&settings(folder.path()), &Machine::real());
    let mut client = server.client(Codec::Pickle);
    assert_eq!(revision(&client.load(O, Tid::MAX)), (data(false, "two"), serial));
}
