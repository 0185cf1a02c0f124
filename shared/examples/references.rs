//! Tells the references of records, for `scripts/python/references.py`: reads records from standard
//! input, each behind its length (four bytes, big endian), and writes a line for each: the oids, or
//! `unreadable`.

use std::io::{self, BufWriter, Read, Write};

use zeoring_shared::record::References;

fn main() -> io::Result<()> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut references, mut rest) = (References::default(), &bytes[..]);
    while let Some((length, after)) = rest.split_first_chunk() {
        let (record, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        rest = after;
        let mut oids = Vec::new();
        match references.walk(record, |oid| oids.push(oid.to_string())) {
            Ok(()) => writeln!(out, "{}", oids.join(" "))?,
            Err(_) => writeln!(out, "unreadable")?,
        }
    }
    out.flush()
}
