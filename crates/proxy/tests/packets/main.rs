//! Packets through the proxy, in network namespaces: every mode against one suite, the whole proxy
//! against the real API server, and ten thousand Services at once.

mod conformance;
mod lab;
mod scale;
mod whole;
