//! The first frame in each direction: the server offers, the client chooses
//! (`ZEO/asyncio/server.py`, `ServerProtocol`).

use super::frame::frame;
use super::{Codec, WireError};

/// What a client's first frame says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// It speaks this codec.
    Chosen(Codec),
    /// It wants the server's status, and nothing else.
    Ruok,
}

/// Writes the server's first frame.
pub fn announce(codec: Codec, out: &mut Vec<u8>) {
    frame(out, |body| body.extend_from_slice(name(codec)));
}

/// Reads the client's first frame.
///
/// # Errors
///
/// [`WireError::Handshake`]
pub fn read_answer(body: &[u8]) -> Result<Answer, WireError> {
    if body == b"ruok" { Ok(Answer::Ruok) } else { codec_of(body).map(Answer::Chosen) }
}

/// Reads the server's first frame: what it speaks best. A server takes either codec for an answer.
///
/// # Errors
///
/// [`WireError::Handshake`]
pub fn read_announcement(body: &[u8]) -> Result<Codec, WireError> {
    codec_of(body)
}

/// Writes the client's first frame.
pub fn answer(codec: Codec, out: &mut Vec<u8>) {
    announce(codec, out);
}

fn name(codec: Codec) -> &'static [u8; 2] {
    match codec {
        Codec::Pickle => b"Z5",
        Codec::Msgpack => b"M5",
    }
}

fn codec_of(body: &[u8]) -> Result<Codec, WireError> {
    let codecs = [Codec::Pickle, Codec::Msgpack];
    codecs.into_iter().find(|codec| name(*codec) == body).ok_or(WireError::Handshake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_choose_either_codec_ask_for_the_status_or_be_refused() {
        assert_eq!(read_answer(b"Z5"), Ok(Answer::Chosen(Codec::Pickle)));
        assert_eq!(read_answer(b"M5"), Ok(Answer::Chosen(Codec::Msgpack)));
        assert_eq!(read_answer(b"ruok"), Ok(Answer::Ruok));
        for other in [&b"Z4"[..], b"Z", b"Z51", b"z5", b"X5", b"GET / HTTP/1.1"] {
            assert_eq!(read_answer(other), Err(WireError::Handshake));
        }
    }
}
