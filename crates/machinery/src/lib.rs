//! IO-free API machinery: errors, selectors, quantities, schemas, patches, tables.
//!
//! Objects are `serde_json::Value`s and kinds are rows of a table ([`schema`]), so nothing here names a
//! Kubernetes kind or does any IO: what is true of Pods and of custom resources alike lives in this crate,
//! and can be tested with plain values.

pub mod apply;
pub mod duration;
pub mod field;
pub mod fields;
pub mod gvk;
pub mod jsonpath;
pub mod labels;
pub mod meta;
pub mod names;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod status;
pub mod table;
pub mod time;

pub use status::{ApiError, Result};
