//! PrioritySort: pods of higher priority first.

use crate::framework::Plugin;
use crate::pod::PodInfo;

pub struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }

    fn rank(&self, pod: &PodInfo) -> Option<i64> {
        Some(-i64::from(pod.priority))
    }
}
