//! The `isopod` binary: reads flags, composes the components, shuts them down in order.
//!
//! It has no logic of its own beyond that. The container runtime's shims and container inits are
//! this same binary re-executed, so they take over before anything else happens.

#[macro_use]
mod output;

mod cli;
mod cluster;
mod commands;
mod config;
mod hello;
mod kubeconfig;
mod logging;
mod sandbox;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(never) = runtime::entrypoint(std::env::args_os()) {
        match never {}
    }
    // What containers find must not depend on the caller's habits; secrets are made with modes of their own.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    match commands::run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("isopod: {error:#}");
            ExitCode::FAILURE
        }
    }
}
