//! Resource names, quantities and the requests and limits of containers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use machinery::field::Path;
use machinery::names;
use machinery::quantity::Quantity;

use super::{Errors, NEGATIVE};

pub type ResourceList = BTreeMap<String, Text>;

/// Standard resources a container may ask for.
const CONTAINER: &[&str] = &["cpu", "memory", "ephemeral-storage"];
const HUGE_PAGES: &str = "hugepages-";

/// Zero when the text is no quantity; its own check reports that.
pub fn parse(text: &Text) -> Quantity {
    Quantity::parse(&text.0).unwrap_or_default()
}

pub fn get(list: Option<&ResourceList>, name: &str) -> Option<Quantity> {
    list?.get(name).map(parse)
}

pub fn is_huge_page(name: &str) -> bool {
    name.starts_with(HUGE_PAGES)
}

/// Resources outside kubernetes.io, such as example.com/gpu.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && names::is_qualified_name(&format!("requests.{name}")).is_empty()
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// What a quota may count in whole numbers.
const COUNTS: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

/// Only whole amounts make sense for these.
fn is_integer(name: &str) -> bool {
    COUNTS.contains(&name) || is_extended(name)
}

/// More may be promised of these than there is.
pub fn is_overcommitted(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// Amounts of time and space that a quota may limit, as such or as the sum of requests or limits.
fn is_compute(name: &str) -> bool {
    let bare = name.strip_prefix("requests.").or(name.strip_prefix("limits.")).unwrap_or(name);
    CONTAINER.contains(&bare) || name.trim_start_matches("requests.").starts_with(HUGE_PAGES)
}

pub fn is_standard_in_quota(name: &str) -> bool {
    is_compute(name) || name == "requests.storage" || COUNTS.contains(&name)
}

/// A name of any resource.
pub fn resource_name(name: &str, path: &Path, errors: &mut Errors) {
    let wrong = names::is_qualified_name(name);
    if wrong.is_empty() && !name.contains('/') && !is_standard_in_quota(name) && name != "storage" {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
    }
    errors.all_invalid(path, name, wrong);
}

/// A name that a quota may limit.
pub fn quota_resource(name: &str, path: &Path, errors: &mut Errors) {
    resource_name(name, path, errors);
    if !name.contains('/') && !is_standard_in_quota(name) {
        errors.invalid(path, name, "must be a standard resource for quota");
    }
}

pub fn non_negative(value: &Text, path: &Path, errors: &mut Errors) {
    match Quantity::parse(&value.0) {
        Ok(quantity) if quantity < Quantity::ZERO => errors.invalid(path, &value.0, NEGATIVE),
        Ok(_) => {}
        Err(_) => errors.invalid(path, &value.0, MALFORMED),
    }
}

const MALFORMED: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

/// One amount of one resource.
pub fn amount(name: &str, value: &Text, path: &Path, errors: &mut Errors) {
    non_negative(value, path, errors);
    if is_integer(name) && parse(value).milli_value() % 1000 != 0 {
        errors.invalid_amount(path, &value.0, "must be an integer");
    }
}

/// A name a container may use in requests or limits.
pub fn container_resource(name: &str, path: &Path, errors: &mut Errors) {
    resource_name(name, path, errors);
    let standard = CONTAINER.contains(&name) || is_huge_page(name);
    if !name.contains('/') && !standard {
        errors.invalid(path, name, "must be a standard resource for containers");
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

/// Huge pages come in whole pages.
fn whole_pages(name: &str, value: &Text, path: &Path, errors: &mut Errors) {
    let Some(Ok(page)) = name.strip_prefix(HUGE_PAGES).map(Quantity::parse) else { return };
    let (page, value) = (page.value(), parse(value));
    if page <= 0 || value.value() % page != 0 {
        errors.invalid(path, value.to_string(), format!("{value} is not positive integer multiple of {name}"));
    }
}

/// Requests and limits of one container, or of a pod as a whole.
pub fn requirements(resources: &ResourceRequirements, path: &Path, errors: &mut Errors) {
    let (requests, limits) = (resources.requests.as_ref(), resources.limits.as_ref());
    let (requests_path, limits_path) = (path.child("requests"), path.child("limits"));
    for (name, value) in limits.into_iter().flatten() {
        let at = limits_path.key(name);
        container_resource(name, &at, errors);
        amount(name, value, &at, errors);
        whole_pages(name, value, &at, errors);
    }
    for (name, value) in requests.into_iter().flatten() {
        let at = requests_path.key(name);
        container_resource(name, &at, errors);
        amount(name, value, &at, errors);
        whole_pages(name, value, &at, errors);
        match get(limits, name) {
            Some(limit) if !is_overcommitted(name) && limit != parse(value) => {
                errors.invalid(&requests_path, &value.0, format!("must be equal to {name} limit of {limit}"))
            }
            Some(limit) if limit < parse(value) => errors.invalid(
                &requests_path,
                &value.0,
                format!("must be less than or equal to {name} limit of {limit}"),
            ),
            Some(_) => {}
            None if !is_overcommitted(name) => {
                errors.required(&limits_path, "Limit must be set for non overcommitable resources");
            }
            None => {}
        }
    }
    let names = || requests.into_iter().chain(limits).flatten().map(|(name, _)| name.as_str());
    if names().any(is_huge_page) && !names().any(|name| name == "cpu" || name == "memory") {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    claims(resources, path, errors);
}

fn claims(resources: &ResourceRequirements, path: &Path, errors: &mut Errors) {
    let mut seen = std::collections::BTreeSet::new();
    for (at, claim) in super::indexed(resources.claims.as_ref(), &path.child("claims")) {
        errors.needed(&at.child("name"), &claim.name);
        if !seen.insert((&claim.name, &claim.request)) {
            errors.duplicate(&at, &claim.name);
        }
    }
}
