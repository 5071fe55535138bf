//! `rbac.authorization.k8s.io/v1`: roles and bindings, for namespaces and for the cluster.
//!
//! Whether the writer may grant what a role grants is the API server's to check.

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1 as api;
use machinery::field::Path;
use machinery::names;
use machinery::table::Column;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::print;
use crate::resource::Kind;
use crate::validate::meta::{self, NameRule};
use crate::validate::{Errors, indexed, selector, text};
use crate::value::Defaulting;

const GROUP: &str = "rbac.authorization.k8s.io";
const BINDING_COLUMNS: &[Column] = &[
    print::NAME,
    print::text("Role"),
    print::AGE,
    print::wide("Users"),
    print::wide("Groups"),
    print::wide("ServiceAccounts"),
];

pub struct Role;

impl Kind for Role {
    type Object = api::Role;

    const FACTS: Facts = Facts::namespaced(GROUP, "v1", "Role", "roles", "role", "io.k8s.api.rbac.v1.Role");
    const NAME: NameRule = meta::path_segment;
    const COLUMNS: &'static [Column] = &[print::NAME, print::CREATED];

    fn validate(object: &api::Role, errors: &mut Errors) {
        rules(object.rules.as_ref(), true, errors);
    }

    fn cells(object: &Value, _typed: &api::Role, _now: Timestamp) -> Vec<Value> {
        vec![print::name(object), print::created(object)]
    }
}

pub struct ClusterRole;

impl Kind for ClusterRole {
    type Object = api::ClusterRole;

    const FACTS: Facts =
        Facts::cluster(GROUP, "v1", "ClusterRole", "clusterroles", "clusterrole", "io.k8s.api.rbac.v1.ClusterRole");
    const NAME: NameRule = meta::path_segment;
    const COLUMNS: &'static [Column] = &[print::NAME, print::CREATED];

    fn validate(object: &api::ClusterRole, errors: &mut Errors) {
        rules(object.rules.as_ref(), false, errors);
        let Some(aggregation) = &object.aggregation_rule else { return };
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        if aggregation.cluster_role_selectors.as_ref().is_none_or(Vec::is_empty) {
            errors.required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for (at, labels) in indexed(aggregation.cluster_role_selectors.as_ref(), &path) {
            selector::validate(labels, &at, errors);
        }
    }

    fn cells(object: &Value, _typed: &api::ClusterRole, _now: Timestamp) -> Vec<Value> {
        vec![print::name(object), print::created(object)]
    }
}

pub struct RoleBinding;

impl Kind for RoleBinding {
    type Object = api::RoleBinding;

    const FACTS: Facts =
        Facts::namespaced(GROUP, "v1", "RoleBinding", "rolebindings", "rolebinding", "io.k8s.api.rbac.v1.RoleBinding");
    const NAME: NameRule = meta::path_segment;
    const COLUMNS: &'static [Column] = BINDING_COLUMNS;

    fn defaults(object: &mut Value) {
        binding_defaults(object);
    }

    fn validate(object: &api::RoleBinding, errors: &mut Errors) {
        role_ref(&object.role_ref, &["Role", "ClusterRole"], errors);
        subjects(object.subjects.as_ref(), true, errors);
    }

    fn validate_update(new: &api::RoleBinding, old: &api::RoleBinding, errors: &mut Errors) {
        Self::validate(new, errors);
        same_role(&new.role_ref, &old.role_ref, errors);
    }

    fn cells(object: &Value, typed: &api::RoleBinding, now: Timestamp) -> Vec<Value> {
        binding_cells(object, &typed.role_ref, typed.subjects.as_ref(), now)
    }
}

pub struct ClusterRoleBinding;

impl Kind for ClusterRoleBinding {
    type Object = api::ClusterRoleBinding;

    const FACTS: Facts = Facts::cluster(
        GROUP,
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
        "io.k8s.api.rbac.v1.ClusterRoleBinding",
    );
    const NAME: NameRule = meta::path_segment;
    const COLUMNS: &'static [Column] = BINDING_COLUMNS;

    fn defaults(object: &mut Value) {
        binding_defaults(object);
    }

    fn validate(object: &api::ClusterRoleBinding, errors: &mut Errors) {
        role_ref(&object.role_ref, &["ClusterRole"], errors);
        subjects(object.subjects.as_ref(), false, errors);
    }

    fn validate_update(new: &api::ClusterRoleBinding, old: &api::ClusterRoleBinding, errors: &mut Errors) {
        Self::validate(new, errors);
        same_role(&new.role_ref, &old.role_ref, errors);
    }

    fn cells(object: &Value, typed: &api::ClusterRoleBinding, now: Timestamp) -> Vec<Value> {
        binding_cells(object, &typed.role_ref, typed.subjects.as_ref(), now)
    }
}

fn binding_defaults(object: &mut Value) {
    object.make("roleRef").or("apiGroup", GROUP);
    object.each("subjects", |subject| {
        if matches!(subject.text("kind"), "User" | "Group") {
            subject.or("apiGroup", GROUP);
        }
    });
}

fn rules(rules: Option<&Vec<api::PolicyRule>>, namespaced: bool, errors: &mut Errors) {
    let empty = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
    for (at, rule) in indexed(rules, &Path::new("rules")) {
        if rule.verbs.is_empty() {
            errors.required(&at.child("verbs"), "verbs must contain at least one value");
        }
        if !empty(&rule.non_resource_urls) {
            let path = at.child("nonResourceURLs");
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.invalid(&path, &rule.non_resource_urls, detail);
            }
            if !empty(&rule.api_groups) || !empty(&rule.resources) || !empty(&rule.resource_names) {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(&path, &rule.non_resource_urls, detail);
            }
            continue;
        }
        if empty(&rule.api_groups) {
            errors.required(&at.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if empty(&rule.resources) {
            errors.required(&at.child("resources"), "resource rules must supply at least one resource");
        }
    }
}

fn role_ref(role: &api::RoleRef, kinds: &[&str], errors: &mut Errors) {
    let path = Path::new("roleRef");
    if text(&role.api_group) != GROUP {
        errors.not_supported(&path.child("apiGroup"), &role.api_group, &[GROUP]);
    }
    if !kinds.contains(&role.kind.as_str()) {
        errors.not_supported(&path.child("kind"), &role.kind, kinds);
    }
    if role.name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        errors.all_invalid(&path.child("name"), &role.name, meta::path_segment(&role.name, false));
    }
}

fn same_role(new: &api::RoleRef, old: &api::RoleRef, errors: &mut Errors) {
    if new != old {
        errors.invalid(&Path::new("roleRef"), new, "cannot change roleRef");
    }
}

fn subjects(subjects: Option<&Vec<api::Subject>>, namespaced: bool, errors: &mut Errors) {
    for (at, subject) in indexed(subjects, &Path::new("subjects")) {
        errors.needed(&at.child("name"), &subject.name);
        let group = text(&subject.api_group);
        let expected = match subject.kind.as_str() {
            "ServiceAccount" => {
                let name = &subject.name;
                if !name.is_empty() {
                    errors.all_invalid(&at.child("name"), name, names::is_dns1123_subdomain(name));
                }
                if !namespaced {
                    errors.needed(&at.child("namespace"), text(&subject.namespace));
                }
                ""
            }
            kind @ ("User" | "Group") => {
                if subject.name.is_empty() {
                    let detail = format!("{} name cannot be empty", kind.to_lowercase());
                    errors.invalid(&at.child("name"), "", detail);
                }
                GROUP
            }
            kind => {
                errors.not_supported(&at.child("kind"), kind, &["ServiceAccount", "User", "Group"]);
                continue;
            }
        };
        if group != expected {
            errors.not_supported(&at.child("apiGroup"), group, &[expected]);
        }
    }
}

fn binding_cells(
    object: &Value,
    role: &api::RoleRef,
    subjects: Option<&Vec<api::Subject>>,
    now: Timestamp,
) -> Vec<Value> {
    let of = |kind: &str| {
        let names: Vec<String> = subjects
            .into_iter()
            .flatten()
            .filter(|subject| subject.kind == kind)
            .map(|subject| match &subject.namespace {
                Some(namespace) if kind == "ServiceAccount" => format!("{namespace}/{}", subject.name),
                _ => subject.name.clone(),
            })
            .collect();
        json!(names.join(", "))
    };
    vec![
        print::name(object),
        json!(format!("{}/{}", role.kind, role.name)),
        print::age(object, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}
