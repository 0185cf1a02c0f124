//! What a value may look like: ZConfig's data types, as far as this server's keys need them.
//!
//! Each function takes the value and returns what it means, or what was expected in its place.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Address, zconfig::Environment};
use crate::log::Threshold;

/// `yes`, `true`, `on`, `no`, `false`, `off`, in any case.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_lowercase().as_str() {
        "yes" | "true" | "on" => Ok(true),
        "no" | "false" | "off" => Ok(false),
        _ => Err("expected yes, true, on, no, false or off".to_owned()),
    }
}

/// A whole number that is not negative.
pub fn integer(text: &str) -> Result<u64, String> {
    let digits = text.trim();
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    // `parse` would take a second sign.
    digits
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
        .ok_or_else(|| "expected a whole number".to_owned())
}

/// A whole number from `least` to `most`.
pub fn integer_between(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let between = |number: &u64| (least..=most).contains(number);
    integer(text).ok().filter(between).ok_or_else(|| {
        if most == u64::MAX {
            format!("expected a whole number, at least {least}")
        } else {
            format!("expected a whole number from {least} to {most}")
        }
    })
}

/// A number and `KB`, `MB` or `GB` (of 1024), or nothing for bytes. In bytes.
pub fn byte_size(text: &str) -> Result<u64, String> {
    let units = [("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30)];
    with_unit(text, &units)
        .ok_or_else(|| "expected a number of bytes, or one with KB, MB or GB".to_owned())
}

/// A number and `s`, `m`, `h` or `d`, or nothing for seconds.
pub fn time_interval(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 60 * 60), ("d", 24 * 60 * 60)];
    with_unit(text, &units)
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a number of seconds, or one with s, m, h or d".to_owned())
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim().to_lowercase();
    let (number, scale) = units
        .iter()
        .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)))
        .unwrap_or((&text, 1));
    integer(number).ok()?.checked_mul(scale)
}

/// A number of seconds, with a fraction or without; 0 and `none` mean never.
pub fn seconds_or_none(text: &str) -> Result<Option<Duration>, String> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let duration =
        text.parse().ok().and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    match duration {
        Some(duration) => Ok((!duration.is_zero()).then_some(duration)),
        None => Err("expected a number of seconds, or none".to_owned()),
    }
}

/// `auto`, which is `None`, or a whole number from `least` to `most`.
pub fn auto_or_integer(text: &str, least: u64, most: u64) -> Result<Option<u64>, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(None);
    }
    integer_between(text, least, most)
        .map(Some)
        .map_err(|_| format!("expected auto or a whole number from {least} to {most}"))
}

/// `host:port`, `port`, `host`, `[v6]:port`, `v6`, or a path with a `/`. Without a port the
/// system chooses one, and without a host all interfaces are meant, as in ZEO.
pub fn address(text: &str) -> Result<Address, String> {
    const EXPECTED: &str = "expected host:port, port, [IPv6]:port, or a path with a /";
    let text = text.trim();
    if text.contains('/') {
        return Ok(Address::Unix(PathBuf::from(text)));
    }
    let port_of = |text: &str| {
        integer_between(text, 0, u64::from(u16::MAX))
            .map(|port| port as u16)
            .map_err(|_| format!("{EXPECTED}; a port is a number from 0 to 65535"))
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(host) => (host, port_of(port)?),
            // More than one colon and no brackets: all of it is the address.
            None if host.contains(':') => (text, 0),
            None if port.is_empty() => (host, 0),
            None => (host, port_of(port)?),
        },
        None if text.chars().all(|c| c.is_ascii_digit()) && !text.is_empty() => {
            ("", port_of(text)?)
        }
        None if text.split_whitespace().count() == 1 => (text, 0),
        None => return Err(EXPECTED.to_owned()),
    };
    if host.contains(char::is_whitespace) {
        return Err(EXPECTED.to_owned());
    }
    let host = (!host.is_empty()).then(|| host.to_lowercase());
    Ok(Address::Tcp { host, port })
}

/// A level by its name, in any case, or a number from 0 to 50.
pub fn level(text: &str) -> Result<Threshold, String> {
    let number = match text.to_lowercase().as_str() {
        "critical" | "fatal" => 50,
        "error" => 40,
        "warn" | "warning" => 30,
        "info" => 20,
        "blather" => 15,
        "debug" => 10,
        "trace" => 5,
        "all" => 1,
        "notset" => 0,
        text => text.parse().unwrap_or(u8::MAX),
    };
    Threshold::new(number).ok_or_else(|| {
        "expected critical, error, warning, info, blather, debug, trace, all, notset or a number \
         from 0 to 50"
            .to_owned()
    })
}

/// A path whose directory exists; `~` at its start is the home directory.
pub fn path_in_existing_directory(
    text: &str,
    environment: Environment<'_>,
) -> Result<PathBuf, String> {
    let path = in_home(text, environment);
    match path.parent() {
        Some(folder) if folder != Path::new("") && !folder.is_dir() => {
            Err(format!("expected a path in a directory that exists ({})", folder.display()))
        }
        _ => Ok(path),
    }
}

fn in_home(text: &str, environment: Environment<'_>) -> PathBuf {
    let behind = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match (behind, environment("HOME")) {
        (Some(behind), Some(home)) => PathBuf::from(home.trim_end_matches('/').to_owned() + behind),
        _ => PathBuf::from(text),
    }
}

/// `\n`, `\t`, `\b`, `\f` and `\r` as the characters they stand for, as in log formats.
pub fn unescape(text: &str) -> String {
    let pairs = [("\\n", "\n"), ("\\t", "\t"), ("\\b", "\u{8}"), ("\\f", "\u{c}"), ("\\r", "\r")];
    pairs.iter().fold(text.to_owned(), |text, (written, meant)| text.replace(written, meant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_intervals_are_what_zconfig_makes_of_them() {
        let sizes = [
            ("0", Some(0)),
            ("12", Some(12)),
            (" 12 ", Some(12)),
            ("+12", Some(12)),
            ("1KB", Some(1024)),
            ("1 kb", Some(1024)),
            ("20MB", Some(20 << 20)),
            ("3gB", Some(3 << 30)),
            ("-1", None),
            ("1.5MB", None),
            ("1TB", None),
            ("MB", None),
            ("99999999999GB", None),
        ];
        for (text, bytes) in sizes {
            assert_eq!(byte_size(text).ok(), bytes, "{text}");
        }
        let intervals = [
            ("5", Some(5)),
            ("5s", Some(5)),
            ("2M", Some(120)),
            ("4h", Some(14_400)),
            ("1d", Some(86_400)),
            ("1w", None),
            ("", None),
        ];
        for (text, seconds) in intervals {
            assert_eq!(time_interval(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn zero_seconds_and_none_mean_never() {
        let half = Some(Some(Duration::from_millis(500)));
        let cases = [("0", Some(None)), ("None", Some(None)), ("0.5", half), ("-1", None)];
        for (text, meant) in cases.into_iter().chain([("x", None), ("nan", None), ("inf", None)]) {
            assert_eq!(seconds_or_none(text).ok(), meant, "{text}");
        }
    }

    #[test]
    fn addresses_are_what_zconfig_makes_of_them() {
        let tcp =
            |host: Option<&str>, port| Some(Address::Tcp { host: host.map(str::to_owned), port });
        let cases = [
            ("8100", tcp(None, 8100)),
            (":8100", tcp(None, 8100)),
            ("localhost:8100", tcp(Some("localhost"), 8100)),
            ("LocalHost", tcp(Some("localhost"), 0)),
            ("localhost:", tcp(Some("localhost"), 0)),
            ("127.0.0.1:0", tcp(Some("127.0.0.1"), 0)),
            ("[::1]:99", tcp(Some("::1"), 99)),
            ("::1", tcp(Some("::1"), 0)),
            ("./socket", Some(Address::Unix("./socket".into()))),
            ("70000", None),
            ("x:70000", None),
            ("x:y", None),
            ("", None),
            ("a b", None),
        ];
        for (text, meant) in cases {
            assert_eq!(address(text).ok(), meant, "{text}");
        }
        assert_eq!(address("[::1]:99").unwrap().to_string(), "[::1]:99");
    }

    #[test]
    fn a_path_may_start_at_home_and_its_directory_has_to_exist() {
        let home = |name: &str| (name == "HOME").then(|| "/".to_owned());
        let path = |text: &str| path_in_existing_directory(text, &home);
        assert_eq!(path("Data.fs").unwrap(), Path::new("Data.fs"));
        assert_eq!(path("~/Data.fs").unwrap(), Path::new("/Data.fs"));
        assert_eq!(
            path("/nowhere/Data.fs").unwrap_err(),
            "expected a path in a directory that exists (/nowhere)"
        );
    }
}
