//! One committed change of one object, and how each watcher sees it.
//!
//! A change is shared by the event ring and by all watchers; the bytes they send are encoded once. An
//! object that starts or stops matching a selector is ADDED or DELETED for that watcher, whatever
//! happened in the store.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::entry::{Entry, Filter};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
            EventType::Bookmark => "BOOKMARK",
            EventType::Error => "ERROR",
        }
    }
}

pub struct Change {
    pub revision: i64,
    /// The object after the change; `None` when it was deleted.
    pub entry: Option<Arc<Entry>>,
    pub previous: Option<Arc<Entry>>,
    /// `previous` under this change's revision, made when the first watcher needs it.
    gone: OnceLock<Arc<Entry>>,
}

impl Change {
    pub fn new(revision: i64, entry: Option<Arc<Entry>>, previous: Option<Arc<Entry>>) -> Change {
        Change { revision, entry, previous, gone: OnceLock::new() }
    }

    /// What a watcher with this filter hears of the change, if anything.
    pub fn seen_by(&self, filter: &Filter) -> Option<(EventType, Arc<Entry>)> {
        let now = self.entry.as_ref().filter(|entry| filter.matches(entry));
        let before = self.previous.as_ref().filter(|entry| filter.matches(entry));
        match (now, before) {
            (Some(entry), Some(_)) => Some((EventType::Modified, entry.clone())),
            (Some(entry), None) => Some((EventType::Added, entry.clone())),
            (None, Some(previous)) => Some((EventType::Deleted, self.gone(previous))),
            (None, None) => None,
        }
    }

    fn gone(&self, previous: &Arc<Entry>) -> Arc<Entry> {
        self.gone.get_or_init(|| Arc::new(previous.moved_to(self.revision))).clone()
    }

    /// Bytes the event ring keeps alive for this change, roughly.
    pub fn cost(&self) -> usize {
        64 + self.entry.as_ref().map_or(0, |entry| entry.cost())
            + self.previous.as_ref().map_or(0, |entry| entry.cost())
    }
}

/// Writes one watch event as a line of the stream.
pub fn frame(out: &mut Vec<u8>, kind: EventType, object: &[u8]) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_str().as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}

/// A bookmark's object: nothing but its version.
pub fn bookmark(kind: &str, api_version: &str, revision: i64, initial_events_end: bool) -> Bytes {
    let annotations = match initial_events_end {
        true => r#","annotations":{"k8s.io/initial-events-end":"true"}"#,
        false => "",
    };
    format!(
        r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{revision}","creationTimestamp":null{annotations}}}}}"#
    )
    .into()
}
