//! DNS policy and configuration of a pod; the limits are glibc's resolver's and upstream's.

use k8s_openapi::api::core::v1::PodSpec;
use machinery::field::Path;
use machinery::names;

use crate::validate::{Errors, indexed, text};

const POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

pub fn validate(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let policy = text(&spec.dns_policy);
    errors.one_of(&path.child("dnsPolicy"), Some(policy), POLICIES);
    let path = path.child("dnsConfig");
    let Some(config) = &spec.dns_config else {
        if policy == "None" {
            errors.required(&path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let nameservers = config.nameservers.as_deref().unwrap_or_default();
    let at = path.child("nameservers");
    if policy == "None" && nameservers.is_empty() {
        errors.required(&at, "must provide at least one DNS nameserver when `dnsPolicy` is None");
    }
    if nameservers.len() > MAX_NAMESERVERS {
        errors.invalid(&at, nameservers, format!("must not have more than {MAX_NAMESERVERS} nameservers"));
    }
    for (at, address) in indexed(config.nameservers.as_ref(), &at) {
        errors.ip(&at, address);
    }
    searches(config.searches.as_ref(), &path.child("searches"), errors);
    for (at, option) in indexed(config.options.as_ref(), &path.child("options")) {
        if text(&option.name).is_empty() {
            errors.required(&at, "must not be empty");
        }
    }
}

fn searches(searches: Option<&Vec<String>>, path: &Path, errors: &mut Errors) {
    let list = searches.map(Vec::as_slice).unwrap_or_default();
    if list.len() > MAX_SEARCHES {
        errors.invalid(path, list, format!("must not have more than {MAX_SEARCHES} search paths"));
    }
    if list.join(" ").len() > MAX_SEARCH_CHARACTERS {
        let detail =
            format!("must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list");
        errors.invalid(path, list, detail);
    }
    for (at, search) in indexed(searches, path) {
        // "." alone is the root; a trailing dot is fine; underscores are seen in the wild.
        if search != "." {
            let name = search.strip_suffix('.').unwrap_or(search).replace('_', "-x-");
            errors.all_invalid(&at, search, names::is_dns1123_subdomain(&name));
        }
    }
}
