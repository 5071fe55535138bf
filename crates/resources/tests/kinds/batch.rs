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
            json!({"spec": {"maxFailedIndexes": 1, "backoffLimitPerIndex": 1}}),
            "spec.maxFailedIndexes: Invalid value: 1: requires indexed completion mode",
        ),
        (
            indexed(json!({"maxFailedIndexes": 1})),
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
        ),
        (
            indexed(json!({"completions": 200_000, "backoffLimitPerIndex": 1, "maxFailedIndexes": 100_001})),
            "spec.maxFailedIndexes: Invalid value: 100001: must be less than or equal to 100000",
        ),
        (
            json!({"spec": {"podFailurePolicy": {"rules": []}, "template": {"spec": {"restartPolicy": "OnFailure"}}}}),
            r#"spec.template.spec.restartPolicy: Invalid value: "OnFailure": only "Never" is supported when podFailurePolicy is specified"#,
        ),
        (
            json!({"spec": {"podFailurePolicy": {"rules": []}, "podReplacementPolicy": "TerminatingOrFailed"}}),
            r#"spec.podReplacementPolicy: Unsupported value: "TerminatingOrFailed": supported values: "Failed""#,
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
            r#"spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"#,
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
            spec(json!({"timeZone": ""})),
            r#"spec.timeZone: Invalid value: "": timeZone must be nil or non-empty string"#,
        ),
        (
            spec(json!({"timeZone": "europe/paris"})),
            r#"spec.timeZone: Invalid value: "europe/paris": unknown time zone europe/paris"#,
        ),
        (
            spec(json!({"schedule": "CRON_TZ=UTC 0 * * * *", "timeZone": "UTC"})),
            r#"spec.schedule: Invalid value: "CRON_TZ=UTC 0 * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"#,
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
    let mut both = old.clone();
    both["spec"]["timeZone"] = json!("UTC");
    let complaint = r#"spec.schedule: Invalid value: "TZ=UTC 0 * * * *": cannot use both timeZone field and TZ or CRON_TZ in schedule"#;
    assert_eq!(update("batch/v1/CronJob", &mut both, &old), [complaint]);
    let mut unknown = cron_job(json!({"spec": {"timeZone": "Mars/Base"}}));
    create("batch/v1/CronJob", &mut unknown);
    assert_eq!(update("batch/v1/CronJob", &mut unknown.clone(), &unknown), Vec::<String>::new(), "it was known once");
}

#[test]
fn what_the_status_of_a_job_may_become() {
    let start = "2026-01-01T00:00:00Z";
    let is = |kinds: &[&str]| -> Value { kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect() };
    let ended = |kinds: &[&str]| json!({"startTime": start, "completionTime": start, "conditions": is(kinds)});
    let complete = ended(&["SuccessCriteriaMet", "Complete"]);
    let failed = json!({"startTime": start, "conditions": is(&["FailureTarget", "Failed"])});
    let indexed = json!({"completionMode": "Indexed", "completions": 5, "parallelism": 5, "backoffLimitPerIndex": 1});
    let with = |status: &Value, patch: Value| {
        let mut status = status.clone();
        merge(&mut status, patch);
        status
    };
    let table = [
        (json!({}), json!({}), json!({"startTime": start, "active": 1, "ready": 1}), None),
        (json!({}), json!({"startTime": start}), complete.clone(), None),
        (json!({}), json!({"startTime": start}), failed.clone(), None),
        (
            json!({}),
            json!({}),
            json!({"failed": -1}),
            Some("status.failed: Invalid value: -1: must be greater than or equal to 0"),
        ),
        (
            json!({}),
            json!({}),
            json!({"active": 1, "ready": 2}),
            Some("status.ready: Invalid value: 2: cannot set more ready pods than active"),
        ),
        (
            json!({}),
            json!({"failed": 2}),
            json!({"failed": 1}),
            Some("status.failed: Invalid value: 1: cannot decrease the failed counter"),
        ),
        (
            json!({}),
            json!({"succeeded": 2}),
            json!({"succeeded": 1}),
            Some("status.succeeded: Invalid value: 1: cannot decrease the succeeded counter"),
        ),
        (indexed.clone(), json!({"succeeded": 2}), json!({"succeeded": 1}), None),
        (
            json!({}),
            json!({}),
            json!({"uncountedTerminatedPods": {"succeeded": ["a"], "failed": ["a"]}}),
            Some(r#"status.uncountedTerminatedPods.failed[0]: Duplicate value: "a""#),
        ),
        (
            json!({}),
            json!({"startTime": start}),
            ended(&["SuccessCriteriaMet", "Complete", "FailureTarget", "Failed"]),
            Some("status.conditions: Invalid value: cannot set Complete=True and Failed=true conditions"),
        ),
        (
            json!({}),
            json!({"startTime": start}),
            ended(&["Complete"]),
            Some(
                "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
            ),
        ),
        (
            json!({}),
            json!({"startTime": start}),
            json!({"startTime": start, "conditions": is(&["Failed"])}),
            Some(
                "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
            ),
        ),
        (
            json!({}),
            failed.clone(),
            json!({"startTime": start}),
            Some("status.conditions: Invalid value: cannot disable the terminal Failed=True condition"),
        ),
        (
            json!({}),
            complete.clone(),
            with(&complete, json!({"completionTime": "2026-01-01T00:00:09Z"})),
            Some(r#"status.completionTime: Invalid value: "2026-01-01T00:00:09Z": completionTime cannot be mutated"#),
        ),
        (
            json!({}),
            json!({"startTime": start}),
            json!({"startTime": start, "completionTime": start}),
            Some(
                r#"status.completionTime: Invalid value: "2026-01-01T00:00:00Z": cannot set completionTime when there is no Complete=True condition"#,
            ),
        ),
        (
            json!({}),
            json!({"startTime": start}),
            with(&complete, json!({"completionTime": null})),
            Some("status.completionTime: Required value: completionTime is required for Complete jobs"),
        ),
        (
            json!({}),
            json!({"startTime": start}),
            json!({}),
            Some("status.startTime: Required value: startTime cannot be removed for unsuspended job"),
        ),
        (
            json!({}),
            json!({"startTime": start, "conditions": is(&["Suspended"])}),
            json!({"startTime": "2026-01-01T00:00:09Z", "conditions": [{"type": "Suspended", "status": "False"}]}),
            None,
        ),
        (json!({"suspend": true}), json!({"startTime": start}), json!({}), None),
        (
            json!({}),
            json!({"startTime": start}),
            with(&failed, json!({"active": 1})),
            Some("status.active: Invalid value: 1: active>0 is invalid for finished job"),
        ),
        (
            json!({}),
            json!({"startTime": start}),
            with(&failed, json!({"terminating": 1})),
            Some("status.terminating: Invalid value: 1: terminating>0 is invalid for finished job"),
        ),
        (
            json!({}),
            json!({}),
            json!({"completedIndexes": "1"}),
            Some(
                r#"status.completedIndexes: Invalid value: "1": error parsing completedIndexes: too large index: "1""#,
            ),
        ),
        (
            json!({"completions": 5}),
            json!({}),
            json!({"completedIndexes": "1"}),
            Some(
                r#"status.completedIndexes: Invalid value: "1": cannot set non-empty completedIndexes when non-indexed completion mode"#,
            ),
        ),
        (
            indexed.clone(),
            json!({}),
            json!({"completedIndexes": "1-3", "failedIndexes": "0,3,4"}),
            Some(
                r#"status.failedIndexes: Invalid value: "0,3,4": failedIndexes and completedIndexes overlap at index: 3"#,
            ),
        ),
        (indexed, json!({}), json!({"completedIndexes": "1-3", "failedIndexes": "0,4"}), None),
    ];
    for (spec, before, after, expected) in table {
        let mut old = job(json!({"spec": spec, "metadata": {"resourceVersion": "1"}}));
        create("batch/v1/Job", &mut old);
        let mut new = old.clone();
        (old["status"], new["status"]) = (before, after);
        let errors: Vec<String> =
            kind("batch/v1/Job").validate_status_update(&new, &old).iter().map(ToString::to_string).collect();
        match expected {
            None => assert_eq!(errors, Vec::<String>::new(), "{}", new["status"]),
            Some(expected) => assert!(errors.contains(&expected.to_owned()), "{}: {errors:#?}", new["status"]),
        }
    }
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
