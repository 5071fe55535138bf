//! What each subcommand does; one file each.

mod component;
mod demo;
mod down;
mod image;
mod preflight;
mod server;
mod up;

use std::process::ExitCode;

use crate::cli::{Arguments, Command};
use crate::{hello, logging};

pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let verbose = arguments.verbose;
    match arguments.command {
        Command::Up(options) => return up::run(&options, verbose),
        Command::ClusterProcess { spec } => return up::cluster_process(&spec),
        Command::Down(options) => down::run(&options)?,
        Command::List => down::list(),
        Command::Demo(name) => demo::run(&name, verbose)?,
        Command::Server(options) => server::run(&options, true, verbose)?,
        Command::Apiserver(options) => server::run(&options, false, verbose)?,
        Command::Scheduler(options) => component::scheduler(options, verbose)?,
        Command::ControllerManager(options) => component::controller_manager(options, verbose)?,
        Command::Kubelet(options) => component::kubelet(options, verbose)?,
        Command::Proxy(options) => component::proxy(options, verbose)?,
        Command::Image(command) => image::run(command)?,
        Command::Hello { port } => {
            logging::to_stderr(verbose);
            single_threaded()?.block_on(hello::serve(port))?;
        }
        Command::Fetch { url, rate: Some(rate), seconds, .. } => {
            single_threaded()?.block_on(hello::load::run(&url, rate, seconds))?;
        }
        Command::Fetch { url, repeat, .. } => single_threaded()?.block_on(hello::fetch_and_print(&url, repeat))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Small commands need no worker threads.
fn single_threaded() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
