//! Waiting for one object: to be as wanted, or to be gone. It refuses to give up: who cannot wait for ever puts a time
//! limit around it.

use std::sync::Arc;

use kube::Api;
use kube::api::ListParams;

use crate::informer::{Informer, Object};

/// Waits until the object of that name, or that there is none, satisfies `holds`, and gives it. A watch that breaks is
/// begun anew.
pub async fn await_condition<K>(api: Api<K>, name: &str, holds: impl Fn(Option<&K>) -> bool) -> Option<Arc<K>>
where
    K: Object<DynamicType = ()>,
{
    let only = ListParams::default().fields(&format!("metadata.name={name}"));
    let informer = Informer::start(api, only, |_| {});
    let mut events = informer.subscribe();
    informer.synced().await;
    loop {
        let found = informer.store().list().pop();
        if holds(found.as_deref()) {
            return found;
        }
        events.recv().await;
    }
}
