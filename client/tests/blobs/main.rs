//! Blobs between this client, Python's, and a server that has a blob directory: the stock one, if
//! `ZEORING_STOCK_SERVER=path/of/runzeo` says where it is. Ours has none.
//!
//! The scenarios are one text that is compiled once a driver, as in the suite.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

/// The server of a test, or the end of a test that has none.
macro_rules! server {
    () => {
        match $crate::stock::Server::start() {
            Some(server) => server,
            None => {
                return println!("ZEORING_STOCK_SERVER does not say which server to try this with")
            }
        }
    };
}
#[allow(dead_code, reason = "the suite needs more of it")]
#[path = "../suite/house.rs"]
mod house;
mod rough;
mod stock;
mod together;

/// Two pickles, as the record of a blob is: its class, and no state.
const RECORD: &[u8] = b"\x80\x03cZODB.blob\nBlob\nq\x01.\x80\x03N.";

/// Bytes that differ everywhere, and from those of another seed.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed + 1;
    let next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

mod driven {
    use zeoring_client::DrivenClient as Zeo;

    macro_rules! go {
        ($call:expr) => {
            $call
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
