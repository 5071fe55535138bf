//! Keeps the node usable when it runs short of memory, disk or process ids.
//!
//! [`threshold`] says when it is short, in upstream's syntax; [`signals`] and [`usage`] measure;
//! [`state`] decides whether to act, [`rank`] on whom; [`manager`] does it.

mod manager;
mod rank;
mod signals;
mod state;
mod threshold;
mod usage;

pub use manager::Manager;
pub use state::Pressure;
pub use threshold::{Eviction, Flags};
