//! `autoscaling`: Scale, and autoscalers in their two versions with one storage.

mod horizontal_pod_autoscaler;
mod scale;
pub mod v1;

pub use horizontal_pod_autoscaler::HorizontalPodAutoscaler;
pub use scale::Scale;
