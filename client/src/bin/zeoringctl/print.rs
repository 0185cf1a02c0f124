//! What comes out: lines and JSON, numbers as people write them, and errors.

use std::fmt;
use std::io::{self, Write};

use serde_json::Value;
use zeoring_client::ClientError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nobody takes what we print, or a file cannot be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It makes sense, but not with this storage.
    #[error("{0}")]
    Refused(String),
}

/// Prints a JSON value.
pub(crate) fn show(value: &Value) -> Result<(), Failure> {
    line(format_args!("{value:#}"))
}

/// Prints a line.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(io::stdout(), "{text}").map_err(Failure::Output)
}

/// Reads up to 16 hexadecimal digits, as tids and oids are printed, with or without `0x`.
pub(crate) fn hex_number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let is_hex = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = u64::from_str_radix(digits, 16).ok().filter(|_| is_hex);
    number.ok_or_else(|| format!("{text:?} is not one to sixteen hexadecimal digits"))
}

/// A time in seconds since 1970 as people read it, in UTC.
pub(crate) fn time_text(time_s: f64) -> String {
    let whole = time_s.floor();
    match jiff::Timestamp::from_second(whole as i64) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => format!("{time_s:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal_with_or_without_a_prefix() {
        assert_eq!(hex_number("0"), Ok(0));
        assert_eq!(hex_number("0x1f"), Ok(0x1f));
        assert_eq!(hex_number("7fffffffffffffff"), Ok(0x7fff_ffff_ffff_ffff));
        for wrong in ["", "0x", "-1", "+1", "12345678901234567", "xyz"] {
            assert!(hex_number(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_utc_to_the_second() {
        assert_eq!(time_text(0.9), "1970-01-01 00:00:00");
        assert_eq!(time_text(1_700_000_000.5), "2023-11-14 22:13:20");
    }
}
