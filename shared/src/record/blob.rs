//! Which records belong to blobs: objects whose bytes are in a file of their own.

/// How a record of `ZODB.blob.Blob` begins, behind the pickle's protocol.
const CLASS: &[u8] = b"cZODB.blob\nBlob\n";

/// Bytes of a record that [`is_blob`] needs to see, if it has as many.
pub const BLOB_PREFIX: usize = 2 + CLASS.len();

/// Whether a record is one of a blob (`is_blob_record` of `ZODB/blob.py`). The start of its data is
/// enough.
pub fn is_blob(data: &[u8]) -> bool {
    let class = match data {
        [0x80, _, class @ ..] => class,
        class => class,
    };
    class.starts_with(CLASS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_known_by_its_class_and_nothing_else() {
        let rows: [(&[u8], bool); 6] = [
            (b"\x80\x03cZODB.blob\nBlob\nq\0.\x80\x03N.", true),
            (b"cZODB.blob\nBlob\n.N.", true),
            (b"\x80\x03cZODB.blob\nBlobCacheLayout\n.N.", false),
            (b"\x80\x03(cZODB.blob\nBlob\nNt.N.", false),
            (b"\x80\x03cZODB.blob\nBlo", false),
            (b"", false),
        ];
        for (data, expected) in rows {
            assert_eq!(is_blob(data), expected, "{}", data.escape_ascii());
            assert_eq!(is_blob(&data[..data.len().min(BLOB_PREFIX)]), expected);
        }
    }
}
