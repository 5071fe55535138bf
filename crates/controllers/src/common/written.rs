//! What a controller wrote last, so that it notices when its cache has not caught up with its own writes: to count or
//! create from an older status would do so twice. The event that brings the cache up to date queues the key again.

use std::collections::HashMap;

use kube::core::ObjectMeta;
use parking_lot::Mutex;

#[derive(Default)]
pub struct Written {
    revisions: Mutex<HashMap<String, u64>>,
}

impl Written {
    pub fn wrote(&self, key: &str, meta: &ObjectMeta) {
        self.revisions.lock().insert(key.to_owned(), revision(meta));
    }

    /// Whether the cached object is older than what was written. One that is not ends the matter.
    pub fn is_ahead_of(&self, key: &str, cached: &ObjectMeta) -> bool {
        let mut revisions = self.revisions.lock();
        let ahead = revisions.get(key).is_some_and(|written| *written > revision(cached));
        if !ahead {
            revisions.remove(key);
        }
        ahead
    }

    pub fn forget(&self, key: &str) {
        self.revisions.lock().remove(key);
    }
}

fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}
