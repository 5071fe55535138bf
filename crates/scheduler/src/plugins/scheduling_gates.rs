//! SchedulingGates: a pod with gates is not tried until the last one is removed.

use crate::framework::{Filtered, Plugin, Refusal};
use crate::pod::PodInfo;

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Filtered {
        let gates: Vec<&str> = pod.spec().scheduling_gates.iter().flatten().map(|gate| gate.name.as_str()).collect();
        if gates.is_empty() {
            return Ok(());
        }
        Err(Refusal::unresolvable(format!("waiting for scheduling gates: [{}]", gates.join(" "))))
    }
}
