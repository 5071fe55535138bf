//! Everything Isopod knows about each built-in kind: its facts, defaults, validation, strategy and
//! printer columns.
//!
//! One file per kind under [`kinds`], one line per kind in [`registry`]. A kind is a [`Kind`]: typed
//! inside, so that a misspelt field does not compile. The API server sees only [`Resource`], which
//! speaks JSON values, so that it serves built-in kinds and custom resources by one path.
//!
//! This crate knows neither HTTP nor storage, does no IO and reads no clock but for default times.

pub mod bootstrap;
pub mod cidr;
mod facts;
pub mod kinds;
pub mod pod;
pub mod print;
pub mod quota;
mod registry;
mod resource;
pub mod service_cidrs;
pub mod validate;
mod value;
pub mod volumes;

use std::sync::LazyLock;

pub use cidr::Cidr;
pub use facts::{ALL, CREATE, Conversion, Facts, Scope, Subresource, Verb};
pub use registry::{Registry, registry};
pub use resource::{Kind, Resource};

/// Every named type of the built-in API, parsed on first use from the compact table that
/// `cargo xtask schema` makes.
pub fn types() -> &'static machinery::schema::Types {
    static TYPES: LazyLock<machinery::schema::Types> = LazyLock::new(|| {
        machinery::schema::Types::parse(include_str!("schema/v1_36.txt")).expect("the committed table is well-formed")
    });
    &TYPES
}
