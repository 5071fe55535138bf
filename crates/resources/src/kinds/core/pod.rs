//! Pod. The spec is checked by [`crate::pod`]; here are the facts, the subresources and what the
//! server alone may set.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as api;
use machinery::field::Path;
use machinery::table::Column;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::facts::{CREATE, Facts, Subresource, Verb};
use crate::pod;
use crate::print::{self, wide};
use crate::resource::{Kind, keep, walk};
use crate::validate::{Errors, text, warn};
use crate::value::Defaulting;

pub struct Pod;

const TYPE: &str = "io.k8s.api.core.v1.Pod";

impl Kind for Pod {
    type Object = api::Pod;

    const FACTS: Facts = Facts {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            Subresource::stream("attach", "PodAttachOptions"),
            Subresource::own("binding", "", "v1", "Binding").with_verbs(CREATE),
            Subresource::own("ephemeralcontainers", "", "v1", "Pod"),
            Subresource::own("eviction", "policy", "v1", "Eviction").with_verbs(CREATE),
            Subresource::stream("exec", "PodExecOptions"),
            Subresource::own("log", "", "v1", "Pod").with_verbs(&[Verb::Get]),
            Subresource::stream("portforward", "PodPortForwardOptions"),
            Subresource::proxy("PodProxyOptions"),
            Subresource::own("resize", "", "v1", "Pod"),
            Subresource::own("status", "", "v1", "Pod"),
        ],
        graceful: true,
        generation: true,
        ..Facts::namespaced("", "v1", "Pod", "pods", "pod", TYPE)
    };
    const COLUMNS: &'static [Column] = &[
        print::NAME,
        print::text("Ready"),
        print::text("Status"),
        print::text("Restarts"),
        print::AGE,
        wide("IP"),
        wide("Node"),
        wide("Nominated Node"),
        wide("Readiness Gates"),
    ];
    const FIELDS: &'static [&'static str] = &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ];

    fn defaults(object: &mut Value) {
        if let Some(spec) = object.at("spec") {
            pod::default_spec(spec);
            pod::default_pod(spec);
        }
    }

    fn prepare_create(object: &mut Value) {
        let spec = object.make("spec");
        // Admission may have set one of the two names of the service account.
        pod::sync_service_account(spec);
        if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
            spec["terminationGracePeriodSeconds"] = json!(1);
        }
        let gated = spec["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty());
        let class = api::PodSpec::deserialize(&object["spec"]).map_or("BestEffort", |spec| pod::qos_class(&spec));
        object["status"] = json!({"phase": "Pending", "qosClass": class});
        if gated {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null,
                "lastTransitionTime": null,
            }]);
        }
    }

    fn prepare_update(new: &mut Value, _old: &Value) {
        pod::sync_service_account(new.make("spec"));
    }

    fn prepare_status_update(new: &mut Value, old: &Value) {
        let status = new.make("status");
        // Once set, the class never changes.
        if old["status"].has("qosClass") {
            status["qosClass"] = old["status"]["qosClass"].clone();
        }
        sync_ips(status);
    }

    fn prepare_subresource_update(subresource: &str, new: &mut Value, old: &Value) {
        let wanted = new["spec"].take();
        keep(new, old, "spec");
        let spec = new.make("spec");
        match subresource {
            "ephemeralcontainers" if wanted.has("ephemeralContainers") => {
                spec["ephemeralContainers"] = wanted["ephemeralContainers"].clone();
            }
            "resize" => take_resources(spec, &wanted),
            _ => {}
        }
    }

    fn validate(object: &api::Pod, errors: &mut Errors) {
        let path = Path::new("spec");
        let default = api::PodSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default);
        let annotations = Path::new("metadata").child("annotations");
        pod::validate_annotations(object.metadata.annotations.as_ref(), Some(spec), &annotations, errors);
        pod::validate_spec(spec, &path, errors);
        if spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
            errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
        }
    }

    fn validate_update(new: &api::Pod, old: &api::Pod, errors: &mut Errors) {
        pod::validate_update(new, old, errors);
    }

    fn validate_status_update(new: &api::Pod, old: &api::Pod, errors: &mut Errors) {
        pod::validate_status(new, old, errors);
    }

    fn validate_subresource_update(subresource: &str, new: &api::Pod, old: &api::Pod, errors: &mut Errors) {
        match subresource {
            "ephemeralcontainers" => pod::ephemeral_containers(new, old, errors),
            "resize" => pod::resize(new, old, errors),
            _ => pod::validate_update(new, old, errors),
        }
    }

    fn cells(object: &Value, typed: &api::Pod, now: Timestamp) -> Vec<Value> {
        pod::cells(object, typed, now)
    }

    fn field(object: &Value, field: &str) -> String {
        match (field, walk(object, field)) {
            ("spec.hostNetwork", value) if value.is_empty() => "false".to_owned(),
            ("status.podIP", value) if value.is_empty() => {
                object["status"]["podIPs"][0]["ip"].as_str().unwrap_or_default().to_owned()
            }
            (_, value) => value,
        }
    }

    fn warnings(new: &api::Pod, old: Option<&api::Pod>) -> Vec<String> {
        match (&new.spec, old) {
            (Some(spec), None) => {
                let name = warn::host_name(text(&new.metadata.name), "the Pod's hostname");
                name.into_iter().chain(pod::warnings(spec, &new.metadata)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Everything in the spec counts but where the pod runs, which binding decides.
    fn generation_changes(new: &Value, old: &Value) -> bool {
        let desired = |object: &Value| {
            let mut spec = object["spec"].clone();
            Defaulting::remove(&mut spec, "nodeName");
            spec
        };
        !machinery::schema::semantic_equal(&desired(new), &desired(old))
    }
}

/// From `wanted`, only what the pod as a whole and containers of the same names ask for.
fn take_resources(spec: &mut Value, wanted: &Value) {
    keep(spec, wanted, "resources");
    for list in ["containers", "initContainers"] {
        spec.each(list, |container| {
            let mut others = wanted[list].as_array().into_iter().flatten();
            let Some(other) = others.find(|other| other["name"] == container["name"]) else { return };
            for key in ["resources", "resizePolicy"] {
                keep(container, other, key);
            }
        });
    }
}

/// The singular and the plural form of a pod's addresses say the same.
fn sync_ips(status: &mut Value) {
    for (one, many) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let first = status[many][0]["ip"].as_str().map(str::to_owned);
        match (status.text(one).to_owned(), first) {
            (single, None) if !single.is_empty() => status[many] = json!([{"ip": single}]),
            (single, Some(first)) if single.is_empty() => status[one] = json!(first),
            _ => {}
        }
    }
}
