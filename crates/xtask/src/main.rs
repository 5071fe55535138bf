//! `cargo xtask`: the repository's own checks and generators. Each task is a module; this only dispatches.

use anyhow::{Result, bail};

mod check;
mod schema;
mod vm;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("check") => check::run(&check::root()),
        Some("schema") => schema::run(args),
        Some("vm") => vm::run(args.collect()),
        _ => {
            bail!("usage: cargo xtask check | schema --reference DIR [--output FILE] | vm [PACKAGE/TEST[=FILTER] ...]")
        }
    }
}
