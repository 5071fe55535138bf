//! Pure rules of writing objects: who owns which metadata, what a delete does, when an update deletes.
//!
//! Functions of values, without IO: the write path fetches, asks here, and commits. The tables at the
//! end hold the few ways in which upstream's registries differ from each other and that neither
//! discovery nor the schema shows.

use machinery::{
    field::FieldError,
    meta,
    status::{ApiError, Result},
};
use resources::{Facts, Resource};
use serde_json::{Map, Value};

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// Metadata that an update cannot change.
const OWNED: [&str; 5] = ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];
/// Metadata that a status update may change.
const STATUS_METADATA: [&str; 4] = ["labels", "annotations", "finalizers", "managedFields"];

/// Fills what only the server may set on a new object; the name has been settled.
pub fn fill_new(object: &mut Value, now: &str) {
    let metadata = meta::metadata_mut(object);
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink", "managedFields"] {
        metadata.remove(key);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), now.into());
}

/// Checks that the object in a body is the one in the URL.
pub fn match_request(facts: &Facts, object: &mut Value, namespace: &str, name: Option<&str>) -> Result<()> {
    match_namespace(facts, object, namespace)?;
    let refuse = |message: String| Err(ApiError::bad_request(message));
    match (name, meta::name(object)) {
        (Some(name), "") => {
            refuse(format!("the name of the object ({name} based on URL) was undeterminable: name must be provided"))
        }
        (Some(name), found) if found != name => {
            refuse(format!("the name of the object ({found}) does not match the name on the URL ({name})"))
        }
        _ => Ok(()),
    }
}

/// Puts the object into the request's namespace, unless it names another.
pub fn match_namespace(facts: &Facts, object: &mut Value, namespace: &str) -> Result<()> {
    match meta::namespace(object) {
        found if found == namespace => {}
        "" if facts.namespaced_scope() => meta::set_namespace(object, namespace),
        _ if !facts.namespaced_scope() => drop(meta::metadata_mut(object).remove("namespace")),
        _ => {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(ApiError::bad_request(message));
        }
    }
    Ok(())
}

/// Leaves each owner once; the warning for whoever named one again.
pub fn distinct_owners(object: &mut Value) -> Option<String> {
    let owners = meta::metadata_mut(object).get_mut("ownerReferences").and_then(Value::as_array_mut)?;
    let (mut seen, mut again) = (Vec::new(), Vec::new());
    owners.retain(|owner| {
        let known = seen.contains(owner);
        match known {
            true => again.push(owner["uid"].as_str().unwrap_or_default().to_owned()),
            false => seen.push(owner.clone()),
        }
        !known
    });
    (!again.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may \
             reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            again.join(", ")
        )
    })
}

/// The preconditions that the new object itself states: its resourceVersion and UID.
pub fn match_current(facts: &Facts, new: &Value, old: &Value) -> Result<()> {
    let name = meta::name(old);
    let uid = meta::uid(new);
    if !uid.is_empty() && uid != meta::uid(old) {
        return Err(uid_mismatch(facts, meta::namespace(old), name, uid, meta::uid(old)));
    }
    match meta::resource_version(new) {
        "" | "0" if CONDITIONAL.contains(&(facts.group, facts.plural)) => {
            let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            Err(ApiError::invalid(facts.group, facts.plural, name, vec![error]))
        }
        "" | "0" => Ok(()),
        version if version == meta::resource_version(old) => Ok(()),
        _ => Err(ApiError::modified(facts.group, facts.plural, name)),
    }
}

/// The conflict of an update that names an object by a UID it does not have; in the words of upstream's storage.
pub fn uid_mismatch(facts: &Facts, namespace: &str, name: &str, wanted: &str, found: &str) -> ApiError {
    let key = format!("/registry/{}/{}", facts.storage_prefix, crate::request::key(namespace, name));
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: \
         Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
    );
    ApiError::conflict(facts.group, facts.plural, name, why)
}

/// Puts back what an update of `subresource` may not touch, and moves the generation.
pub fn prepare_update(resource: &dyn Resource, subresource: &str, new: &mut Value, old: &Value) {
    if subresource == "status" {
        let mut merged = old.clone();
        copy(&mut merged, new, "status");
        let source = &new["metadata"];
        for key in STATUS_METADATA {
            copy(&mut merged["metadata"], source, key);
        }
        *new = merged;
        resource.prepare_status_update(new, old);
        return;
    }
    meta::metadata_mut(new);
    for key in OWNED {
        copy(&mut new["metadata"], &old["metadata"], key);
    }
    meta::metadata_mut(new).remove("selfLink");
    match subresource {
        "" | "scale" => resource.prepare_update(new, old),
        other => resource.prepare_subresource_update(other, new, old),
    }
    if resource.generation_changes(new, old) {
        meta::set_generation(new, meta::generation(old) + 1);
    }
}

/// Makes `target[key]` what `source[key]` is, absence included.
fn copy(target: &mut Value, source: &Value, key: &str) {
    let Some(target) = target.as_object_mut() else { return };
    match source.get(key) {
        Some(value) => drop(target.insert(key.into(), value.clone())),
        None => drop(target.remove(key)),
    }
}

/// An updated object that nothing holds back any more is deleted instead.
pub fn finished(facts: &Facts, object: &Value) -> bool {
    meta::deletion_timestamp(object).is_some()
        && meta::deletion_grace_period_seconds(object).unwrap_or(0) == 0
        && meta::finalizers(object).next().is_none()
        && !held(facts, object)
}

/// Namespaces are held by finalizers in their spec, from before metadata had any.
fn held(facts: &Facts, object: &Value) -> bool {
    spec_finalizers(facts) && object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

fn orphans(facts: &Facts) -> bool {
    ORPHANING.contains(&(facts.group, facts.plural))
}

fn spec_finalizers(facts: &Facts) -> bool {
    facts.subresource("finalize").is_some()
}

/// metav1.DeleteOptions.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub preconditions: Option<Preconditions>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<String>,
    pub dry_run: Vec<String>,
}

#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    pub fn validate(&self) -> Result<()> {
        let mut errors = Vec::new();
        let policy = self.propagation_policy.as_deref();
        if policy.is_some() && self.orphan_dependents.is_some() {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", policy, why));
        }
        const POLICIES: [&str; 4] = ["Foreground", "Background", "Orphan", "nil"];
        if let Some(policy) = policy.filter(|policy| !POLICIES[..3].contains(policy)) {
            errors.push(FieldError::not_supported("propagationPolicy", policy, &POLICIES));
        }
        check_dry_run(self.dry_run.iter().map(String::as_str), &mut errors);
        if errors.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", errors))
    }

    pub fn check(&self, facts: &Facts, object: &Value) -> Result<()> {
        let Some(wanted) = &self.preconditions else { return Ok(()) };
        let name = meta::name(object);
        let (uid, version) = (meta::uid(object), meta::resource_version(object));
        let checks = [
            ("UID", &wanted.uid, uid, "deleted and then recreated"),
            ("ResourceVersion", &wanted.resource_version, version, "modified"),
        ];
        for (what, wanted, found, done) in checks {
            let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) else { continue };
            let why = format!(
                "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). \
                 The object might have been {done}"
            );
            return Err(ApiError::conflict(facts.group, facts.kind, name, why));
        }
        Ok(())
    }

    /// What to tell whoever may not expect that dependents stay.
    pub fn warning(&self, facts: &Facts) -> Option<&'static str> {
        let silent = self.propagation_policy.is_none() && self.orphan_dependents.is_none();
        (silent && orphans(facts) && facts.group == "batch").then_some(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove \
             them or set propagationPolicy=Orphan to suppress this warning",
        )
    }

    /// The object's finalizers once this delete has had its say about dependents.
    fn finalizers(&self, facts: &Facts, object: &Value) -> Vec<String> {
        let had = |name: &str| meta::finalizers(object).any(|finalizer| finalizer == name);
        let (orphan, foreground) = match (self.orphan_dependents, self.propagation_policy.as_deref()) {
            (Some(orphan), _) => (orphan, false),
            (None, Some(policy)) => (policy == "Orphan", policy == "Foreground"),
            (None, None) => (had(ORPHAN) || orphans(facts) && !had(FOREGROUND), had(FOREGROUND)),
        };
        let others = meta::finalizers(object).filter(|finalizer| *finalizer != ORPHAN && *finalizer != FOREGROUND);
        let asked = [(orphan, ORPHAN), (foreground, FOREGROUND)];
        others.chain(asked.into_iter().filter_map(|(wanted, name)| wanted.then_some(name))).map(str::to_owned).collect()
    }
}

pub fn check_dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<FieldError>) {
    let values: Vec<_> = values.collect();
    if values.iter().any(|value| *value != "All") {
        errors.push(FieldError::not_supported("dryRun", values, &["All"]));
    }
}

/// What a delete comes to.
#[derive(Debug, PartialEq)]
pub enum Deletion {
    Remove,
    /// Somebody must finish first; this is the object to store meanwhile (perhaps unchanged).
    Mark(Value),
}

/// Plans a delete of the object as it is now.
pub fn plan_delete(facts: &Facts, old: &Value, options: &DeleteOptions, now: jiff::Timestamp) -> Deletion {
    let mut new = old.clone();
    let deleting = meta::deletion_timestamp(old).and_then(|time| machinery::time::parse(time).ok());
    let pending = meta::deletion_grace_period_seconds(old);
    let mut grace = 0;
    if facts.graceful {
        match (deleting, pending) {
            (Some(since), Some(pending)) => match options.grace_period_seconds {
                Some(shorter) if shorter < pending => {
                    grace = shorter.max(0);
                    let end = since - jiff::SignedDuration::from_secs(pending - grace);
                    mark(&mut new, end.max(now), grace);
                }
                _ if pending > 0 => return Deletion::Mark(new),
                _ => {}
            },
            (Some(_), None) => {}
            (None, _) => {
                grace = grace_period(old, options);
                mark(&mut new, now + jiff::SignedDuration::from_secs(grace), grace);
            }
        }
    }
    meta::set_finalizers(&mut new, options.finalizers(facts, old));
    let held = held(facts, &new);
    if grace == 0 && !held && meta::finalizers(&new).next().is_none() {
        return Deletion::Remove;
    }
    if meta::deletion_timestamp(&new).is_none() {
        mark(&mut new, now, 0);
    }
    if spec_finalizers(facts) {
        // The kind's own way of saying that it is being deleted; it has no grace period to show.
        meta::set_deletion_grace_period_seconds(&mut new, None);
        new["status"]["phase"] = "Terminating".into();
    }
    Deletion::Mark(new)
}

fn mark(object: &mut Value, at: jiff::Timestamp, grace: i64) {
    if meta::deletion_timestamp(object).is_none() && meta::generation(object) > 0 {
        meta::set_generation(object, meta::generation(object) + 1);
    }
    meta::set_deletion_timestamp(object, &machinery::time::format(at));
    meta::set_deletion_grace_period_seconds(object, Some(grace));
}

/// Seconds a graceful object gets; none when no node runs it.
fn grace_period(object: &Value, options: &DeleteOptions) -> i64 {
    let unscheduled = object["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let ended = ["Succeeded", "Failed"].contains(&object["status"]["phase"].as_str().unwrap_or_default());
    let asked = options.grace_period_seconds.or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64());
    match asked.unwrap_or(0) {
        _ if unscheduled || ended => 0,
        negative if negative < 0 => 1,
        seconds => seconds,
    }
}

/// The Status that answers a finished delete.
pub fn deleted_status(facts: &Facts, object: &Value) -> Value {
    let mut details = Map::new();
    let pairs =
        [("name", meta::name(object)), ("group", facts.group), ("kind", facts.plural), ("uid", meta::uid(object))];
    details.extend(
        pairs.into_iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| (key.into(), value.into())),
    );
    serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

type Names = &'static [(&'static str, &'static str)];

const RBAC: &str = "rbac.authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";
/// A PUT of an absent object creates it.
pub const CREATE_ON_UPDATE: Names = &[
    ("", "endpoints"),
    ("", "events"),
    ("", "limitranges"),
    ("", "services"),
    ("events.k8s.io", "events"),
    ("coordination.k8s.io", "leases"),
    ("node.k8s.io", "runtimeclasses"),
    (RBAC, "roles"),
    (RBAC, "rolebindings"),
    (RBAC, "clusterroles"),
    (RBAC, "clusterrolebindings"),
];
/// An update must say which version it replaces.
const CONDITIONAL: Names = &[
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
    ("coordination.k8s.io", "leases"),
    ("node.k8s.io", "runtimeclasses"),
    ("policy", "poddisruptionbudgets"),
    (STORAGE, "csidrivers"),
    (STORAGE, "csinodes"),
    (STORAGE, "csistoragecapacities"),
    (STORAGE, "volumeattachments"),
];
/// A delete that does not say otherwise leaves the dependents, as before there was garbage collection.
const ORPHANING: Names = &[("", "replicationcontrollers"), ("batch", "jobs")];
/// A finished delete answers with the object instead of a Status.
pub const RETURN_DELETED: Names = &[
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "pods"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("", "services"),
    (STORAGE, "csidrivers"),
    (STORAGE, "csinodes"),
    (STORAGE, "csistoragecapacities"),
    (STORAGE, "storageclasses"),
    (STORAGE, "volumeattachments"),
    (STORAGE, "volumeattributesclasses"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use resources::registry;
    use serde_json::json;

    fn facts(group: &str, plural: &str) -> &'static Facts {
        registry().by_gvr(group, "v1", plural).unwrap().facts()
    }

    fn options(value: Value) -> DeleteOptions {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn deletes_are_planned() {
        let now: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let later = "2030-01-01T00:00:30Z";
        let pod = |node: &str, phase: &str| json!({"metadata": {"name": "a"}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}});
        let deleting = json!({"metadata": {"name": "a", "deletionTimestamp": later, "deletionGracePeriodSeconds": 30}, "spec": {"nodeName": "n"}});
        let plain = |finalizers: Value| json!({"metadata": {"name": "a", "finalizers": finalizers}});
        // (plural, object, options, deletionTimestamp, grace, finalizers) or None when removed
        let cases = [
            ("configmaps", plain(json!([])), json!({}), None),
            ("configmaps", plain(json!(["x/y"])), json!({}), Some(("2030-01-01T00:00:00Z", 0, vec!["x/y"]))),
            (
                "configmaps",
                plain(json!([])),
                json!({"propagationPolicy": "Foreground"}),
                Some(("2030-01-01T00:00:00Z", 0, vec![FOREGROUND])),
            ),
            ("configmaps", plain(json!([ORPHAN])), json!({"propagationPolicy": "Background"}), None),
            ("replicationcontrollers", plain(json!([])), json!({}), Some(("2030-01-01T00:00:00Z", 0, vec![ORPHAN]))),
            ("replicationcontrollers", plain(json!([])), json!({"propagationPolicy": "Background"}), None),
            (
                "configmaps",
                plain(json!([])),
                json!({"orphanDependents": true}),
                Some(("2030-01-01T00:00:00Z", 0, vec![ORPHAN])),
            ),
            ("pods", pod("n", "Running"), json!({}), Some((later, 30, vec![]))),
            ("pods", pod("", "Pending"), json!({}), None),
            ("pods", pod("n", "Succeeded"), json!({}), None),
            ("pods", pod("n", "Running"), json!({"gracePeriodSeconds": 0}), None),
            ("pods", pod("n", "Running"), json!({"gracePeriodSeconds": -5}), Some(("2030-01-01T00:00:01Z", 1, vec![]))),
            ("pods", deleting.clone(), json!({}), Some((later, 30, vec![]))),
            ("pods", deleting.clone(), json!({"gracePeriodSeconds": 60}), Some((later, 30, vec![]))),
            ("pods", deleting.clone(), json!({"gracePeriodSeconds": 10}), Some(("2030-01-01T00:00:10Z", 10, vec![]))),
            ("pods", deleting, json!({"gracePeriodSeconds": 0}), None),
        ];
        for (plural, object, wanted, expected) in cases {
            let got = match plan_delete(facts("", plural), &object, &options(wanted.clone()), now) {
                Deletion::Remove => None,
                Deletion::Mark(new) => Some(new),
            };
            let got = got.as_ref().map(|new| {
                let grace = meta::deletion_grace_period_seconds(new).unwrap();
                (meta::deletion_timestamp(new).unwrap(), grace, meta::finalizers(new).collect::<Vec<_>>())
            });
            assert_eq!(got, expected, "{plural} {object} {wanted}");
        }
    }

    #[test]
    fn namespaces_terminate() {
        let facts = facts("", "namespaces");
        let object = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}});
        let Deletion::Mark(mut new) = plan_delete(facts, &object, &DeleteOptions::default(), jiff::Timestamp::now())
        else {
            panic!("held by its spec")
        };
        assert_eq!(new["status"]["phase"], "Terminating");
        assert!(!finished(facts, &new));
        new["spec"]["finalizers"] = json!([]);
        assert!(finished(facts, &new));
    }

    #[test]
    fn a_status_update_leaves_the_rest() {
        let pods = registry().by_gvr("", "v1", "pods").unwrap();
        let old = json!({"metadata": {"name": "a", "labels": {"a": "b"}, "uid": "1"}, "spec": {"nodeName": "n"}, "status": {"phase": "Pending"}});
        let mut new = json!({"metadata": {"name": "a", "uid": "2"}, "spec": {}, "status": {"phase": "Running"}});
        prepare_update(pods, "status", &mut new, &old);
        assert_eq!(
            (&new["spec"], &new["status"]["phase"], &new["metadata"]["uid"]),
            (&old["spec"], &json!("Running"), &json!("1"))
        );
        let mut new = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        prepare_update(pods, "", &mut new, &old);
        assert_eq!((&new["status"], &new["metadata"]["uid"]), (&old["status"], &json!("1")));
    }
}
