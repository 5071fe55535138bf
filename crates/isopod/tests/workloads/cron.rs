//! CronJobs. Nobody waits for a schedule: a CronJob whose last time lies back has a run due at once.

use serde_json::{Value, json};
use testkit::{eventually, name};

use crate::{Scene, has_condition, play};

#[test]
fn cron_jobs() {
    play(&[
        ("allowing", run_beside),
        ("forbidding", run_alone),
        ("replacing", run_instead),
        ("sleeping", do_not_run),
        ("history", keep_history),
        ("zones", run_by_zone),
        ("cronapi", operations),
    ]);
}

/// A CronJob that runs a shell script every minute, unless `spec` says otherwise.
fn cron(name: &str, spec: Value, script: &str) -> String {
    let mut all = json!({
        "schedule": "*/1 * * * ?", "suspend": true,
        "jobTemplate": {"metadata": {"labels": {"app": name}}, "spec": {"template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [
                {"name": "main", "image": crate::BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]}]},
        }}},
    });
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name, "labels": {"app": name}}, "spec": all})
        .to_string()
}

const FOREVER: &str = "exec sleep 100000";
/// Midnight of the first of January comes often enough.
const YEARLY: &str = "0 0 1 1 *";

/// Makes the time before last the last one, so that one is due, and lets the CronJob run.
fn make_due(scene: &Scene, cron: &str) {
    let object = format!("cronjob/{cron}");
    scene.patch_status(&object, r#"{"status":{"lastScheduleTime":"2024-06-01T00:00:00Z"}}"#);
    scene.patch(&object, r#"{"spec":{"suspend":false}}"#);
}

fn active(cron: &Value) -> Vec<&str> {
    cron["status"]["active"]
        .as_array()
        .map_or(vec![], |list| list.iter().map(|one| one["name"].as_str().unwrap()).collect())
}

fn jobs(scene: &Scene, app: &str) -> Vec<Value> {
    let list = scene.cluster.get(&["-n", scene.namespace, "jobs", "-l", &format!("app={app}")]);
    list["items"].as_array().unwrap().clone()
}

fn wait_jobs(scene: &Scene, app: &str, condition: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    eventually(&format!("the jobs of {app}"), || {
        let jobs = jobs(scene, app);
        if condition(&jobs) { Ok(jobs) } else { Err(format!("{jobs:#?}")) }
    })
}

/// Conformance: several jobs at the same time. Besides: names, references, times; a job that goes missing.
fn run_beside(scene: &Scene) {
    scene.apply(&cron("allow", json!({"concurrencyPolicy": "Allow"}), FOREVER));
    make_due(scene, "allow");
    assert!(scene.event("allow", "TooManyMissedTimes").starts_with("too many missed start times."));
    let first = scene.wait("cronjob/allow", |cron| !active(cron).is_empty());
    // A minute may have turned meanwhile, and another job have been started.
    let newest = first["status"]["active"].as_array().unwrap().last().unwrap();
    let job = scene.get(&format!("job/{}", newest["name"].as_str().unwrap()));
    let scheduled = job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"].as_str().unwrap();
    let minute = minutes(scheduled);
    assert_eq!(name(&job), format!("allow-{minute}"));
    assert_eq!(first["status"]["lastScheduleTime"], scheduled);
    assert_eq!((&newest["kind"], &newest["uid"]), (&"Job".into(), &job["metadata"]["uid"]));
    assert_eq!(job["metadata"]["ownerReferences"][0]["name"], "allow");
    scene.told("allow", "SuccessfulCreate", &format!("Created job {}", name(&job)));
    // The next minute's comes beside it.
    let both = scene.wait("cronjob/allow", |cron| active(cron).len() == 2);
    assert!(active(&both).contains(&name(&job)));
    scene.patch("cronjob/allow", r#"{"spec":{"suspend":true}}"#);
    scene.run(&["delete", "job", name(&job)]);
    scene.wait("cronjob/allow", |cron| active(cron).len() == 1);
    scene.told("allow", "MissingJob", &format!("Active job went missing: {}", name(&job)));
}

/// Minutes since 1970 of a time in UTC.
fn minutes(time: &str) -> i64 {
    let output = std::process::Command::new("date").args(["-d", time, "+%s"]).output().expect("run date");
    String::from_utf8(output.stdout).unwrap().trim().parse::<i64>().expect("seconds") / 60
}

/// Conformance: with Forbid one job at a time, the earlier.
fn run_alone(scene: &Scene) {
    scene.apply(&cron("forbid", json!({"concurrencyPolicy": "Forbid"}), FOREVER));
    make_due(scene, "forbid");
    let first = scene.wait("cronjob/forbid", |cron| active(cron).len() == 1);
    let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
    assert_eq!(scene.event("forbid", "JobAlreadyActive"), message);
    let after = scene.get("cronjob/forbid");
    assert_eq!(active(&after), active(&first));
    assert_eq!(jobs(scene, "forbid").len(), 1);
    // Once it is gone, the run that was held back starts.
    scene.run(&["delete", "job", active(&first)[0]]);
    scene.wait("cronjob/forbid", |cron| active(cron).len() == 1 && active(cron) != active(&first));
}

/// Conformance: with Replace one job at a time, the later.
fn run_instead(scene: &Scene) {
    scene.apply(&cron("replace", json!({"concurrencyPolicy": "Replace"}), FOREVER));
    make_due(scene, "replace");
    let first = scene.wait("cronjob/replace", |cron| active(cron).len() == 1);
    let second = scene.wait("cronjob/replace", |cron| active(cron).len() == 1 && active(cron) != active(&first));
    wait_jobs(scene, "replace", |jobs| jobs.len() == 1 && name(&jobs[0]) == active(&second)[0]);
    scene.told("replace", "SuccessfulDelete", &format!("Deleted job {}", active(&first)[0]));
}

/// Conformance: nothing while suspended. Besides: nothing that is too late.
fn do_not_run(scene: &Scene) {
    scene.apply(&cron("suspended", json!({}), FOREVER));
    scene.patch_status("cronjob/suspended", r#"{"status":{"lastScheduleTime":"2024-06-01T00:00:00Z"}}"#);
    let late = json!({"schedule": YEARLY, "startingDeadlineSeconds": 10, "suspend": false});
    scene.apply(&cron("late", late, FOREVER));
    scene.patch_status("cronjob/late", r#"{"status":{"lastScheduleTime":"2024-06-01T00:00:00Z"}}"#);
    // This one is looked at after the others.
    scene.apply(&cron("due", json!({"schedule": YEARLY, "startingDeadlineSeconds": 63072000}), "exit 0"));
    make_due(scene, "due");
    wait_jobs(scene, "due", |jobs| jobs.len() == 1);
    assert!(jobs(scene, "suspended").is_empty() && jobs(scene, "late").is_empty());
    assert_eq!(scene.get("cronjob/suspended")["status"]["active"], Value::Null);
}

/// Finished jobs are kept as the limits say.
fn keep_history(scene: &Scene) {
    let limits = |good: u8, bad: u8| json!({"successfulJobsHistoryLimit": good, "failedJobsHistoryLimit": bad});
    scene.apply(&cron("good", limits(1, 0), "exit 0"));
    scene.apply(&cron("bad", limits(0, 1), "exit 1").replace(r#""template":{"#, r#""backoffLimit":0,"template":{"#));
    for name in ["good", "bad"] {
        make_due(scene, name);
    }
    for (cron, kind, other) in [("good", "Complete", "Failed"), ("bad", "Failed", "Complete")] {
        let first = wait_jobs(scene, cron, |jobs| jobs.len() == 1 && has_condition(&jobs[0], kind)).remove(0);
        scene.told(cron, "SawCompletedJob", &format!("Saw completed job: {}, condition: {kind}", name(&first)));
        let status = scene.get(&format!("cronjob/{cron}"))["status"].clone();
        assert_eq!(status["lastSuccessfulTime"].is_string(), kind == "Complete");
        wait_jobs(scene, cron, |jobs| {
            jobs.len() == 1
                && name(&jobs[0]) != name(&first)
                && has_condition(&jobs[0], kind)
                && !has_condition(&jobs[0], other)
        });
        scene.told(cron, "SuccessfulDelete", &format!("Deleted job {}", name(&first)));
    }
}

/// Schedules count in their time zone, whatever the host knows of zones.
fn run_by_zone(scene: &Scene) {
    let tokyo = json!({"schedule": YEARLY, "timeZone": "Asia/Tokyo"});
    scene.apply(&cron("tokyo", tokyo, "exit 0"));
    make_due(scene, "tokyo");
    let job = wait_jobs(scene, "tokyo", |jobs| jobs.len() == 1).remove(0);
    let scheduled = job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"].as_str().unwrap();
    assert!(scheduled.ends_with("-01-01T00:00:00+09:00"), "{scheduled}");
    let status = scene.wait("cronjob/tokyo", |cron| cron["status"]["lastScheduleTime"] != "2024-06-01T00:00:00Z");
    assert!(status["status"]["lastScheduleTime"].as_str().unwrap().ends_with("-12-31T15:00:00Z"), "{status}");
}

/// Conformance: the API operations. Besides, what it refuses.
fn operations(scene: &Scene) {
    scene.apply(&cron("api", json!({"schedule": "* */1 * * ?"}), "exit 0"));
    scene.patch("cronjob/api", r#"{"metadata":{"annotations":{"patched":"true"}}}"#);
    scene.patch_status(
        "cronjob/api",
        r#"{"metadata":{"annotations":{"patchedstatus":"true"}},"status":{"lastScheduleTime":"2026-01-02T03:04:05Z"}}"#,
    );
    let raw = format!("/apis/batch/v1/namespaces/{}/cronjobs/api/status", scene.namespace);
    let read: Value = serde_json::from_str(&scene.run(&["get", "--raw", &raw])).unwrap();
    assert_eq!(read["status"]["lastScheduleTime"], "2026-01-02T03:04:05Z");
    assert_eq!(read["metadata"]["annotations"]["patchedstatus"], "true");
    for (spec, expected) in [
        (
            json!({"timeZone": "bad-time-zone"}),
            r#"spec.timeZone: Invalid value: "bad-time-zone": unknown time zone bad-time-zone"#,
        ),
        (
            json!({"schedule": "61 * * * *"}),
            r#"spec.schedule: Invalid value: "61 * * * *": end of range (61) above maximum (59): 61"#,
        ),
        (json!({"schedule": "TZ=UTC 0 * * * *"}), "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"),
    ] {
        let complaint = scene.reject(&cron("refused", spec, "exit 0"));
        assert!(complaint.contains(expected), "expected {expected:?} in {complaint}");
    }
    assert!(scene.run(&["get", "cronjobs"]).contains("* */1 * * ?"));
    // Running one by hand.
    scene.run(&["create", "job", "by-hand", "--from=cronjob/api"]);
    scene.wait("job/by-hand", |job| has_condition(job, "Complete"));
    scene.run(&["delete", "cronjobs", "--all"]);
    scene.run(&["wait", "--for=delete", "job/by-hand", "--timeout=150s"]);
}
