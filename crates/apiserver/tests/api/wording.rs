//! What clients read when something is refused or frowned upon: the words are upstream's, since
//! people and tests match on them.

use super::*;

async fn send(cluster: &Cluster, method: &str, uri: &str, content_type: &str, body: &str) -> Answer {
    let headers = [("content-type", content_type)];
    Answer::of(cluster.send(method, uri, &headers, body.to_owned()).await).await
}

#[tokio::test]
async fn bodies_that_are_no_objects() {
    let cluster = Cluster::start().await;
    let unrecognized = "the object provided is unrecognized (must be of type ConfigMap): ";
    let headless = "couldn't get version/kind; json parse error: ";
    let handled =
        |kind: &str, version: &str| format!("{kind} in version {version:?} cannot be handled as a ConfigMap: ");
    let unknown = |kind: &str, version: &str| {
        format!(
            r#"no kind "{kind}" is registered for version "{version}" in scheme "pkg/api/legacyscheme/scheme.go:30""#
        )
    };
    let cases = [
        ("{", format!("{unrecognized}{headless}unexpected end of JSON input ({{)")),
        ("", format!("{unrecognized}{headless}unexpected end of JSON input (<empty>)")),
        (
            r#"{"kind": "ConfigMap", "apiVersion": v1}"#,
            format!(
                r#"{unrecognized}{headless}invalid character 'v' looking for beginning of value ({{"kind": "ConfigMap", "apiVers ...)"#
            ),
        ),
        (
            "no json",
            format!("{unrecognized}{headless}invalid character 'o' in literal null (expecting 'u') (6e6f206a736f6e)"),
        ),
        (
            r#"{"kind": 5}"#,
            format!(
                r#"{unrecognized}{headless}json: cannot unmarshal number into Go struct field .kind of type string ({{"kind": 5}})"#
            ),
        ),
        (
            r#"{"apiVersion": "a/b/c"}"#,
            format!(r#"{unrecognized}unexpected GroupVersion string: a/b/c ({{"apiVersion": "a/b/c"}})"#),
        ),
        (r#"{"apiVersion": "v1", "kind": "Nothing"}"#, handled("Nothing", "v1") + &unknown("Nothing", "v1")),
        (
            r#"{"apiVersion": "x.io/v2", "kind": "ConfigMap"}"#,
            handled("ConfigMap", "v2") + &unknown("ConfigMap", "x.io/v2"),
        ),
        (
            r#"{"apiVersion": "v1", "kind": "Pod"}"#,
            handled("Pod", "v1") + "converting (v1.Pod) to (core.ConfigMap): unknown conversion",
        ),
        (
            r#"{"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": 1}}"#,
            handled("ConfigMap", "v1")
                + "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
        ),
    ];
    for (body, message) in cases {
        send(&cluster, "POST", MAPS, "application/json", body).await.fails(400, "BadRequest", &message);
    }
    let scaler = r#"{"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}"#;
    let uri = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers";
    let message =
        "the API version in the data (autoscaling/v2) does not match the expected API version (autoscaling/v1)";
    send(&cluster, "POST", uri, "application/json", scaler).await.fails(400, "BadRequest", message);
    let accepted = "the body of the request was in an unknown format - accepted media types include: ";
    let types = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
    let message = format!("{accepted}{types}");
    send(&cluster, "POST", MAPS, "text/plain", "x").await.fails(415, "UnsupportedMediaType", &message);
    let accept = [("accept", "application/json;as=Table;v=v9;g=meta.k8s.io")];
    let answer = Answer::of(cluster.send("GET", MAPS, &accept, Body::empty()).await).await;
    answer.fails(406, "NotAcceptable", &format!("only the following media types are accepted: {types}"));
}

#[tokio::test]
async fn patches_that_do_not_fit() {
    let cluster = Cluster::start().await;
    cluster.create(PODS, pod("p")).await;
    cluster.create(MAPS, config_map("a")).await;
    let (pods, maps) = (format!("{PODS}/p"), format!("{MAPS}/a"));
    let generic = "the server rejected our request due to an error in our request".to_owned();
    let invalid = |shown: &str, why: &str| format!(r#" "" is invalid: patch: Invalid value: "{shown}": {why}"#);
    let cases = [
        (
            "json-patch",
            &maps,
            r#"{"a": 1}"#,
            400,
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
                .to_owned(),
        ),
        (
            "merge-patch",
            &maps,
            "[]",
            400,
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}".into(),
        ),
        ("merge-patch", &maps, "{", 400, "error decoding patch: unexpected end of JSON input".into()),
        (
            "strategic-merge-patch",
            &maps,
            "[]",
            400,
            "json: cannot unmarshal array into Go value of type map[string]interface {}".into(),
        ),
        ("json-patch", &maps, r#"[{"op": "test", "path": "/data/a", "value": "x"}]"#, 422, generic.clone()),
        ("json-patch", &maps, r#"[{"op": "fly", "path": "/data"}]"#, 422, generic.clone()),
        ("json-patch", &maps, r#"[{"op": "remove", "path": "/data/none"}]"#, 422, generic),
        (
            "strategic-merge-patch",
            &pods,
            r#"{"spec": {"activeDeadlineSeconds": "x"}}"#,
            422,
            invalid("map[spec:map[activeDeadlineSeconds:x]]", "unrecognized type: int64"),
        ),
        (
            "strategic-merge-patch",
            &pods,
            r#"{"metadata": {"labels": {"a": 1}}}"#,
            422,
            invalid("map[metadata:map[labels:map[a:1]]]", "cannot convert int64 to string"),
        ),
        (
            "strategic-merge-patch",
            &pods,
            r#"{"spec": {"containers": "c"}}"#,
            422,
            invalid("map[spec:map[containers:c]]", "cannot restore slice from string"),
        ),
        (
            "strategic-merge-patch",
            &pods,
            r#"{"spec": 5}"#,
            422,
            invalid("map[spec:5]", "cannot restore struct from: int64"),
        ),
        (
            "strategic-merge-patch",
            &pods,
            r#"{"spec": {"containers": [{"image": "x"}]}}"#,
            500,
            "map: map[image:x] does not contain declared merge key: name".into(),
        ),
    ];
    for (kind, uri, body, code, message) in cases {
        let answer = send(&cluster, "PATCH", uri, &format!("application/{kind}+json"), body).await;
        let reason = match code {
            400 => "BadRequest",
            422 => "Invalid",
            _ => "",
        };
        answer.fails(code, reason, &message);
    }
    let answer =
        send(&cluster, "PATCH", &maps, "application/merge-patch+json", r#"{"data": {"x": 1}}"#).await.expect(422);
    let cause = &answer["details"]["causes"][0];
    assert_eq!((&cause["reason"], &cause["field"]), (&json!("FieldValueInvalid"), &json!("patch")));
    let message = text(&cause["message"]);
    assert!(message.starts_with(r#"Invalid value: "{\""#), "{message}");
    assert!(
        message.ends_with(": json: cannot unmarshal number into Go struct field ConfigMap.data of type string"),
        "{message}"
    );
    let operation = r#"[{"op": "add", "path": "/data/y", "value": "z", "x": 1}]"#;
    let answer = send(&cluster, "PATCH", &maps, "application/json-patch+json", operation).await;
    assert_eq!(answer.warnings(), [r#"299 - "json patch unknown field \"[0].x\"""#]);
    answer.expect(200);
    let strict = format!("{maps}?fieldValidation=Strict");
    let answer = send(&cluster, "PATCH", &strict, "application/merge-patch+json", r#"{"x": 1}"#).await.expect(422);
    assert!(text(&answer["message"]).ends_with(r#": strict decoding error: unknown field "x""#), "{answer}");
}

#[tokio::test]
async fn names_and_options_that_do_not_fit() {
    let cluster = Cluster::start().await;
    cluster.create(MAPS, config_map("a")).await;
    let uri = format!("{MAPS}/a");
    let mut nameless = config_map("");
    nameless["metadata"] = json!({});
    let bad = "BadRequest";
    cluster.call("PUT", &uri, &nameless).await.fails(
        400,
        bad,
        "the name of the object (a based on URL) was undeterminable: name must be provided",
    );
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    cluster.create(leases, lease.clone()).await;
    cluster.call("PUT", &format!("{leases}/l"), &lease).await.fails(
        422,
        "Invalid",
        r#"leases.coordination.k8s.io "l" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for an update"#,
    );
    let options = |kind: &str, why: &str| format!(r#"{kind}.meta.k8s.io "" is invalid: {why}"#);
    let cases = [
        (
            "POST",
            "dryRun=Some",
            options("CreateOptions", r#"dryRun: Unsupported value: ["Some"]: supported values: "All""#),
        ),
        (
            "POST",
            "fieldValidation=x",
            options(
                "CreateOptions",
                r#"fieldValidation: Unsupported value: "x": supported values: "", "Ignore", "Strict", "Warn""#,
            ),
        ),
        (
            "DELETE",
            "propagationPolicy=x",
            options(
                "DeleteOptions",
                r#"propagationPolicy: Unsupported value: "x": supported values: "Foreground", "Background", "Orphan", "nil""#,
            ),
        ),
    ];
    for (method, query, message) in cases {
        let (uri, body) = if method == "POST" { (MAPS, config_map("b")) } else { (&*uri, Value::Null) };
        cluster.call(method, &format!("{uri}?{query}"), &body).await.fails(422, "Invalid", &message);
    }
    let token = |token: &str| format!("continue={token}");
    let lists = [
        (
            "labelSelector=a%20b".to_owned(),
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        ("fieldSelector=abc".into(), "invalid selector: 'abc'; can't understand 'abc'"),
        (
            "fieldSelector=spec.x%3Dy".into(),
            r#""spec.x" is not a known field selector: only "metadata.name", "metadata.namespace""#,
        ),
        ("limit=x".into(), r#"strconv.ParseInt: parsing "x": invalid syntax"#),
        (
            "resourceVersion=x".into(),
            r#"invalid resource version: resourceVersion: Invalid value: "x": strconv.ParseUint: parsing "x": invalid syntax"#,
        ),
        (
            token("eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MCwic3RhcnQiOiJhIn0"),
            "invalid continue token: continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
        ),
        (
            token("eyJ2IjoidjAiLCJydiI6MSwic3RhcnQiOiJhIn0"),
            "invalid continue token: continue key is not valid: server does not recognize this encoded version v0",
        ),
    ];
    for (query, message) in lists {
        cluster.get(&format!("{MAPS}?{query}")).await.fails(400, bad, message);
    }
    cluster.get(&format!("{PODS}?fieldSelector=spec.x%3Dy")).await.fails(400, bad, "field label not supported: spec.x");
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let answer = Answer::of(cluster.send("GET", &format!("{MAPS}?includeObject=x"), &table, Body::empty()).await).await;
    let message = r#"Unable to convert to Table as requested: includeObject: Invalid value: "x": must be 'Metadata', 'Object', 'None', or empty"#;
    answer.fails(400, bad, message);
    cluster.get(&format!("{MAPS}?includeObject=x")).await.expect(200);
}

#[tokio::test]
async fn names_that_are_taken() {
    let cluster = Cluster::start().await;
    let mut object = config_map("a");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    object["metadata"]["generateName"] = json!("b-");
    cluster.create(MAPS, object.clone()).await;
    let unique = ", the server was not able to generate a unique name for the object";
    let message = format!(r#"configmaps "a" already exists{unique}"#);
    cluster.call("POST", MAPS, &object).await.fails(409, "AlreadyExists", &message);
    cluster.call("DELETE", &format!("{MAPS}/a"), &Value::Null).await.expect(200);
    let message = r#"object is being deleted: configmaps "a" already exists"#;
    cluster.call("POST", MAPS, &config_map("a")).await.fails(409, "AlreadyExists", message);
}

#[tokio::test]
async fn warnings_are_told() {
    let cluster = Cluster::start().await;
    let endpoints = "/api/v1/namespaces/default/endpoints";
    let deprecated = r#"299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice""#;
    for (uri, code) in [(endpoints.to_owned(), 200), (format!("{endpoints}/none"), 404)] {
        let answer = cluster.get(&uri).await;
        assert_eq!((answer.code, answer.warnings()), (code, vec![deprecated]));
    }
    let statuses = cluster.get("/api/v1/componentstatuses").await;
    assert_eq!(statuses.warnings(), [r#"299 - "v1 ComponentStatus is deprecated in v1.19+""#]);

    let container = json!({"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)3"}],
        "ports": [{"containerPort": 80, "hostIP": "1.1.1.1"}, {"containerPort": 80, "hostPort": 80}],
        "resources": {"limits": {"memory": "100m"}}});
    let spec = json!({"containers": [container], "nodeSelector": {"beta.kubernetes.io/os": "linux"},
        "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a"]}, {"ip": "1.2.3.4", "hostnames": ["b"]}],
        "imagePullSecrets": [{"name": "s"}, {"name": "s"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]});
    let annotations = json!({"scheduler.alpha.kubernetes.io/critical-pod": "", "seccomp.security.alpha.kubernetes.io/pod": "runtime/default"});
    let told = |path: &str, annotations: &str| {
        let one = |text: String| format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        [
            format!("{path}.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead"),
            format!("{path}.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod"),
            format!("{annotations}[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the \"priorityClassName\" field instead"),
            format!("{path}.hostAliases[1].ip: duplicate ip \"1.2.3.4\""),
            format!("{path}.imagePullSecrets[1].name: duplicate name \"s\""),
            format!(r#"{annotations}[seccomp.security.alpha.kubernetes.io/pod]: non-functional in v1.27+; use the \"seccompProfile\" field instead"#),
            format!("{path}.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer"),
            format!("{path}.containers[0].resources.requests[memory]: fractional byte value \"100m\" is invalid, must be an integer"),
            format!("{path}.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply"),
            format!("{path}.containers[0].ports[0]: hostIP set without hostPort: {{Name: HostPort:0 ContainerPort:80 Protocol:TCP HostIP:1.1.1.1}}"),
            format!("{path}.containers[0].ports[1]: overlapping port definition with {path}.containers[0].ports[0]"),
        ]
        .map(one)
    };
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a.b", "annotations": annotations}, "spec": spec});
    let answer = cluster.call("POST", PODS, &pod).await;
    let (warnings, code) =
        (answer.warnings().iter().map(|warning| (*warning).to_owned()).collect::<Vec<_>>(), answer.code);
    assert_eq!((code, &warnings[1..]), (201, &told("spec", "metadata.annotations")[..]));
    let host = r#"299 - "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: ["#;
    assert!(warnings[0].starts_with(host), "{}", warnings[0]);

    let labels = json!({"app": "d"});
    let mut deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 0,
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}}});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let answer = cluster.call("POST", deployments, &deployment).await;
    let mut expected = told("spec.template.spec", "spec.template.metadata.annotations").to_vec();
    expected.remove(7);
    assert_eq!((answer.code, answer.warnings()), (201, expected.iter().map(String::as_str).collect()));
    // Only what changes the desired state is looked at again.
    deployment["metadata"]["labels"] = json!({"x": "y"});
    assert!(cluster.call("PUT", &format!("{deployments}/d"), &deployment).await.warnings().is_empty());

    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"});
    let mut owned = config_map("owned");
    owned["metadata"]["ownerReferences"] = json!([owner, owner]);
    let answer = cluster.call("POST", MAPS, &owned).await;
    assert!(answer.warnings()[0].ends_with("duplicate UID(s) observed: u\""), "{:?}", answer.warnings());
    assert_eq!(answer.expect(201)["metadata"]["ownerReferences"], json!([owner]));

    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}],
        "externalIPs": ["2001:DB8::1"], "trafficDistribution": "PreferClose"}});
    let answer = cluster.call("POST", "/api/v1/namespaces/default/services", &service).await;
    assert_eq!(
        (answer.code, answer.warnings()),
        (
            201,
            vec![
                r#"299 - "spec.externalIPs is deprecated and may no longer be implemented in some clusters""#,
                r#"299 - "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"""#,
                r#"299 - "spec.externalIPs[0]: IPv6 address \"2001:DB8::1\" should be in RFC 5952 canonical format (\"2001:db8::1\")""#,
            ]
        )
    );
}
