//! Defaults of pod specs, as upstream's `SetDefaults_*` for core/v1.

use machinery::quantity::Quantity;
use serde_json::{Value, json};

use crate::value::Defaulting;

/// rwxr-xr-x is for directories; files of volumes get 0644.
const DEFAULT_MODE: i64 = 0o644;
/// An hour, the lifetime of a projected service-account token.
const TOKEN_SECONDS: i64 = 3600;

/// Defaults of a pod template: those of its pod spec, but for what only real pods get.
pub fn template(template: &mut Value) {
    if let Some(spec) = template.at("spec") {
        self::spec(spec);
    }
}

/// What only real pods get, on top of [`spec`]: a template's pods get it when they are created.
pub fn pod(spec: &mut Value) {
    spec.or("enableServiceLinks", true);
    if spec["hostNetwork"] == json!(true) {
        host_ports(spec);
    }
    for list in ["containers", "initContainers"] {
        spec.each(list, |container| {
            if let Some(resources) = container.at("resources") {
                requests_from_limits(resources);
            }
        });
    }
    pod_requests(spec);
}

/// Pod-level requests: what the containers ask for together, else the pod's limits.
fn pod_requests(spec: &mut Value) {
    let Some(limits) = spec["resources"]["limits"].as_object().filter(|limits| !limits.is_empty()).cloned() else {
        return;
    };
    let asked = |name: &str| {
        let requests = spec["containers"].as_array()?.iter();
        requests
            .filter_map(|container| Quantity::parse(container["resources"]["requests"][name].as_str()?).ok())
            .reduce(|sum, quantity| sum + quantity)
    };
    let requests: Vec<(String, Value)> = limits
        .into_iter()
        .map(|(name, limit)| {
            let request = asked(&name).map_or(limit, |sum| json!(sum.to_string()));
            (name, request)
        })
        .collect();
    let target = spec["resources"].make("requests");
    for (name, request) in requests {
        target.or(&name, request);
    }
}

/// Defaults of a pod spec wherever it stands.
pub fn spec(spec: &mut Value) {
    super::sync_service_account(spec);
    spec.or("dnsPolicy", "ClusterFirst")
        .or("restartPolicy", "Always")
        .or("schedulerName", "default-scheduler")
        .or("securityContext", json!({}))
        .or("terminationGracePeriodSeconds", 30);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        spec.each(list, container);
    }
    spec.each("volumes", volume);
}

/// On the host's network a container port is a host port.
fn host_ports(spec: &mut Value) {
    for list in ["containers", "initContainers"] {
        spec.each(list, |container| {
            container.each("ports", |port| {
                if let Some(number) = port["containerPort"].as_i64() {
                    port.or_zero("hostPort", number);
                }
            });
        });
    }
}

fn container(container: &mut Value) {
    let policy = image_pull_policy(container.text("image"));
    container
        .or("imagePullPolicy", policy)
        .or("terminationMessagePath", "/dev/termination-log")
        .or("terminationMessagePolicy", "File")
        .or("resources", json!({}));
    container.each("ports", |port| {
        port.or("protocol", "TCP");
    });
    container.each("env", |variable| {
        if let Some(source) = variable.at("valueFrom") {
            field_ref(source);
        }
    });
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.at(probe) {
            self::probe(probe);
        }
    }
    if let Some(lifecycle) = container.at("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(action) = lifecycle.at(hook).and_then(|hook| hook.at("httpGet")) {
                http_get(action);
            }
        }
    }
}

/// `Always` for `:latest` and untagged images, else `IfNotPresent`. A digest pins an image, but
/// upstream looks at the tag alone: an image with a digest and no tag is not `latest`.
pub fn image_pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn requests_from_limits(resources: &mut Value) {
    let Some(limits) = resources["limits"].as_object().cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let requests = resources.make("requests");
    for (name, limit) in limits {
        requests.or(&name, limit);
    }
}

fn probe(probe: &mut Value) {
    probe
        .or_zero("timeoutSeconds", 1)
        .or_zero("periodSeconds", 10)
        .or_zero("successThreshold", 1)
        .or_zero("failureThreshold", 3);
    if let Some(action) = probe.at("httpGet") {
        http_get(action);
    }
    if let Some(grpc) = probe.at("grpc")
        && !grpc.has("service")
    {
        grpc["service"] = json!("");
    }
}

pub fn http_get(action: &mut Value) {
    action.or("path", "/").or("scheme", "HTTP");
}

fn field_ref(source: &mut Value) {
    if let Some(field) = source.at("fieldRef") {
        field.or("apiVersion", "v1");
    }
    if let Some(field) = source.at("resourceFieldRef") {
        field.or("divisor", "0");
    }
}

fn volume(volume: &mut Value) {
    // A volume without a source is an emptyDir.
    if volume.as_object().is_some_and(|map| map.iter().all(|(key, value)| key == "name" || value.is_null())) {
        volume["emptyDir"] = json!({});
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.at(source) {
            source.or("defaultMode", DEFAULT_MODE);
        }
    }
    if let Some(source) = volume.at("downwardAPI") {
        source.each("items", field_ref);
    }
    if let Some(source) = volume.at("hostPath")
        && !source.has("type")
    {
        source["type"] = json!("");
    }
    if let Some(projected) = volume.at("projected") {
        projected.each("sources", |source| {
            if let Some(token) = source.at("serviceAccountToken") {
                token.or("expirationSeconds", TOKEN_SECONDS);
            }
            if let Some(downward) = source.at("downwardAPI") {
                downward.each("items", field_ref);
            }
        });
    }
    if let Some(spec) = volume.at("ephemeral").and_then(|v| v.at("volumeClaimTemplate")).and_then(|v| v.at("spec")) {
        spec.or("volumeMode", "Filesystem");
    }
    if let Some(image) = volume.at("image") {
        let policy = image_pull_policy(image.text("reference"));
        image.or("pullPolicy", policy);
    }
    if let Some(iscsi) = volume.at("iscsi") {
        iscsi.or("iscsiInterface", "default");
    }
    if let Some(rbd) = volume.at("rbd") {
        rbd.or("pool", "rbd").or("user", "admin").or("keyring", "/etc/ceph/keyring");
    }
    if let Some(disk) = volume.at("azureDisk") {
        disk.or("cachingMode", "ReadWrite").or("kind", "Shared").or("fsType", "ext4").or("readOnly", false);
    }
    if let Some(scale_io) = volume.at("scaleIO") {
        scale_io.or("storageMode", "ThinProvisioned").or("fsType", "xfs");
    }
}
