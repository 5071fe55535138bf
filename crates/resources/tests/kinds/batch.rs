//! Jobs and CronJobs.

use serde_json::{Value, json};

use crate::{create, kind, merge, update};

fn job(patch: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "a", "namespace": "default", "uid": "u"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "nginx:1"}]}}},
    });
    merge(&mut job, patch);
    job
}

fn cron_job(patch: Value) -> Value {
    let mut cron_job = json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "a", "namespace": "default"},
        "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": job(json!({}))["spec"]}},
    });
    merge(&mut cron_job, patch);
    cron_job
}

#[test]
fn a_job_selects_its_own_pods() {
    let mut job = job(json!({}));
    assert_eq!(create("batch/v1/Job", &mut job), Vec::<String>::new());
    let labels = json!({"batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "a", "controller-uid": "u", "job-name": "a"});
    assert_eq!(job["spec"]["template"]["metadata"]["labels"], labels);
    assert_eq!(job["metadata"]["labels"], labels);
    assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
    let mut manual =
        crate::batch::job(json!({"spec": {"manualSelector": true, "selector": {"matchLabels": {"x": "y"}},
        "template": {"metadata": {"labels": {"x": "y"}}}}}));
    assert_eq!(create("batch/v1/Job", &mut manual), Vec::<String>::new());
    assert_eq!(manual["spec"]["template"]["metadata"]["labels"], json!({"x": "y"}));
}

#[test]
fn defaults() {
    let table = [
        (json!({}), json!({"completions": 1, "parallelism": 1, "backoffLimit": 6})),
        (json!({"parallelism": 3}), json!({"completions": null, "parallelism": 3})),
        (json!({"completions": 3}), json!({"completions": 3, "parallelism": 1})),
        (json!({"backoffLimitPerIndex": 1}), json!({"backoffLimit": i32::MAX})),
        (
            json!({}),
            json!({"completionMode": "NonIndexed", "suspend": false, "podReplacementPolicy": "TerminatingOrFailed"}),
        ),
        (json!({"podFailurePolicy": {"rules": []}}), json!({"podReplacementPolicy": "Failed"})),
    ];
    for (spec, expected) in table {
        let mut job = job(json!({"spec": spec}));
        kind("batch/v1/Job").default(&mut job);
        for (key, value) in expected.as_object().expect("an object") {
            assert_eq!(&job["spec"][key], value, "{spec}: {key}");
        }
    }
    let mut cron_job = cron_job(json!({}));
    kind("batch/v1/CronJob").default(&mut cron_job);
    let spec = &cron_job["spec"];
    let limits = [&spec["concurrencyPolicy"], &spec["successfulJobsHistoryLimit"], &spec["failedJobsHistoryLimit"]];
    assert_eq!(json!(limits), json!(["Allow", 3, 1]));
    assert_eq!(spec["jobTemplate"]["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
}

#[test]
fn jobs_are_validated() {
    let indexed = |patch: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 5});
        merge(&mut spec, patch);
        json!({"spec": spec})
    };
    let failure = |rule: Value| json!({"spec": {"podFailurePolicy": {"rules": [rule]}}});
    let template = |spec: Value| json!({"spec": {"template": {"spec": spec}}});
    let table = [
        (
            template(json!({"restartPolicy": null})),
            r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#,
        ),
        (
            json!({"spec": {"parallelism": -1}}),
            "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            json!({"spec": {"completionMode": "Sorted"}}),
            r#"spec.completionMode: Unsupported value: "Sorted": supported values: "Indexed", "NonIndexed""#,
        ),
        (
            indexed(json!({"completions": null, "parallelism": 1})),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            indexed(json!({"parallelism": 100_001})),
            "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed",
        ),
        (
            indexed(json!({"backoffLimitPerIndex": 1, "maxFailedIndexes": 6})),
            "spec.maxFailedIndexes: Invalid value: 6: must be less than or equal to completions",
        ),
        (
            json!({"spec": {"backoffLimitPerIndex": 1}}),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
        ),
        (
            json!({"spec": {"managedBy": "me"}}),
            r#"spec.managedBy: Invalid value: "me": must be a domain-prefixed path"#,
        ),
        (
            json!({"spec": {"successPolicy": {"rules": [{"succeededCount": 1}]}}}),
            r#"spec.successPolicy: Invalid value: {"rules":[{"succeededCount":1}]}: requires indexed completion mode"#,
        ),
        (
            indexed(json!({"successPolicy": {"rules": [{"succeededIndexes": "0-2", "succeededCount": 4}]}})),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of indexes in the specified succeededIndexes field)",
        ),
        (
            failure(json!({"action": "Ignore"})),
            r#"spec.podFailurePolicy.rules[0]: Invalid value: {"action":"Ignore"}: specifying one of OnExitCodes and OnPodConditions is required"#,
        ),
        (
            failure(json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [0]}})),
            "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
        ),
        (
            failure(
                json!({"action": "FailJob", "onExitCodes": {"containerName": "x", "operator": "NotIn", "values": [2]}}),
            ),
            r#"spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: "x": must be one of the container or initContainer names in the pod template"#,
        ),
        (
            failure(
                json!({"action": "FailIndex", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}),
            ),
            r#"spec.podFailurePolicy.rules[0].action: Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set"#,
        ),
        (
            json!({"spec": {"template": {"metadata": {"labels": {"controller-uid": "x"}}}}}),
            r#"spec.template.metadata.labels[controller-uid]: Invalid value: {"batch.kubernetes.io/controller-uid":"u","#,
        ),
        (
            json!({"metadata": {"name": "a.b"}, "spec": {"completionMode": "Indexed", "completions": 2}}),
            r#"metadata.name: Invalid value: "a.b": will not able to create pod with invalid DNS label: a.b-1"#,
        ),
    ];
    for (patch, expected) in table {
        let shown = patch.to_string();
        let errors = create("batch/v1/Job", &mut job(patch));
        assert!(errors.iter().any(|error| error.starts_with(expected)), "{shown}\nwants {expected}\n got {errors:#?}");
        assert!(errors.len() <= 2, "{shown}: one mistake, one message: {errors:#?}");
    }
    let per_index = indexed(json!({"backoffLimitPerIndex": 1, "maxFailedIndexes": 2,
        "successPolicy": {"rules": [{"succeededIndexes": "0,2-4", "succeededCount": 2}]},
        "podFailurePolicy": {"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1, 2]}}]}}));
    assert_eq!(create("batch/v1/Job", &mut job(per_index)), Vec::<String>::new());
}

#[test]
fn what_of_a_job_may_change() {
    let node = json!({"template": {"spec": {"nodeSelector": {"zone": "a"}}}});
    let image = json!({"template": {"spec": {"activeDeadlineSeconds": 5}}});
    let indexed = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2});
    let suspended = json!({"suspend": true});
    let table = [
        (json!({}), json!({"parallelism": 3, "backoffLimit": 2, "suspend": true}), None),
        (json!({}), json!({"completions": 3}), Some("spec.completions: Invalid value: 3: field is immutable")),
        (json!({}), node.clone(), Some("spec.template: Invalid value: ")),
        (suspended.clone(), node, None),
        (suspended, image, Some("spec.template: Invalid value: ")),
        (indexed.clone(), json!({"completions": 3, "parallelism": 3}), None),
        (
            indexed.clone(),
            json!({"completions": 3}),
            Some("spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism"),
        ),
        (
            indexed,
            json!({"completionMode": "NonIndexed"}),
            Some(r#"spec.completionMode: Invalid value: "NonIndexed": field is immutable"#),
        ),
    ];
    for (spec, patch, expected) in table {
        let mut old = job(json!({"spec": spec}));
        assert_eq!(create("batch/v1/Job", &mut old), Vec::<String>::new());
        let mut new = old.clone();
        merge(&mut new, json!({"spec": patch}));
        let errors = update("batch/v1/Job", &mut new, &old);
        match expected {
            None => assert_eq!(errors, Vec::<String>::new(), "{patch}"),
            Some(expected) => assert!(errors.iter().any(|error| error.starts_with(expected)), "{patch}: {errors:#?}"),
        }
    }
}

#[test]
fn cron_jobs_are_validated() {
    let spec = |patch: Value| json!({"spec": patch});
    let table = [
        (spec(json!({"schedule": ""})), "spec.schedule: Required value"),
        (
            spec(json!({"schedule": "* * * *"})),
            r#"spec.schedule: Invalid value: "* * * *": expected exactly 5 fields, found 4: [* * * *]"#,
        ),
        (
            spec(json!({"schedule": "TZ=UTC 0 * * * *"})),
            r#"spec.schedule: Invalid value: "TZ=UTC 0 * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"#,
        ),
        (
            spec(json!({"timeZone": "Mars/Base"})),
            r#"spec.timeZone: Invalid value: "Mars/Base": unknown time zone Mars/Base"#,
        ),
        (
            spec(json!({"timeZone": "Local"})),
            r#"spec.timeZone: Invalid value: "Local": timeZone must be an explicit time zone"#,
        ),
        (
            spec(json!({"concurrencyPolicy": "Maybe"})),
            r#"spec.concurrencyPolicy: Unsupported value: "Maybe": supported values: "Allow", "Forbid", "Replace""#,
        ),
        (
            spec(json!({"jobTemplate": {"spec": {"selector": {}}}})),
            "spec.jobTemplate.spec.selector: Invalid value: {}: `selector` will be auto-generated",
        ),
        (
            spec(json!({"jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}})),
            "spec.jobTemplate.spec.template.spec.containers: Required value",
        ),
        (
            json!({"metadata": {"name": "a".repeat(53)}}),
            r#"metadata.name: Invalid value: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": must be no more than 52 characters"#,
        ),
    ];
    for (patch, expected) in table {
        let errors = create("batch/v1/CronJob", &mut cron_job(patch));
        assert_eq!(errors.len(), 1, "{expected}: {errors:#?}");
        assert!(errors[0].starts_with(expected), "wants {expected}\n got {errors:#?}");
    }
    assert_eq!(create("batch/v1/CronJob", &mut cron_job(json!({"spec": {"timeZone": "UTC"}}))), Vec::<String>::new());
    let mut old = cron_job(json!({"spec": {"schedule": "TZ=UTC 0 * * * *"}}));
    create("batch/v1/CronJob", &mut old);
    assert_eq!(update("batch/v1/CronJob", &mut old.clone(), &old), Vec::<String>::new(), "it was allowed once");
}

#[test]
fn rows() {
    let now = "2026-01-01T00:05:00Z".parse().expect("a time");
    let created = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}});
    let condition = |type_: &str| json!({"conditions": [{"type": type_, "status": "True"}]});
    let table = [
        (json!({}), ["Running", "0/1", ""]),
        (json!({"spec": {"completions": 3}, "status": {"succeeded": 2}}), ["Running", "2/3", ""]),
        (json!({"spec": {"parallelism": 4}}), ["Running", "0/1 of 4", ""]),
        (json!({"status": {"startTime": "2026-01-01T00:04:00Z"}}), ["Running", "0/1", "60s"]),
        (
            json!({"status": {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:07Z",
                "succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}}),
            ["Complete", "1/1", "7s"],
        ),
        (json!({"status": condition("Suspended")}), ["Suspended", "0/1", ""]),
        (json!({"status": condition("Failed")}), ["Failed", "0/1", ""]),
        (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), ["Terminating", "0/1", ""]),
    ];
    for (patch, expected) in table {
        let mut job = job(created.clone());
        merge(&mut job, patch);
        let cells = kind("batch/v1/Job").cells(&job, now);
        assert_eq!(cells[1..4], expected.map(|text| json!(text)), "{job}");
        assert_eq!(cells[4..], ["5m", "main", "nginx:1", "<none>"].map(|text| json!(text)));
    }
    let mut cron_job = cron_job(created);
    merge(
        &mut cron_job,
        json!({"spec": {"suspend": false}, "status": {"active": [{}], "lastScheduleTime": "2026-01-01T00:04:00Z"}}),
    );
    assert_eq!(
        json!(kind("batch/v1/CronJob").cells(&cron_job, now)),
        json!(["a", "*/5 * * * *", "<none>", "False", 1, "60s", "5m", "main", "nginx:1", "<none>"])
    );
    assert_eq!(
        kind("batch/v1/Job").field(&json!({"status": {"succeeded": 2}}), "status.successful").as_deref(),
        Some("2")
    );
}
