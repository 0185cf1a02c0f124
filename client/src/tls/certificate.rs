//! What we have to know of a certificate that is trusted for being itself. No signature is checked.
//!
//! WebPKI reads certificates of version 3 only and gives away neither their dates nor their common
//! names, and certificates that a site made for itself years ago may be of version 1 and have
//! nothing but a common name. So here is a reader of the outermost layers of X.509:
//!
//! ```text
//!   Certificate = { { [0] version?, serial, algorithm, issuer, { not before, not after },
//!                     subject, public key, ..., [3] extensions? }, algorithm, signature }
//! ```

use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const T61_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// `id-at-commonName`, RFC 5280 appendix A.1.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// `id-ce-basicConstraints`, RFC 5280 section 4.2.1.9.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// A certificate, and what is in it that we act on.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    /// All of it.
    pub(super) der: CertificateDer<'static>,
    /// The first moment at which it is valid.
    pub(super) not_before: UnixTime,
    /// The last one.
    pub(super) not_after: UnixTime,
    /// Issuer and subject have the same name, so whoever made it vouches for itself.
    pub(super) is_self_issued: bool,
    /// Its key may sign other certificates: it says `CA:TRUE`. OpenSSL wants this too where it is
    /// strict, as ZEO has it be.
    pub(super) is_authority: bool,
    /// Whether it has extensions, among which alternative names could be.
    pub(super) has_extensions: bool,
    /// The common names of the subject: as a rule one.
    pub(super) common_names: Vec<String>,
    /// The key with its algorithm (`SubjectPublicKeyInfo`).
    pub(super) public_key: SubjectPublicKeyInfoDer<'static>,
    /// The algorithm of the key, without the header of its sequence.
    pub(super) key_algorithm: Vec<u8>,
    /// The key alone.
    pub(super) key: Vec<u8>,
}

impl Certificate {
    /// Reads a certificate; `None` if it is none.
    pub(super) fn read(der: CertificateDer<'static>) -> Option<Self> {
        let mut body = Der(Der(Der(&der).content(SEQUENCE)?).content(SEQUENCE)?);
        if body.is_next(VERSION) {
            body.content(VERSION)?;
        }
        body.content(INTEGER)?;
        body.content(SEQUENCE)?;
        let issuer = body.content(SEQUENCE)?;
        let mut validity = Der(body.content(SEQUENCE)?);
        let (not_before, not_after) = (validity.time()?, validity.time()?);
        let subject = body.content(SEQUENCE)?;
        let (_, public_key, whole_key) = body.any()?;
        let mut key = Der(public_key);
        let key_algorithm = key.content(SEQUENCE)?.to_vec();
        let key = key.content(BIT_STRING)?.strip_prefix(&[0])?.to_vec();
        let is_self_issued = issuer == subject;
        let common_names = common_names(subject)?;
        let public_key = SubjectPublicKeyInfoDer::from(whole_key.to_vec());
        let mut is_authority = false;
        let mut has_extensions = false;
        while let Some((tag, content, _)) = body.any() {
            if tag == EXTENSIONS {
                has_extensions = true;
                is_authority = says_authority(Der(content).content(SEQUENCE)?)?;
            }
        }
        Some(Self {
            not_before,
            not_after,
            is_self_issued,
            is_authority,
            has_extensions,
            common_names,
            public_key,
            key_algorithm,
            key,
            der,
        })
    }

    /// Whether one of the common names is `host`, or covers it with a `*` for its first label.
    pub(super) fn is_named(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        self.common_names.iter().any(|name| {
            let is_covered = name.strip_prefix("*.").is_some_and(|domain| {
                let rest = host.split_once('.').map(|(_, rest)| rest);
                domain.contains('.') && rest.is_some_and(|rest| rest.eq_ignore_ascii_case(domain))
            });
            is_covered || name.eq_ignore_ascii_case(host)
        })
    }
}

/// The common names in a distinguished name: a sequence of sets of (type, value).
fn common_names(name: &[u8]) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut sets = Der(name);
    while !sets.0.is_empty() {
        let mut attributes = Der(sets.content(SET)?);
        while !attributes.0.is_empty() {
            let mut attribute = Der(attributes.content(SEQUENCE)?);
            let kind = attribute.content(OBJECT_ID)?;
            let (tag, value, _) = attribute.any()?;
            let is_text = matches!(tag, UTF8_STRING | PRINTABLE_STRING | T61_STRING | IA5_STRING);
            if kind == COMMON_NAME && is_text {
                names.push(String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    Some(names)
}

/// Whether basic constraints are among the extensions, and say `CA:TRUE`.
fn says_authority(extensions: &[u8]) -> Option<bool> {
    let mut extensions = Der(extensions);
    while !extensions.0.is_empty() {
        let mut extension = Der(extensions.content(SEQUENCE)?);
        let kind = extension.content(OBJECT_ID)?;
        if extension.is_next(BOOLEAN) {
            extension.content(BOOLEAN)?;
        }
        let value = extension.content(OCTET_STRING)?;
        if kind == BASIC_CONSTRAINTS {
            let mut constraints = Der(Der(value).content(SEQUENCE)?);
            return Some(constraints.is_next(BOOLEAN) && constraints.content(BOOLEAN)? != [0]);
        }
    }
    Some(false)
}

/// What is left to read of a run of DER elements: a tag, a length and a content each.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn is_next(&self, tag: u8) -> bool {
        self.0.first() == Some(&tag)
    }

    /// The content of the next element, which must have this tag.
    fn content(&mut self, tag: u8) -> Option<&'a [u8]> {
        if !self.is_next(tag) {
            return None;
        }
        self.any().map(|(_, content, _)| content)
    }

    /// The next element: tag, content, and all of it. `None` at the end too.
    fn any(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // Three bytes of length are more than the longest chain that TLS carries.
            0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (digits.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        let whole = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        Some((tag, content, whole))
    }

    /// A time: `YYMMDDHHMMSSZ` of 1950 to 2049, or `YYYYMMDDHHMMSSZ`; RFC 5280 section 4.1.2.5.
    fn time(&mut self) -> Option<UnixTime> {
        let (tag, text, _) = self.any()?;
        let digits = text.strip_suffix(b"Z")?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number = |digits: &[u8]| {
            digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'))
        };
        let (year, rest) = match (tag, digits.len()) {
            (UTC_TIME, 12) => {
                let year = number(&digits[..2]);
                (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
            }
            (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
            _ => return None,
        };
        let [month, day, hour, minute, second] =
            [0, 2, 4, 6, 8].map(|at| number(&rest[at..at + 2]));
        let is_date = (1..=12).contains(&month) && (1..=31).contains(&day);
        if !is_date {
            return None;
        }
        let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
        // What was before 1970 is as good as 1970: nothing is checked as of then.
        let seconds = u64::try_from(seconds).unwrap_or(0);
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

/// The days from 1970-01-01 to a date. Years begin in March here, so that a leap day is the last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // Five months from March or August on have 153 days.
    let before_month = (153 * month + 2) / 5;
    // 1970-01-01 is day 719468 after 0000-03-01.
    year * 365 + leap_days + before_month + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(tag: u8, text: &str) -> Option<u64> {
        let mut der = vec![tag, text.len() as u8];
        der.extend(text.bytes());
        Der(&der).time().map(|time| time.as_secs())
    }

    #[test]
    fn times_are_read_in_both_forms() {
        let cases = [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "000229120000Z", Some(951_825_600)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(0)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "30041218090136Z", Some(32_660_269_296)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "20500101000000Z", None),
            (GENERALIZED_TIME, "500101000000Z", None),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "700100000000Z", None),
            (UTC_TIME, "70010100000xZ", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "700101000000", None),
            (INTEGER, "700101000000Z", None),
        ];
        for (tag, text, expected) in cases {
            assert_eq!(time(tag, text), expected, "{text}");
        }
    }

    #[test]
    fn any_cut_or_changed_byte_is_a_certificate_or_none_and_never_a_panic() {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".into()]).unwrap();
        let der = made.cert.der().to_vec();
        assert!(Certificate::read(der.clone().into()).is_some());
        for cut in 0..der.len() {
            assert!(Certificate::read(der[..cut].to_vec().into()).is_none(), "cut at {cut}");
        }
        for at in 0..der.len() {
            for byte in [0, 1, 0x7f, 0x80, 0x83, 0x84, 0xff] {
                let mut changed = der.clone();
                changed[at] = byte;
                drop(Certificate::read(changed.into()));
            }
        }
    }

    #[test]
    fn a_common_name_covers_a_host_as_openssl_has_it() {
        let made = rcgen::generate_simple_self_signed(Vec::new()).unwrap();
        let mut certificate = Certificate::read(made.cert.der().clone()).unwrap();
        let cases = [
            ("zodb.org", "zodb.org", true),
            ("ZODB.org", "zodb.ORG.", true),
            ("zodb.org", "www.zodb.org", false),
            ("*.zodb.org", "www.zodb.org", true),
            ("*.zodb.org", "a.www.zodb.org", false),
            ("*.zodb.org", "zodb.org", false),
            ("*.org", "zodb.org", false),
            ("*", "localhost", false),
            ("", "localhost", false),
        ];
        for (name, host, expected) in cases {
            certificate.common_names = vec![name.into()];
            assert_eq!(certificate.is_named(host), expected, "{name} for {host}");
        }
    }
}
