//! The seam between what is wanted and how packets are made to obey. Add a mode with one file and
//! one line in [`MODES`]; `tests/conformance` then sends packets through it.

use crate::rules::{Changes, RuleSet};
use crate::{Config, nftables};

/// Puts rules into the network namespace that it was made in. Calls block for as long as the kernel
/// takes; they are atomic: no packet meets a state between the old and the new rules.
pub trait Applier: Send {
    /// Replaces whatever is there.
    fn replace(&mut self, rules: &RuleSet) -> anyhow::Result<()>;

    /// Goes on from what was last applied. After an error only [`Applier::replace`] may follow.
    fn update(&mut self, changes: &Changes) -> anyhow::Result<()>;
}

/// A way to implement Services.
pub struct Mode {
    pub name: &'static str,
    pub build: fn(&Config) -> anyhow::Result<Box<dyn Applier>>,
    /// Removes all that this mode may have left in the namespace of the calling thread. Idempotent.
    pub clean_up: fn() -> anyhow::Result<()>,
}

pub const MODES: &[Mode] = &[Mode { name: "nftables", build: nftables::Nftables::build, clean_up: nftables::clean_up }];

/// The mode of that name.
pub fn mode(name: &str) -> anyhow::Result<&'static Mode> {
    let names = || MODES.iter().map(|mode| mode.name).collect::<Vec<_>>().join(", ");
    MODES
        .iter()
        .find(|mode| mode.name == name)
        .ok_or_else(|| anyhow::anyhow!("there is no proxy mode {name:?}; choose one of: {}", names()))
}
