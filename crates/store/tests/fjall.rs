//! The embedded backend: conformance, and what only it promises.

use std::sync::Arc;

use store::{FjallStore, Options, Store};
use tempfile::TempDir;

async fn make() -> (Arc<dyn Store>, TempDir) {
    let dir = TempDir::new().unwrap();
    let store = FjallStore::open(dir.path(), Options::default()).unwrap();
    (Arc::new(store), dir)
}

mod conformance {
    store::conformance_tests!(super::make);
}
