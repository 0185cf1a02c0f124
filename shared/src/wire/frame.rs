//! Messages in a stream of bytes: a length, then that many bytes (`ZEO/asyncio/base.py`).

use super::WireError;

/// A frame at the front of a byte stream, and what follows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    /// The message, without its length.
    pub body: &'a [u8],
    /// The bytes after the message: give these to the next [`split_frame`].
    pub rest: &'a [u8],
}

/// Takes the first frame off the front of `input`.
///
/// ```text
///   0        4                 4 + length
///   | length | body ...        | next frame ...
/// ```
///
/// `None` while `input` holds only part of a frame: ask again with the same bytes in front.
///
/// # Errors
///
/// As soon as the four bytes are there: the body is not waited for, so a peer cannot make us
/// reserve memory by announcing it.
///
/// # Examples
///
/// ```
/// use zeoring_shared::wire::frame::split_frame;
///
/// let frame = split_frame(b"\0\0\0\x02hi\0\0", 64)?.expect("the first frame is whole");
/// assert_eq!(frame.body, b"hi");
/// assert_eq!(split_frame(frame.rest, 64)?, None);
/// # Ok::<(), zeoring_shared::wire::WireError>(())
/// ```
pub fn split_frame(input: &[u8], body_max: u32) -> Result<Option<Frame<'_>>, WireError> {
    let Some((length, rest)) = input.split_first_chunk() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length);
    if length == 0 {
        return Err(WireError::EmptyFrame);
    }
    if body_max < length {
        return Err(WireError::FrameTooLong { length, body_max });
    }
    let split = rest.split_at_checked(length as usize);
    Ok(split.map(|(body, rest)| Frame { body, rest }))
}

/// Appends a frame whose body is what `write` appends.
///
/// # Panics
///
/// If the body has 4 GiB or more: no message of ours does.
pub fn frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - start - 4).expect("our messages are shorter");
    if let Some(prefix) = out.get_mut(start..start + 4) {
        prefix.copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_of_a_frame_is_incomplete() {
        let whole = b"\0\0\0\x03abc";
        for cut in 0..whole.len() {
            assert_eq!(split_frame(&whole[..cut], 8), Ok(None), "cut at {cut}");
        }
        assert_eq!(split_frame(whole, 8), Ok(Some(Frame { body: b"abc", rest: b"" })));
    }

    #[test]
    fn a_frame_that_is_too_long_or_empty_is_refused_before_its_body_comes() {
        assert_eq!(
            split_frame(b"\xff\xff\xff\xff", 8),
            Err(WireError::FrameTooLong { length: u32::MAX, body_max: 8 })
        );
        assert_eq!(split_frame(b"\0\0\0\0", 8), Err(WireError::EmptyFrame));
    }

    #[test]
    fn a_frame_that_is_written_is_the_one_that_is_read() {
        let mut out = vec![0xa5];
        frame(&mut out, |body| body.extend_from_slice(b"abc"));
        assert_eq!(out, b"\xa5\0\0\0\x03abc");
    }
}
