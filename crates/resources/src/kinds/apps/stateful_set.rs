//! StatefulSet: pods with stable names and storage.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1 as api;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use super::{collisions, int_or_percent, is_zero, validate_workload};
use crate::facts::{Facts, Subresource};
use crate::kinds::core::persistent_volume_claim;
use crate::print;
use crate::resource::Kind;
use crate::validate::meta::{self, NameRule};
use crate::validate::{Errors, indexed, text};
use crate::value::Defaulting;

pub struct StatefulSet;

const FIXED: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";

impl Kind for StatefulSet {
    type Object = api::StatefulSet;

    const FACTS: Facts = Facts {
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[Subresource::scale(), Subresource::own("status", "apps", "v1", "StatefulSet")],
        generation: true,
        ..Facts::namespaced(
            "apps",
            "v1",
            "StatefulSet",
            "statefulsets",
            "statefulset",
            "io.k8s.api.apps.v1.StatefulSet",
        )
    };
    const NAME: NameRule = meta::label;
    const TEMPLATE: &'static [&'static str] = &["spec", "template"];
    const COLUMNS: &'static [Column] =
        &[print::NAME, print::text("Ready"), print::AGE, print::CONTAINERS, print::IMAGES];

    fn defaults(object: &mut Value) {
        let spec = object.make("spec");
        spec.or("podManagementPolicy", "OrderedReady").or("replicas", 1).or("revisionHistoryLimit", 10);
        let strategy = spec.make("updateStrategy");
        strategy.or("type", "RollingUpdate");
        if strategy.text("type") == "RollingUpdate" {
            strategy.make("rollingUpdate").or("partition", 0);
        }
        spec.make("persistentVolumeClaimRetentionPolicy").or("whenDeleted", "Retain").or("whenScaled", "Retain");
        spec.each("volumeClaimTemplates", |claim| {
            claim.or("apiVersion", "v1").or("kind", "PersistentVolumeClaim");
            persistent_volume_claim::defaults(claim);
        });
    }

    fn prepare_create(object: &mut Value) {
        object["status"] = json!({"replicas": 0, "availableReplicas": 0});
    }

    fn validate(object: &api::StatefulSet, errors: &mut Errors) {
        let path = Path::new("spec");
        let default = api::StatefulSetSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default);
        let at = path.child("podManagementPolicy");
        match text(&spec.pod_management_policy) {
            "" => errors.required(&at, ""),
            "OrderedReady" | "Parallel" => {}
            other => errors.invalid(&at, other, "must be 'OrderedReady' or 'Parallel'"),
        }
        update_strategy(spec, &path.child("updateStrategy"), errors);
        retention(spec, &path.child("persistentVolumeClaimRetentionPolicy"), errors);
        errors.non_negative(&path.child("replicas"), spec.replicas);
        errors.non_negative(&path.child("minReadySeconds"), spec.min_ready_seconds);
        errors.non_negative(&path.child("revisionHistoryLimit"), spec.revision_history_limit);
        let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start);
        errors.non_negative(&path.child("ordinals").child("start"), start);
        let service = text(&spec.service_name);
        if !service.is_empty() {
            errors.all_invalid(&path.child("serviceName"), service, names::is_dns1123_subdomain(service));
        }
        validate_workload(&spec.selector, &with_claims(spec), "statefulset", &path, errors);
    }

    fn validate_update(new: &api::StatefulSet, old: &api::StatefulSet, errors: &mut Errors) {
        Self::validate(new, errors);
        let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return };
        let fixed = api::StatefulSetSpec {
            replicas: old.replicas,
            ordinals: old.ordinals.clone(),
            template: old.template.clone(),
            update_strategy: old.update_strategy.clone(),
            revision_history_limit: old.revision_history_limit,
            persistent_volume_claim_retention_policy: old.persistent_volume_claim_retention_policy.clone(),
            min_ready_seconds: old.min_ready_seconds,
            ..new.clone()
        };
        if fixed != *old {
            errors.forbidden(&Path::new("spec"), FIXED);
        }
    }

    fn validate_status_update(new: &api::StatefulSet, old: &api::StatefulSet, errors: &mut Errors) {
        let (Some(status), path) = (&new.status, Path::new("status")) else { return };
        let counts = [
            ("readyReplicas", status.ready_replicas),
            ("currentReplicas", status.current_replicas),
            ("updatedReplicas", status.updated_replicas),
            ("availableReplicas", status.available_replicas),
        ];
        errors.non_negative(&path.child("replicas"), Some(status.replicas));
        counts.into_iter().for_each(|(key, count)| errors.non_negative(&path.child(key), count));
        errors.non_negative(&path.child("observedGeneration"), status.observed_generation);
        for (key, count) in counts {
            if let Some(count) = count.filter(|count| *count > status.replicas) {
                errors.invalid(&path.child(key), count, "cannot be greater than status.replicas");
            }
        }
        if let Some(available) = status.available_replicas.filter(|count| *count > status.ready_replicas.unwrap_or(0)) {
            let detail = "cannot be greater than status.readyReplicas";
            errors.invalid(&path.child("availableReplicas"), available, detail);
        }
        let before = old.status.as_ref().and_then(|status| status.collision_count);
        collisions(status.collision_count, before, &path, errors);
    }

    fn cells(object: &Value, typed: &api::StatefulSet, now: Timestamp) -> Vec<Value> {
        let default = api::StatefulSetSpec::default();
        let spec = typed.spec.as_ref().unwrap_or(&default);
        let ready = typed.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        let [containers, images, _] = print::template(Some(&spec.template), String::new());
        vec![
            print::name(object),
            json!(format!("{ready}/{}", spec.replicas.unwrap_or(0))),
            print::age(object, now),
            containers,
            images,
        ]
    }
}

/// The template as its pods will be: every claim is a volume too.
fn with_claims(spec: &api::StatefulSetSpec) -> PodTemplateSpec {
    let mut template = spec.template.clone();
    let volumes = template.spec.get_or_insert_default().volumes.get_or_insert_default();
    for name in spec.volume_claim_templates.iter().flatten().filter_map(|claim| claim.metadata.name.clone()) {
        let source = PersistentVolumeClaimVolumeSource { claim_name: name.clone(), read_only: None };
        volumes.retain(|volume| volume.name != name);
        volumes.push(Volume { name, persistent_volume_claim: Some(source), ..Default::default() });
    }
    template
}

fn update_strategy(spec: &api::StatefulSetSpec, path: &Path, errors: &mut Errors) {
    let Some(strategy) = &spec.update_strategy else { return };
    let at = path.child("rollingUpdate");
    let rolling = match (text(&strategy.type_), &strategy.rolling_update) {
        ("", _) => return errors.required(path, ""),
        ("RollingUpdate", Some(rolling)) => rolling,
        ("OnDelete", Some(rolling)) => {
            return errors.invalid(&at, rolling, "only allowed for updateStrategy 'RollingUpdate'");
        }
        ("RollingUpdate" | "OnDelete", None) => return,
        _ => return errors.invalid(path, strategy, "must be 'RollingUpdate' or 'OnDelete'"),
    };
    errors.non_negative(&at.child("partition"), rolling.partition);
    if let Some(unavailable) = &rolling.max_unavailable {
        int_or_percent(Some(unavailable), true, &at.child("maxUnavailable"), errors);
        if is_zero(Some(unavailable)) {
            errors.invalid(&at.child("maxUnavailable"), unavailable, "cannot be 0");
        }
    }
}

fn retention(spec: &api::StatefulSetSpec, path: &Path, errors: &mut Errors) {
    let Some(policy) = &spec.persistent_volume_claim_retention_policy else { return };
    for (key, value) in [("whenDeleted", &policy.when_deleted), ("whenScaled", &policy.when_scaled)] {
        errors.one_of(&path.child(key), value.as_deref(), &["Delete", "Retain"]);
    }
    for (at, claim) in indexed(spec.volume_claim_templates.as_ref(), &Path::new("spec").child("volumeClaimTemplates")) {
        persistent_volume_claim::validate_claim(claim, &at.child("spec"), errors);
    }
}
