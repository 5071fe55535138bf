//! Rollouts as their users need them: at every event of a watch enough pods are available and not too many exist, and
//! a client of the Service sees no failure while pods come and go.
//!
//! Watches are recorded and judged afterwards. Resource versions order the events of all kinds, so that what a
//! controller did can be held against what it knew.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use testkit::{Api, Cluster, Traces, Watch, condition, eventually};

const PODS: &str = "/api/v1/namespaces/default/pods";
const SETS: &str = "/apis/apps/v1/namespaces/default/replicasets";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

const REPLICAS: usize = 3;
const MINIMUM: usize = REPLICAS - 1;
const MAXIMUM: usize = REPLICAS + 1;
const REQUESTS_PER_SECOND: u64 = 200;

fn deployment() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {
    "replicas": REPLICAS,
    "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
    "progressDeadlineSeconds": 5,
    "selector": {"matchLabels": {"app": "web"}},
    "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{
        "name": "web", "image": "isopod.local/hello:latest", "imagePullPolicy": "IfNotPresent",
        "ports": [{"containerPort": 8080}],
        // A slow machine must not make a pod unready that nobody harmed.
        "readinessProbe": {
            "httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "timeoutSeconds": 30, "failureThreshold": 30
        }}]}}}})
}

/// A template that differs from any other `version`.
fn version(version: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [
        {"name": "web", "env": [{"name": "VERSION", "value": version}]}]}}}})
}

fn start() -> (Cluster, Api) {
    let (cluster, _) = common::cluster();
    let api = cluster.api();
    api.wait("/api/v1/namespaces/default/serviceaccounts/default", |_| true);
    api.post(DEPLOYMENTS, &deployment());
    let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    api.post("/api/v1/namespaces/default/services", &service);
    complete(&api);
    (cluster, api)
}

fn complete(api: &Api) -> Value {
    api.wait(&format!("{DEPLOYMENTS}/web"), |deployment| {
        let status = &deployment["status"];
        status["observedGeneration"] == deployment["metadata"]["generation"]
            && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|key| status[key] == REPLICAS)
    })
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn active(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    pod["metadata"]["deletionTimestamp"].is_null() && !["Succeeded", "Failed"].contains(&phase)
}

/// Active and ready; without minReadySeconds that is available.
fn available(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    active(pod) && conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// The watches of one rollout.
struct Record {
    pods: Watch,
    sets: Watch,
    deployments: Watch,
}

/// An event of any of them.
struct Event {
    version: u64,
    kind: &'static str,
    deleted: bool,
    object: Value,
}

impl Record {
    fn start(api: &Api) -> Record {
        let record = Record {
            pods: api.watch(&format!("{PODS}?labelSelector=app%3Dweb")),
            sets: api.watch(SETS),
            deployments: api.watch(DEPLOYMENTS),
        };
        eventually("the watches tell what is there", || {
            let known = record.pods.events().len() >= REPLICAS && !record.deployments.events().is_empty();
            known.then_some(()).ok_or_else(|| "not yet".into())
        });
        record
    }

    /// Everything so far, in the order in which it happened.
    fn events(&self) -> Vec<Event> {
        let of = |kind, watch: &Watch| -> Vec<Event> {
            let event = |event: Value| Event {
                version: event["object"]["metadata"]["resourceVersion"]
                    .as_str()
                    .and_then(|v| v.parse().ok())
                    .unwrap_or(0),
                kind,
                deleted: event["type"] == "DELETED",
                object: event["object"].clone(),
            };
            watch.events().into_iter().map(event).collect()
        };
        let mut all = of("Pod", &self.pods);
        all.extend(of("ReplicaSet", &self.sets));
        all.extend(of("Deployment", &self.deployments));
        all.sort_by_key(|event| event.version);
        all
    }
}

/// What exists, as the events tell it.
#[derive(Default)]
struct World {
    pods: BTreeMap<String, Value>,
    /// Sizes that the deployment gave its sets.
    sizes: BTreeMap<String, u64>,
}

impl World {
    fn apply(&mut self, event: &Event) {
        match (event.kind, event.deleted) {
            ("Pod", true) => drop(self.pods.remove(&name(&event.object))),
            ("Pod", false) => drop(self.pods.insert(name(&event.object), event.object.clone())),
            ("ReplicaSet", true) => {
                self.sizes.remove(&name(&event.object));
            }
            ("ReplicaSet", false) => {
                self.sizes.insert(name(&event.object), event.object["spec"]["replicas"].as_u64().unwrap_or(0));
            }
            _ => {}
        }
    }

    fn available(&self) -> usize {
        self.pods.values().filter(|pod| available(pod)).count()
    }

    fn describe(&self) -> String {
        let pods = self.pods.iter().map(|(name, pod)| {
            format!(
                "{name} {}{}",
                pod["status"]["phase"],
                if available(pod) {
                    " available"
                } else if active(pod) {
                    ""
                } else {
                    " ending"
                }
            )
        });
        format!("{:?} {:?}", pods.collect::<Vec<_>>(), self.sizes)
    }
}

/// The bounds of a rollout that nobody disturbs, at every event: of pods, and of the sizes given to the sets.
fn judge(events: &[Event]) {
    let mut world = World::default();
    let settled = events.iter().position(|event| event.kind == "Deployment").expect("the deployment is watched");
    for (index, event) in events.iter().enumerate() {
        world.apply(event);
        // What is there at first is told one by one.
        if index < settled.max(REPLICAS) {
            continue;
        }
        let active = world.pods.values().filter(|pod| active(pod)).count();
        let text = || format!("at {} {} of {}: {}", event.version, event.kind, name(&event.object), world.describe());
        assert!(world.available() >= MINIMUM, "too few available {}", text());
        assert!(active <= MAXIMUM, "too many pods {}", text());
        assert!(world.sizes.values().sum::<u64>() as usize <= MAXIMUM, "too large {}", text());
    }
}

/// A client pod that asks at a steady rate.
struct Load<'a>(&'a Cluster);

impl Load<'_> {
    fn start<'a>(cluster: &'a Cluster, api: &Api) -> Load<'a> {
        let rate = REQUESTS_PER_SECOND.to_string();
        let pod = json!({"metadata": {"name": "client"}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "client", "image": "isopod.local/hello:latest", "imagePullPolicy": "IfNotPresent",
            "command": ["/isopod", "fetch", "--rate", rate, "http://web"]}]}});
        api.post(PODS, &pod);
        let load = Load(cluster);
        load.goes_on();
        load
    }

    /// Requests and failures up to now, and the report's lines on failures.
    fn counts(&self) -> Result<(u64, u64, Vec<String>), String> {
        let output = self.0.kubectl(&["logs", "client"]).output().expect("run kubectl");
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        let last =
            log.lines().rfind(|line| line.contains(" requests, ")).ok_or_else(|| format!("no report yet: {log}"))?;
        let number = |index| last.split(' ').nth(index).and_then(|word| word.parse().ok()).expect("a count");
        Ok((number(2), number(4), log.lines().filter(|line| line.starts_with("failed")).map(str::to_owned).collect()))
    }

    /// Waits for another second's worth of requests.
    fn goes_on(&self) {
        let before = eventually("a first report", || self.counts()).0;
        eventually("requests go on", || match self.counts()? {
            (now, ..) if now >= before + REQUESTS_PER_SECOND / 2 => Ok(()),
            counts => Err(format!("{counts:?}")),
        });
    }

    fn judge(&self) {
        self.goes_on();
        let (requests, failed, failures) = self.counts().expect("a report");
        assert_eq!((failed, failures.len()), (0, 0), "of {requests} requests: {failures:#?}");
    }
}

#[test]
fn a_rollout_and_its_undoing_keep_the_bounds_and_every_request() {
    let (cluster, api) = start();
    let load = Load::start(&cluster, &api);
    let before = complete(&api);
    let first = before["spec"]["template"].clone();

    let record = Record::start(&api);
    api.patch(&format!("{DEPLOYMENTS}/web"), &version("2"));
    assert!(cluster.run(&["rollout", "status", "deployment/web"]).ends_with("successfully rolled out\n"));
    complete(&api);
    load.judge();
    judge(&record.events());
    drop(record);

    let record = Record::start(&api);
    assert_eq!(cluster.run(&["rollout", "undo", "deployment/web"]), "deployment.apps/web rolled back\n");
    let after = complete(&api);
    assert_eq!(after["spec"]["template"], first);
    assert_eq!(after["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    load.judge();
    judge(&record.events());
}

#[test]
fn a_crashing_version_stops_at_the_bound_and_is_undone() {
    let (cluster, api) = start();
    let load = Load::start(&cluster, &api);
    let record = Record::start(&api);
    let mut crashing = version("broken");
    crashing["spec"]["template"]["spec"]["containers"][0]["command"] = json!(["/isopod", "nonsense"]);
    api.patch(&format!("{DEPLOYMENTS}/web"), &crashing);
    let stuck = api.wait(&format!("{DEPLOYMENTS}/web"), |deployment| {
        condition(deployment, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    });
    let progressing = condition(&stuck, "Progressing");
    let message = progressing["message"].as_str().expect("a message");
    assert_eq!(progressing["status"], "False");
    assert!(
        message.starts_with("ReplicaSet \"web-") && message.ends_with("\" has timed out progressing."),
        "{message}"
    );
    assert_eq!(condition(&stuck, "Available")["status"], "True");
    let status = &stuck["status"];
    let numbers =
        ["replicas", "updatedReplicas", "availableReplicas", "unavailableReplicas"].map(|k| status[k].as_u64());
    assert_eq!(numbers, [Some(4), Some(2), Some(2), Some(2)]);
    let complaint = cluster.refuse(&["rollout", "status", "deployment/web"]);
    assert_eq!(complaint, "error: deployment \"web\" exceeded its progress deadline\n");
    load.judge();

    cluster.run(&["rollout", "undo", "deployment/web"]);
    let recovered = complete(&api);
    assert_eq!(condition(&recovered, "Progressing")["reason"], "NewReplicaSetAvailable");
    load.judge();
    judge(&record.events());
}

/// Pods are killed and deleted while versions change. Then pods may be missing through no fault of the controllers;
/// theirs is every other loss: whenever they end an available pod, enough remain, where those count as remaining that
/// we took and of which the deployment controller could not know when it decided, and those that it had given up as
/// unavailable (see [`Blame`]).
#[test]
fn failures_amid_rollouts_are_made_no_worse() {
    let (cluster, api) = start();
    let record = Record::start(&api);
    let (mut killed, mut deleted) = (BTreeSet::new(), BTreeSet::new());
    let mut dice = Dice(0x5eed);
    for round in 0..5 {
        api.patch(&format!("{DEPLOYMENTS}/web"), &version(&round.to_string()));
        for _ in 0..2 {
            let mut pods: Vec<Value> =
                api.get(&format!("{PODS}?labelSelector=app%3Dweb"))["items"].as_array().expect("items").clone();
            pods.retain(available);
            let Some(victim) = dice.choose(&pods) else { continue };
            if dice.roll(2) == 0 {
                api.send("DELETE", &format!("{PODS}/{}", name(victim)), "application/json", &Value::Null);
                deleted.insert(name(victim));
            } else if kill(&cluster, victim) {
                killed.insert(name(victim));
            }
            // Somewhere amid what follows.
            let seen = record.pods.events().len() + dice.roll(6);
            eventually("the rollout goes on", || {
                let go = record.pods.events().len() >= seen || updated(&api);
                go.then_some(()).ok_or_else(|| "nothing happens".into())
            });
        }
        // Every other version is overtaken by the next.
        if round % 2 == 0 {
            complete(&api);
        }
    }
    let events = record.events();
    blame(&events, &killed, &deleted);
    assert!(!killed.is_empty() && !deleted.is_empty(), "{killed:?} {deleted:?}");
}

fn updated(api: &Api) -> bool {
    let deployment = api.get(&format!("{DEPLOYMENTS}/web"));
    let status = &deployment["status"];
    status["observedGeneration"] == deployment["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|key| status[key] == REPLICAS)
}

/// Ends the web server of a pod by SIGKILL; whether there was one.
fn kill(cluster: &Cluster, pod: &Value) -> bool {
    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    let processes = Traces::of(&cluster.name).processes;
    let servers = processes.iter().filter(|process| process.contains("/isopod hello"));
    let pids = servers.filter_map(|process| process.split(' ').next()?.parse::<i32>().ok());
    let in_pod =
        |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(uid));
    let Some(pid) = pids.into_iter().find(in_pod) else { return false };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).is_ok()
}

fn blame(events: &[Event], killed: &BTreeSet<String>, deleted: &BTreeSet<String>) {
    let mut world = World::default();
    let mut blame = Blame::default();
    let mut taken = 0;
    for event in events {
        let (before, lost) = (world.available(), name(&event.object));
        world.apply(event);
        blame.observe(event);
        let active = world.pods.values().filter(|pod| active(pod)).count();
        let text =
            || format!("at {} ({lost}): {}\nkilled {killed:?}, deleted {deleted:?}", event.version, world.describe());
        assert!(active <= MAXIMUM, "too many pods {}", text());
        assert!(world.sizes.values().sum::<u64>() as usize <= MAXIMUM, "too large {}", text());
        if event.kind != "Pod" || world.available() == before {
            continue;
        }
        let set = event.object["metadata"]["ownerReferences"][0]["name"].as_str().expect("pods have an owner");
        if world.available() > before {
            blame.recover(set);
            continue;
        }
        if deleted.contains(&lost) || self::active(&event.object) && killed.contains(&lost) {
            blame.lose(set);
        } else {
            taken += 1;
            let excused = blame.excused.get(set).copied().unwrap_or(0);
            assert!(
                world.available() + excused >= MINIMUM,
                "a controller took too many, {excused} excused, {}",
                text()
            );
        }
    }
    assert!(taken >= REPLICAS, "rollouts end available pods, but only {taken} did");
}

/// Which of our losses the deployment controller may not have known of when it made a set smaller. It knows what the
/// status of the sets tells, and has looked at that once it has written its own status afterwards.
#[derive(Default)]
struct Blame {
    /// By set: losses that the set's status does not tell, and those that the deployment has not looked at.
    untold: BTreeMap<String, usize>,
    unseen: BTreeMap<String, usize>,
    /// By set: what was unknown when it was last made smaller, and what was lost since or became available too late.
    excused: BTreeMap<String, usize>,
    /// By set: pods that it was made smaller by because they were not available.
    given_up: BTreeMap<String, usize>,
    sets: BTreeMap<String, (u64, u64)>,
}

impl Blame {
    fn observe(&mut self, event: &Event) {
        match event.kind {
            "ReplicaSet" => self.observe_set(&event.object),
            "Deployment" => self.unseen.clear(),
            _ => {}
        }
    }

    fn observe_set(&mut self, set: &Value) {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let now = (number(&set["spec"]["replicas"]), number(&set["status"]["availableReplicas"]));
        let set = name(set);
        let before = self.sets.insert(set.clone(), now).unwrap_or(now);
        if now.1 < before.1 {
            let told = self.untold.remove(&set).unwrap_or(0);
            *self.unseen.entry(set.clone()).or_default() += told;
        }
        if now.0 < before.0 {
            let unavailable = before.0.saturating_sub(now.1);
            self.given_up.insert(set.clone(), unavailable.min(before.0 - now.0) as usize);
            self.excused.insert(set, self.untold.values().chain(self.unseen.values()).sum());
        }
    }

    /// A pod became available, maybe after the controller had given it up.
    fn recover(&mut self, set: &str) {
        if let Some(given_up) = self.given_up.get_mut(set).filter(|given_up| **given_up > 0) {
            *given_up -= 1;
            *self.excused.entry(set.to_owned()).or_default() += 1;
        }
    }

    fn lose(&mut self, set: &str) {
        *self.untold.entry(set.to_owned()).or_default() += 1;
        self.excused.values_mut().for_each(|excused| *excused += 1);
    }
}

/// A fixed sequence that looks random, so that a failure can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.roll(items.len())) }
    }
}
