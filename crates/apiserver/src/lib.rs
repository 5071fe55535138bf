//! The Kubernetes API server: HTTP, authentication, authorization, admission, watch cache.
//!
//! It knows no kind by name: what a kind is comes from [`resources::registry`], and what the few
//! special paths do is in [`subresources`]. Nobody else touches the store.
//!
//! Where things go: a request enters at [`api`]; reads are answered from [`cache`] by [`read`]
//! without parsing; writes go through [`edit`] and [`write`], are committed by [`objects`], and come
//! back through the cache's feed. [`server`] composes and listens.

pub mod admission;
pub mod allocate;
pub mod api;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod cache;
pub mod codec;
mod components;
pub mod discovery;
mod edit;
mod endpoints;
pub mod health;
pub mod identity;
pub mod list;
pub mod lookup;
pub mod metrics;
pub mod negotiate;
pub mod nonresource;
pub mod objects;
pub mod openapi;
pub mod pki;
mod read;
mod report;
pub mod request;
pub mod respond;
pub mod reviews;
pub mod server;
pub mod strategy;
mod subresources;
pub mod upgrade;
pub mod write;

pub use resources::Cidr;
pub use server::{Config, Server, Service};
