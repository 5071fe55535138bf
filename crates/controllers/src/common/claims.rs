//! Which dependents a controller owns: it keeps what it controls and its selector chooses, adopts orphans that the
//! selector chooses, and releases what it no longer chooses. The choice is pure; the executor asks the API server, not
//! the cache, whether the owner still lives before it adopts: a dead one would take the orphans with it.

use std::future::Future;
use std::sync::Arc;

use anyhow::Context as _;
use client::{ErrorExt as _, controller_of, owner_reference};
use kube::api::{Patch, PatchParams};
use kube::core::{NamespaceResourceScope, ObjectMeta};
use kube::{Api, Client, Resource};
use machinery::labels::Selector;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::selects;

#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    Keep,
    Adopt,
    Release,
    Ignore,
}

/// What an owner should do about a possible dependent.
pub fn claim(owner: &ObjectMeta, selector: &Selector, dependent: &ObjectMeta) -> Claim {
    let chosen = selects(selector, dependent);
    match controller_of(dependent) {
        Some(controller) if Some(&controller.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if chosen => Claim::Keep,
        Some(_) if owner.deletion_timestamp.is_some() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner.deletion_timestamp.is_some() || dependent.deletion_timestamp.is_some() => Claim::Ignore,
        None if owner.namespace != dependent.namespace => Claim::Ignore,
        None if chosen => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// Carries out the claims of `owner` on `dependents`, and gives those that are its own.
pub async fn claim_all<O, D>(
    client: &Client,
    owner: &O,
    selector: &Selector,
    dependents: Vec<Arc<D>>,
) -> anyhow::Result<Vec<Arc<D>>>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    D: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    claim_with(client, owner, selector, &[], dependents).await
}

/// As [`claim_all`]; what is adopted gets the finalizers, what is released loses them.
pub async fn claim_with<O, D>(
    client: &Client,
    owner: &O,
    selector: &Selector,
    finalizers: &[&str],
    dependents: Vec<Arc<D>>,
) -> anyhow::Result<Vec<Arc<D>>>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    D: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let namespace = owner.meta().namespace.clone().unwrap_or_default();
    let api: Api<D> = Api::namespaced(client.clone(), &namespace);
    let mut owned = Vec::with_capacity(dependents.len());
    let mut owner_lives = false;
    for dependent in dependents {
        match claim(owner.meta(), selector, dependent.meta()) {
            Claim::Keep => owned.push(dependent),
            Claim::Ignore => {}
            Claim::Adopt => {
                if !owner_lives {
                    ensure_alive(&Api::namespaced(client.clone(), &namespace), owner).await?;
                    owner_lives = true;
                }
                if adopt(&api, owner, finalizers, dependent.as_ref()).await? {
                    owned.push(dependent);
                }
            }
            Claim::Release => release(&api, owner.meta(), finalizers, dependent.as_ref()).await?,
        }
    }
    Ok(owned)
}

async fn ensure_alive<O>(api: &Api<O>, owner: &O) -> anyhow::Result<()>
where
    O: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let name = owner.meta().name.as_deref().unwrap_or_default();
    let live = api.get_metadata(name).await.context("look up the owner before adoption")?;
    anyhow::ensure!(live.metadata.uid == owner.meta().uid, "{name} is gone: another of that name exists");
    anyhow::ensure!(live.metadata.deletion_timestamp.is_none(), "{name} is being deleted");
    Ok(())
}

async fn adopt<O, D>(api: &Api<D>, owner: &O, finalizers: &[&str], dependent: &D) -> anyhow::Result<bool>
where
    O: Resource<DynamicType = ()>,
    D: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let meta = dependent.meta();
    let mut patch = json!({"metadata": {"uid": meta.uid, "ownerReferences": [owner_reference(owner)]}});
    if !finalizers.is_empty() {
        patch["metadata"]["finalizers"] = json!(finalizers);
    }
    patch_owners(api, meta, patch, "adopt").await
}

async fn release<D>(api: &Api<D>, owner: &ObjectMeta, finalizers: &[&str], dependent: &D) -> anyhow::Result<()>
where
    D: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let meta = dependent.meta();
    let mut patch = json!({"metadata": {"uid": meta.uid, "ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}});
    if !finalizers.is_empty() {
        patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!(finalizers);
    }
    patch_owners(api, meta, patch, "release").await.map(drop)
}

/// Patches only the object of this very uid. False if it is gone.
fn patch_owners<D>(
    api: &Api<D>,
    meta: &ObjectMeta,
    patch: serde_json::Value,
    verb: &'static str,
) -> impl Future<Output = anyhow::Result<bool>>
where
    D: Clone + DeserializeOwned + std::fmt::Debug,
{
    let name = meta.name.clone().unwrap_or_default();
    async move {
        match api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() || error.code() == Some(422) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("{verb} {name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims() {
        let meta = |value| serde_json::from_value::<ObjectMeta>(value).unwrap();
        let owner = meta(json!({"name": "o", "namespace": "ns", "uid": "1"}));
        let dying =
            meta(json!({"name": "o", "namespace": "ns", "uid": "1", "deletionTimestamp": "2024-01-01T00:00:00Z"}));
        let selector = Selector::parse("a=b").unwrap();
        let by = |uid: &str| json!([{"apiVersion": "v1", "kind": "K", "name": "o", "uid": uid, "controller": true}]);
        let dependent = |labels, owners, deleted: bool| {
            let mut value = json!({"namespace": "ns", "labels": labels, "ownerReferences": owners});
            if deleted {
                value["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
            }
            meta(value)
        };
        let (chosen, other) = (json!({"a": "b"}), json!({"a": "c"}));
        let table = [
            (&owner, dependent(chosen.clone(), by("1"), false), Claim::Keep),
            (&owner, dependent(chosen.clone(), by("1"), true), Claim::Keep),
            (&owner, dependent(chosen.clone(), by("2"), false), Claim::Ignore),
            (&owner, dependent(chosen.clone(), json!([]), false), Claim::Adopt),
            (&owner, dependent(chosen.clone(), json!([]), true), Claim::Ignore),
            (&owner, dependent(other.clone(), json!([]), false), Claim::Ignore),
            (&owner, dependent(other.clone(), by("1"), false), Claim::Release),
            (&dying, dependent(other, by("1"), false), Claim::Ignore),
            (&dying, dependent(chosen, json!([]), false), Claim::Ignore),
        ];
        for (number, (owner, dependent, expected)) in table.into_iter().enumerate() {
            assert_eq!(claim(owner, &selector, &dependent), expected, "case {number}");
        }
    }
}
