//! Every controller is killed between any two of its writes, and a fresh start of it must come to the same state as a
//! controller that was never killed: nothing lost, nothing doubled.
//!
//! A [`Scenario`] is what users and kubelets do around some controllers. It runs once undisturbed, which tells how many
//! writes there are to die at, and then once for each write and kind of [`Fault`], all beside each other in one cluster
//! (see [`seam`]). When every run has ended or died, the process is stopped and another one takes over.

mod cluster;
mod kubelet;
pub mod seam;
mod services;
mod snapshot;
mod volumes;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::informer::Object;
use client::{Client, Informers};
use controllers::Config;
use controllers::common::discovery::Discovered;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::api::DeleteParams;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::{Handy as _, PATIENCE, Server};
use kubelet::Kubelet;
use seam::{Fault, Seam};
use snapshot::{difference, resources, snapshots};

/// Runs beyond the writes of the undisturbed one: a disturbed one may write more.
const MORE: usize = 1;
/// A process dies after every write. At each third the other faults are tried as well: to die before a write leaves the
/// server as to die after the one before it, but for what was under way beside it.
const OTHERS: usize = 3;

#[derive(Clone, Copy)]
pub struct Scenario {
    /// The names of the controllers that are killed, for the list of those covered.
    pub controllers: &'static [&'static str],
    /// Their identities, whose writes are counted.
    pub identities: &'static [&'static str],
    /// Other controllers that the scenario needs; the rest would only cost time.
    pub helpers: &'static [&'static str],
    pub configure: fn(&mut Config),
    pub drive: fn(Run) -> BoxFuture<'static, ()>,
    /// What goes on in the cluster beside all runs.
    pub beside: Option<fn(Client) -> AbortOnDropHandle<()>>,
    /// Whether as many pods must have been made as without a fault, and not only be left. A process that lives on after
    /// an answer was lost may make one too many before it sees the other.
    pub counts_pods: bool,
}

impl Scenario {
    /// Of controllers that have their own names as identities.
    pub const fn of(controllers: &'static [&'static str], drive: fn(Run) -> BoxFuture<'static, ()>) -> Self {
        Self {
            controllers,
            identities: controllers,
            helpers: &[],
            configure: |_| (),
            drive,
            beside: None,
            counts_pods: true,
        }
    }

    fn configure(&self, config: &mut Config) {
        let everywhere = ["service-account-controller", "root-ca-cert-publisher"];
        let needed = |name: &str| [self.controllers, self.helpers, &everywhere].concat().contains(&name);
        let names = controllers::registry().into_iter().map(|entry| entry.name);
        config.disabled = names.filter(|name| !needed(name)).map(Into::into).collect();
        (self.configure)(config);
    }
}

/// One run's part of the cluster.
#[derive(Clone)]
pub struct Run {
    pub name: String,
    pub client: Client,
    informers: Informers,
    /// When waiting is over. It is moved when another process takes over: until then a run that died can only wait.
    deadline: Arc<Mutex<Instant>>,
}

impl Run {
    pub fn api<K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn cluster<K: kube::Resource<DynamicType = (), Scope = ClusterResourceScope>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// The name of something of the cluster that is this run's.
    pub fn own(&self, name: &str) -> String {
        format!("{}-{name}", self.name)
    }

    async fn enter(&self) {
        self.cluster::<Namespace>().make(json!({"metadata": {"name": self.name}})).await;
        self.until_get::<ServiceAccount>("default", |_| true).await; // or no pod is admitted
    }

    /// Creates, and waits until the informers know: what is not known yet must not look as if it were gone.
    pub async fn make<K>(&self, object: Value) -> K
    where
        K: Object<DynamicType = (), Scope = NamespaceResourceScope> + Serialize,
    {
        let informer = self.informers.get::<K>();
        informer.synced().await;
        let mut events = informer.subscribe();
        let made: K = self.api().make(object).await;
        // It may be gone again before anybody looks.
        while events.recv().await.is_none_or(|event| event.object().meta().uid != made.meta().uid) {}
        made
    }

    /// Patches, and waits until the informers know.
    pub async fn merge<K>(&self, name: &str, patch: Value) -> K
    where
        K: Object<DynamicType = (), Scope = NamespaceResourceScope> + Serialize,
    {
        let written: K = self.api().merge(name, patch).await;
        let revision = revision(&written);
        self.until_get::<K>(name, |found| self::revision(found) >= revision).await;
        written
    }

    pub async fn remove<K>(&self, name: &str, params: DeleteParams)
    where
        K: Object<DynamicType = (), Scope = NamespaceResourceScope> + Serialize,
    {
        self.api::<K>().remove(name, params).await;
    }

    /// Waits for an object of the run's namespace.
    pub async fn until_get<K: Object<DynamicType = ()>>(&self, name: &str, satisfies: impl Fn(&K) -> bool) -> Arc<K> {
        self.until_key(&format!("{}/{name}", self.name), satisfies).await
    }

    pub async fn until_key<K: Object<DynamicType = ()>>(&self, key: &str, satisfies: impl Fn(&K) -> bool) -> Arc<K> {
        let store = self.informers.get::<K>().store();
        self.until(|| store.get(key), |found| found.as_ref().is_some_and(|found| satisfies(found)), key).await.unwrap()
    }

    async fn until<T: Debug>(&self, ask: impl Fn() -> T, satisfies: impl Fn(&T) -> bool, what: &str) -> T {
        loop {
            let answer = ask();
            if satisfies(&answer) {
                return answer;
            }
            assert!(Instant::now() < *self.deadline.lock(), "{}: still not so: {what}: {answer:#?}", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn until_gone<K: Object<DynamicType = ()>>(&self, name: &str) {
        self.until_gone_key::<K>(&format!("{}/{name}", self.name)).await;
    }

    pub async fn until_gone_key<K: Object<DynamicType = ()>>(&self, key: &str) {
        let informer = self.informers.get::<K>();
        informer.synced().await;
        self.until(|| informer.store().get(key), Option::is_none, "gone").await;
    }

    /// Waits for all objects of a kind in the run's namespace.
    pub async fn until_list<K: Object<DynamicType = ()>>(
        &self,
        what: &str,
        satisfies: impl Fn(&[Arc<K>]) -> bool,
    ) -> Vec<Arc<K>> {
        let informer = self.informers.get::<K>();
        informer.synced().await;
        self.until(|| informer.store().list_namespace(&self.name), |found| satisfies(found), what).await
    }
}

fn revision<K: kube::Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().unwrap_or_default().parse().unwrap()
}

struct Harness {
    scenario: Scenario,
    server: Server,
    client: Client,
    informers: Informers,
    kubelet: Kubelet,
    resources: Vec<Discovered>,
    runs: usize,
}

/// The run that nothing disturbs.
const WHOLE: &str = "run1x";

/// What became of one run.
#[derive(Debug)]
struct Outcome {
    run: String,
    fault: Option<(Fault, usize)>,
    fired: bool,
    written: usize,
}

pub async fn survives(scenario: Scenario) {
    let server = Server::start().await;
    let client = server.admin();
    let informers = Informers::new(client.clone());
    let kubelet = Kubelet::start(client.clone(), &informers);
    let _beside = scenario.beside.map(|begin| begin(client.clone()));
    let resources = resources(&client).await;
    let mut harness = Harness { scenario, server, client, informers, kubelet, resources, runs: 0 };
    let whole = harness.round(vec![None]).await.remove(0);
    assert!(whole.written > 0, "the scenario makes {:?} write nothing", scenario.controllers);
    let mut next = 1;
    let mut last = whole.written + MORE;
    loop {
        let faults = [Fault::DiesAfter, Fault::DiesBefore, Fault::LosesAnswer];
        let cuts = faults.into_iter().flat_map(|fault| (next..=last).map(move |at| (fault, at)));
        let cuts = cuts.filter(|(fault, at)| *fault == Fault::DiesAfter || at % OTHERS == 1);
        let outcomes = harness.round(cuts.map(Some).collect()).await;
        let beyond = |outcome: &&Outcome| outcome.fault.is_some_and(|(_, at)| at == last);
        if outcomes.iter().filter(beyond).all(|outcome| !outcome.fired) {
            break;
        }
        assert!(last < 10 * whole.written + 10 * MORE, "there is always one more write");
        (next, last) = (last + 1, last + MORE);
    }
    harness.server.server.shutdown().await;
}

impl Harness {
    /// Runs the scenario once per cut, each in its own part of the cluster, through the death of the process.
    async fn round(&mut self, cuts: Vec<Option<(Fault, usize)>>) -> Vec<Outcome> {
        let scenario = self.scenario;
        let seam = Seam::new(scenario.identities);
        let mut runs = BTreeMap::new();
        for cut in cuts {
            self.runs += 1;
            let name = format!("run{}x", self.runs);
            seam.plan(&name, cut);
            runs.insert(name, cut);
        }
        let first = self.server.controllers(|config| scenario.configure(config), seam.clone());
        let mut ended = JoinSet::new();
        let deadline = Arc::new(Mutex::new(Instant::now() + PATIENCE));
        let mut open: Vec<String> = runs.keys().cloned().collect();
        for name in runs.keys() {
            let run = Run {
                name: name.clone(),
                client: self.client.clone(),
                informers: self.informers.clone(),
                deadline: deadline.clone(),
            };
            let drive = scenario.drive;
            ended.spawn(async move {
                run.enter().await;
                drive(run.clone()).await;
                run.name
            });
        }
        loop {
            open.retain(|run| !seam.is_dead(run));
            if open.is_empty() {
                break;
            }
            let timer = tokio::time::sleep(Duration::from_millis(20));
            tokio::select! {
                Some(run) = ended.join_next() => { let run = run.unwrap(); open.retain(|name| *name != run) }
                () = timer => {}
            }
        }
        first.stop().await;
        // Runs that nothing hit ran to their end, in which nobody need take over.
        let second = self.server.controllers(|config| scenario.configure(config), Seam::default());
        *deadline.lock() = Instant::now() + PATIENCE;
        while let Some(run) = ended.join_next().await {
            run.unwrap();
        }
        let outcome = |(run, fault): (String, _)| {
            let (fired, written) = (seam.has_fired(&run), seam.written(&run));
            Outcome { run, fault, fired, written }
        };
        let outcomes: Vec<Outcome> = runs.into_iter().map(outcome).collect();
        self.agree(&outcomes).await;
        second.stop().await;
        outcomes
    }

    /// Waits until all runs have come to the same state as the first, undisturbed one.
    async fn agree(&self, outcomes: &[Outcome]) {
        let mut apart = String::new();
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            let snapshots = snapshots(&self.client, &self.resources).await;
            let differing = outcomes.iter().find_map(|outcome| {
                let difference = difference(&snapshots[WHOLE], &snapshots[&outcome.run]);
                (!difference.is_empty()).then(|| format!("{outcome:?}:\n{difference}"))
            });
            match differing {
                Some(differing) => apart = differing,
                None => return self.count_pods(outcomes),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("{:?}: not the state of the undisturbed run: {apart}", self.scenario.controllers);
    }

    /// None was doubled and then taken back.
    fn count_pods(&self, outcomes: &[Outcome]) {
        let lives = |outcome: &&Outcome| !matches!(outcome.fault, Some((Fault::LosesAnswer, _)));
        for outcome in outcomes.iter().filter(lives).filter(|_| self.scenario.counts_pods) {
            assert_eq!(self.kubelet.pods_ever(&outcome.run), self.kubelet.pods_ever(WHOLE), "pods made: {outcome:?}");
        }
    }
}

#[test]
fn every_controller_is_killed() {
    let covered: BTreeSet<&str> = scenarios().flat_map(|scenario| scenario.controllers.to_vec()).collect();
    let all: BTreeSet<&str> = controllers::registry().iter().map(|entry| entry.name).collect();
    assert_eq!(covered, all);
}

fn scenarios() -> impl Iterator<Item = Scenario> {
    [workloads::SCENARIOS, services::SCENARIOS, volumes::SCENARIOS, cluster::SCENARIOS].into_iter().flatten().copied()
}
