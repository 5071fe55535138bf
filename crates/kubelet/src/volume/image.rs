//! image: the content of an image, read-only. The runtime mounts it; here nothing is left to do.

use super::{Context, Plugin};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;
use std::path::Path;

pub struct Image;

#[async_trait]
impl Plugin for Image {
    fn name(&self) -> &'static str {
        "kubernetes.io~image"
    }

    fn handles(&self, volume: &Volume) -> bool {
        volume.image.is_some()
    }

    fn read_only(&self, _: &Volume) -> bool {
        true
    }

    async fn set_up(&self, _: &Context<'_>, _: &Volume, _: &Path) -> Result<(), String> {
        Ok(())
    }
}
