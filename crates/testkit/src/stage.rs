//! Many behaviours on one cluster, which costs less than a cluster each: every one has a namespace and a thread of its
//! own, and all run at the same time.

use serde_json::Value;

use crate::Cluster;

/// Calls `play` with each act's namespace, which is named after it, and the act. One that fails makes the test fail
/// once all have ended.
pub fn beside<A: Copy + Send + Sync>(cluster: &Cluster, acts: &[(&str, A)], play: impl Fn(&str, A) + Sync) {
    std::thread::scope(|scope| {
        for &(name, act) in acts {
            let play = &play;
            let run = move || {
                let namespace = name.replace('_', "-");
                cluster.run(&["create", "namespace", &namespace]);
                // Without it no pod is admitted.
                cluster.wait(&["-n", &namespace, "serviceaccount/default"], |_| true);
                play(&namespace, act);
            };
            std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, run).expect("start a thread");
        }
    });
}

pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("an object has a name")
}

pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().expect("an object has a uid")
}

/// A condition of the object's status, or null.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|condition| condition["type"] == kind)).unwrap_or(&Value::Null)
}
