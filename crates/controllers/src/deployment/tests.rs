//! Plans in tables, and whole rollouts played through in memory: the plan is carried out on sets whose pods come up at
//! once, and the bounds of the update are checked at every step.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetStatus};
use serde_json::{Value, json};

use super::plan::{DESIRED_REPLICAS, MAX_REPLICAS, Plan, REVISION, plan};
use super::scale::{self, Limits};

fn at(second: i64) -> Timestamp {
    "2024-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second)
}

fn deployment(replicas: i32, more: Value) -> Deployment {
    let mut value = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 1}, "spec": {
        "replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
        "selector": {"matchLabels": {"app": "web"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}}});
    machinery::patch::merge_patch(&mut value, &more).unwrap();
    serde_json::from_value(value).unwrap()
}

fn set_image(deployment: &mut Deployment, image: &str) {
    let pods = deployment.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
    pods.containers[0].image = Some(image.into());
}

/// A set of the deployment with `size` pods, `available` of them available, told of `desired` and `max` replicas.
fn set(
    name: &str,
    image: &str,
    (size, available): (i32, i32),
    (desired, max): (i32, i32),
    created: i64,
) -> Arc<ReplicaSet> {
    let value = json!({
        "metadata": {"name": name, "uid": name, "creationTimestamp": at(created).to_string(), "generation": 1,
            "annotations": {DESIRED_REPLICAS: desired.to_string(), MAX_REPLICAS: max.to_string(),
                REVISION: (created + 1).to_string()}},
        "spec": {"replicas": size, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}},
        "status": {"replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1}});
    Arc::new(serde_json::from_value(value).unwrap())
}

fn sizes(plan: &Plan) -> Vec<(String, i32)> {
    let mut sizes: Vec<_> =
        plan.update.iter().map(|set| (set.metadata.name.clone().unwrap(), scale::size(set))).collect();
    sizes.sort();
    sizes
}

fn condition(plan: &Plan, kind: &str) -> String {
    let conditions = plan.status.conditions.iter().flatten();
    let found = conditions.into_iter().find(|condition| condition.type_ == kind);
    found.map_or("none".into(), |found| format!("{} {}", found.status, found.reason.as_deref().unwrap_or_default()))
}

#[test]
fn limits_round_surge_up_and_unavailability_down() {
    let table = [
        (10, json!("25%"), json!("25%"), (3, 2)),
        (1, json!("25%"), json!("25%"), (1, 0)),
        (10, json!(2), json!(0), (2, 0)),
        (10, json!(0), json!(0), (0, 1)),
        (10, json!("0%"), json!("5%"), (0, 1)),
        (3, json!(1), json!(9), (1, 3)),
    ];
    for (replicas, surge, unavailable, (expected_surge, expected_unavailable)) in table {
        let rolling =
            json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}});
        let limits = Limits::of(deployment(replicas, rolling.clone()).spec.as_ref().unwrap());
        let expected = Limits { surge: expected_surge, unavailable: expected_unavailable };
        assert_eq!(limits, expected, "{replicas} {rolling}");
    }
}

#[test]
fn a_new_deployment_gets_its_first_set() {
    let plan = plan(&deployment(3, json!({"metadata": {"annotations": {"note": "n"}}})), &[], |_| false, at(0));
    let set = plan.create.as_ref().unwrap();
    let (annotations, spec) = (set.metadata.annotations.as_ref().unwrap(), set.spec.as_ref().unwrap());
    assert_eq!((annotations[REVISION].as_str(), annotations["note"].as_str(), spec.replicas), ("1", "n", Some(3)));
    let hash = &spec.selector.match_labels.as_ref().unwrap()["pod-template-hash"];
    assert_eq!(set.metadata.name, Some(format!("web-{hash}")));
    assert_eq!(
        spec.template.as_ref().unwrap().metadata.as_ref().unwrap().labels.as_ref().unwrap()["pod-template-hash"],
        *hash
    );
    assert_eq!(plan.events, [format!("Scaled up replica set web-{hash} from 0 to 3")]);
    assert_eq!(plan.revision.as_deref(), Some("1"));
    assert_eq!(condition(&plan, "Progressing"), "True NewReplicaSetCreated");
    assert_eq!(condition(&plan, "Available"), "False MinimumReplicasUnavailable");
    assert_eq!(plan.requeue.unwrap().as_secs(), 601);
}

/// A deployment in memory.
struct World {
    deployment: Deployment,
    sets: Vec<Arc<ReplicaSet>>,
    now: i64,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self { deployment, sets: Vec::new(), now: 0 }
    }

    fn step(&mut self) -> Plan {
        self.now += 1;
        let plan = plan(&self.deployment, &self.sets, |set| scale::actual(set) > 0, at(self.now));
        self.deployment.status = Some(plan.status.clone());
        self.sets.retain(|set| plan.delete.iter().all(|gone| gone.metadata.name != set.metadata.name));
        let replaced = plan.update.iter().chain(&plan.create);
        for changed in replaced.cloned() {
            self.sets.retain(|set| set.metadata.name != changed.metadata.name);
            self.sets.push(Arc::new(self.observed(changed)));
        }
        plan
    }

    /// As it is once its pods are up.
    fn observed(&self, mut set: ReplicaSet) -> ReplicaSet {
        let size = scale::size(&set);
        set.metadata.uid.get_or_insert_with(|| set.metadata.name.clone().unwrap());
        set.metadata
            .creation_timestamp
            .get_or_insert(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(self.now)));
        set.status = Some(ReplicaSetStatus {
            replicas: size,
            ready_replicas: Some(size),
            available_replicas: Some(size),
            ..Default::default()
        });
        set
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(|set| scale::size(set)).sum()
    }

    /// Steps until nothing changes; gives the last plan.
    fn settle(&mut self, mut check: impl FnMut(&World)) -> Plan {
        for _ in 0..100 {
            let before = self.deployment.status.clone();
            let plan = self.step();
            check(self);
            if plan.create.is_none() && plan.update.is_empty() && self.deployment.status == before {
                return plan;
            }
        }
        panic!("the rollout does not end: {:?}", self.sets);
    }

    fn sizes(&self) -> Vec<i32> {
        let mut sizes: Vec<_> =
            self.sets.iter().map(|set| (set.metadata.creation_timestamp.clone(), scale::size(set))).collect();
        sizes.sort();
        sizes.into_iter().map(|(_, size)| size).collect()
    }
}

#[test]
fn a_rollout_stays_within_its_bounds_and_ends() {
    for (replicas, surge, unavailable) in
        [(10, json!("25%"), json!("25%")), (4, json!(0), json!(1)), (1, json!(1), json!(0)), (7, json!(3), json!(2))]
    {
        let strategy =
            json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}});
        let mut world = World::new(deployment(replicas, strategy));
        world.settle(|_| ());
        assert_eq!(world.sizes(), [replicas]);
        set_image(&mut world.deployment, "v2");
        let limits = Limits::of(world.deployment.spec.as_ref().unwrap());
        let last = world.settle(|world| {
            assert!(world.total() <= replicas + limits.surge, "{:?}", world.sizes());
            assert!(world.total() >= replicas - limits.unavailable, "{:?}", world.sizes());
        });
        assert_eq!(world.sizes(), [0, replicas]);
        assert_eq!(condition(&last, "Progressing"), "True NewReplicaSetAvailable");
        assert_eq!(condition(&last, "Available"), "True MinimumReplicasAvailable");
        assert_eq!(last.revision.as_deref(), Some("2"));
        assert_eq!(last.requeue, None, "a complete rollout is not looked at again");
    }
}

#[test]
fn going_back_to_an_old_template_takes_its_set_and_a_new_revision() {
    let mut world = World::new(deployment(2, json!({})));
    for image in ["v1", "v2", "v1"] {
        set_image(&mut world.deployment, image);
        world.settle(|_| ());
    }
    assert_eq!(world.sizes(), [2, 0]);
    let annotations =
        world.sets.iter().find(|set| scale::size(set) == 2).unwrap().metadata.annotations.clone().unwrap();
    assert_eq!(annotations[REVISION], "3");
    assert_eq!(annotations["deployment.kubernetes.io/revision-history"], "1");
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut world = World::new(deployment(1, json!({"spec": {"revisionHistoryLimit": 1}})));
    for image in ["v1", "v2", "v3", "v4"] {
        set_image(&mut world.deployment, image);
        world.settle(|_| ());
    }
    let mut revisions: Vec<_> =
        world.sets.iter().map(|set| set.metadata.annotations.as_ref().unwrap()[REVISION].clone()).collect();
    revisions.sort();
    assert_eq!(revisions, ["3", "4"]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut changed = deployment(2, json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}}));
    set_image(&mut changed, "v2");
    let old = set("old", "v1", (2, 2), (2, 2), 0);
    let first = plan(&changed, std::slice::from_ref(&old), |_| true, at(9));
    assert_eq!((sizes(&first), first.create.is_none()), (vec![("old".into(), 0)], true));
    let emptied = set("old", "v1", (0, 0), (2, 2), 0);
    let still_running = plan(&changed, std::slice::from_ref(&emptied), |_| true, at(9));
    assert!(still_running.create.is_none() && still_running.update.is_empty());
    let gone = plan(&changed, &[emptied], |_| false, at(9));
    assert_eq!(gone.create.unwrap().spec.unwrap().replicas, Some(2));
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    // (wanted, before, [new, old...] sizes, expected sizes); maxSurge and maxUnavailable as a number each
    let table = [
        (12, 10, 0, vec![8, 2], vec![10, 2]),
        (5, 10, 0, vec![8, 2], vec![4, 1]),
        (20, 10, 2, vec![5, 5, 2], vec![9, 9, 4]),
        (0, 10, 0, vec![8, 2], vec![0, 0]),
    ];
    for (wanted, before, surge, present, expected) in table {
        let strategy = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": 2}}}});
        let mut changed = deployment(wanted, strategy);
        set_image(&mut changed, "v9");
        let sets: Vec<_> = present
            .iter()
            .enumerate()
            .map(|(number, size)| {
                let image = if number == 0 { "v9".to_owned() } else { format!("v{number}") };
                set(&format!("{number}"), &image, (*size, *size), (before, before + surge), 10 - number as i64)
            })
            .collect();
        let plan = plan(&changed, &sets, |_| true, at(60));
        let mut result = present.clone();
        sizes(&plan).into_iter().for_each(|(name, size)| result[name.parse::<usize>().unwrap()] = size);
        assert_eq!(result, expected, "{before} to {wanted} with {present:?}");
    }
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut paused = deployment(5, json!({"spec": {"paused": true}}));
    set_image(&mut paused, "v2");
    let plan = plan(&paused, &[set("old", "v1", (3, 3), (3, 4), 0)], |_| true, at(9));
    assert!(plan.create.is_none());
    assert_eq!(sizes(&plan), [("old".to_owned(), 5)]);
    assert_eq!(condition(&plan, "Progressing"), "Unknown DeploymentPaused");
}

#[test]
fn a_rollout_without_progress_times_out() {
    let mut world = World::new(deployment(2, json!({})));
    world.step();
    for set in &mut world.sets {
        *set = Arc::new(ReplicaSet { status: Some(Default::default()), ..set.as_ref().clone() });
    }
    let waiting = plan(&world.deployment, &world.sets, |_| true, at(500));
    assert_eq!(condition(&waiting, "Progressing"), "True NewReplicaSetCreated");
    assert_eq!(waiting.requeue.unwrap().as_secs(), 102);
    let late = plan(&world.deployment, &world.sets, |_| true, at(602));
    assert_eq!(condition(&late, "Progressing"), "False ProgressDeadlineExceeded");
    assert_eq!(late.requeue, None);
}

#[test]
fn unhealthy_old_pods_go_first() {
    let mut changed =
        deployment(10, json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 2}}}}));
    set_image(&mut changed, "v3");
    let sets = [
        set("new", "v3", (2, 2), (10, 12), 9),
        set("sick", "v2", (4, 0), (10, 12), 1),
        set("well", "v1", (6, 6), (10, 12), 0),
    ];
    let plan = plan(&changed, &sets, |_| true, at(60));
    assert_eq!(sizes(&plan), [("sick".to_owned(), 0)]);
}

/// (how a shrunk old set says it is, the size of the new one after the next pass)
#[test]
fn a_new_set_waits_for_the_pods_of_shrunk_ones() {
    let table = [
        (json!({"replicas": 2, "availableReplicas": 2, "observedGeneration": 2}), 2),
        // Its third pod is not gone yet, or its size is not seen, so that it may be making one.
        (json!({"replicas": 3, "availableReplicas": 3, "observedGeneration": 2}), 1),
        (json!({"replicas": 2, "availableReplicas": 2, "observedGeneration": 1}), 1),
    ];
    for (status, expected) in table {
        let rolling = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}}});
        let mut deployment = deployment(3, rolling);
        set_image(&mut deployment, "v2");
        let mut old = set("old", "v1", (2, 2), (3, 4), 0).as_ref().clone();
        old.metadata.generation = Some(2);
        old.status = Some(serde_json::from_value(status.clone()).unwrap());
        let new = set("new", "v2", (1, 0), (3, 4), 1);
        let plan = plan(&deployment, &[Arc::new(old), new], |_| true, at(2));
        let grown = sizes(&plan).into_iter().find(|(name, _)| name == "new").map_or(1, |(_, size)| size);
        assert_eq!(grown, expected, "{status}");
    }
}
