//! The `bench` command: flags in, a table (or JSON) out. Whatever was measured before a failure or a Ctrl-C is still
//! printed, and the exit code tells which it was.

use std::process::ExitCode;

use bench::{Interrupted, Options};
use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let (report, ended) = bench::run(&options).await;
    if let Some(report) = report {
        print!("{}", if options.json { report.json() } else { report.table() });
    }
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            if error.is::<Interrupted>() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}
