//! Whole configurations: what they mean, and what is said of those that are wrong.

use std::{path::Path, time::Duration};

use super::{schema::Override, *};

fn settings_with(
    text: &str,
    options: &[&str],
    environment: zconfig::Environment<'_>,
) -> Result<Settings, String> {
    let overrides: Result<Vec<_>, _> = options.iter().map(|o| Override::parse(o)).collect();
    zconfig::parse(Path::new("zeo.conf"), text, environment)
        .and_then(|whole| build::settings_of(whole, &overrides?, environment))
        .map_err(|error| error.to_string())
}

fn settings(text: &str) -> Result<Settings, String> {
    settings_with(text, &[], &|_| None)
}

fn file(path: &str) -> FileSettings {
    match StorageKind::file(path.into()) {
        StorageKind::File(file) => file,
        other => panic!("{other:?}"),
    }
}

/// The smallest configuration that serves something.
const LEAST: &str = "<zeo>\naddress 8100\n</zeo>\n<mappingstorage/>\n";

#[test]
fn the_smallest_configuration_has_every_default() {
    let settings = settings(LEAST).unwrap();
    assert_eq!(
        settings,
        Settings {
            address: Address::Tcp { host: None, port: 8100 },
            read_only: false,
            invalidation_queue_size: 100,
            invalidation_age: None,
            transaction_timeout: Some(Duration::from_secs(30)),
            pid_file: None,
            msgpack: false,
            client_conflict_resolution: false,
            storages: vec![StorageSettings {
                name: "1".to_owned(),
                kind: StorageKind::Mapping { name: "Mapping Storage".to_owned() },
            }],
            log: LogSettings::default(),
            tuning: Tuning::default(),
            stop_at_once: false,
            notices: Vec::new(),
        }
    );
    assert!(!settings.log.configured);
    assert_eq!(settings.log.handlers[0].target, Target::Stderr);
}

#[test]
fn a_full_configuration_is_followed_to_the_letter() {
    let text = r"
        %import ZODB
        %define INSTANCE /tmp
        # A comment, and a blank line before a section.

        <zeo>
            ADDRESS 127.0.0.1:8100
            read-only off
            invalidation-queue-size 7
            invalidation-age 90.5
            transaction-timeout 60
            pid-filename $INSTANCE/ZEO.pid
            client-conflict-resolution true
            msgpack on
        </zeo>
        <blobstorage Main>
            blob-dir ${instance}/blobs
            <filestorage 2>
                path $INSTANCE/Data.fs
                quota 2GB
                pack-gc false
                pack-keep-old no
            </filestorage>
        </blobstorage>
        <filestorage Catalog>
            path Catalog.fs
            blob-dir
            create yes
            read-only yes
            packer zc.FileStorage.packer
        </filestorage>
        <mappingstorage scratch>
            name In memory
        </mappingstorage>
        <eventlog>
            level warn
            <logfile>
                path /tmp/zeo.log
                level ERROR
                format %(asctime)s\t%(message)s
                dateformat %d %H:%M
                max-size 5MB
                old-files 3
            </logfile>
            <logfile>
                path STDOUT
            </logfile>
        </eventlog>
        <runner>
            program /bin/runzeo -C zeo.conf
            socket-name /nowhere/zopectl.sock
            daemon true
        </runner>
        <zeoring>
            reactors 2
            spin-us 50
            connections-max 10
            frame-bytes-max 1MB
            handshake-timeout 1m
            progress-timeout 2m
            transaction-bytes-max 3MB
            output-bytes-max 2MB
        </zeoring>
    ";
    let settings = settings(text).unwrap();
    assert_eq!(settings.address.to_string(), "127.0.0.1:8100");
    assert!(settings.client_conflict_resolution && settings.msgpack && !settings.read_only);
    assert_eq!(settings.invalidation_queue_size, 7);
    assert_eq!(settings.invalidation_age, Some(Duration::from_millis(90_500)));
    assert_eq!(settings.transaction_timeout, Some(Duration::from_secs(60)));
    assert_eq!(settings.pid_file, Some("/tmp/ZEO.pid".into()));

    let storages: Vec<_> =
        settings.storages.iter().map(|s| (s.name.as_str(), s.kind.clone())).collect();
    let main = FileSettings {
        quota_bytes: Some(2 << 30),
        pack_gc: false,
        pack_keep_old: false,
        ..file("/tmp/Data.fs")
    };
    let base = Box::new(StorageKind::File(main));
    let catalog = FileSettings {
        create: true,
        read_only: true,
        packer: Some("zc.FileStorage.packer".to_owned()),
        ..file("Catalog.fs")
    };
    let expected = [
        ("main", StorageKind::Blob { blob_dir: "/tmp/blobs".into(), base }),
        ("catalog", StorageKind::File(catalog)),
        ("scratch", StorageKind::Mapping { name: "In memory".to_owned() }),
    ];
    assert_eq!(storages, expected);
    assert_eq!(settings.notices.len(), 1);
    assert!(settings.notices[0].contains("zc.FileStorage.packer"), "{:?}", settings.notices);

    let rotation = Rotation { bytes_max: 5 << 20, old_files: NonZeroUsize::new(3).unwrap() };
    let first = HandlerSettings {
        level: Threshold::new(40).unwrap(),
        format: Format::parse("%(asctime)s\t%(message)s").unwrap(),
        date_format: "%d %H:%M".to_owned(),
        rotation: Some(rotation),
        ..HandlerSettings::new(Target::File("/tmp/zeo.log".into()))
    };
    let handlers = vec![first, HandlerSettings::new(Target::Stdout)];
    let level = Threshold::new(30).unwrap();
    assert_eq!(settings.log, LogSettings { level, handlers, configured: true });

    assert_eq!(
        settings.tuning,
        Tuning {
            reactors: Reactors::Count(NonZeroUsize::new(2).unwrap()),
            spin: Spin::For(Duration::from_micros(50)),
            connections_max: NonZeroUsize::new(10).unwrap(),
            frame_bytes_max: 1 << 20,
            handshake_timeout: Duration::from_secs(60),
            progress_timeout: Duration::from_secs(120),
            transaction_bytes_max: 3 << 20,
            output_bytes_max: 2 << 20,
        }
    );
}

#[test]
fn the_configurations_of_zeos_own_tests_are_read() {
    let zeo = "<zeo>\naddress 127.0.0.1:0\nread-only false\n</zeo>\n";
    // (storages as ZEO's tests write them, their names)
    let cases: [(&str, &[&str]); 6] = [
        ("<mappingstorage 1/>", &["1"]),
        ("<mappingstorage>\n</mappingstorage>\n", &["1"]),
        (
            "<mappingstorage first>\n</mappingstorage>\n<mappingstorage second/>",
            &["first", "second"],
        ),
        ("<filestorage 1>\npath Data.fs\ncreate yes\nread-only no\n</filestorage>", &["1"]),
        (
            "<blobstorage>\nblob-dir b\n<filestorage>\npath fs\n</filestorage>\n</blobstorage>",
            &["1"],
        ),
        (
            "<blobstorage 1>\nblob-dir blobs\n<filestorage 2>\npath Data.fs\n</filestorage>\n\
             </blobstorage>\n<eventlog>\nlevel INFO\n<logfile>\npath server.log\n</logfile>\n\
             </eventlog>",
            &["1"],
        ),
    ];
    for (storages, names) in cases {
        let settings = settings(&format!("{zeo}{storages}")).unwrap();
        let found: Vec<_> = settings.storages.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(found, names, "{storages}");
    }
}

#[test]
fn the_environment_fills_in_what_no_key_says() {
    let environment = |name: &str| match name {
        "INSTANCE_HOME" => Some("/srv/zeo".to_owned()),
        "ZEO_MSGPACK" | "ZEO_MTACCEPTOR" => Some("1".to_owned()),
        _ => None,
    };
    let settings = settings_with(LEAST, &[], &environment).unwrap();
    assert_eq!(settings.pid_file, Some("/srv/zeo/var/ZEO.pid".into()));
    assert!(settings.msgpack);
    assert!(settings.notices[0].contains("ZEO_MTACCEPTOR"), "{:?}", settings.notices);

    let options = ["zeo/msgpack=no", "zeo/pid-filename=x"];
    let settings = settings_with(LEAST, &options, &environment).unwrap();
    assert_eq!((settings.msgpack, settings.pid_file), (false, Some("x".into())));
    let settings = settings_with(LEAST, &["zeo/read-only=yes"], &environment).unwrap();
    assert_eq!(settings.pid_file, None);
    let settings = settings_with(LEAST, &["zeo/pid-filename="], &environment).unwrap();
    assert_eq!(settings.pid_file, Some("/srv/zeo/var/ZEO.pid".into()));
}

#[test]
fn an_eventlog_without_handlers_is_silent() {
    let log = settings(&format!("{LEAST}<eventlog/>\n")).unwrap().log;
    assert!(log.configured && log.handlers.is_empty());
}

#[test]
fn a_timeout_of_zero_or_none_is_no_timeout() {
    for value in ["0", "none", "None", "0.0"] {
        let option = format!("zeo/transaction-timeout={value}");
        let settings = settings_with(LEAST, &[&option], &|_| None).unwrap();
        assert_eq!(settings.transaction_timeout, None, "{value}");
    }
}

const NESTED: &str = "<zeo>\naddress 1\n</zeo>\n\
    <blobstorage Main>\nblob-dir b\n<filestorage>\npath a\n</filestorage>\n</blobstorage>\n\
    <filestorage x>\npath c\n</filestorage>\n<filestorage y>\npath d\n</filestorage>\n";

#[test]
fn overrides_find_their_section_as_in_zconfig() {
    // (options, the files of the storages afterwards)
    let cases: [(&[&str], [&str; 3]); 7] = [
        (&["zeo/ADDRESS= 2"], ["a", "c", "d"]),
        (&["MAIN/filestorage/path=q"], ["q", "c", "d"]),
        (&["blobstorage/FileStorage/Path=q"], ["q", "c", "d"]),
        // The first section of the type takes all of them.
        (&["filestorage/path=q", "filestorage/quota=1KB"], ["a", "q", "d"]),
        (&["y/path=q"], ["a", "c", "q"]),
        (&["x/path=p", "y/path=q"], ["a", "p", "q"]),
        (&["x/path=$q"], ["a", "$q", "d"]),
    ];
    for (options, paths) in cases {
        let settings = settings_with(NESTED, options, &|_| None).unwrap();
        let found = settings.storages.iter().map(|storage| {
            let kind = match &storage.kind {
                StorageKind::Blob { base, .. } => base,
                kind => kind,
            };
            match kind {
                StorageKind::File(file) => file.path.to_str().unwrap(),
                other => panic!("{other:?}"),
            }
        });
        assert!(found.eq(paths), "{options:?}");
    }
}

#[test]
fn each_wrong_override_is_named() {
    let cases: [(&[&str], &str); 8] = [
        (&["nope/path=q"], "-X nope/path=q: the configuration has no section \"nope\" there"),
        (&["path=q"], "-X path=q: unknown key \"path\" in the configuration; it has no keys"),
        (&["zeo//path=q"], "-X zeo//path=q: expected section/key=value"),
        (&["zeo"], "-X zeo: expected section/key=value"),
        (&["y/path=1", "y/path=2"], "-X y/path=2: path: it is set already, at -X y/path=1"),
        (
            &["zeo/read-only=maybe"],
            "-X zeo/read-only=maybe: read-only: expected yes, true, on, no, false or off, \
             found \"maybe\"",
        ),
        (
            &["x/pat=1"],
            "-X x/pat=1: unknown key \"pat\" in <filestorage>; did you mean path?; known keys: \
             path, blob-dir, create, read-only, quota, packer, pack-gc, pack-keep-old",
        ),
        (&["main/x/path=1"], "-X main/x/path=1: the configuration has no section \"x\" there"),
    ];
    for (options, message) in cases {
        let complaint = settings_with(NESTED, options, &|_| None).unwrap_err();
        assert_eq!(complaint, message, "{options:?}");
    }
}

#[test]
fn each_mistake_names_file_line_and_key() {
    // Each text is put behind LEAST, which has 4 lines.
    let behind = [
        ("<mappingstorage/>", "5: only one storage may be unnamed; zeo.conf:4 is too"),
        (
            "<mappingstorage 1/>",
            "4: a storage without a name is named 1, but zeo.conf:5 has that name",
        ),
        (
            "<mappingstorage a/>\n<mappingstorage A/>",
            "6: the name \"a\" is used already, at zeo.conf:5",
        ),
        ("<zeo>\naddress 2\n</zeo>", "5: <zeo> may stand in the configuration only once"),
        (
            "<filestorag>\n</filestorag>",
            "5: <filestorag> cannot stand in the configuration; did you mean filestorage?; known \
             sections: zeo, filestorage, mappingstorage, blobstorage, eventlog, runner, zeoring",
        ),
        ("x y", "5: unknown key \"x\" in the configuration; it has no keys"),
        ("<filestorage a>\n</filestorage>", "5: <filestorage> needs the key path"),
        ("<filestorage a>\npath\n</filestorage>", "6: path: expected a path, found \"\""),
        (
            "<filestorage a>\npath /nowhere/x\n</filestorage>",
            "6: path: expected a path in a directory that exists (/nowhere), found \
             \"/nowhere/x\"",
        ),
        (
            "<filestorage a>\npath x\nquota 1TB\n</filestorage>",
            "7: quota: expected a number of bytes, or one with KB, MB or GB, found \"1TB\"",
        ),
        (
            "<filestorage a>\npath x\nPath y\n</filestorage>",
            "7: path: it is set already, at zeo.conf:6",
        ),
        ("<blobstorage a>\nblob-dir b\n</blobstorage>", "5: a storage is missing in <blobstorage>"),
        (
            "<demostorage a/>",
            "5: <demostorage>: this version has <filestorage>, <mappingstorage> and <blobstorage>",
        ),
        (
            "<zeoclient a>\nserver 1\n</zeoclient>",
            "5: <zeoclient>: this version has <filestorage>, <mappingstorage> and <blobstorage>",
        ),
        (
            "<eventlog>\nlevel loud\n</eventlog>",
            "6: level: expected critical, error, warning, info, blather, debug, trace, all, notset \
             or a number from 0 to 50, found \"loud\"",
        ),
        (
            "<eventlog>\n<syslog/>\n</eventlog>",
            "6: <syslog>: this version has <logfile>; with path STDERR a service manager passes \
             the messages on",
        ),
        ("<eventlog>\n<logfile/>\n</eventlog>", "6: <logfile> needs the key path"),
        (
            "<eventlog>\n<logfile>\npath STDERR\nmax-size 1KB\nold-files 2\n</logfile>\n\
             </eventlog>",
            "8: max-size: only a file has that",
        ),
        (
            "<eventlog>\n<logfile>\npath x\nold-files 2\n</logfile>\n</eventlog>",
            "8: old-files: it needs max-size beside it",
        ),
        (
            "<eventlog>\n<logfile>\npath x\nmax-size 2\n</logfile>\n</eventlog>",
            "8: max-size: it needs old-files beside it",
        ),
        (
            "<eventlog>\n<logfile>\npath x\nwhen D\n</logfile>\n</eventlog>",
            "8: when: this version rotates by max-size, or by logrotate and USR2",
        ),
        (
            "<eventlog>\n<logfile>\npath x\nstyle template\n</logfile>\n</eventlog>",
            "8: style: this version has classic, with %(name)s",
        ),
        (
            "<eventlog>\n<logfile>\npath x\nformat %(message)d\n</logfile>\n</eventlog>",
            "8: format: expected %(message)s, because message is not a number, found \
             \"%(message)d\"",
        ),
        (
            "<zeoring>\nreactors many\n</zeoring>",
            "6: reactors: expected auto or a whole number from 1 to 1024, found \"many\"",
        ),
        (
            "<zeoring>\nframe-bytes-max 1KB\n</zeoring>",
            "6: frame-bytes-max: expected from 65536 to 4294967295 bytes, found \"1KB\"",
        ),
        (
            "<runner>\nprogramme x\n</runner>",
            "6: unknown key \"programme\" in <runner>; did you mean program?; known keys: program, \
             python, zdrun, socket-name, daemon, directory, backoff-limit, forever, exit-codes, \
             start-test-program, start-timeout, stop-timeout, user, umask, hang-around, \
             default-to-interactive, logfile, transcript, prompt",
        ),
    ];
    for (text, message) in behind {
        let complaint = settings(&format!("{LEAST}{text}\n")).unwrap_err();
        assert_eq!(complaint, format!("zeo.conf:{message}"), "{text}");
    }

    // Each text stands in <zeo>, from line 3.
    let inside = [
        (
            "foo 1",
            "3: unknown key \"foo\" in <zeo>; known keys: address, read-only, \
             invalidation-queue-size, invalidation-age, transaction-timeout, pid-filename, \
             client-conflict-resolution, msgpack",
        ),
        (
            "read_only 1",
            "3: unknown key \"read_only\" in <zeo>; did you mean read-only?; known keys: address, \
             read-only, invalidation-queue-size, invalidation-age, transaction-timeout, \
             pid-filename, client-conflict-resolution, msgpack",
        ),
        ("read-only 1", "3: read-only: expected yes, true, on, no, false or off, found \"1\""),
        ("Address 2", "3: address: it is set already, at zeo.conf:2"),
        (
            "invalidation-queue-size 10 # x",
            "3: invalidation-queue-size: expected a whole number from 1 to 4294967295, found \
             \"10 # x\"",
        ),
        (
            "transaction-timeout soon",
            "3: transaction-timeout: expected a number of seconds, or none, found \"soon\"",
        ),
        (
            "pid-filename /nowhere/x",
            "3: pid-filename: expected a path in a directory that exists (/nowhere), found \
             \"/nowhere/x\"",
        ),
        (
            "<ssl>\ncertificate x\n</ssl>",
            "3: <ssl>: TLS is not supported by this version; remove <ssl>",
        ),
        ("<zeo/>", "3: <zeo> cannot stand in <zeo>; it has no sections"),
    ];
    for (text, message) in inside {
        let text = format!("<zeo>\naddress 1\n{text}\n</zeo>\n<mappingstorage/>\n");
        let complaint = settings(&text).unwrap_err();
        assert_eq!(complaint, format!("zeo.conf:{message}"), "{text}");
    }

    let whole = [
        ("", "1: <zeo> is missing in the configuration"),
        ("<zeo>\naddress 1\n</zeo>", "1: a storage is missing in the configuration"),
        ("\n<zeo>\n</zeo>\n<mappingstorage/>", "2: <zeo> needs the key address"),
        (
            "<zeo>\naddress a b\n</zeo>\n<mappingstorage/>",
            "2: address: expected host:port, port, [IPv6]:port, or a path with a /, found \"a b\"",
        ),
        (
            "<zeo>\naddress 70000\n</zeo>\n<mappingstorage/>",
            "2: address: expected host:port, port, [IPv6]:port, or a path with a /; a port is a \
             number from 0 to 65535, found \"70000\"",
        ),
    ];
    for (text, message) in whole {
        let complaint = settings(text).unwrap_err();
        assert_eq!(complaint, format!("zeo.conf:{message}"), "{text}");
    }
}
