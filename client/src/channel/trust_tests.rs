//! Whom a client trusts and who trusts it, and what it says when they do not.

use std::path::Path;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams};
use rustls::ServerConnection;

use super::site::{ASKED, Asked, Chance, Made, Site, VERSIONS, channel, pem, server, talk};
use super::{Channel, ChannelError};
use crate::tls::{Authenticate, Tls, TlsError, TlsOptions};

const AUTHORITY: Asked = Asked { common_name: "Our authority", is_authority: true, ..ASKED };
const NAMED: Asked = Asked { common_name: "db", names: &["db.example", "10.0.0.7"], ..ASKED };

/// Whether a word gets to the server and back, and else what the client says.
fn try_out(channel: &mut Channel, server: &mut ServerConnection) -> Result<(), String> {
    channel.send(b"word").unwrap();
    let outcome = talk(channel, server, 2000, &mut Chance::new(1));
    outcome.client.map_err(|error| error.to_string())?;
    assert_eq!((&outcome.at_server[..], &outcome.clear[..]), (&b"word"[..], &b"word"[..]));
    assert_eq!(outcome.server, Ok(()));
    Ok(())
}

/// One way in which client and server may be set up.
struct Case<'a> {
    what: &'a str,
    shown: &'a Made,
    trusted: String,
    host: &'a str,
    /// A part of what the client says; nothing if it lets the server in.
    error: &'a str,
    /// The same when names are not checked.
    error_unnamed: &'a str,
}

fn check(cases: &[Case<'_>]) {
    for case in cases {
        for (version, check_hostname) in
            VERSIONS.into_iter().flat_map(|version| [(version, true), (version, false)])
        {
            let site = Site::new();
            let options = TlsOptions { check_hostname, ..site.trusting(&case.trusted) };
            let mut channel = channel(&options, case.host);
            let mut server = server(case.shown, &[], version);
            let said = try_out(&mut channel, &mut server);
            let expected = if check_hostname { case.error } else { case.error_unnamed };
            let is_as_expected = match &said {
                Ok(()) => expected.is_empty(),
                Err(error) => !expected.is_empty() && error.contains(expected),
            };
            assert!(is_as_expected, "{}, {version:?}, {check_hostname}: {said:?}", case.what);
        }
    }
}

/// An encrypted key as OpenSSL wrote them before PKCS #8.
const OLDER_KEY: &str = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\
    DEK-Info: DES-EDE3-CBC,769B900D03925712\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";

const STRANGER: &str = "the server's certificate is neither in /";

#[test]
fn a_certificate_that_is_pinned_is_trusted_for_itself_alone() {
    let bare = ASKED.self_signed();
    let authority = Asked { is_authority: true, ..ASKED }.ed25519().self_signed();
    let old = ASKED.self_signed().of_version_1();
    let old_ed25519 = ASKED.ed25519().self_signed().of_version_1();
    let twin = ASKED.self_signed();
    let twin_authority = Asked { is_authority: true, ..ASKED }.self_signed();
    let twin_old = ASKED.self_signed().of_version_1();
    let named = NAMED.self_signed();
    let expired = Asked { years: (2000, 2001), ..ASKED }.self_signed();
    let early = Asked { years: (4000, 4001), ..ASKED }.self_signed();
    let thief = Made { chain: bare.chain.clone(), key: twin.key };
    let old_thief = Made { chain: old.chain.clone(), key: twin_old.key };
    let twin = ASKED.self_signed();
    let twin_old = ASKED.self_signed().of_version_1();
    let leaf_bearer = {
        let issuer = Asked { is_authority: false, ..ASKED }.issuer();
        let mut made = NAMED.signed_by(&issuer);
        made.chain.push(issuer.der().clone());
        made
    };
    let leaf_pem = pem("CERTIFICATE", &leaf_bearer.chain[1]);
    let named_bearer = {
        let issuer = NAMED.issuer();
        let mut made = NAMED.signed_by(&issuer);
        made.chain.push(issuer.der().clone());
        made
    };
    let named_pem = pem("CERTIFICATE", &named_bearer.chain[1]);
    let case = |what, shown, trusted: &Made, host, error, error_unnamed| Case {
        what,
        shown,
        trusted: trusted.pem(),
        host,
        error,
        error_unnamed,
    };
    let wrong = "is not for db.example but for zodb.org;";
    let wrong_common = "is not for db but for db.example, 10.0.0.7;";
    let wrong_address = "is not for 10.0.0.8 but for db.example, 10.0.0.7;";
    check(&[
        case("common name", &bare, &bare, "zodb.org", "", ""),
        case("other host", &bare, &bare, "db.example", wrong, ""),
        case("CA:TRUE", &authority, &authority, "zodb.org", "", ""),
        case("CA:TRUE, other host", &authority, &authority, "db.example", wrong, ""),
        case("version 1", &old, &old, "zodb.org", "", ""),
        case("version 1 with Ed25519", &old_ed25519, &old_ed25519, "zodb.org", "", ""),
        case("version 1, other host", &old, &old, "db.example", wrong, ""),
        case("alternative name", &named, &named, "db.example", "", ""),
        case("alternative address", &named, &named, "10.0.0.7", "", ""),
        case("common name beside alternative", &named, &named, "db", wrong_common, ""),
        case("other address", &named, &named, "10.0.0.8", wrong_address, ""),
        case("twin", &twin, &bare, "zodb.org", STRANGER, STRANGER),
        case("twin of an authority", &twin_authority, &authority, "zodb.org", STRANGER, STRANGER),
        case("authority's twin", &twin_authority, &bare, "zodb.org", STRANGER, STRANGER),
        case("twin of version 1", &twin_old, &old, "zodb.org", STRANGER, STRANGER),
        case("expired twin", &expired, &bare, "zodb.org", STRANGER, STRANGER),
        case("expired", &expired, &expired, "zodb.org", "it expired 9", "it expired 9"),
        case(
            "not yet valid",
            &early,
            &early,
            "zodb.org",
            "it will be valid in 7",
            "it will be valid in 7",
        ),
        case(
            "without its key",
            &thief,
            &bare,
            "zodb.org",
            "does not hold the key",
            "does not hold the key",
        ),
        case(
            "v1 without its key",
            &old_thief,
            &old,
            "zodb.org",
            "does not hold the key",
            "does not hold the key",
        ),
        Case {
            what: "signed by a pinned server with extensions",
            shown: &named_bearer,
            trusted: named_pem,
            host: "db.example",
            error: STRANGER,
            error_unnamed: STRANGER,
        },
        Case {
            what: "signed by a pinned server",
            shown: &leaf_bearer,
            trusted: leaf_pem,
            host: "db.example",
            error: STRANGER,
            error_unnamed: STRANGER,
        },
    ]);
}

#[test]
fn an_authority_is_trusted_for_those_it_has_signed() {
    let authority = AUTHORITY.issuer();
    let stranger = AUTHORITY.issuer();
    let between = Asked { common_name: "Between", ..AUTHORITY }.issuer_by(&authority);
    let direct = NAMED.signed_by(&authority);
    let bare = ASKED.signed_by(&authority);
    let mut indirect = NAMED.signed_by(&between);
    indirect.chain.push(between.der().clone());
    let gap = NAMED.signed_by(&between);
    let foreign = NAMED.signed_by(&stranger);
    let expired = Asked { years: (2000, 2001), ..NAMED }.signed_by(&authority);
    let trusted = authority.pem();
    let case = |what, shown, host, error, error_unnamed| Case {
        what,
        shown,
        trusted: trusted.clone(),
        host,
        error,
        error_unnamed,
    };
    let wrong = "is not for other.example but for db.example, 10.0.0.7; set `server-hostname`";
    let nameless = "is not for zodb.org but for no name at all;";
    check(&[
        case("signed", &direct, "db.example", "", ""),
        case("signed, by address", &direct, "10.0.0.7", "", ""),
        case("signed, other host", &direct, "other.example", wrong, ""),
        // Common names are for pinned ones only: an authority's limits on names would not hold.
        case("signed, common name", &bare, "zodb.org", nameless, ""),
        case("over another", &indirect, "db.example", "", ""),
        case("over another that is missing", &gap, "db.example", STRANGER, STRANGER),
        case("by a stranger", &foreign, "db.example", STRANGER, STRANGER),
        case("expired", &expired, "db.example", "it expired 9", "it expired 9"),
        Case {
            what: "pinned, its authority unknown",
            shown: &direct,
            trusted: direct.pem(),
            host: "db.example",
            error: "",
            error_unnamed: "",
        },
        Case {
            what: "pinned among others",
            shown: &foreign,
            trusted: format!("{trusted}# Ours:\n{}", foreign.pem()),
            host: "db.example",
            error: "",
            error_unnamed: "",
        },
    ]);
}

#[test]
fn a_revoked_certificate_is_refused_and_so_is_an_unused_list() {
    let authority = AUTHORITY.issuer();
    let good = NAMED.signed_by(&authority);
    let bad = Asked { serial: 7, ..NAMED }.signed_by(&authority);
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(4000, 1, 1),
        crl_number: 1.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: 7.into(),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = list.signed_by(&authority).unwrap().pem().unwrap();
    let case = |what, shown: &'static str, made, error| Case {
        what,
        shown: made,
        trusted: match shown {
            "authority" => format!("{}{list}", authority.pem()),
            _ => format!("{}{list}{}", authority.pem(), bad.pem()),
        },
        host: "db.example",
        error,
        error_unnamed: error,
    };
    check(&[
        case("not revoked", "authority", &good, ""),
        case("revoked", "authority", &bad, "revoked"),
        case("revoked and pinned", "both", &bad, "revoked"),
    ]);
    let site = Site::new();
    let broken = format!("{}{}", authority.pem(), pem("X509 CRL", b"\x30\x00"));
    let error = Tls::prepare(&site.trusting(&broken)).err().unwrap().to_string();
    assert!(error.contains("a revocation list in /"), "{error}");
}

#[test]
fn a_directory_is_all_its_certificates() {
    let site = Site::new();
    let directory = site.directory.path().join("authorities");
    std::fs::create_dir(&directory).unwrap();
    let options = TlsOptions {
        authenticate: Authenticate::from_setting(&directory),
        ..TlsOptions::default()
    };
    assert_eq!(options.authenticate, Authenticate::Directory(directory.clone()));
    let error = Tls::prepare(&options).err().unwrap();
    assert!(matches!(error, TlsError::EmptyDirectory { .. }), "{error}");

    let names = ["a.pem", "b.crt", "0123abcd.0", "notes.txt", "0123abcd.r0", "123.0"];
    let made = names.map(|_| NAMED.self_signed());
    for (name, made) in names.iter().zip(&made) {
        site.file(&format!("authorities/{name}"), &made.pem());
    }
    site.file("authorities/key.pem", &made[0].key.serialize_pem());
    site.file("authorities/older.pem", OLDER_KEY);
    std::os::unix::fs::symlink("gone", directory.join("89abcdef.0")).unwrap();
    for (index, (name, made)) in names.iter().zip(&made).enumerate() {
        let mut channel = channel(&options, "db.example");
        let tried = try_out(&mut channel, &mut server(made, &[], VERSIONS[1]));
        assert_eq!(tried.is_ok(), index < 3, "{name}: {tried:?}");
    }
}

#[test]
fn a_server_that_wants_a_certificate_gets_it_or_is_told_of() {
    let site = Site::new();
    let shown = NAMED.self_signed();
    let own = Asked { common_name: "client", ..ASKED }.self_signed();
    let old = Asked { common_name: "client", ..ASKED }.self_signed().of_version_1();
    let both = site.file("both.pem", &(own.key.serialize_pem() + &own.pem()));
    let certificate = site.file("client.pem", &own.pem());
    let key = site.file("client_key.pem", &own.key.serialize_pem());
    let old_certificate = site.file("old.pem", &old.pem());
    let old_key = site.file("old_key.pem", &old.key.serialize_pem());
    let wanted = [own.chain[0].clone(), old.chain[0].clone()];
    let others = [shown.chain[0].clone()];
    let trusting = site.trusting(&shown.pem());
    let refused = format!("does not accept the certificate in {} (", certificate.display());
    let old_refused = format!("the certificate in {} (BadC", old_certificate.display());
    let cases = [
        (Some(&certificate), Some(&key), &wanted[..], ""),
        (Some(&both), None, &wanted, ""),
        // Rustls as a server cannot read version 1. OpenSSL can.
        (Some(&old_certificate), Some(&old_key), &wanted, old_refused.as_str()),
        (Some(&certificate), Some(&key), &[], ""),
        (None, None, &[], ""),
        (None, None, &wanted, "wants a client certificate; set `certificate` and `key`"),
        (Some(&certificate), Some(&key), &others, refused.as_str()),
    ];
    for (certificate, key, wanted, expected) in cases {
        for version in VERSIONS {
            let options = TlsOptions {
                certificate: certificate.cloned(),
                key: key.cloned(),
                ..trusting.clone()
            };
            let mut channel = channel(&options, "db.example");
            let said = try_out(&mut channel, &mut server(&shown, wanted, version));
            let said = said.err().unwrap_or_default();
            let is_as_expected = said.is_empty() == expected.is_empty() && said.contains(expected);
            assert!(is_as_expected, "{certificate:?}, {version:?}: {said}");
        }
    }
}

#[test]
fn a_refused_server_is_told_why() {
    let (site, shown) = (Site::new(), NAMED.self_signed());
    let options = site.trusting(&ASKED.self_signed().pem());
    for version in VERSIONS {
        let (mut channel, mut server) =
            (channel(&options, "db.example"), server(&shown, &[], version));
        let outcome = talk(&mut channel, &mut server, 1000, &mut Chance::new(1));
        assert!(matches!(outcome.client, Err(ChannelError::UnknownIssuer { .. })));
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        assert_eq!(outcome.server, Err(alert), "{version:?}");
    }
}

#[test]
fn the_name_that_is_called_is_the_setting_or_else_the_host() {
    let (site, shown) = (Site::new(), NAMED.self_signed());
    let trusting = site.trusting(&shown.pem());
    let cases = [
        ("db.example", None, true, Some("db.example")),
        ("127.0.0.1", Some("db.example"), true, Some("db.example")),
        ("", Some("db.example"), true, Some("db.example")),
        ("10.0.0.7", None, true, None),
        ("", None, false, None),
        ("not a name", None, false, None),
    ];
    for (host, setting, check_hostname, told) in cases {
        let server_hostname = setting.map(str::to_owned);
        let options = TlsOptions { check_hostname, server_hostname, ..trusting.clone() };
        let mut server = server(&shown, &[], VERSIONS[1]);
        assert_eq!(try_out(&mut channel(&options, host), &mut server), Ok(()), "{host}");
        assert_eq!(server.server_name(), told, "{host}");
    }
    for host in ["", "not a name", "fe80::1%eth0"] {
        let error = Tls::prepare(&trusting).unwrap().channel(host).err().unwrap();
        assert!(matches!(&error, TlsError::HostName { host: named } if named == host), "{error}");
        assert!(error.to_string().contains("server-hostname"), "{error}");
    }
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_remedy() {
    let site = Site::new();
    let own = ASKED.self_signed();
    let certificate = site.file("own.pem", &own.pem());
    let key = own.key.serialize_pem();
    let other = ASKED.self_signed().key.serialize_pem();
    let keys = [
        ("none.pem", "", "holds no private key; set `key`"),
        ("newer.pem", &key.replace("PRIVATE", "ENCRYPTED PRIVATE"), "openssl pkey -in /"),
        ("older.pem", OLDER_KEY, "is encrypted, which is not supported"),
        ("other.pem", &other, "does not belong to the certificate in /"),
        ("bad.pem", &pem("PRIVATE KEY", b"\x30\x00"), "cannot be used: RSA of 2048"),
        ("cut.pem", &key[..80], "is damaged"),
    ];
    for (name, content, expected) in keys {
        let path = site.file(name, content);
        let options = TlsOptions {
            certificate: Some(certificate.clone()),
            key: Some(path.clone()),
            ..site.trusting(&own.pem())
        };
        said(&options, &path, expected);
    }
    let options =
        TlsOptions { certificate: Some(certificate.clone()), ..site.trusting(&own.pem()) };
    said(&options, &certificate, "holds no private key");
    let options = TlsOptions { key: Some(certificate.clone()), ..site.trusting(&own.pem()) };
    said(&options, &certificate, "there is no `certificate`");

    let trusted = [
        ("none.pem", key.as_str(), "holds no certificate"),
        ("strange.pem", &pem("CERTIFICATE", b"\x30\x00"), "cannot be understood"),
        ("cut.pem", &own.pem()[..200], "is damaged"),
    ];
    for (name, content, expected) in trusted {
        let path = site.file(name, content);
        let authenticate = Authenticate::from_setting(&path);
        said(&TlsOptions { authenticate, ..TlsOptions::default() }, &path, expected);
        let options = TlsOptions { certificate: Some(path.clone()), ..site.trusting(&own.pem()) };
        said(&options, &path, expected);
    }
    let gone = site.directory.path().join("gone");
    for authenticate in [Authenticate::File(gone.clone()), Authenticate::Directory(gone.clone())] {
        said(&TlsOptions { authenticate, ..TlsOptions::default() }, &gone, "cannot read");
    }
}

/// These settings must fail with this said, and this file named.
fn said(options: &TlsOptions, path: &Path, expected: &str) {
    let error = Tls::prepare(options).err().unwrap().to_string();
    assert!(error.contains(expected), "{error}");
    assert!(error.contains(&path.display().to_string()), "{error}");
}

#[test]
fn the_setting_that_names_nothing_means_the_system() {
    assert_eq!(Authenticate::from_setting(Path::new("")), Authenticate::System);
    assert_eq!(Authenticate::from_setting(Path::new("DYNAMIC")), Authenticate::System);
}
