//! ConfigMaps and Secrets that pods on this node name, each followed by a watch of its own while
//! any pod needs it.
//!
//! A node may read only what its pods name, one object at a time: that is why there is no informer
//! of the whole kind.

use crate::env::References;
use crate::pod;
use client::{Client, Informer};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use kube::api::ListParams;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long a pod waits for objects it has just begun to follow.
const PATIENCE: Duration = Duration::from_secs(30);

/// A followed object; following ends with the last pod that holds it.
struct Followed<K>(Informer<K>);

type Entries<K> = Mutex<HashMap<String, Weak<Followed<K>>>>;

pub struct Objects {
    client: Client,
    config_maps: Entries<ConfigMap>,
    secrets: Entries<Secret>,
}

/// The objects one pod names.
#[derive(Clone, Default)]
pub struct PodObjects {
    config_maps: BTreeMap<String, (String, Arc<Followed<ConfigMap>>)>,
    secrets: BTreeMap<String, (String, Arc<Followed<Secret>>)>,
}

impl Objects {
    pub fn new(client: Client) -> Objects {
        Objects { client, config_maps: Mutex::default(), secrets: Mutex::default() }
    }

    /// Follows everything the pod names.
    pub fn of(&self, pod: &Pod) -> PodObjects {
        let (config_maps, secrets) = named(pod);
        let namespace = pod::namespace(pod);
        PodObjects {
            config_maps: self.follow(&self.config_maps, namespace, config_maps),
            secrets: self.follow(&self.secrets, namespace, secrets),
        }
    }

    fn follow<K>(
        &self,
        entries: &Entries<K>,
        namespace: &str,
        names: BTreeSet<String>,
    ) -> BTreeMap<String, (String, Arc<Followed<K>>)>
    where
        K: client::informer::Object<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        let mut entries = entries.lock();
        entries.retain(|_, followed| followed.strong_count() > 0);
        let mut follow = |name: String| {
            let key = format!("{namespace}/{name}");
            let followed = entries.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
                let params = ListParams::default().fields(&format!("metadata.name={name}"));
                let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
                let followed = Arc::new(Followed(Informer::start(api, params, |_| {})));
                entries.insert(key.clone(), Arc::downgrade(&followed));
                followed
            });
            (name, (key, followed))
        };
        names.into_iter().map(&mut follow).collect()
    }
}

impl PodObjects {
    /// The objects as they are now; waits for those not yet heard of.
    pub async fn references(&self) -> Result<References, String> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let config_maps = collect(&self.config_maps, "configmap", deadline).await?;
        let secrets = collect(&self.secrets, "secret", deadline).await?;
        Ok(References { config_maps, secrets })
    }

    /// Waits until any of the objects changes; `handle` is called once for each change.
    pub async fn follow(self, handle: impl Fn()) {
        use futures::stream::{SelectAll, StreamExt as _};
        fn changes<K: kube::Resource + Send + Sync + 'static>(
            followed: &Followed<K>,
        ) -> futures::stream::BoxStream<'static, ()> {
            let subscription = followed.0.subscribe();
            futures::stream::unfold(subscription, |mut subscription| async {
                subscription.recv().await.map(|_| ((), subscription))
            })
            .boxed()
        }
        let mut all = SelectAll::new();
        all.extend(self.config_maps.values().map(|(_, followed)| changes(followed)));
        all.extend(self.secrets.values().map(|(_, followed)| changes(followed)));
        while all.next().await.is_some() {
            handle();
        }
    }
}

async fn collect<K: kube::Resource>(
    followed: &BTreeMap<String, (String, Arc<Followed<K>>)>,
    kind: &str,
    deadline: tokio::time::Instant,
) -> Result<BTreeMap<String, Option<Arc<K>>>, String> {
    let mut found = BTreeMap::new();
    for (name, (key, followed)) in followed {
        tokio::time::timeout_at(deadline, followed.0.synced())
            .await
            .map_err(|_| format!("failed to sync {kind} cache: timed out waiting for the condition"))?;
        found.insert(name.clone(), followed.0.store().get(key));
    }
    Ok(found)
}

/// Names of the ConfigMaps and Secrets in a pod's environment, volumes and pull secrets.
fn named(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    let spec = pod::spec(pod);
    for member in pod::members(pod) {
        for source in member.container.env_from.iter().flatten() {
            maps.extend(source.config_map_ref.as_ref().map(|reference| reference.name.clone()));
            secrets.extend(source.secret_ref.as_ref().map(|reference| reference.name.clone()));
        }
        for source in member.container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.as_ref().map(|reference| reference.name.clone()));
            secrets.extend(source.secret_key_ref.as_ref().map(|reference| reference.name.clone()));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        maps.extend(volume.config_map.as_ref().map(|source| source.name.clone()));
        secrets.extend(volume.secret.as_ref().and_then(|source| source.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            maps.extend(source.config_map.as_ref().map(|source| source.name.clone()));
            secrets.extend(source.secret.as_ref().map(|source| source.name.clone()));
        }
    }
    secrets.extend(spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone()));
    for names in [&mut maps, &mut secrets] {
        names.remove("");
    }
    (maps, secrets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_place_that_names_an_object_counts() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "m1"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "m2", "key": "k"}}}]}],
            "volumes": [
                {"name": "v1", "configMap": {"name": "m3"}},
                {"name": "v2", "secret": {"secretName": "s2"}},
                {"name": "v3", "projected": {"sources": [{"configMap": {"name": "m4"}}, {"secret": {"name": "s3"}}]}}]
        }}))
        .unwrap();
        let (maps, secrets) = named(&pod);
        assert_eq!(maps.into_iter().collect::<Vec<_>>(), ["m1", "m2", "m3", "m4"]);
        assert_eq!(secrets.into_iter().collect::<Vec<_>>(), ["pull", "s1", "s2", "s3"]);
    }
}
