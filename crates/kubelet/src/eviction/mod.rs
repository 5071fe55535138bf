//! Keeps the node usable when it runs short of memory, disk or process ids.
//!
//! [`threshold`] says when it is short, in upstream's syntax; [`signals`] measures.

pub mod signals;
pub mod threshold;

pub use threshold::Eviction;
