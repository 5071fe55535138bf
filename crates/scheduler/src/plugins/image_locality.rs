//! ImageLocality: nodes are better that have the pod's images already, and more so the larger the images are. An image
//! counts in the share of nodes that have it, so that pods do not heap up on the first node that pulled it.

use crate::framework::{MAX_SCORE, Plugin, Score};
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};

const MEGABYTE: i64 = 1024 * 1024;
/// Smaller sums do not count, larger ones no further; per container.
const SMALLEST: i64 = 23 * MEGABYTE;
const LARGEST: i64 = 1000 * MEGABYTE;

pub struct ImageLocality;

struct State<'a> {
    snapshot: &'a Snapshot,
    images: Vec<String>,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn pre_score<'a>(&self, snapshot: &'a Snapshot, pod: &'a PodInfo, _: &[NodeId]) -> Option<Box<dyn Score + 'a>> {
        let spec = pod.spec();
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let images = containers.map(|container| normalized(container.image.as_deref().unwrap_or_default())).collect();
        Some(Box::new(State { snapshot, images }))
    }
}

/// With the tag that an image without one means.
fn normalized(image: &str) -> String {
    if image.rfind(':') > image.rfind('/') { image.to_owned() } else { format!("{image}:latest") }
}

impl Score for State<'_> {
    fn score(&self, node: NodeId) -> i64 {
        let total = self.snapshot.nodes().len() as f64;
        let present = &self.snapshot.node(node).images;
        let weighed = self.images.iter().filter_map(|image| {
            let share = self.snapshot.nodes_with_image(image) as f64 / total;
            Some((*present.get(image)? as f64 * share) as i64)
        });
        let largest = LARGEST * self.images.len() as i64;
        let sum = weighed.sum::<i64>().clamp(SMALLEST, largest);
        MAX_SCORE * (sum - SMALLEST) / (largest - SMALLEST)
    }
}

#[cfg(test)]
mod tests {
    use super::normalized;

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        for (image, name) in [
            ("a", "a:latest"),
            ("a:1", "a:1"),
            ("h:5000/a", "h:5000/a:latest"),
            ("h:5000/a:1", "h:5000/a:1"),
            ("a@sha256:f", "a@sha256:f"),
        ] {
            assert_eq!(normalized(image), name);
        }
    }
}
