//! `cargo xtask`: the repository's own checks and generators. Each task is a module; this only dispatches.

use anyhow::{Result, bail};

mod check;
mod schema;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("check") => check::run(&check::root()),
        Some("schema") => schema::run(args),
        _ => bail!("usage: cargo xtask check | schema --reference DIR [--output FILE]"),
    }
}
