//! The selectors of Services and of what controls pods: pods without spread constraints of their own are spread by them.

use std::borrow::Cow;

use client::Informer;
use client::informer::Object;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ReplicationController, Service};
use kube::api::ListParams;
use kube::{Api, Client};
use machinery::labels::Selector;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::affinity::{Labels, selector};

/// Changes not yet taken in; more wait in the informers.
const QUEUE: usize = 256;

/// The new selector of a group of pods; None if there is no such group any more.
pub struct Group {
    pub namespace: String,
    pub kind: Cow<'static, str>,
    pub name: String,
    pub selector: Option<Selector>,
}

/// Watches all kinds of groups, as long as the tasks run.
pub fn watch(client: &Client, tasks: &mut JoinSet<()>) -> mpsc::Receiver<Group> {
    let (sender, groups) = mpsc::channel(QUEUE);
    tasks.spawn(forward(
        client.clone(),
        sender.clone(),
        |_| {},
        |service: &Service| of_map(service.spec.as_ref()?.selector.as_ref()),
    ));
    let strip = |controller: &mut ReplicationController| {
        controller.spec.iter_mut().for_each(|spec| spec.template = None);
    };
    tasks.spawn(forward(client.clone(), sender.clone(), strip, |controller| {
        of_map(controller.spec.as_ref()?.selector.as_ref())
    }));
    let strip = |set: &mut ReplicaSet| set.spec.iter_mut().for_each(|spec| spec.template = None);
    tasks.spawn(forward(client.clone(), sender.clone(), strip, |set| {
        Some(selector(Some(&set.spec.as_ref()?.selector)))
    }));
    let strip = |set: &mut StatefulSet| set.spec.iter_mut().for_each(|spec| spec.template = Default::default());
    tasks.spawn(forward(client.clone(), sender, strip, |set| Some(selector(Some(&set.spec.as_ref()?.selector)))));
    groups
}

/// A map that is empty selects nothing.
fn of_map(labels: Option<&Labels>) -> Option<Selector> {
    labels.filter(|labels| !labels.is_empty()).map(Selector::from_map)
}

async fn forward<K: Object<DynamicType = ()>>(
    client: Client,
    groups: mpsc::Sender<Group>,
    strip: fn(&mut K),
    selector: fn(&K) -> Option<Selector>,
) {
    let mut events = Informer::start(Api::<K>::all(client), ListParams::default(), strip).subscribe();
    while let Some(event) = events.recv().await {
        let (object, gone) = (event.object(), matches!(event, client::Event::Deleted(_)));
        let meta = object.meta();
        let group = Group {
            namespace: meta.namespace.clone().unwrap_or_default(),
            kind: K::kind(&()),
            name: meta.name.clone().unwrap_or_default(),
            selector: selector(object).filter(|_| !gone),
        };
        if groups.send(group).await.is_err() {
            return;
        }
    }
}
