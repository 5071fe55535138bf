//! Pulling from registries: layers stream from the connection through decompression into the store,
//! never to a file in between.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use bytes::{Buf, Bytes};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use super::{Image, Images, config, normalize};
use crate::images::reference::repository;

/// Layers fetched at once.
const PARALLEL: usize = 3;

/// How to introduce oneself to a registry.
#[derive(Clone, Default)]
pub enum Credentials {
    #[default]
    Anonymous,
    Password {
        username: String,
        password: String,
    },
    Token(String),
}

pub(super) async fn pull(images: &Images, name: &str, credentials: Credentials) -> Result<Image> {
    let full = normalize(name).map_err(anyhow::Error::msg)?;
    let reference: Reference = full.parse().with_context(|| format!("parse image name {full:?}"))?;
    let explain = |error: OciDistributionError| explain(&full, error);
    let client = client(&reference)?;
    let auth = match credentials {
        Credentials::Anonymous => RegistryAuth::Anonymous,
        Credentials::Password { username, password } => RegistryAuth::Basic(username, password),
        Credentials::Token(token) => RegistryAuth::Bearer(token),
    };
    let (manifest, manifest_digest, list_digest) =
        client.pull_image_manifest_and_list_digest(&reference, &auth).await.map_err(explain)?;
    let configuration = fetch(&client, &reference, &manifest.config).await.map_err(explain)?;
    let diff_ids = config::parse(&configuration)?.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        anyhow::bail!(
            "image {full}: {} layers in the manifest, {} in the configuration",
            manifest.layers.len(),
            diff_ids.len()
        );
    }
    let total: i64 = manifest.layers.iter().map(|layer| layer.size).sum();
    tracing::info!(image = full, layers = diff_ids.len(), bytes = total, "pulling image");
    let (client, reference) = (Arc::new(client), Arc::new(reference));
    stream::iter(diff_ids.into_iter().zip(manifest.layers))
        .map(|(diff_id, layer)| fetch_layer(images.clone(), client.clone(), reference.clone(), diff_id, layer))
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await
        .with_context(|| format!("failed to pull image {full:?}"))?;
    let digest = format!("{}@{}", repository(&full), list_digest.unwrap_or(manifest_digest));
    let tags = if full.contains('@') { Vec::new() } else { vec![full.clone()] };
    let image = images.add_image(&configuration, &tags, &[digest])?;
    tracing::info!(image = full, id = image.id, "pulled image");
    Ok(image)
}

/// Plain HTTP for registries on this machine, as every runtime has it.
fn client(reference: &Reference) -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default(); // the process may have one already
    let registry = reference.resolve_registry();
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let loopback = host == "localhost"
        || host.trim_matches(['[', ']']).parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    let protocol = if loopback { ClientProtocol::HttpsExcept(vec![registry.into()]) } else { ClientProtocol::Https };
    let proxy = |name: &str| std::env::var(name).or_else(|_| std::env::var(name.to_ascii_lowercase())).ok();
    let config = ClientConfig {
        protocol,
        connect_timeout: Some(std::time::Duration::from_secs(30)),
        read_timeout: Some(std::time::Duration::from_secs(60)),
        https_proxy: proxy("HTTPS_PROXY"),
        http_proxy: proxy("HTTP_PROXY"),
        no_proxy: proxy("NO_PROXY"),
        user_agent: concat!("isopod/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    Client::try_from(config).context("set up the registry client")
}

async fn fetch(client: &Client, reference: &Reference, blob: &OciDescriptor) -> Result<Vec<u8>, OciDistributionError> {
    let mut bytes = Vec::new();
    client.pull_blob(reference, blob, &mut bytes).await?;
    Ok(bytes)
}

async fn fetch_layer(
    images: Images,
    client: Arc<Client>,
    reference: Arc<Reference>,
    diff_id: String,
    layer: OciDescriptor,
) -> Result<()> {
    let (known, digest) = (images.clone(), layer.digest.clone());
    let id = diff_id.clone();
    if tokio::task::spawn_blocking(move || known.note_blob(&id, &digest)).await?? {
        return Ok(());
    }
    let blob =
        client.pull_blob_stream(&reference, &layer).await.with_context(|| format!("fetch layer {}", layer.digest))?;
    let source =
        Blocking { stream: blob.stream.fuse().boxed(), chunk: Bytes::new(), handle: tokio::runtime::Handle::current() };
    tokio::task::spawn_blocking(move || images.add_layer(&diff_id, &layer.digest, source)).await?
}

/// A stream as a reader, for a thread that may wait. Fused: oci-client's streams take a question
/// after the end for a truncated blob.
struct Blocking {
    stream: BoxStream<'static, std::io::Result<Bytes>>,
    chunk: Bytes,
    handle: tokio::runtime::Handle,
}

impl std::io::Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while !self.chunk.has_remaining() {
            match self.handle.block_on(self.stream.next()) {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Errors in the words of the pod's `ErrImagePull`.
fn explain(image: &str, error: OciDistributionError) -> anyhow::Error {
    use oci_client::errors::OciErrorCode::{BlobUnknown, Denied, ManifestUnknown, NameUnknown, NotFound, Unauthorized};
    let missing = |what: &str| {
        anyhow!("failed to pull and unpack image {image:?}: failed to resolve reference {image:?}: {what}")
    };
    match &error {
        OciDistributionError::ImageManifestNotFoundError(detail) => missing(&format!("{image}: not found: {detail}")),
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            missing("pull access denied, repository does not exist or may require authorization: authorization failed")
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|first| &first.code) {
                Some(ManifestUnknown | NameUnknown | BlobUnknown | NotFound) => missing(&format!("{image}: not found")),
                Some(Denied | Unauthorized) => missing(
                    "pull access denied, repository does not exist or may require authorization: authorization failed",
                ),
                _ => missing(&error.to_string()),
            }
        }
        _ => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            missing(&text)
        }
    }
}
