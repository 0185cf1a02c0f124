//! What the system tells the server: stop, start again, open the logs anew.
//!
//! Only waits and names what came; whoever waits acts. The signals and the exit codes are those
//! of `runzeo`, so that what supervises the one can supervise the other.

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2, SIGXFSZ},
    flag,
    iterator::{self, Handle},
};

/// What the server was told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    /// INT: stop in an orderly way.
    Interrupt,
    /// USR2: open the log files anew.
    Reopen,
    /// HUP: stop in an orderly way, to be started again by the supervisor.
    Restart,
    /// TERM: stop in an orderly way.
    Terminate,
}

impl Signal {
    /// The exit code to stop with; `None` if the server goes on. 1 asks the supervisor for
    /// another start.
    pub fn exit_code(self) -> Option<u8> {
        match self {
            Self::Interrupt | Self::Terminate => Some(0),
            Self::Restart => Some(1),
            Self::Reopen => None,
        }
    }

    /// What ZEO's log says of it before the server stops; empty if it goes on.
    pub fn farewell(self) -> &'static str {
        match self {
            Self::Interrupt => "terminated by SIGINT",
            Self::Restart => "restarted by SIGHUP",
            Self::Terminate => "terminated by SIGTERM",
            Self::Reopen => "",
        }
    }
}

/// The signals of this process, from now on.
#[derive(Debug)]
pub struct Signals {
    inner: iterator::Signals,
}

/// Ends the waiting from another thread, such as a reactor that cannot go on.
#[derive(Clone, Debug)]
pub struct Waker {
    handle: Handle,
}

impl Signals {
    /// Takes over the signals. To be called before the first thread is started that could be
    /// hit by one.
    ///
    /// XFSZ, a file that grows past the limit of the process, is caught and forgotten: the write
    /// then fails with an error that names the file, and the server goes on reading.
    pub fn install() -> io::Result<Self> {
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let inner = iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2])?;
        Ok(Self { inner })
    }

    /// Something that ends the waiting.
    pub fn waker(&self) -> Waker {
        Waker { handle: self.inner.handle() }
    }

    /// Waits for the next signal; `None` once a [`Waker`] has ended the waiting.
    pub fn wait(&mut self) -> Option<Signal> {
        self.inner.forever().next().map(|number| match number {
            SIGTERM => Signal::Terminate,
            SIGINT => Signal::Interrupt,
            SIGHUP => Signal::Restart,
            SIGUSR2 => Signal::Reopen,
            other => unreachable!("signal {other} was not asked for"),
        })
    }
}

impl Waker {
    /// Ends the waiting, now and for ever.
    pub fn wake(&self) {
        self.handle.close();
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{self, Signal as Number};

    use super::*;

    // One test, because the signals of a process are one.
    #[test]
    fn each_signal_has_its_name_and_its_exit_code() {
        let mut signals = Signals::install().unwrap();
        let raise = |number| process::kill_process(process::getpid(), number).unwrap();
        let cases = [
            (Number::USR2, Signal::Reopen, None, ""),
            (Number::HUP, Signal::Restart, Some(1), "restarted by SIGHUP"),
            (Number::INT, Signal::Interrupt, Some(0), "terminated by SIGINT"),
            (Number::TERM, Signal::Terminate, Some(0), "terminated by SIGTERM"),
        ];
        for (number, signal, exit_code, farewell) in cases {
            // Ignored; the process is still here for the next one.
            raise(Number::XFSZ);
            raise(number);
            assert_eq!(signals.wait(), Some(signal));
            assert_eq!((signal.exit_code(), signal.farewell()), (exit_code, farewell));
        }
        let waker = signals.waker();
        let waiting = std::thread::spawn(move || (signals.wait(), signals.wait()));
        waker.wake();
        assert_eq!(waiting.join().unwrap(), (None, None));
    }
}
