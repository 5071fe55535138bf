//! What a Service gets, by the ranges there are and what is taken of them.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::plan::{Plan, held};

/// The plan's errors or failure, or what it takes, by key without prefix; and the completed Service.
fn planned(
    ranges: &[&str],
    taken: &[String],
    spec: Value,
    old: Option<&Value>,
) -> (Result<Vec<String>, String>, Value) {
    let taken: HashSet<&str> = taken.iter().map(String::as_str).collect();
    let mut service = json!({"metadata": {"namespace": "ns", "name": "a"}, "spec": spec});
    let mut plan = Plan {
        ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        has_address: &|address| taken.contains(address),
        ports: 30000..=32767,
        taken_ports: HashSet::new(),
        spread: true,
        holder: "ns/a".into(),
        old: old.map(held).unwrap_or_default(),
        take: Vec::new(),
        errors: Vec::new(),
        failure: None,
    };
    plan.complete(&mut service, old);
    let errors: Vec<String> = plan.errors.iter().map(ToString::to_string).collect();
    let failure = plan.failure.map(|failure| failure.status.message);
    let take = || plan.take.iter().map(|claim| String::from_utf8(claim.key.to_vec()).unwrap());
    let short = |key: String| key.rsplit_once('/').unwrap().1.to_owned();
    match errors.first().cloned().or(failure) {
        Some(why) => (Err(why), service),
        None => (Ok(take().map(short).collect()), service),
    }
}

fn cluster_ip(address: &str) -> Value {
    json!({"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address]})
}

/// The addresses of 10.0.0.0/24 whose last number is in the range.
fn addresses(numbers: std::ops::RangeInclusive<u8>) -> Vec<String> {
    numbers.map(|number| format!("10.0.0.{number}")).collect()
}

#[test]
fn addresses_are_drawn_from_the_upper_band_first() {
    // of 254 hosts the first 16 are the lower band; of a range of 16 addresses there is none
    for (range, taken, numbers) in [
        ("10.0.0.0/24", Vec::new(), 17..=254),
        ("10.0.0.0/24", addresses(18..=254), 17..=17),
        ("10.0.0.0/24", addresses(17..=254), 1..=16),
        ("10.0.0.0/24", [addresses(1..=8), addresses(10..=254)].concat(), 9..=9),
        ("10.0.0.0/27", Vec::new(), 17..=30),
        ("10.0.0.0/28", addresses(2..=14), 1..=1),
        ("10.0.0.0/30", addresses(1..=1), 2..=2),
    ] {
        let allowed = addresses(numbers);
        for _ in 0..50 {
            let (got, service) = planned(&[range], &taken, json!({"type": "ClusterIP"}), None);
            let got = got.unwrap();
            assert!(got.len() == 1 && allowed.contains(&got[0]), "{range}: {got:?}, not of {allowed:?}");
            assert_eq!((&service["spec"]["clusterIP"], &service["spec"]["clusterIPs"]), (&json!(got[0]), &json!(got)));
        }
    }
}

#[test]
fn a_full_range_gives_way_to_the_next() {
    let (small, next, none) = ("10.0.0.0/30", "10.96.0.0/30", &["10.0.0.0/31", "10.0.0.0/32"][..]);
    let full = Err("Internal error occurred: failed to allocate a serviceIP: range is full".to_owned());
    let all = addresses(1..=2);
    assert_eq!(planned(&[small], &all, json!({"type": "ClusterIP"}), None).0, full);
    assert_eq!(planned(&[], &[], json!({"type": "ClusterIP"}), None).0, full);
    assert_eq!(planned(none, &[], json!({"type": "ClusterIP"}), None).0, full);
    let taken = [all, vec!["10.96.0.1".into()]].concat();
    assert_eq!(planned(&[small, next], &taken, json!({"type": "ClusterIP"}), None).0, Ok(vec!["10.96.0.2".into()]));
}

#[test]
fn an_address_that_is_asked_for_must_be_in_a_range() {
    let ranges = ["10.0.0.0/24", "10.96.100.0/28"];
    let outside = |address: &str| {
        Err(format!(
            "spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: \
             the provided network does not match the current range"
        ))
    };
    for (address, want) in [
        ("10.0.0.5", Ok(vec!["10.0.0.5".to_owned()])),
        ("10.96.100.14", Ok(vec!["10.96.100.14".to_owned()])),
        ("10.96.100.15", outside("10.96.100.15")),
        ("10.96.100.0", outside("10.96.100.0")),
        ("10.9.9.9", outside("10.9.9.9")),
        ("None", Ok(vec![])),
    ] {
        assert_eq!(planned(&ranges, &[], cluster_ip(address), None).0, want, "{address}");
    }
    let six = "spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster";
    assert_eq!(planned(&["fd00::/64"], &[], cluster_ip("fd00::1"), None).0, Err(six.to_owned()));
    // Whoever has one keeps it, wherever it is.
    let old = json!({"spec": cluster_ip("10.9.9.9")});
    assert_eq!(planned(&ranges, &[], cluster_ip("10.9.9.9"), Some(&old)).0, Ok(vec![]));
}

#[test]
fn keys_are_where_the_objects_lie() {
    let facts = super::address::resource().facts();
    assert_eq!(super::ADDRESSES, format!("{}{}/", crate::cache::ROOT, facts.storage_prefix));
}
