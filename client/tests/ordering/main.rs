//! In which order a client takes things in: the client's scenarios of `docs/ordering.md`, for each
//! driver, against a server that sends in the worst order there is.
//!
//! The scenarios are one text that is compiled once a driver; `go!` is where they differ: a call
//! that waits, or a future that is awaited.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../peer/mod.rs"]
mod peer;

mod driven {
    use zeoring_client::DrivenClient as Zeo;

    macro_rules! go {
        ($call:expr) => {
            $call
        };
    }
    macro_rules! breathe {
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
    include!("scenarios.rs");
}

mod threaded {
    use zeoring_client::Client as Zeo;

    macro_rules! go {
        ($call:expr) => {
            $call
        };
    }
    macro_rules! breathe {
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
    include!("scenarios.rs");
}

mod local {
    use zeoring_client::AsyncClient as Zeo;

    macro_rules! go {
        ($call:expr) => {
            $call.await
        };
    }
    macro_rules! breathe {
        () => {
            tokio::task::yield_now().await
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
    include!("scenarios.rs");
}
