//! Since when there is something new to say about the endpoints of a Service: what measures how long the news takes to
//! reach a proxy starts from there. Pure but for the memory of what was seen last.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::core::ObjectMeta;
use parking_lot::Mutex;

use super::pods;

const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// By the Service's key, the times that were seen last.
#[derive(Default)]
pub struct TriggerTimes(Mutex<HashMap<String, Seen>>);

#[derive(Default)]
struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

impl TriggerTimes {
    /// The earliest change since the last look; the making of the Service, if it is looked at for the first time.
    pub fn observe(&self, key: &str, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let seen = Seen { service: created(service), pods: pods.iter().filter_map(|pod| changed(pod)).collect() };
        let mut known = self.0.lock();
        let Some(before) = known.get(key) else {
            let first = seen.service;
            known.insert(key.to_owned(), seen);
            return first;
        };
        let pods = seen.pods.iter().filter(|(pod, time)| before.pods.get(*pod).is_none_or(|known| known < time));
        let service = seen.service.filter(|time| before.service.is_none_or(|known| known < *time));
        let earliest = pods.map(|(_, time)| *time).chain(service).min();
        known.insert(key.to_owned(), seen);
        earliest
    }

    pub fn forget(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

fn created(service: &Service) -> Option<Timestamp> {
    service.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// When a pod became ready, or ceased to be.
fn changed(pod: &Pod) -> Option<(String, Timestamp)> {
    let time = pods::condition(pod, "Ready")?.last_transition_time.as_ref()?;
    Some((pod.metadata.name.clone()?, time.0))
}

/// Notes the time on what is about to be written; an older one would mislead.
pub fn annotate(meta: &mut ObjectMeta, time: Option<Timestamp>) {
    let annotations = meta.annotations.get_or_insert_default();
    match time {
        Some(time) => drop(annotations.insert(ANNOTATION.into(), time.to_string())),
        None => drop(annotations.remove(ANNOTATION)),
    }
    meta.annotations.take_if(|annotations| annotations.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_earliest_news_counts() {
        let time = |second: u8| format!("2024-01-01T00:00:{second:02}Z");
        let service = |second| -> Service {
            serde_json::from_value(json!({"metadata": {"name": "s", "creationTimestamp": time(second)}})).unwrap()
        };
        let pod = |name: &str, second| -> Arc<Pod> {
            let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": time(second)}]);
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name}, "status": {"conditions": ready}})).unwrap(),
            )
        };
        let times = TriggerTimes::default();
        for (service, pods, expected) in [
            (service(1), vec![pod("a", 5)], Some(1)),
            (service(1), vec![pod("a", 5)], None),
            (service(1), vec![pod("a", 9), pod("b", 7)], Some(7)),
            (service(1), vec![pod("b", 7)], None),
            (service(30), vec![pod("b", 40)], Some(30)),
        ] {
            let found = times.observe("s", &service, &pods).map(|time| time.to_string());
            assert_eq!(found, expected.map(time));
        }
        times.forget("s");
        assert_eq!(times.observe("s", &service(30), &[]).map(|found| found.to_string()), Some(time(30)));
    }

    #[test]
    fn an_old_note_goes() {
        let mut meta = ObjectMeta::default();
        annotate(&mut meta, Some("2024-01-01T00:00:01Z".parse().unwrap()));
        assert_eq!(meta.annotations.as_ref().unwrap()[ANNOTATION], "2024-01-01T00:00:01Z");
        annotate(&mut meta, None);
        assert_eq!(meta, ObjectMeta::default());
    }
}
