//! Measures zeoring: loads, commits and connections, each beside the floor that no server can go
//! below and the ceiling that no server can exceed, taken in the same run on the same CPUs.
#![forbid(unsafe_code)]

mod canned;
mod clients;
mod commits;
mod committer;
mod connections;
mod error;
mod floor;
mod loads;
mod machine;
mod make;
mod process;
mod raw;
mod report;
mod run;
mod scale;
mod seed;
mod soak;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::error::BenchError;

/// The C library's gives a thousand objects back to the system and faults them in again, which
/// doubles the time of a prefetch.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure zeoring beside its floor and its ceiling.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Add, update, read and prefetch objects on a server that runs already.
    Run(run::Arguments),
    /// What ZEO's author measured: add, update, cached, read, prefetch; a load across and within.
    Seed(seed::Arguments),
    /// Loads: latency, loads/s and pipelined objects/s, as ratios to floor and ceiling.
    Loads(loads::Arguments),
    /// Commits: one committer against append + fdatasync, and several against one.
    Commits(commits::Arguments),
    /// The client: what a load costs by each driver, beside the floor; threads, bursts, hits.
    Clients(clients::Arguments),
    /// Millions of calls with chance on both sides: no wake-up may be lost.
    Soak(soak::Arguments),
    /// How it grows: databases of more objects, and larger objects, warm and cold.
    Scale(scale::Arguments),
    /// Memory of the server for each idle connection.
    Connections(connections::Arguments),
    /// The other end of a floor or a ceiling: what this program starts for itself.
    #[command(hide = true)]
    Respond { kind: Kind },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Floor,
    Canned,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().job {
        Job::Run(arguments) => run::run(&arguments),
        Job::Seed(arguments) => seed::run(&arguments),
        Job::Loads(arguments) => loads::run(&arguments),
        Job::Commits(arguments) => commits::run(&arguments),
        Job::Clients(arguments) => clients::run(&arguments),
        Job::Soak(arguments) => soak::run(&arguments),
        Job::Scale(arguments) => scale::run(&arguments),
        Job::Connections(arguments) => connections::run(&arguments),
        Job::Respond { kind } => respond(kind),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zeoring-bench: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// Answers until killed, or until whoever started us is gone and our standard input ends.
fn respond(kind: Kind) -> Result<(), BenchError> {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    match kind {
        Kind::Floor => floor::respond(),
        Kind::Canned => canned::respond(),
    }
}

fn with_causes(error: &BenchError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let said = error.to_string();
        // An error that only passes another on says the same.
        if !text.ends_with(&said) {
            text += &format!(": {said}");
        }
        cause = error.source();
    }
    text
}
