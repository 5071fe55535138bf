//! The embedded container runtime: images, snapshots, sandboxes, shim; served as CRI v1.

pub mod streaming;
