//! The CRI image service over the image store.

use std::sync::Arc;

use base64::Engine;
use cri::v1::image_service_server::ImageService;
use cri::v1::{
    AuthConfig, Image as CriImage, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec, ImageStatusRequest,
    ImageStatusResponse, Int64Value, ListImagesRequest, ListImagesResponse, PullImageRequest, PullImageResponse,
    RemoveImageRequest, RemoveImageResponse,
};
use tonic::{Request, Response, Status};

use super::Runtime;
use super::api::{answer, blocking};
use crate::images::{Credentials, Image, normalize};

pub(super) struct Api(pub(super) Arc<Runtime>);

type Answer<T> = Result<Response<T>, Status>;

fn describe(image: &Image) -> CriImage {
    // A numeric user tells the kubelet whether the image runs as root.
    let user = image.config.user.split(':').next().unwrap_or("");
    let uid = user.parse().ok().map(|value| Int64Value { value });
    CriImage {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        username: if uid.is_some() { String::new() } else { user.into() },
        uid,
        spec: Some(ImageSpec { image: image.id.clone(), ..ImageSpec::default() }),
        pinned: false,
    }
}

fn credentials(auth: Option<AuthConfig>) -> Result<Credentials, Status> {
    let Some(auth) = auth else { return Ok(Credentials::Anonymous) };
    let token = [auth.registry_token, auth.identity_token].into_iter().find(|token| !token.is_empty());
    if let Some(token) = token {
        return Ok(Credentials::Token(token));
    }
    if !auth.username.is_empty() {
        return Ok(Credentials::Password { username: auth.username, password: auth.password });
    }
    if auth.auth.is_empty() {
        return Ok(Credentials::Anonymous);
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth).ok();
    let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = text.as_deref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
    let (username, password) =
        pair.ok_or_else(|| Status::invalid_argument("invalid auth: not base64 of user:password"))?;
    Ok(Credentials::Password { username: username.into(), password: password.into() })
}

#[tonic::async_trait]
impl ImageService for Api {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let wanted = request.into_inner().filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let runtime = self.0.clone();
        blocking(move || {
            let images = match wanted.filter(|name| !name.is_empty()) {
                Some(name) => runtime.images.get(&name)?.iter().map(describe).collect(),
                None => runtime.images.list()?.iter().map(describe).collect(),
            };
            Ok(ListImagesResponse { images })
        })
        .await
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let request = request.into_inner();
        let name = request.image.map(|spec| spec.image).unwrap_or_default();
        let runtime = self.0.clone();
        blocking(move || {
            let Some(image) = runtime.images.get(&name)? else { return Ok(ImageStatusResponse::default()) };
            let raw = runtime.images.raw_config(&image.id).filter(|_| request.verbose);
            let info = raw.map(|raw| {
                let spec: serde_json::Value = serde_json::from_str(&raw).unwrap_or_default();
                ("info".into(), serde_json::json!({ "imageSpec": spec, "layers": image.layers }).to_string())
            });
            Ok(ImageStatusResponse { image: Some(describe(&image)), info: info.into_iter().collect() })
        })
        .await
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let request = request.into_inner();
        let name = request.image.map(|spec| spec.image).unwrap_or_default();
        let full = normalize(&name).map_err(Status::invalid_argument)?;
        let credentials = credentials(request.auth)?;
        let runtime = self.0.clone();
        // In its own task: a kubelet that restarts meanwhile finds the image when it asks again.
        let pull = tokio::spawn(async move {
            // One pull of a name at a time; those who waited find all layers there.
            let turn = runtime.pulls.lock().entry(full.clone()).or_default().clone();
            let held = turn.lock().await;
            let pulled = match runtime.config.builtin_images.get(&full) {
                Some(write) => builtin(&runtime, full.clone(), write.clone()).await,
                None => runtime.images.pull(&full, credentials).await,
            };
            drop(held);
            drop(turn);
            runtime.pulls.lock().retain(|_, turn| Arc::strong_count(turn) > 1);
            pulled
        });
        let pulled = pull.await.map_err(|error| Status::internal(error.to_string()))?;
        match pulled {
            Ok(image) => Ok(Response::new(PullImageResponse { image_ref: image.id })),
            Err(error) if format!("{error:#}").contains(": not found") => Err(Status::not_found(format!("{error:#}"))),
            Err(error) => Err(Status::unknown(format!("{error:#}"))),
        }
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let name = request.into_inner().image.map(|spec| spec.image).unwrap_or_default();
        let runtime = self.0.clone();
        blocking(move || {
            runtime.images.remove(&name)?;
            Ok(RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        let runtime = self.0.clone();
        let usage = blocking(move || runtime.image_filesystem()).await?.into_inner();
        answer(Ok(ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] }))
    }
}

/// An image that this process writes itself: packed at its first use.
async fn builtin(runtime: &Arc<Runtime>, name: String, write: crate::WriteImage) -> anyhow::Result<Image> {
    let runtime = runtime.clone();
    let pack = move || {
        if let Some(image) = runtime.images.get(&name)? {
            return Ok(image);
        }
        let archive = runtime.config.state.join("builtin.tar");
        let imported = write(&archive).and_then(|()| runtime.images.import(&archive));
        let _ = std::fs::remove_file(&archive);
        imported?.pop().ok_or_else(|| anyhow::anyhow!("{name}: the archive holds no image"))
    };
    tokio::task::spawn_blocking(pack).await?
}
