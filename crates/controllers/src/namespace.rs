//! Empties namespaces that are being deleted, then lets them go. Pods go first, so that nothing they still need (secrets,
//! network policies) vanishes under them; then every other resource that discovery knows, by deletecollection.
//!
//! A later pass asks only for the resources that were left, so waiting for a slow pod costs next to nothing; the last pass
//! before the end covers everything again.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use client::{Client, ErrorExt as _, Event, Store, key_of};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use parking_lot::Mutex;

use crate::common::discovery::{Discovered, Meta, discover};
use crate::common::{message, now};
use crate::framework::{Context, Controller, Requeue};

pub struct NamespaceController {
    client: Client,
    namespaces: Store<Namespace>,
    progress: Mutex<HashMap<String, Progress>>,
}

/// What earlier passes over a namespace left.
#[derive(Clone, Default)]
struct Progress {
    remaining: Vec<Discovered>,
    passes: u32,
}

/// What one pass found.
#[derive(Default)]
struct Pass {
    remaining: Vec<Discovered>,
    /// Objects left per resource.
    counts: Vec<(String, usize)>,
    /// Objects left per finalizer.
    finalizers: std::collections::BTreeMap<String, usize>,
    failures: Vec<String>,
    undiscovered: Vec<String>,
}

impl Controller for NamespaceController {
    const NAME: &'static str = "namespace-controller";
    const WORKERS: usize = 10;

    fn new(context: &Context) -> Self {
        let namespaces = context.watch::<Namespace>().store();
        let known = namespaces.clone();
        context.on::<Pod>(move |event, queue| {
            if let Event::Deleted(pod) = event {
                let namespace = pod.metadata.namespace.clone().unwrap_or_default();
                let terminating = |found: &Namespace| found.metadata.deletion_timestamp.is_some();
                known
                    .get(&namespace)
                    .filter(|found| terminating(found))
                    .into_iter()
                    .for_each(|_| queue.add(namespace.clone()));
            }
        });
        Self { client: context.client.clone(), namespaces, progress: Mutex::default() }
    }

    async fn reconcile(&self, key: &str) -> anyhow::Result<Requeue> {
        let Some(namespace) = self.namespaces.get(key).filter(|found| found.metadata.deletion_timestamp.is_some())
        else {
            self.progress.lock().remove(key);
            return Ok(Requeue::Never);
        };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if finalizers.is_empty() {
            return self.remove(&namespace).await;
        }
        let mut progress = self.progress.lock().get(key).cloned().unwrap_or_default();
        let mut pass = self.empty(key, &progress).await?;
        if pass.remaining.is_empty() && !progress.remaining.is_empty() {
            progress.remaining.clear();
            pass = self.empty(key, &progress).await?;
        }
        let live = self.write_conditions(&namespace, &pass).await?;
        if pass.remaining.is_empty() && pass.failures.is_empty() && pass.undiscovered.is_empty() {
            return self.finalize(live).await;
        }
        progress.passes += 1;
        let wait = Duration::from_millis(25 << progress.passes.min(9)); // up to 13 s
        progress.remaining = pass.remaining;
        self.progress.lock().insert(key.to_owned(), progress);
        Ok(Requeue::After(wait))
    }
}

impl NamespaceController {
    async fn empty(&self, namespace: &str, progress: &Progress) -> anyhow::Result<Pass> {
        let mut pass = Pass::default();
        let mut resources = progress.remaining.clone();
        if resources.is_empty() {
            let discovery = discover(&self.client).await.context("discover what the namespace may contain")?;
            (resources, pass.undiscovered) = (discovery.resources, discovery.failures);
        }
        resources.retain(|found| found.namespaced && found.can("list") && found.can("delete"));
        let (pods, others): (Vec<_>, Vec<_>) =
            resources.into_iter().partition(|found| found.resource.group.is_empty() && found.resource.plural == "pods");
        for resource in pods {
            self.delete_all(namespace, resource, &mut pass).await;
        }
        if pass.remaining.is_empty() && pass.failures.is_empty() {
            for resource in others {
                self.delete_all(namespace, resource, &mut pass).await;
            }
        } else {
            pass.remaining.extend(others);
        }
        Ok(pass)
    }

    async fn delete_all(&self, namespace: &str, found: Discovered, pass: &mut Pass) {
        let api: Api<Meta> = Api::namespaced_with(self.client.clone(), namespace, &found.resource);
        match self.try_delete_all(&api, &found).await {
            Ok(left) if left.is_empty() => {}
            Ok(left) => {
                let resource = &found.resource;
                pass.counts.push((format!("{}.{}", resource.plural, resource.group), left.len()));
                for finalizer in left.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
                    *pass.finalizers.entry(finalizer.clone()).or_default() += 1;
                }
                pass.remaining.push(found);
            }
            Err(error) => {
                pass.failures.push(format!("{}: {}", found.resource.plural, message(&error)));
                pass.remaining.push(found);
            }
        }
    }

    async fn try_delete_all(&self, api: &Api<Meta>, found: &Discovered) -> kube::Result<Vec<Meta>> {
        let left = api.list(&ListParams::default()).await;
        if matches!(&left, Ok(left) if left.items.is_empty()) {
            return Ok(Vec::new()); // most resources of most namespaces: one read, no write
        }
        if found.can("deletecollection") {
            api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
        } else {
            for object in left?.items {
                let name = object.metadata.name.unwrap_or_default();
                match api.delete(&name, &DeleteParams::background()).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(api.list(&ListParams::default()).await?.items)
    }

    async fn write_conditions(&self, namespace: &Namespace, pass: &Pass) -> anyhow::Result<Namespace> {
        let mut status = namespace.status.clone().unwrap_or_default();
        status.phase = Some("Terminating".into());
        set_conditions(status.conditions.get_or_insert_default(), pass);
        if namespace.status.as_ref() == Some(&status) {
            return Ok(namespace.clone());
        }
        let name = key_of(&namespace.metadata);
        let updated = Namespace { status: Some(status), ..namespace.clone() };
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.replace_status(&name, &PostParams::default(), &updated).await.context("write the conditions")
    }

    async fn finalize(&self, mut namespace: Namespace) -> anyhow::Result<Requeue> {
        let finalizers = namespace.spec.get_or_insert_default().finalizers.get_or_insert_default();
        finalizers.retain(|finalizer| finalizer != "kubernetes");
        let name = key_of(&namespace.metadata);
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.replace_subresource("finalize", &name, &PostParams::default(), &namespace).await {
            Err(error) if !error.is_not_found() => Err(error).context("finalize"),
            _ => Ok(Requeue::Never),
        }
    }

    /// Repeats the deletion of a namespace that nothing holds any more.
    async fn remove(&self, namespace: &Namespace) -> anyhow::Result<Requeue> {
        let this = Preconditions { uid: namespace.metadata.uid.clone(), resource_version: None };
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.delete(&key_of(&namespace.metadata), &DeleteParams::default().preconditions(this)).await {
            Err(error) if !error.is_not_found() && error.code() != Some(409) => Err(error).context("delete"),
            _ => Ok(Requeue::Never),
        }
    }
}

/// Upstream's five conditions, each with the text for trouble and the text for none.
fn set_conditions(conditions: &mut Vec<NamespaceCondition>, pass: &Pass) {
    let counts: Vec<_> =
        pass.counts.iter().map(|(name, count)| format!("{name} has {count} resource instances")).collect();
    let finalizers = pass.finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances"));
    let finalizers: Vec<_> = finalizers.collect();
    let trouble = |list: &[String], before: &str, separator: &str| match list {
        [] => None,
        list => Some(format!("{before}{}", list.join(separator))),
    };
    let table = [
        (
            "NamespaceDeletionDiscoveryFailure",
            trouble(&pass.undiscovered, "Discovery failed for some groups, ", ", "),
            ("DiscoveryFailed", "ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("GroupVersionParsingFailed", "ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            trouble(&pass.failures, "Failed to delete all resource types, ", ", "),
            (
                "ContentDeletionFailed",
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        (
            "NamespaceContentRemaining",
            trouble(&counts, "Some resources are remaining: ", ", "),
            ("SomeResourcesRemain", "ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            trouble(&finalizers, "Some content in the namespace has finalizers remaining: ", ", "),
            ("SomeFinalizersRemain", "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    for (type_, trouble, (bad, good, fine)) in table {
        let (status, reason) = if trouble.is_some() { ("True", bad) } else { ("False", good) };
        let message = trouble.unwrap_or_else(|| fine.to_owned());
        let found = conditions.iter().position(|condition| condition.type_ == type_);
        let same_status = found.filter(|index| conditions[*index].status == status);
        let transition = same_status.and_then(|index| conditions[index].last_transition_time.clone());
        let condition = NamespaceCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: transition.or_else(|| Some(now())),
        };
        match found {
            Some(index) => conditions[index] = condition,
            None => conditions.push(condition),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_name_what_is_left() {
        let mut conditions = Vec::new();
        let pass = Pass {
            counts: vec![("pods.".into(), 2), ("widgets.example.com".into(), 1)],
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Pass::default()
        };
        set_conditions(&mut conditions, &pass);
        let text = |conditions: &[NamespaceCondition], kind: &str| {
            let found = conditions.iter().find(|condition| condition.type_ == kind).unwrap();
            format!("{} {} {}", found.status, found.reason.as_ref().unwrap(), found.message.as_ref().unwrap())
        };
        assert_eq!(
            text(&conditions, "NamespaceContentRemaining"),
            "True SomeResourcesRemain Some resources are remaining: pods. has 2 resource instances, \
             widgets.example.com has 1 resource instances"
        );
        assert_eq!(
            text(&conditions, "NamespaceFinalizersRemaining"),
            "True SomeFinalizersRemain Some content in the namespace has finalizers remaining: \
             example.com/hold in 1 resource instances"
        );
        set_conditions(&mut conditions, &Pass::default());
        assert_eq!(conditions.len(), 5);
        assert_eq!(
            text(&conditions, "NamespaceContentRemaining"),
            "False ContentRemoved All content successfully removed"
        );
    }
}
