//! Claims and volumes: which nodes are left, in the words users read, and what a reservation takes from others.

use super::*;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

fn claim(name: &str, change: Value) -> Arc<PersistentVolumeClaim> {
    let claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "waits", "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"}});
    Arc::new(serde_json::from_value(with(claim, change)).unwrap())
}

fn bound(name: &str, volume: &str) -> Arc<PersistentVolumeClaim> {
    let annotations = json!({"pv.kubernetes.io/bind-completed": "yes"});
    claim(
        name,
        json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": volume}, "status": {"phase": "Bound"}}),
    )
}

/// A volume that the nodes with this host name reach.
fn volume(name: &str, host: &str, change: Value) -> Arc<PersistentVolume> {
    let terms = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]);
    let volume = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "waits", "capacity": {"storage": "1Gi"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}});
    Arc::new(serde_json::from_value(with(volume, change)).unwrap())
}

fn user(name: &str, claims: &[&str]) -> Value {
    let volume = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
    let volumes: Vec<_> = claims.iter().map(volume).collect();
    pod(name, "1m", json!({"spec": {"volumes": volumes}}))
}

/// Nodes a and b, and three classes.
fn world(claims: &[Arc<PersistentVolumeClaim>], volumes: &[Arc<PersistentVolume>]) -> Snapshot {
    let mut snapshot = snapshot([node("a", json!({})), node("b", json!({}))], []);
    let storage = &mut snapshot.storage;
    for (name, provisioner, mode) in [
        ("waits", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
        ("makes", "x.io/y", "WaitForFirstConsumer"),
        ("now", "x.io/y", "Immediate"),
    ] {
        let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
        storage.set_class(name.into(), Some(Arc::new(serde_json::from_value(class).unwrap())));
    }
    for claim in claims {
        storage.set_claim(format!("default/{}", claim.metadata.name.as_ref().unwrap()), Some(claim.clone()));
    }
    for volume in volumes {
        storage.set_volume(volume.metadata.name.clone().unwrap(), Some(volume.clone()));
    }
    snapshot
}

#[test]
fn nodes_must_reach_or_get_the_volumes() {
    let refused = |reason: &str| format!("0/2 nodes are available: {reason}.");
    let of_class = |class: &str| claim("c", json!({"spec": {"storageClassName": class}}));
    let on = |host: &str| volume("v", host, json!({}));
    let deleted = json!({"metadata": {"deletionTimestamp": "2024-01-01T00:00:00Z"}});
    let lost = json!({"spec": {"volumeName": "v"}, "status": {"phase": "Lost"}});
    let selected = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "b"}},
        "spec": {"storageClassName": "makes"}});
    let immediate = "pod has unbound immediate PersistentVolumeClaims";
    let none = "2 node(s) didn't find available persistent volumes to bind";
    let table: Vec<(Vec<_>, Vec<_>, String)> = vec![
        (vec![bound("c", "v")], vec![on("b")], "b".into()),
        (vec![bound("c", "v")], vec![on("z")], refused("2 node(s) had volume node affinity conflict")),
        (
            vec![bound("c", "v")],
            vec![],
            refused("2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
        ),
        (vec![], vec![], refused("persistentvolumeclaim \"c\" not found")),
        (vec![claim("c", deleted)], vec![], refused("persistentvolumeclaim \"c\" is being deleted")),
        (
            vec![claim("c", lost)],
            vec![],
            refused("persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"v\""),
        ),
        (vec![of_class("now")], vec![], refused(immediate)),
        (vec![of_class("")], vec![], refused(immediate)),
        (vec![claim("c", json!({"spec": {"volumeName": "v"}}))], vec![on("a")], refused(immediate)),
        (vec![of_class("gone")], vec![], refused("storageclass.storage.k8s.io \"gone\" not found")),
        (vec![of_class("waits")], vec![on("b")], "b".into()),
        (vec![of_class("waits")], vec![volume("v", "b", json!({"status": {"phase": "Bound"}}))], refused(none)),
        (vec![of_class("waits")], vec![], refused(none)),
        (vec![of_class("makes")], vec![], "a".into()),
        (vec![claim("c", selected)], vec![], "b".into()),
    ];
    for (claims, volumes, expected) in table {
        assert_eq!(outcome(&world(&claims, &volumes), user("p", &["c"])), expected, "{claims:?}");
    }
    // Each claim needs a volume of its own.
    let two = [claim("c", json!({})), claim("d", json!({}))];
    assert_eq!(outcome(&world(&two, &[on("a")]), user("p", &["c", "d"])), refused(none));
    let ephemeral = pod("p", "1m", json!({"spec": {"volumes": [{"name": "v", "ephemeral": {}}]}}));
    let waits = "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\"";
    assert_eq!(outcome(&world(&[], &[]), ephemeral.clone()), refused(waits));
    let foreign = "PVC default/p-v was not created for pod default/p (pod is not owner)";
    assert_eq!(outcome(&world(&[claim("p-v", json!({}))], &[]), ephemeral), refused(foreign));
}

#[test]
fn classes_are_made_only_where_they_are_allowed() {
    let mut snapshot = world(&[claim("c", json!({"spec": {"storageClassName": "zoned"}}))], &[]);
    let expression = json!({"key": "kubernetes.io/hostname", "values": ["b"]});
    let class = json!({"metadata": {"name": "zoned"}, "provisioner": "x", "volumeBindingMode": "WaitForFirstConsumer",
        "allowedTopologies": [{"matchLabelExpressions": [expression]}]});
    snapshot.storage.set_class("zoned".into(), Some(Arc::new(serde_json::from_value(class).unwrap())));
    assert_eq!(outcome(&snapshot, user("p", &["c"])), "b");
}

#[test]
fn what_is_reserved_is_not_given_twice() {
    let claims =
        [claim("c", json!({})), claim("d", json!({})), claim("m", json!({"spec": {"storageClassName": "makes"}}))];
    let mut snapshot = world(&claims, &[volume("v", "b", json!({}))]);
    let framework = default_profile();
    let (first, second) = (info(user("p", &["c", "m"])), user("q", &["d"]));
    let placed = decide(&framework, &snapshot, &first, Turn::default()).unwrap().node;
    assert_eq!(snapshot.node(placed).name, "b");
    let reserved = framework.reserve(&mut snapshot, &first, placed).unwrap();
    assert_eq!(reserved.iter().map(|(plugin, _)| *plugin).collect::<Vec<_>>(), ["VolumeBinding"]);
    assert!(outcome(&snapshot, second.clone()).contains("didn't find available persistent volumes"));
    // A claim that is to be made on one node keeps its other pods there.
    assert_eq!(outcome(&snapshot, user("r", &["m"])), "b");

    framework.unreserve(&mut snapshot, &first);
    assert_eq!(outcome(&snapshot, second.clone()), "b");
    // An event says how it really is.
    framework.reserve(&mut snapshot, &first, placed).unwrap();
    snapshot.storage.set_volume("v".into(), Some(volume("v", "b", json!({}))));
    assert_eq!(outcome(&snapshot, second), "b");
    assert!(framework.reserve(&mut snapshot, &info(pod("plain", "1m", json!({}))), placed).unwrap().is_empty());
}

#[test]
fn an_exclusive_claim_serves_one_pod() {
    let exclusive = bound("c", "v");
    let exclusive = Arc::new(PersistentVolumeClaim {
        spec: exclusive.spec.clone().map(|mut spec| {
            spec.access_modes = Some(vec!["ReadWriteOncePod".into()]);
            spec
        }),
        ..(*exclusive).clone()
    });
    let mut snapshot = world(&[exclusive, bound("shared", "v")], &[volume("v", "a", json!({}))]);
    snapshot.add_pod("a", info(user("first", &["c", "shared"])));
    let conflict = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    assert_eq!(outcome(&snapshot, user("second", &["c"])), format!("0/2 nodes are available: 2 {conflict}."));
    assert_eq!(outcome(&snapshot, user("second", &["shared"])), "a");
    // A more important pod takes its place.
    let urgent = with(user("urgent", &["c"]), json!({"spec": {"priority": 10}}));
    let refusal = attempt(&snapshot, urgent).unwrap_err();
    assert!(matches!(refusal.nomination, scheduler::framework::Nomination::Set { .. }), "{refusal:?}");
    snapshot.remove_pod("a", "first");
    assert_eq!(outcome(&snapshot, user("second", &["c"])), "a");
}

#[test]
fn volumes_keep_to_their_zones() {
    let zone = |zone: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
    for (volume_zone, node_zone, fits) in [("x", "x", true), ("x__y", "y", true), ("x", "y", false), ("x", "", true)] {
        let mut snapshot = world(&[bound("c", "v")], &[volume("v", "a", zone(volume_zone))]);
        if !node_zone.is_empty() {
            snapshot.set_node(Arc::new(serde_json::from_value(node("a", zone(node_zone))).unwrap()));
        }
        let outcome = outcome(&snapshot, user("p", &["c"]));
        let expected = match fits {
            true => "a",
            false => {
                "0/2 nodes are available: 1 node(s) had no available volume zone, 1 node(s) had volume node affinity conflict."
            }
        };
        assert_eq!(outcome, expected, "{volume_zone} {node_zone}");
    }
}
