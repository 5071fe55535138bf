//! Recounts what ResourceQuotas limit. Admission charges for what is made; what goes, or was charged and then failed, is
//! found here. Pods, services and claims are weighed; other kinds are only counted, and watched once a quota counts them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use client::informer::Object;
use client::{Client, Event, Informer, Store, WorkQueue, key_of, split_key};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::Api;
use kube::api::{ApiResource, ListParams, PostParams};
use kube::core::NamespaceResourceScope;
use machinery::quantity::Quantity;
use resources::quota::{Amounts, Scoped, delta, usage};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use crate::common::discovery::{Meta, discover};
use crate::framework::{Context, Controller, Requeue};

pub struct ResourceQuotaController {
    client: Client,
    queue: WorkQueue<String>,
    quotas: Store<ResourceQuota>,
    pods: Store<Pod>,
    services: Store<Service>,
    claims: Store<PersistentVolumeClaim>,
    /// By `plural.group`, the kinds that some quota counts.
    counted: Mutex<HashMap<String, Counted>>,
    /// By quota, counts lower than what is charged.
    doubts: parking_lot::Mutex<HashMap<String, Doubt>>,
}

/// What admission charges for is stored a moment later, and gets to our caches later still. A count is taken for too
/// low, not the charge for too high, until it has been the same for [`SETTLING`] while nothing was charged; then the
/// server is asked.
struct Doubt {
    since: Instant,
    resource_version: Option<String>,
    used: Amounts,
}

const SETTLING: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, PartialEq)]
enum Source {
    Cache,
    Server,
}

struct Counted {
    resource: ApiResource,
    informer: Informer<Meta>,
    _follow: AbortOnDropHandle<()>,
}

impl Controller for ResourceQuotaController {
    const NAME: &'static str = "resourcequota-controller";

    fn new(context: &Context) -> Self {
        let quotas = context.watch::<ResourceQuota>().store();
        Self {
            client: context.client.clone(),
            queue: context.queue.clone(),
            pods: weighed(context, &quotas, "pods"),
            services: weighed(context, &quotas, "services"),
            claims: weighed(context, &quotas, "persistentvolumeclaims"),
            quotas,
            counted: Mutex::default(),
            doubts: parking_lot::Mutex::default(),
        }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(quota) = self.quotas.get(key) else {
            self.doubts.lock().remove(key);
            return Ok(Requeue::Never);
        };
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
        let mut used = self.used(split_key(key).0, quota.spec.as_ref(), &hard, Source::Cache).await?;
        let before = quota.status.clone().unwrap_or_default();
        let known = before.used.iter().flatten().map(|(key, text)| (key.clone(), amount(text))).collect::<Amounts>();
        if known == used && before.hard.unwrap_or_default() == hard {
            self.doubts.lock().remove(key);
            return Ok(Requeue::Never);
        }
        if used.iter().any(|(key, amount)| known.get(key).is_some_and(|known| amount < known)) {
            if let Some(wait) = self.doubt(key, &quota, &used) {
                return Ok(Requeue::After(wait));
            }
            used = self.used(split_key(key).0, quota.spec.as_ref(), &hard, Source::Server).await?;
        }
        let used = used.into_iter().map(|(key, amount)| (key, Text(amount.to_string()))).collect();
        let status = Some(ResourceQuotaStatus { hard: Some(hard), used: Some(used) });
        let (namespace, name) = split_key(key);
        let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), namespace);
        let updated = ResourceQuota { status, ..quota.as_ref().clone() };
        api.replace_status(name, &PostParams::default(), &updated).await.context("write the status")?;
        Ok(Requeue::Never)
    }
}

fn amount(text: &Text) -> Quantity {
    Quantity::parse(&text.0).unwrap_or(Quantity::new(0))
}

/// Watches a kind that is weighed: a change of what an object costs is a change of its quotas.
fn weighed<K>(context: &Context, quotas: &Store<ResourceQuota>, plural: &'static str) -> Store<K>
where
    K: Object<DynamicType = ()> + serde::Serialize,
{
    let quotas = quotas.clone();
    let informer = context.on::<K>(move |event: &Event<K>, queue| {
        let value = |object: &K| serde_json::to_value(object).unwrap_or_default();
        if let Event::Modified { old, new } = event
            && delta("", plural, &value(new), Some(&value(old))).is_empty()
        {
            return;
        }
        beside(&quotas, event.object().meta().namespace.as_deref(), queue);
    });
    informer.store()
}

fn beside(quotas: &Store<ResourceQuota>, namespace: Option<&str>, queue: &WorkQueue<String>) {
    let beside = quotas.list_namespace(namespace.unwrap_or_default());
    beside.iter().for_each(|quota| queue.add(key_of(&quota.metadata)));
}

impl ResourceQuotaController {
    /// How long to go on doubting a count.
    fn doubt(&self, key: &str, quota: &ResourceQuota, used: &Amounts) -> Option<Duration> {
        let fresh = || Doubt {
            since: Instant::now(),
            resource_version: quota.metadata.resource_version.clone(),
            used: used.clone(),
        };
        let mut doubts = self.doubts.lock();
        let doubt = doubts.entry(key.to_owned()).or_insert_with(fresh);
        if doubt.used != *used || doubt.resource_version != quota.metadata.resource_version {
            *doubt = fresh();
        }
        SETTLING.checked_sub(doubt.since.elapsed()).filter(|wait| !wait.is_zero())
    }

    async fn used(
        &self,
        namespace: &str,
        spec: Option<&ResourceQuotaSpec>,
        hard: &BTreeMap<String, Text>,
        source: Source,
    ) -> anyhow::Result<Amounts> {
        let scoped: Scoped = serde_json::from_value(serde_json::to_value(spec).unwrap_or_default()).unwrap_or_default();
        let mut used: Amounts = hard.keys().map(|key| (key.clone(), Quantity::new(0))).collect();
        weigh("pods", &self.objects(&self.pods, namespace, source).await?, &scoped, &mut used);
        weigh("services", &self.objects(&self.services, namespace, source).await?, &scoped, &mut used);
        weigh("persistentvolumeclaims", &self.objects(&self.claims, namespace, source).await?, &scoped, &mut used);
        // A quota with scopes counts pods only.
        if scoped.matches(false, &Value::Null) {
            for (key, amount) in &mut used {
                if let Some(resource) = counted(key) {
                    *amount = Quantity::new(self.count(resource, namespace, source).await?);
                }
            }
        }
        Ok(used)
    }

    async fn objects<K>(&self, cache: &Store<K>, namespace: &str, source: Source) -> anyhow::Result<Vec<Arc<K>>>
    where
        K: Object<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        if source == Source::Cache {
            return Ok(cache.list_namespace(namespace));
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let list = api.list(&ListParams::default()).await.with_context(|| format!("list {}", K::plural(&())))?;
        Ok(list.items.into_iter().map(Arc::new).collect())
    }

    async fn count(&self, resource: &str, namespace: &str, source: Source) -> anyhow::Result<i64> {
        let mut counted = self.counted.lock().await;
        if !counted.contains_key(resource) {
            let (plural, group) = resource.split_once('.').unwrap_or((resource, ""));
            let served = discover(&self.client).await.context("discover what is served")?.resources;
            let found = served.into_iter().find(|found| {
                found.resource.plural == plural
                    && found.resource.group == group
                    && found.can("list")
                    && found.can("watch")
            });
            let Some(found) = found else { return Ok(0) };
            counted.insert(resource.to_owned(), self.follow(found.resource));
        }
        let (informer, kind) = (counted[resource].informer.clone(), counted[resource].resource.clone());
        drop(counted);
        if source == Source::Server {
            let api: Api<Meta> = Api::namespaced_with(self.client.clone(), namespace, &kind);
            let list = api.list_metadata(&ListParams::default()).await;
            return Ok(list.with_context(|| format!("list {resource}"))?.items.len() as i64);
        }
        informer.synced().await;
        Ok(informer.store().list_namespace(namespace).len() as i64)
    }

    fn follow(&self, resource: ApiResource) -> Counted {
        let api = Api::all_with(self.client.clone(), &resource);
        let informer = Informer::start(api, ListParams::default(), |object: &mut Meta| {
            object.metadata.annotations = None;
            object.metadata.labels = None;
            object.metadata.managed_fields = None;
        });
        let (mut events, quotas, queue) = (informer.subscribe(), self.quotas.clone(), self.queue.clone());
        let follow = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if event.old().is_none() {
                    beside(&quotas, event.object().metadata.namespace.as_deref(), &queue);
                }
            }
        });
        Counted { resource, informer, _follow: AbortOnDropHandle::new(follow) }
    }
}

fn weigh<K: serde::Serialize>(plural: &str, objects: &[Arc<K>], scoped: &Scoped, used: &mut Amounts) {
    for object in objects {
        let value = serde_json::to_value(object.as_ref()).unwrap_or_default();
        if !scoped.matches(plural == "pods", &value) {
            continue;
        }
        for (key, amount) in usage("", plural, &value) {
            if let Some(used) = used.get_mut(&key) {
                *used += amount;
            }
        }
    }
}

/// The kind that a limit counts by its objects alone.
fn counted(key: &str) -> Option<&str> {
    const PLAIN: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
    const WEIGHED: [&str; 3] = ["pods", "services", "persistentvolumeclaims"];
    let resource = key.strip_prefix("count/").or_else(|| PLAIN.contains(&key).then_some(key))?;
    (!WEIGHED.contains(&resource)).then_some(resource)
}
