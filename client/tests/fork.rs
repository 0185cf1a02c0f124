//! A process that was forked from one with a client: it gets an error, and never its parent's
//! connection.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the suite needs more of it")]
#[path = "suite/house.rs"]
mod house;

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use zeoring_client::{Client, ClientError, Description, DrivenClient};
use zeoring_shared::ids::Oid;

use crate::house::House;

macro_rules! forks {
    ($name:ident, $client:ident) => {
        #[test]
        fn $name() {
            let house = House::new();
            let client: &'static $client =
                Box::leak(Box::new($client::open(house.options()).unwrap()));
            let mut command = Command::new("true");
            let ask = || {
                let is_forked = matches!(client.load(Oid(7)), Err(ClientError::Forked))
                    && matches!(client.ping(), Err(ClientError::Forked))
                    && matches!(
                        client.begin(&Description::default()).map(drop),
                        Err(ClientError::Forked)
                    )
                    && matches!(client.close(), Err(ClientError::Forked));
                if is_forked { Ok(()) } else { Err(io::ErrorKind::Other.into()) }
            };
            // SAFETY: the child has one thread and what it calls takes no lock of the parent's other
            // threads: that it is refused before any is what this test is about.
            unsafe { command.pre_exec(ask) };
            assert!(command.status().unwrap().success());
            // The parent's connection is none the worse.
            client.ping().unwrap();
            client.close().unwrap();
        }
    };
}

forks!(a_forked_child_cannot_use_a_driven_client, DrivenClient);
forks!(a_forked_child_cannot_use_a_client_with_a_thread, Client);
