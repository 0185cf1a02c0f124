//! What every client does, whichever drives it, with a real server: ours, or with
//! `ZEORING_STOCK_SERVER=path/of/runzeo` the stock one.
//!
//! The scenarios are one text that is compiled once a driver; `go!` is where they differ: a call
//! that waits, or a future that is awaited.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "other tests need more of it")]
mod house;

macro_rules! scenarios {
    () => {
        mod commits {
            include!("scenarios/commits.rs");
        }
        mod connection {
            include!("scenarios/connection.rs");
        }
        mod loads {
            include!("scenarios/loads.rs");
        }
        mod news {
            include!("scenarios/news.rs");
        }
        mod tls {
            include!("scenarios/tls.rs");
        }
        mod undo {
            include!("scenarios/undo.rs");
        }
        mod walks {
            include!("scenarios/walks.rs");
        }
    };
}

/// Commits states of objects in one transaction, and gives its tid.
macro_rules! commit {
    ($client:expr, $states:expr) => {{
        let mut transaction = go!($client.begin(&zeoring_client::Description::default())).unwrap();
        for (oid, serial, data) in $states {
            go!(transaction.store(oid, serial, AsRef::<[u8]>::as_ref(&data))).unwrap();
        }
        match go!(transaction.vote()).unwrap() {
            zeoring_client::Vote::Ready(voted) => go!(voted.finish()).unwrap(),
            other => panic!("nobody else writes: {other:?}"),
        }
    }};
}

/// The objects that are voted for.
macro_rules! ready {
    ($vote:expr) => {
        match $vote {
            zeoring_client::Vote::Ready(voted) => voted,
            other => panic!("nobody else writes: {other:?}"),
        }
    };
}

mod driven {
    use zeoring_client::DrivenClient as Zeo;

    macro_rules! go {
        ($call:expr) => {
            $call
        };
    }
    macro_rules! pause {
        () => {
            std::thread::yield_now()
        };
    }
    macro_rules! scenario {
        ($name:ident $body:block) => {
            #[test]
            fn $name() $body
        };
    }
    scenarios!();
}

mod threaded {
    use zeoring_client::Client as Zeo;

    macro_rules! go {
        ($call:expr) => {
            $call
        };
    }
    macro_rules! pause {
        () => {
            std::thread::yield_now()
        };
    }
    macro_rules! scenario {
        ($name:ident $body:block) => {
            #[test]
            fn $name() $body
        };
    }
    scenarios!();
}

mod local {
    use zeoring_client::AsyncClient as Zeo;

    macro_rules! go {
        ($call:expr) => {
            $call.await
        };
    }
    macro_rules! pause {
        () => {
            tokio_uring::no_op().await.unwrap()
        };
    }
    macro_rules! scenario {
        ($name:ident $body:block) => {
            #[test]
            fn $name() {
                tokio_uring::start(async $body);
            }
        };
    }
    scenarios!();
}
