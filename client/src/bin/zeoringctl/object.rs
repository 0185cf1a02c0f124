//! `zeoringctl load` and `dump`: one object.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::json;
use zeoring_client::{ClientError, Revision};
use zeoring_shared::ids::{Oid, Tid};
use zeoring_shared::record::{References, Unreadable};

use crate::connect::Connect;
use crate::print::{Failure, hex_number, line, show};

/// Which revision of which object.
#[derive(clap::Args)]
struct Which {
    /// The object, in hexadecimal.
    #[arg(value_parser = oid)]
    oid: Oid,
    /// Its newest revision older than this transaction [default: its current one].
    #[arg(long, value_name = "TID", value_parser = crate::tid, conflicts_with = "serial")]
    before: Option<Tid>,
    /// The revision that this transaction wrote.
    #[arg(long, value_name = "TID", value_parser = crate::tid)]
    serial: Option<Tid>,
}

/// What `zeoringctl load` is told.
#[derive(clap::Args)]
pub(crate) struct Load {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    which: Which,
    /// Write here [default: the standard output].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What `zeoringctl dump` is told.
#[derive(clap::Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    which: Which,
}

/// Writes an object's data.
pub(crate) fn load(arguments: &Load) -> Result<(), Failure> {
    let revision = revision(&arguments.connect, &arguments.which)?;
    if arguments.connect.json {
        return show(&to_json(arguments.which.oid, &revision));
    }
    match &arguments.output {
        Some(path) => Ok(std::fs::write(path, &revision.data)?),
        None => {
            // What is not flushed here would be lost at the end without a word.
            let mut output = io::stdout().lock();
            output.write_all(&revision.data)?;
            Ok(output.flush()?)
        }
    }
}

/// Shows an object.
pub(crate) fn dump(arguments: &Dump) -> Result<(), Failure> {
    let oid = arguments.which.oid;
    let revision = revision(&arguments.connect, &arguments.which)?;
    if arguments.connect.json {
        return show(&to_json(oid, &revision));
    }
    line(format_args!("oid     {oid}"))?;
    line(format_args!(
        "class   {}",
        class_of(&revision.data).unwrap_or_else(|| "not told".to_owned())
    ))?;
    line(format_args!("serial  {}", revision.serial))?;
    let end = revision.end.map_or_else(|| "none: it is current".to_owned(), |tid| tid.to_string());
    line(format_args!("end     {end}"))?;
    line(format_args!("bytes   {}", revision.data.len()))?;
    match references(&revision.data) {
        Ok(oids) if oids.is_empty() => line(format_args!("refers  to nothing"))?,
        Ok(oids) => {
            let oids: Vec<String> = oids.iter().map(Oid::to_string).collect();
            line(format_args!("refers  to {}", oids.join(" ")))?;
        }
        Err(error) => line(format_args!("refers  nobody knows to what: {error}"))?,
    }
    for (number, row) in revision.data.chunks(16).enumerate() {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let is_plain = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
        let text: String =
            row.iter().map(|byte| if is_plain(byte) { char::from(*byte) } else { '.' }).collect();
        line(format_args!("{:08x}  {:<47}  {text}", number * 16, hex.join(" ")))?;
    }
    Ok(())
}

fn revision(connect: &Connect, which: &Which) -> Result<Revision, Failure> {
    let client = connect.open()?;
    if let Some(serial) = which.serial {
        let data = client.load_serial(which.oid, serial)?;
        // Its end is when the first revision after it begins, which is not asked for here.
        let end = client.load_before(which.oid, serial.next())?.and_then(|found| found.end);
        return Ok(Revision { data, serial, end });
    }
    let found = client.load_before(which.oid, which.before.unwrap_or(Tid::MAX))?;
    Ok(found.ok_or(ClientError::NoRevision { oid: which.oid })?)
}

fn to_json(oid: Oid, revision: &Revision) -> serde_json::Value {
    let hex: String = revision.data.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "oid": oid.to_string(), "class": class_of(&revision.data),
        "serial": revision.serial.to_string(), "end": revision.end.map(|tid| tid.to_string()),
        "bytes": revision.data.len(), "data_hex": hex,
        "references": references(&revision.data).ok().map(|oids| {
            oids.iter().map(Oid::to_string).collect::<Vec<_>>()
        }),
    })
}

/// The objects that a record refers to, each once, in the order in which it names them.
fn references(data: &[u8]) -> Result<Vec<Oid>, Unreadable> {
    let mut oids = Vec::new();
    References::default().walk(data, |oid| {
        if !oids.contains(&oid) {
            oids.push(oid);
        }
    })?;
    Ok(oids)
}

/// The class that a record begins with, where it is written as ZODB writes it: the opcode GLOBAL
/// with the module and the name, each to the end of its line. Nothing of the pickle is executed.
fn class_of(data: &[u8]) -> Option<String> {
    let rest = data.strip_prefix(b"\x80")?.get(1..)?;
    let rest = rest.strip_prefix(b"(").unwrap_or(rest);
    let mut lines = rest.strip_prefix(b"c")?.splitn(3, |byte| *byte == b'\n');
    let (module, name, _rest) = (lines.next()?, lines.next()?, lines.next()?);
    Some(format!("{}.{}", std::str::from_utf8(module).ok()?, std::str::from_utf8(name).ok()?))
}

fn oid(text: &str) -> Result<Oid, String> {
    hex_number(text).map(Oid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_record_is_read_where_zodb_writes_it() {
        let record = b"\x80\x03cpersistent.mapping\nPersistentMapping\nq\0.\x80\x03}q\x01.";
        let class = Some("persistent.mapping.PersistentMapping".to_owned());
        assert_eq!(class_of(record), class);
        for other in [&b""[..], b"\x80", b"\x80\x03", b"\x80\x03cmodule", b"\x80\x03ca\nb", b"abc"]
        {
            assert_eq!(class_of(other), None);
        }
    }
}
