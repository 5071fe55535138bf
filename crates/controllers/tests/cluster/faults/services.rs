//! Controllers of endpoints and of the ranges of Services' addresses, killed.

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::{Run, Scenario, survives};
use crate::Handy as _;

pub const SCENARIOS: &[Scenario] = &[ENDPOINTS, MIRRORING, RANGES];

const ENDPOINTS: Scenario = Scenario {
    helpers: &["generic-garbage-collector"],
    ..Scenario::of(&["endpoint-controller", "endpointslice-controller"], |run| endpoints(run).boxed())
};
const MIRRORING: Scenario = Scenario::of(&["endpointslicemirroring-controller"], |run| mirroring(run).boxed());
const RANGES: Scenario = Scenario {
    identities: &["service-cidrs-controller"],
    ..Scenario::of(&["service-cidr-controller"], |run| ranges(run).boxed())
};

#[tokio::test(flavor = "multi_thread")]
async fn killed_endpoint_controllers_follow_pods() {
    survives(ENDPOINTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_mirroring_controller_follows_endpoints() {
    survives(MIRRORING).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_range_controller_keeps_ranges_in_use() {
    survives(RANGES).await;
}

fn addresses(endpoints: &Endpoints) -> usize {
    let subsets = endpoints.subsets.iter().flatten();
    subsets.map(|subset| subset.addresses.as_ref().map_or(0, Vec::len)).sum()
}

/// Every slice's ready endpoints and first port.
fn ready(slices: &[std::sync::Arc<EndpointSlice>]) -> Vec<(usize, Option<i32>)> {
    let is_ready = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(true))
    };
    let port = |slice: &EndpointSlice| slice.ports.as_ref()?.first()?.port;
    slices.iter().map(|slice| (slice.endpoints.iter().flatten().filter(is_ready).count(), port(slice))).collect()
}

fn service(name: &str, selector: Value) -> Value {
    json!({"metadata": {"name": name}, "spec": {"selector": selector, "ports": [{"port": 80, "targetPort": 8080}]}})
}

async fn endpoints(run: Run) {
    run.make::<Service>(service("web", json!({"app": "web"}))).await;
    for name in ["a", "b"] {
        let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "i"}]});
        run.make::<Pod>(json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": spec})).await;
    }
    run.until_get("web", |found| addresses(found) == 2).await;
    run.until_list("both", |slices| ready(slices) == [(2, Some(8080))]).await;
    run.merge::<Service>("web", json!({"spec": {"ports": [{"port": 80, "targetPort": 9090}]}})).await;
    run.until_list("the other port", |slices| ready(slices) == [(2, Some(9090))]).await;
    run.remove::<Pod>("a", DeleteParams::default()).await;
    run.until_get("web", |found| addresses(found) == 1).await;
    run.until_list("one", |slices| ready(slices) == [(1, Some(9090))]).await;
    run.make::<Service>(service("brief", json!({"app": "web"}))).await;
    run.until_get("brief", |found| addresses(found) == 1).await;
    run.remove::<Service>("brief", DeleteParams::background()).await;
    run.until_gone::<Endpoints>("brief").await;
    run.until_list("one service's", |slices| ready(slices) == [(1, Some(9090))]).await;
}

async fn mirroring(run: Run) {
    run.make::<Service>(service("web", Value::Null)).await;
    let subset = |ips: &[&str]| {
        let addresses: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        json!([{"addresses": addresses, "ports": [{"port": 8080}]}])
    };
    run.make::<Endpoints>(json!({"metadata": {"name": "web"}, "subsets": subset(&["1.2.3.4", "1.2.3.5"])})).await;
    run.until_list("both", |slices| ready(slices) == [(2, Some(8080))]).await;
    run.merge::<Endpoints>("web", json!({"subsets": subset(&["1.2.3.4"])})).await;
    run.until_list("one", |slices| ready(slices) == [(1, Some(8080))]).await;
    run.make::<Service>(service("brief", Value::Null)).await;
    run.make::<Endpoints>(json!({"metadata": {"name": "brief"}, "subsets": subset(&["1.2.3.6"])})).await;
    run.until_list::<EndpointSlice>("two services'", |slices| slices.len() == 2).await;
    run.remove::<Endpoints>("brief", DeleteParams::default()).await;
    run.until_list("one service's", |slices| ready(slices) == [(1, Some(8080))]).await;
}

/// Ranges of the run's own, so that no run holds another's back.
async fn ranges(run: Run) {
    let number: String = run.name.chars().filter(char::is_ascii_digit).collect();
    let ready = |status: &'static str| {
        move |range: &ServiceCIDR| {
            let mut conditions = range.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.any(|condition| condition.type_ == "Ready" && condition.status == status)
        }
    };
    for (name, first) in [("kept", 0), ("going", 16)] {
        let spec = json!({"cidrs": [format!("10.96.{number}.{first}/28")]});
        run.cluster::<ServiceCIDR>().make(json!({"metadata": {"name": run.own(name)}, "spec": spec})).await;
        run.until_key(&run.own(name), ready("True")).await;
    }
    let mut web = service("web", json!({"app": "web"}));
    web["spec"]["clusterIP"] = json!(format!("10.96.{number}.20"));
    run.make::<Service>(web).await;
    run.cluster::<ServiceCIDR>().remove(&run.own("going"), DeleteParams::default()).await;
    run.until_key(&run.own("going"), ready("False")).await;
    run.remove::<Service>("web", DeleteParams::default()).await;
    run.until_gone_key::<ServiceCIDR>(&run.own("going")).await;
}
