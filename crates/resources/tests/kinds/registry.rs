//! The facts of all kinds agree with each other and with the schema.

use std::collections::BTreeSet;

use jiff::Timestamp;
use resources::{Verb, registry, types};
use serde_json::json;

#[test]
fn facts_agree() {
    let (mut plurals, mut kinds, mut prefixes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for resource in registry().all() {
        let facts = resource.facts();
        let name = format!("{}/{}", facts.api_version(), facts.plural);
        assert!(types().get(facts.schema).is_some(), "{name}: {} is no type", facts.schema);
        assert!(plurals.insert(name.clone()), "{name} is registered twice");
        assert!(kinds.insert((facts.group, facts.version, facts.kind)), "{name}: its kind is taken");
        assert_eq!(facts.singular, facts.kind.to_lowercase(), "{name}");
        let stored = facts.stored();
        assert_eq!(stored, facts.allows(Verb::Watch), "{name}: what is stored is watched");
        if stored && resource.conversion().is_none() {
            assert!(prefixes.insert(facts.storage_prefix), "{name}: its storage is another's");
        }
        assert_eq!(registry().storage_of(*resource).facts().storage_prefix, facts.storage_prefix, "{name}");
        let mut seen = BTreeSet::new();
        for subresource in facts.subresources {
            assert!(seen.insert(subresource.name), "{name}/{} twice", subresource.name);
            assert!(!subresource.verbs.is_empty());
            let options = subresource.kind.ends_with("Options");
            let known = registry().by_gvk(subresource.group, subresource.version, subresource.kind);
            assert_eq!(known.is_none(), options, "{name}/{}: {}", subresource.name, subresource.kind);
        }
        assert_eq!(registry().by_gvr(facts.group, facts.version, facts.plural).expect(&name).facts().kind, facts.kind);
    }
}

#[test]
fn every_kind_stands_an_empty_object() {
    for resource in registry().all() {
        let facts = resource.facts();
        let mut object = json!({"apiVersion": facts.api_version(), "kind": facts.kind, "metadata": {"name": "a"}});
        resource.default(&mut object);
        let mut again = object.clone();
        resource.default(&mut again);
        assert_eq!(object, again, "{}: defaulting twice changes something", facts.kind);
        resource.prepare_create(&mut object);
        resource.validate(&object);
        resource.validate_update(&object, &object);
        resource.validate_status_update(&object, &object);
        let cells = resource.cells(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(cells.len(), resource.columns().len(), "{}", facts.kind);
        let broken = json!({"metadata": {"name": "a", "labels": 7}});
        assert_eq!(resource.cells(&broken, Timestamp::UNIX_EPOCH).len(), cells.len(), "{}", facts.kind);
        for field in resource.selectable_fields() {
            assert!(resource.field(&object, field).is_some());
        }
        assert_eq!(resource.field(&object, "metadata.name").as_deref(), Some("a"));
        assert_eq!(resource.field(&object, "spec.nonsense"), None);
    }
}

#[test]
fn events_have_two_shapes() {
    let event = registry().by_gvk("events.k8s.io", "v1", "Event").expect("registered");
    let conversion = event.conversion().expect("stored in another version");
    let new = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a"}, "reason": "Started",
        "note": "it runs", "regarding": {"kind": "Pod"}, "reportingController": "kubelet", "deprecatedCount": 2,
    });
    let stored = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "a"}, "reason": "Started",
        "message": "it runs", "involvedObject": {"kind": "Pod"}, "reportingComponent": "kubelet", "count": 2,
    });
    let mut object = new.clone();
    (conversion.to_storage)(&mut object);
    assert_eq!(object, stored);
    (conversion.from_storage)(&mut object);
    assert_eq!(object, new);
    assert_eq!(registry().storage_of(event).facts().group, "");
}
