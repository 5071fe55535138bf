//! The order, the waiting and the waking of pods; times are given.

use std::time::{Duration, Instant};

use scheduler::framework::ClusterEvent;
use scheduler::queue::Queue;

use super::*;

fn queue() -> (Queue, Instant) {
    (Queue::new(Arc::new(default_profile())), Instant::now())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn drain(queue: &mut Queue, now: Instant) -> Vec<String> {
    std::iter::from_fn(|| queue.pop(now)).map(|queued| queued.pod.name().to_owned()).collect()
}

#[test]
fn priority_goes_first_and_then_arrival() {
    let (mut queue, now) = queue();
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
        queue.put(info(pod(name, "", json!({"spec": {"priority": priority}}))), now);
    }
    assert!(queue.remove("a").is_some());
    assert_eq!(drain(&mut queue, now), ["b", "d", "c"]);
}

#[test]
fn failed_attempts_back_off_up_to_ten_seconds() {
    let (mut queue, mut now) = queue();
    queue.put(info(pod("a", "", json!({}))), now);
    for wait in [1, 2, 4, 8, 10, 10] {
        let queued = queue.pop(now).unwrap();
        queue.retry(queued, now);
        assert_eq!(queue.next_due(), Some(now + seconds(wait)));
        assert!(queue.pop(now + seconds(wait) - Duration::from_millis(1)).is_none());
        now += seconds(wait);
    }
}

#[test]
fn refused_pods_wait_for_an_event_that_helps() {
    let (mut queue, now) = queue();
    queue.put(info(pod("a", "1", json!({}))), now);
    let queued = queue.pop(now).unwrap();
    queue.refuse(queued, vec!["NodeResourcesFit"], now);
    let small: k8s_openapi::api::core::v1::Node =
        serde_json::from_value(node("n", json!({"status": {"allocatable": {"cpu": "500m"}}}))).unwrap();
    let large = serde_json::from_value(node("n", json!({}))).unwrap();
    let later = now + seconds(2);
    queue.on_event(ClusterEvent::Node { old: None, new: &small }, later);
    assert_eq!(drain(&mut queue, later), [""; 0], "too small to help");
    queue.on_event(ClusterEvent::Node { old: Some(&small), new: &large }, later);
    assert_eq!(drain(&mut queue, later), ["a"]);
}

#[test]
fn an_event_does_not_cut_the_back_off_short_and_patience_ends() {
    let (mut queue, now) = queue();
    for name in ["a", "b"] {
        queue.put(info(pod(name, "1", json!({}))), now);
        let queued = queue.pop(now).unwrap();
        queue.refuse(queued, if name == "a" { vec!["NodeResourcesFit"] } else { vec!["NodeAffinity"] }, now);
    }
    queue.on_event(ClusterEvent::PodGone(&info(pod("x", "1", json!({})))), now);
    assert_eq!(drain(&mut queue, now), [""; 0]);
    assert_eq!(drain(&mut queue, now + seconds(1)), ["a"]);
    assert_eq!(drain(&mut queue, now + seconds(299)), [""; 0]);
    assert_eq!(drain(&mut queue, now + seconds(300)), ["b"]);
}

#[test]
fn gates_hold_pods_until_the_last_is_gone() {
    let (mut queue, now) = queue();
    let gated = |gates: Value| info(pod("a", "", json!({"spec": {"schedulingGates": gates}})));
    let message = queue.put(gated(json!([{"name": "x"}, {"name": "y"}])), now);
    assert_eq!(message.as_deref(), Some("waiting for scheduling gates: [x y]"));
    assert_eq!(drain(&mut queue, now + seconds(1000)), [""; 0]);
    assert!(queue.put(gated(json!([{"name": "x"}])), now).is_some());
    assert!(queue.put(gated(json!([])), now).is_none());
    assert_eq!(drain(&mut queue, now), ["a"]);
}

#[test]
fn a_changed_pod_is_tried_again_and_a_new_status_is_no_change() {
    let (mut queue, now) = queue();
    queue.put(info(pod("a", "1", json!({}))), now);
    let queued = queue.pop(now).unwrap();
    queue.refuse(queued, vec!["NodeAffinity"], now);
    let later = now + seconds(5);
    queue.put(info(pod("a", "1", json!({"status": {"phase": "Pending"}}))), later);
    assert_eq!(drain(&mut queue, later), [""; 0]);
    queue.put(info(pod("a", "1", json!({"spec": {"tolerations": [{"operator": "Exists"}]}}))), later);
    assert_eq!(drain(&mut queue, later), ["a"]);
}
