//! The program `zeoringctl` as a shell calls it, with a real server: ours, or with
//! `ZEORING_STOCK_SERVER=path/of/runzeo` the stock one.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the suite needs more of it")]
#[path = "suite/house.rs"]
mod house;

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use zeoring_client::{Description, DrivenClient, Vote};
use zeoring_shared::ids::{Oid, Tid};

use crate::house::House;

/// A record as ZODB writes it.
const RECORD: &[u8] =
    b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\x00.\x80\x03}q\x01X\x04\x00\x00\x00dataq\x02}q\x03s.";

/// Others, as short as they may be.
const SECOND: &[u8] = b"\x80\x03cmodule\nSecond\nq\x00.\x80\x03C\x08\0\0\0\0\0\0\0\0Q.";
const ONE: &[u8] = b"\x80\x03cmodule\nOne\nq\x00.\x80\x03N.";

fn ctl(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_zeoringctl");
    Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What it prints, of a call that must go well.
fn said(arguments: &[&str]) -> String {
    let output = ctl(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let text = said(&[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What it complains about, of a call that must fail.
fn complains(arguments: &[&str], code: i32) -> String {
    let output = ctl(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn commit(client: &DrivenClient, states: &[(Oid, Tid, &[u8])]) -> Tid {
    let description = Description {
        user: b"/ maria".to_vec(),
        description: b"an edit".to_vec(),
        extension: Vec::new(),
    };
    let mut transaction = client.begin(&description).unwrap();
    for (oid, serial, data) in states {
        transaction.store(*oid, *serial, data).unwrap();
    }
    let Vote::Ready(voted) = transaction.vote().unwrap() else { panic!("nobody else writes") };
    voted.finish().unwrap()
}

/// A server with two revisions of object 0 and one of object 1, and its address as a word.
fn filled() -> (House, String, [Tid; 2]) {
    let house = House::new();
    let client = DrivenClient::open(house.options()).unwrap();
    let first = commit(&client, &[(Oid(0), Tid::ZERO, RECORD), (Oid(1), Tid::ZERO, ONE)]);
    let second = commit(&client, &[(Oid(0), first, SECOND)]);
    let address = house.address().to_string();
    (house, address, [first, second])
}

#[test]
fn ping_and_status_say_what_is_there() {
    let (_house, server, [_, last]) = filled();
    let pinged = json(&["ping", &server, "--count", "3"]);
    assert_eq!(pinged["count"], 3);
    assert_eq!(pinged["last_transaction"], last.to_string());
    assert!(said(&["ping", &server]).contains("median"));
    let status = json(&["status", &server]);
    assert_eq!((&status["objects"], &status["connections"]), (&2.into(), &1.into()));
    assert_eq!(status["last_transaction"], last.to_string());
    assert!(said(&["status", &server]).contains("connections        1"));
}

#[test]
fn a_watched_status_is_a_line_of_rates_each_time() {
    let (_house, server, _) = filled();
    let mut child = Command::new(env!("CARGO_BIN_EXE_zeoringctl"))
        .args(["status", &server, "--watch", "0.05", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for line in lines.take(3) {
        let told: Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert!(told["loads_per_s"].is_number() && told["status"]["connections"].is_number());
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_undo_log_is_newest_first() {
    let (_house, server, [first, second]) = filled();
    let log = json(&["undo-log", &server]);
    let tids: Vec<_> = log.as_array().unwrap().iter().map(|entry| &entry["tid"]).collect();
    assert_eq!(tids, [&Value::from(second.to_string()), &first.to_string().into()]);
    assert_eq!((&log[0]["user"], &log[0]["description"]), (&"/ maria".into(), &"an edit".into()));
    let text = said(&["undo-log", &server, "--skip", "1", "--count", "1"]);
    assert!(text.contains(&first.to_string()) && text.lines().count() == 1, "{text}");
}

#[test]
fn an_object_is_loaded_byte_by_byte_and_dumped_for_people_in_any_revision() {
    let (house, server, [first, second]) = filled();
    assert_eq!(ctl(&["load", &server, "0", "--serial", &first.to_string()]).stdout, RECORD);
    assert_eq!(ctl(&["load", &server, "0x0"]).stdout, SECOND);
    let file = house.folder.path().join("object");
    said(&["load", &server, "1", "--output", file.to_str().unwrap()]);
    assert_eq!(std::fs::read(file).unwrap(), ONE);
    let old = json(&["dump", &server, "0", "--before", &second.to_string()]);
    assert_eq!(old["class"], "persistent.mapping.PersistentMapping");
    assert_eq!(old["serial"], first.to_string());
    assert_eq!(old["end"], second.to_string());
    assert_eq!(old["references"], Value::Array(Vec::new()));
    let by_serial = json(&["dump", &server, "0", "--serial", &first.to_string()]);
    assert_eq!(by_serial, old);
    let text = said(&["dump", &server, "0"]);
    assert!(text.contains("refers  to 0000000000000000"), "{text}");
    assert!(
        text.contains("class   module.Second") && text.contains("none: it is current"),
        "{text}"
    );
}

#[test]
fn a_copy_has_the_same_transactions_and_goes_on_where_it_ended() {
    let (source, from, [first, second]) = filled();
    let target = House::new();
    let to = target.address().to_string();
    let copied = json(&["copy", &from, &to]);
    assert_eq!((&copied["transactions"], &copied["records"]), (&2.into(), &3.into()));
    let client = DrivenClient::open(source.options()).unwrap();
    let third = commit(&client, &[(Oid(1), first, SECOND)]);
    assert!(said(&["copy", &from, &to]).contains("copied 1 transactions, 1 records"));
    assert_eq!(history(&target), history(&source));
    assert_eq!(history(&target).len(), 4);
    assert!(second < third);
    // A storage with something else is not written to.
    let (_other, other, _) = filled();
    let complaint = complains(&["copy", &from, &other], 1);
    assert!(complaint.contains("copy to an empty storage"), "{complaint}");
}

/// A record: of which transaction, whose, of which object, and its data.
type Entry = (Tid, Vec<u8>, Oid, Option<Vec<u8>>);

/// All that a storage has ever been told.
fn history(house: &House) -> Vec<Entry> {
    let client = DrivenClient::open(house.options()).unwrap();
    let mut walk = client.iterate(None, None).unwrap();
    let mut all = Vec::new();
    while let Some(entry) = walk.next_transaction().unwrap() {
        while let Some(record) = walk.next_record().unwrap() {
            let data = record.data.map(Vec::from);
            all.push((entry.tid, entry.user.clone(), record.oid, data));
        }
    }
    all
}

#[test]
fn what_cannot_be_done_is_said_with_what_to_do_about_it() {
    let (_house, server, _) = filled();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = complains(&["ping", &nobody.to_string(), "--timeout", "0.3"], 1);
    assert!(unreachable.contains(&nobody.to_string()), "{unreachable}");
    assert!(unreachable.contains("refused"), "{unreachable}");
    let storage = complains(&["status", &server, "--storage", "other"], 1);
    assert!(storage.contains("other"), "{storage}");
    let missing = complains(&["dump", &server, "999"], 1);
    assert!(missing.contains("POSKeyError") && missing.contains("999"), "{missing}");
    let oid = complains(&["load", &server, "no-oid"], 2);
    assert!(oid.contains("hexadecimal"), "{oid}");
    let address = complains(&["ping", "some:where:else"], 2);
    assert!(address.contains("HOST:PORT"), "{address}");
    for timeout in ["-1", "nan", "soon"] {
        let complaint = complains(&["ping", &server, &format!("--timeout={timeout}")], 2);
        assert!(complaint.contains("number of seconds"), "{complaint}");
    }
    // As good as for ever.
    said(&["ping", &server, "--timeout", "1e18"]);
    let days = complains(&["pack", &server, "--days=-3"], 2);
    assert!(days.contains("--days"), "{days}");
}

#[test]
fn a_pack_drops_what_nobody_needs_where_the_server_can_pack() {
    let (house, server, [_, second]) = filled();
    let output = ctl(&["pack", &server]);
    let client = DrivenClient::open(house.options()).unwrap();
    if output.status.success() {
        // Nothing refers to object 1, so it is garbage.
        let gone = client.load(Oid(1)).unwrap_err();
        assert!(gone.to_string().contains("POSKeyError"), "{gone}");
        assert!(client.load_before(Oid(0), second).unwrap().is_none());
    } else {
        assert!(!House::is_stock(), "{output:?}");
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert!(complaint.contains("pack"), "{complaint}");
    }
    assert_eq!(client.load(Oid(0)).unwrap().data, SECOND);
}
