//! Jobs.

use serde_json::{Value, json};
use testkit::{condition, name, uid};

use crate::{Scene, common, has_condition, is_ready, play};

#[test]
fn jobs() {
    play(&[
        ("indexed", run_by_index),
        ("restarts", restart_locally),
        ("failing", give_up),
        ("policies", follow_policies),
        ("perindex", fail_by_index),
        ("suspended", suspend_and_resume),
        ("owning", adopt_and_release),
        ("jobapi", operations),
    ]);
}

/// A job that runs a shell script.
fn job(name: &str, spec: &str, script: &str) -> String {
    r#"
apiVersion: batch/v1
kind: Job
metadata: {name: NAME, labels: {app: NAME}}
spec:
  SPEC
  template:
    metadata: {labels: {app: NAME}}
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers: [{name: main, IMAGE, command: [sh, -c, 'SCRIPT']}]
"#
    .replace("NAME", name)
    .replace("SPEC", spec)
    .replace("SCRIPT", script)
}

const FOREVER: &str = "exec sleep 100000";

fn complete(scene: &Scene, job: &str) -> Value {
    scene.wait(&format!("job/{job}"), |job| has_condition(job, "Complete"))
}

/// Waits until the job has failed for a reason; its message.
fn failed(scene: &Scene, job: &str, reason: &str) -> String {
    let job = scene.wait(&format!("job/{job}"), |job| has_condition(job, "Failed"));
    let (target, failed) = (condition(&job, "FailureTarget"), condition(&job, "Failed"));
    assert_eq!((&failed["reason"], &target["reason"]), (&reason.into(), &reason.into()));
    assert_eq!(failed["message"], target["message"]);
    assert!(job["status"]["completionTime"].is_null());
    assert_eq!(scene.event(name(&job), reason), failed["message"].as_str().unwrap());
    failed["message"].as_str().unwrap().to_owned()
}

/// Conformance: an Indexed job's pods get a unique index, and host names by it. Besides, it can grow and shrink, and end
/// by a success policy.
fn run_by_index(scene: &Scene) {
    let script = "echo $JOB_COMPLETION_INDEX $(hostname)";
    scene.apply(&job("indexed", "completions: 4\n  parallelism: 2\n  completionMode: Indexed", script));
    let done = complete(scene, "indexed");
    assert_eq!((&done["status"]["succeeded"], &done["status"]["completedIndexes"]), (&4.into(), &"0-3".into()));
    assert!(done["status"]["completionTime"].is_string() && done["status"]["active"].is_null());
    let why = |kind| (condition(&done, kind)["reason"].clone(), condition(&done, kind)["message"].clone());
    let reached = (json!("CompletionsReached"), json!("Reached expected number of succeeded pods"));
    assert_eq!((why("SuccessCriteriaMet"), why("Complete")), (reached.clone(), reached));
    assert_eq!(scene.event("indexed", "Completed"), "Job completed");
    let mut indexes: Vec<String> = scene
        .pods("indexed")
        .iter()
        .map(|pod| {
            let index = pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"].as_str().unwrap();
            assert_eq!(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"], index);
            assert_eq!(pod["spec"]["hostname"], format!("indexed-{index}"));
            assert!(name(pod).starts_with(&format!("indexed-{index}-")));
            assert_eq!(scene.run(&["logs", name(pod)]), format!("{index} indexed-{index}\n"));
            index.to_owned()
        })
        .collect();
    indexes.sort();
    assert_eq!(indexes, ["0", "1", "2", "3"]);

    let elastic = "completions: 1\n  parallelism: 1\n  completionMode: Indexed";
    scene.apply(&job("elastic", elastic, FOREVER));
    scene.wait("job/elastic", |job| job["status"]["ready"] == 1);
    scene.patch("job/elastic", r#"{"spec":{"completions":3,"parallelism":3}}"#);
    scene.wait("job/elastic", |job| job["status"]["ready"] == 3);
    scene.patch("job/elastic", r#"{"spec":{"completions":2,"parallelism":2}}"#);
    let shrunk = scene.wait("job/elastic", |job| job["status"]["ready"] == 2 && job["status"]["terminating"] == 0);
    assert!(shrunk["status"]["failed"].is_null(), "pods that are given up count for nothing");

    // The leader's success is enough; the others are ended.
    let policy = "completions: 3\n  parallelism: 3\n  completionMode: Indexed\n  successPolicy: {rules: [{succeededIndexes: \"0\", succeededCount: 1}]}";
    scene.apply(&job("leader", policy, "test $JOB_COMPLETION_INDEX = 0 || exec sleep 100000"));
    let done = complete(scene, "leader");
    let met = condition(&done, "SuccessCriteriaMet");
    assert_eq!((&met["reason"], &met["message"]), (&"SuccessPolicy".into(), &"Matched rules at index 0".into()));
    assert_eq!(condition(&done, "Complete")["reason"], "SuccessPolicy");
    assert_eq!((&done["status"]["succeeded"], &done["status"]["completedIndexes"]), (&1.into(), &"0".into()));
    assert!(done["status"]["failed"].is_null());
}

/// Conformance: a job runs to completion when its tasks sometimes fail and are restarted on the spot.
fn restart_locally(scene: &Scene) {
    let volume = "      volumes: [{name: data, emptyDir: {}}]\n      containers: [{volumeMounts: [{name: data, mountPath: /data}], name:";
    let once = |name: &str, spec: &str, script: &str| {
        let job = job(name, spec, script).replace("restartPolicy: Never", "restartPolicy: OnFailure");
        job.replace("      containers: [{name:", volume)
    };
    scene.apply(&once(
        "once",
        "completions: 3\n  parallelism: 2",
        "test -e /data/tried && exit 0; touch /data/tried; exit 1",
    ));
    let done = complete(scene, "once");
    assert_eq!((&done["status"]["succeeded"], &done["status"]["failed"]), (&3.into(), &Value::Null));
    assert!(scene.pods("once").iter().all(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1));
    // Restarts count against the limit, too.
    scene.apply(&once("never", "backoffLimit: 1", "exit 1"));
    assert_eq!(failed(scene, "never", "BackoffLimitExceeded"), "Job has reached the specified backoff limit");
}

/// Limits: of failures, and of time; and what becomes of a job after its end.
fn give_up(scene: &Scene) {
    scene.apply(&job("hopeless", "backoffLimit: 1", "exit 1"));
    scene.apply(&job("slow", "activeDeadlineSeconds: 1\n  parallelism: 2", FOREVER));
    scene.apply(&job("brief", "ttlSecondsAfterFinished: 0", "exit 0"));
    assert_eq!(failed(scene, "slow", "DeadlineExceeded"), "Job was active longer than specified deadline");
    let slow = scene.get("job/slow");
    assert_eq!((&slow["status"]["failed"], &slow["status"]["terminating"]), (&2.into(), &0.into()));
    scene.wait_pods("brief", <[Value]>::is_empty);
    scene.run(&["wait", "--for=delete", "job/brief", "--timeout=150s"]);
    assert_eq!(failed(scene, "hopeless", "BackoffLimitExceeded"), "Job has reached the specified backoff limit");
    let pods = scene.pods("hopeless");
    assert!(pods.len() == 2 && pods.iter().all(|pod| pod["status"]["phase"] == "Failed"));
    assert_eq!(scene.get("job/hopeless")["status"]["failed"], 2);
}

/// Every action of a pod failure policy.
fn follow_policies(scene: &Scene) {
    let rules = |rules: &str| format!("backoffLimit: 0\n  podFailurePolicy: {{rules: [{rules}]}}");
    let on = |action: &str, code: u8| format!("{{action: {action}, onExitCodes: {{operator: In, values: [{code}]}}}}");
    scene.apply(&job("fatal", &rules(&on("FailJob", 42)).replace(": 0", ": 6"), "exit 42"));
    scene.apply(&job("counted", &rules(&format!("{}, {}", on("Count", 7), on("Ignore", 7))), "exit 7"));
    let disruption = "{action: Ignore, onPodConditions: [{type: DisruptionTarget}]}";
    scene.apply(&job("disrupted", &rules(disruption), FOREVER));

    let pod = name(&scene.pods("fatal")[0]).to_owned();
    let message = format!(
        "Container main for pod {}/{pod} failed with exit code 42 matching FailJob rule at index 0",
        scene.namespace
    );
    assert_eq!(failed(scene, "fatal", "PodFailurePolicy"), message);
    failed(scene, "counted", "BackoffLimitExceeded");

    // An evicted pod is replaced, and does not count.
    let evicted = scene.wait_pods("disrupted", |pods| pods.len() == 1 && is_ready(&pods[0])).remove(0);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name(&evicted)}});
    let raw = format!("/api/v1/namespaces/{}/pods/{}/eviction", scene.namespace, name(&evicted));
    let file = scene.file("json", &eviction.to_string());
    scene.run(&["create", "--raw", &raw, "-f", &file.to_string_lossy()]);
    scene.wait_pods("disrupted", |pods| pods.iter().any(|pod| uid(pod) != uid(&evicted) && is_ready(pod)));
    let job = scene.get("job/disrupted");
    assert!(job["status"]["failed"].is_null() && !has_condition(&job, "Failed"), "{}", job["status"]);
}

/// Limits of failures per index, and of failed indexes.
fn fail_by_index(scene: &Scene) {
    let spec = "completions: 3\n  parallelism: 3\n  completionMode: Indexed\n  backoffLimitPerIndex: 0";
    scene.apply(&job("some", spec, "test $JOB_COMPLETION_INDEX != 1"));
    scene.apply(&job(
        "most",
        &format!("{spec}\n  maxFailedIndexes: 0"),
        "test $JOB_COMPLETION_INDEX = 1 && exec sleep 100000; exit 1",
    ));
    let policy = "podFailurePolicy: {rules: [{action: FailIndex, onExitCodes: {operator: In, values: [3]}}]}";
    let spec = spec.replace("backoffLimitPerIndex: 0", "backoffLimitPerIndex: 1");
    scene.apply(&job("rule", &format!("{spec}\n  {policy}"), "exit 3"));
    assert_eq!(failed(scene, "some", "FailedIndexes"), "Job has failed indexes");
    let some = scene.get("job/some");
    assert_eq!((&some["status"]["completedIndexes"], &some["status"]["failedIndexes"]), (&"0,2".into(), &"1".into()));
    let message = "Job has exceeded the specified maximal number of failed indexes";
    assert_eq!(failed(scene, "most", "MaxFailedIndexesExceeded"), message);
    failed(scene, "rule", "FailedIndexes");
    let rule = scene.get("job/rule");
    assert_eq!((&rule["status"]["failedIndexes"], &rule["status"]["failed"]), (&"0-2".into(), &3.into()));
    // One more try for the index, after its back-off; the count travels with its pods.
    scene.apply(&job("again", &spec, "test $JOB_COMPLETION_INDEX != 2"));
    failed(scene, "again", "FailedIndexes");
    let pods = scene.pods("again");
    let failures = |pod: &Value| pod["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"].clone();
    let mut of_two: Vec<Value> = pods.iter().filter(|pod| pod["status"]["phase"] == "Failed").map(failures).collect();
    of_two.sort_by_key(Value::to_string);
    assert_eq!(of_two, [json!("0"), json!("1")]);
}

/// Suspending deletes the pods, resuming starts the clock anew; in between the template may be placed elsewhere.
fn suspend_and_resume(scene: &Scene) {
    let spec = "suspend: true\n  completions: 2\n  parallelism: 2\n  podReplacementPolicy: Failed";
    scene.apply(&job("paused", spec, FOREVER));
    let paused = scene.wait("job/paused", |job| has_condition(job, "Suspended"));
    let suspended = condition(&paused, "Suspended");
    assert_eq!((&suspended["reason"], &suspended["message"]), (&"JobSuspended".into(), &"Job suspended".into()));
    assert!(paused["status"]["startTime"].is_null() && scene.pods("paused").is_empty());
    scene.patch("job/paused", r#"{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/os":"linux"}}}}}"#);
    let complaint = scene.refuse(&[
        "patch",
        "job/paused",
        "--type=merge",
        "-p",
        r#"{"spec":{"template":{"spec":{"serviceAccountName":"x"}}}}"#,
    ]);
    assert!(
        complaint.contains("spec.template: Invalid value:") && complaint.contains("field is immutable"),
        "{complaint}"
    );

    scene.patch("job/paused", r#"{"spec":{"suspend":false}}"#);
    let running = scene.wait("job/paused", |job| job["status"]["ready"] == 2);
    assert_eq!(condition(&running, "Suspended")["reason"], "JobResumed");
    assert!(running["status"]["startTime"].is_string());
    assert!(scene.pods("paused").iter().all(|pod| pod["spec"]["nodeSelector"]["kubernetes.io/os"] == "linux"));
    let complaint = scene.refuse(&[
        "patch",
        "job/paused",
        "--type=merge",
        "-p",
        r#"{"spec":{"template":{"spec":{"nodeSelector":null}}}}"#,
    ]);
    assert!(complaint.contains("field is immutable"), "{complaint}");

    scene.patch("job/paused", r#"{"spec":{"suspend":true}}"#);
    scene.wait("job/paused", |job| {
        has_condition(job, "Suspended") && job["status"]["active"].is_null() && job["status"]["terminating"] == 0
    });
    scene.wait_pods("paused", <[Value]>::is_empty);
    scene.patch_status("job/paused", r#"{"status":{"startTime":"2026-01-02T03:04:05Z"}}"#);
    scene.patch("job/paused", r#"{"spec":{"suspend":false}}"#);
    let resumed = scene.wait("job/paused", |job| job["status"]["ready"] == 2);
    assert_ne!(resumed["status"]["startTime"], "2026-01-02T03:04:05Z", "the clock starts anew");
    assert!(resumed["status"]["failed"].is_null(), "pods of a suspended job do not count");
    for (reason, message) in [("Suspended", "Job suspended"), ("Resumed", "Job resumed")] {
        assert_eq!(scene.event("paused", reason), message);
    }

    // A pod that is going is replaced only once it has gone.
    let slowly = job("slowly", "parallelism: 1\n  podReplacementPolicy: Failed", FOREVER);
    scene.apply(&slowly.replace("PeriodSeconds: 0", "PeriodSeconds: 2"));
    let going = scene.wait_pods("slowly", |pods| pods.len() == 1 && is_ready(&pods[0])).remove(0);
    scene.run(&["delete", "pod", name(&going), "--wait=false"]);
    scene.wait("job/slowly", |job| job["status"]["terminating"] == 1 && job["status"]["active"].is_null());
    assert_eq!(scene.pods("slowly").len(), 1);
    scene.wait("job/slowly", |job| job["status"]["failed"] == 1 && job["status"]["terminating"] == 0);

    // Somebody else's job is left alone.
    scene.apply(&job("foreign", "managedBy: example.com/somebody", FOREVER));
    scene.apply(&job("own", "managedBy: kubernetes.io/job-controller", "exit 0"));
    complete(scene, "own");
    assert!(scene.pods("foreign").is_empty() && scene.get("job/foreign")["status"]["startTime"].is_null());
}

/// Conformance: matching orphans are adopted, pods that match no longer released; a job is deleted with its pods.
fn adopt_and_release(scene: &Scene) {
    scene.apply(&job("parent", "completions: 4\n  parallelism: 2", FOREVER));
    let job = scene.wait("job/parent", |job| job["status"]["ready"] == 2);
    let pod = format!("pod/{}", name(&scene.pods("parent")[0]));
    scene.patch(&pod, r#"{"metadata":{"ownerReferences":null}}"#);
    let counted = |pod: &Value| pod["metadata"]["finalizers"] == json!(["batch.kubernetes.io/job-tracking"]);
    let adopted = scene.wait(&pod, |pod| pod["metadata"]["ownerReferences"].is_array() && counted(pod));
    let owner = &adopted["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"], &owner["controller"]), (&"Job".into(), &uid(&job).into(), &true.into()));
    scene.patch(&pod, r#"{"metadata":{"labels":null}}"#);
    scene.wait(&pod, |pod| pod["metadata"]["ownerReferences"].is_null() && pod["metadata"]["finalizers"].is_null());
    scene.wait_pods("parent", |pods| pods.iter().filter(|pod| is_ready(pod)).count() == 2);
    scene.run(&["delete", "job", "parent", "--cascade=foreground", "--timeout=150s"]);
    scene.wait_pods("parent", <[Value]>::is_empty);
    scene.run(&["delete", &pod]);
}

/// Conformance: the life of a job through the API, and changes to its status.
fn operations(scene: &Scene) {
    scene.apply(&job("life", "suspend: true\n  parallelism: 2\n  completions: 4\n  backoffLimit: 6", FOREVER));
    scene.patch("job/life", r#"{"metadata":{"labels":{"test":"patched"}}}"#);
    scene.run(&["annotate", "job/life", "updated=true"]);
    let job = scene.wait("job/life", |job| has_condition(job, "Suspended"));
    assert_eq!(job["metadata"]["annotations"]["updated"], "true");
    scene.patch_status(
        "job/life",
        r#"{"metadata":{"annotations":{"patched":"yes"}},"status":{"startTime":"2026-01-02T03:04:05Z"}}"#,
    );
    let raw = format!("/apis/batch/v1/namespaces/{}/jobs/life/status", scene.namespace);
    let read: Value = serde_json::from_str(&scene.run(&["get", "--raw", &raw])).unwrap();
    assert_eq!(read["status"]["startTime"], "2026-01-02T03:04:05Z");
    assert_eq!(read["metadata"]["annotations"]["patched"], "yes");
    let complaint = scene.refuse(&[
        "patch",
        "job/life",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"completionTime":"2026-01-02T03:04:05Z"}}"#,
    ]);
    assert!(complaint.contains("cannot set completionTime when there is no Complete=True condition"), "{complaint}");
    for (manifest, expected) in [
        (
            self::job("bad", "parallelism: 1", "x").replace("Never", "Always"),
            r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#,
        ),
        (
            self::job("bad", "parallelism: 1\n  completionMode: Indexed", "x"),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (self::job("bad", "selector: {matchLabels: {a: b}}", "x"), "`selector` not auto-generated"),
    ] {
        let complaint = scene.reject(&manifest);
        assert!(complaint.contains(expected), "expected {expected:?} in {complaint}");
    }
    assert!(scene.cluster.run(&["get", "jobs", "-A", "-l", "test=patched", "-o", "name"]).contains("job.batch/life"));
    scene.run(&["delete", "jobs", "-l", "test=patched", "--timeout=150s"]);
    scene.wait_pods("life", <[Value]>::is_empty);
}

/// Each pod counts once, whenever the controller dies.
#[test]
fn counts_are_exact_after_kill_9() {
    let (cluster, archive) = common::cluster();
    let scene = Scene { cluster: &cluster, namespace: "default" };
    scene.apply(&job("many", "completions: 24\n  parallelism: 6", "exit 0"));
    for least in [3, 12] {
        scene.wait("job/many", |job| job["status"]["succeeded"].as_i64() >= Some(least));
        cluster.crash();
        cluster.up(&[&archive]);
    }
    let done = complete(&scene, "many");
    let status = &done["status"];
    assert_eq!((&status["succeeded"], &status["failed"], &status["active"]), (&24.into(), &Value::Null, &Value::Null));
    assert_eq!(status["uncountedTerminatedPods"], json!({}));
    let pods = scene.pods("many");
    assert_eq!(pods.iter().filter(|pod| pod["status"]["phase"] == "Succeeded").count(), 24);
    assert_eq!(pods.len(), 24);
    assert!(pods.iter().all(|pod| pod["metadata"]["finalizers"].is_null()));
}
