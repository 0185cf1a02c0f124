//! The program `zeoring-server`: takes the place of `runzeo`.
#![forbid(unsafe_code)]

use std::env;
use std::process::ExitCode;

use zeoring_server::config::cli::{self, Stop};
use zeoring_server::log::{self, Severity, Source};
use zeoring_server::pid::PidFile;
use zeoring_server::server::Server;
use zeoring_server::signals::Signals;
use zeoring_server::{address, config::Settings};
use zeoring_shared::io::Machine;

/// What `runzeo` exits with when it cannot start.
const EXIT_FAILURE: u8 = 1;

fn main() -> ExitCode {
    let settings = match cli::read(env::args_os(), &|name| env::var(name).ok()) {
        Ok(settings) => settings,
        Err(Stop::Answer(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Stop::Usage(text)) => {
            eprint!("{text}");
            return ExitCode::from(cli::EXIT_USAGE);
        }
    };
    if let Err(error) = log::install(&settings.log) {
        eprintln!("Error: {error}");
        return ExitCode::from(cli::EXIT_USAGE);
    }
    for notice in &settings.notices {
        log::program(Severity::Warning, format_args!("{notice}"));
    }
    if let Err(error) = address::claim(&settings.address) {
        eprintln!("Error: {error}");
        return ExitCode::from(cli::EXIT_USAGE);
    }
    let _pid_file = settings.pid_file.as_deref().and_then(PidFile::create);
    match serve(&settings) {
        Ok(code) => code,
        Err(error) => {
            log::program(Severity::Critical, format_args!("{error}"));
            eprintln!("Error: {error}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn serve(settings: &Settings) -> Result<ExitCode, Box<dyn std::error::Error>> {
    // Before any thread starts: a thread that does not know of them would die of them.
    let mut signals = Signals::install()?;
    let server = Server::start(settings, &Machine::real())?;
    log::event(
        Source::SERVER,
        Severity::Info,
        "",
        format_args!("StorageServer created {}: {}", mode(settings), storages(settings)),
    );
    log::event(
        Source("ZEO.asyncio.server"),
        Severity::Info,
        "",
        format_args!("listening on {}", server.address()),
    );
    if settings.stop_at_once {
        println!("testing exit immediately");
        server.stop()?;
        return Ok(ExitCode::SUCCESS);
    }
    let code = loop {
        let Some(signal) = signals.wait() else {
            break 0;
        };
        match signal.exit_code() {
            Some(code) => {
                log::program(Severity::Info, format_args!("{}", signal.farewell()));
                break code;
            }
            None => log::reopen(),
        }
    };
    server.stop()?;
    address::release(&settings.address);
    Ok(ExitCode::from(code))
}

fn mode(settings: &Settings) -> &'static str {
    if settings.read_only { "RO" } else { "RW" }
}

fn storages(settings: &Settings) -> String {
    let names: Vec<&str> = settings.storages.iter().map(|storage| &*storage.name).collect();
    names.join(", ")
}
