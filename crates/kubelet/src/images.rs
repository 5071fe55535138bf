//! Images: names, pull policy, pull secrets, back-off, and the removal of unused ones.
//!
//! The reasons and messages are those users know from `kubectl describe`.

use crate::backoff::Backoff;
use crate::config::ImageGc;
use crate::cri_client::Cri;
use crate::security::ImageUser;
use base64::Engine as _;
use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A container cannot start because of its image: the state's reason and message.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageError {
    pub reason: &'static str,
    pub message: String,
}

/// An image that is there.
#[derive(Clone, Debug)]
pub struct Present {
    /// What the runtime calls it.
    pub reference: String,
    pub user: ImageUser,
}

/// What happens on the way, for events.
#[derive(Debug)]
pub enum Progress {
    Pulling,
    Pulled(String),
    /// Warnings: reason and message.
    Failed(&'static str, String),
    BackOff,
}

/// The last failure of a pull; its error is repeated while waiting.
#[derive(Default)]
struct FailedPull {
    backoff: Backoff,
    at: Timestamp,
    error: String,
}

pub struct Images {
    cri: Cri,
    pulls: Semaphore,
    /// By pod uid and image.
    backoffs: Mutex<BTreeMap<(String, String), FailedPull>>,
    /// When unused images were first seen, and used ones last.
    seen: Mutex<BTreeMap<String, (Timestamp, Timestamp)>>,
}

impl Images {
    pub fn new(cri: Cri, parallel_pulls: usize) -> Images {
        let pulls = Semaphore::new(parallel_pulls.max(1));
        Images { cri, pulls, backoffs: Mutex::default(), seen: Mutex::default() }
    }

    /// Makes sure the image is there. `uid` is the pod's, for back-off.
    pub async fn ensure(
        &self,
        uid: &str,
        image: &str,
        policy: Option<&str>,
        secrets: &[Arc<Secret>],
        sandbox: &v1::PodSandboxConfig,
        report: &(dyn Fn(Progress) + Sync),
    ) -> Result<Present, ImageError> {
        let reference = normalize(image).map_err(|message| {
            report(Progress::Failed("InspectFailed", message.clone()));
            report(Progress::Failed("Failed", "Error: InvalidImageName".to_owned()));
            ImageError { reason: "InvalidImageName", message }
        })?;
        let policy = policy.filter(|policy| !policy.is_empty()).unwrap_or_else(|| default_policy(&reference));
        let present = self.cri.image(&reference).await.map_err(|error| {
            let message = format!("Failed to inspect image \"{image}\": {error}");
            report(Progress::Failed("InspectFailed", message.clone()));
            ImageError { reason: "ImageInspectError", message }
        })?;
        match (present, policy) {
            (Some(found), "Never" | "IfNotPresent") => {
                let text = "already present on machine and can be accessed by the pod";
                report(Progress::Pulled(format!("Container image \"{image}\" {text}")));
                Ok(to_present(found))
            }
            (None, "Never") => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                report(Progress::Failed("ErrImageNeverPull", message.clone()));
                report(Progress::Failed("Failed", "Error: ErrImageNeverPull".to_owned()));
                Err(ImageError { reason: "ErrImageNeverPull", message })
            }
            _ => self.pull(uid, image, &reference, secrets, sandbox, report).await,
        }
    }

    async fn pull(
        &self,
        uid: &str,
        image: &str,
        reference: &str,
        secrets: &[Arc<Secret>],
        sandbox: &v1::PodSandboxConfig,
        report: &(dyn Fn(Progress) + Sync),
    ) -> Result<Present, ImageError> {
        let key = (uid.to_owned(), image.to_owned());
        if let Some(message) = self.backing_off(&key) {
            report(Progress::BackOff);
            report(Progress::Failed("Failed", "Error: ImagePullBackOff".to_owned()));
            let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {message}");
            return Err(ImageError { reason: "ImagePullBackOff", message });
        }
        report(Progress::Pulling);
        let waited = Instant::now();
        let _permit = self.pulls.acquire().await;
        let began = Instant::now();
        match self.try_pull(reference, secrets, sandbox).await {
            Ok(found) => {
                let (own, all) = (seconds(began.elapsed()), seconds(waited.elapsed()));
                let size = found.size;
                report(Progress::Pulled(format!(
                    "Successfully pulled image \"{image}\" in {own} ({all} including waiting). Image size: {size} bytes."
                )));
                self.backoffs.lock().remove(&key);
                Ok(to_present(found))
            }
            Err(error) => {
                let now = Timestamp::now();
                let mut backoffs = self.backoffs.lock();
                let failed = backoffs.entry(key).or_default();
                failed.backoff.next(now, now);
                (failed.at, failed.error) = (now, error.clone());
                drop(backoffs);
                report(Progress::Failed("Failed", format!("Failed to pull image \"{image}\": {error}")));
                report(Progress::Failed("Failed", "Error: ErrImagePull".to_owned()));
                Err(ImageError { reason: "ErrImagePull", message: error })
            }
        }
    }

    fn backing_off(&self, key: &(String, String)) -> Option<String> {
        let backoffs = self.backoffs.lock();
        let failed = backoffs.get(key)?;
        failed.backoff.until(failed.at, Timestamp::now()).map(|_| failed.error.clone())
    }

    /// When the next pull of this image for this pod may happen.
    pub fn retry_at(&self, uid: &str, image: &str) -> Option<Timestamp> {
        let backoffs = self.backoffs.lock();
        let failed = backoffs.get(&(uid.to_owned(), image.to_owned()))?;
        failed.backoff.until(failed.at, Timestamp::now())
    }

    pub fn forget_pod(&self, uid: &str) {
        self.backoffs.lock().retain(|(known, _), _| known != uid);
    }

    /// Tries each matching credential, the most specific first, and anonymously if there is none.
    async fn try_pull(
        &self,
        reference: &str,
        secrets: &[Arc<Secret>],
        sandbox: &v1::PodSandboxConfig,
    ) -> Result<v1::Image, String> {
        let spec = v1::ImageSpec { image: reference.to_owned(), ..Default::default() };
        let found: Vec<Option<v1::AuthConfig>> = credentials(reference, secrets).into_iter().map(Some).collect();
        let attempts = if found.is_empty() { vec![None] } else { found };
        let mut failure = String::new();
        for auth in attempts {
            let message =
                v1::PullImageRequest { image: Some(spec.clone()), auth, sandbox_config: Some(sandbox.clone()) };
            match self.cri.pull_image(message).await {
                Ok(pulled) => {
                    let found = self.cri.image(&pulled).await.map_err(|error| error.to_string())?;
                    return found.ok_or_else(|| format!("image {pulled} vanished after it was pulled"));
                }
                Err(error) => failure = error.to_string(),
            }
        }
        Err(failure)
    }

    /// Removes unused images, the longest unused first, while the disk is too full.
    /// `used` names references and ids that containers hold.
    pub async fn collect(&self, gc: ImageGc, used: &BTreeSet<String>) -> Result<usize, String> {
        let unused = self.unused(used).await?;
        let info = self.cri.image_fs_info(v1::ImageFsInfoRequest {}).await.map_err(|error| error.to_string())?;
        let mount = info.image_filesystems.first().and_then(|fs| fs.fs_id.clone()).unwrap_or_default().mountpoint;
        let Some((capacity, available)) = disk(&mount) else { return Ok(0) };
        let used_bytes = capacity.saturating_sub(available);
        if capacity == 0 || gc.high >= 100 || used_bytes * 100 / capacity < gc.high {
            return Ok(0);
        }
        let oldest_kept = Timestamp::now() - jiff::SignedDuration::from_secs(gc.minimum_age.as_secs() as i64);
        let old = unused.into_iter().filter(|unused| unused.first_seen <= oldest_kept).collect();
        let excess = used_bytes.saturating_sub(capacity * gc.low / 100);
        match self.remove(old, excess).await {
            (removed, 0) => Ok(removed),
            (_, rest) => {
                Err(format!("Failed to garbage collect required amount of images. {rest} bytes too many remain"))
            }
        }
    }

    /// Removes every unused image, whatever its age.
    pub async fn remove_unused(&self, used: &BTreeSet<String>) -> Result<usize, String> {
        let unused = self.unused(used).await?;
        Ok(self.remove(unused, u64::MAX).await.0)
    }

    /// What may be removed, the longest unused first.
    async fn unused(&self, used: &BTreeSet<String>) -> Result<Vec<Unused>, String> {
        let images = self.cri.list_images(v1::ListImagesRequest::default()).await.map_err(|e| e.to_string())?.images;
        let now = Timestamp::now();
        let mut seen = self.seen.lock();
        seen.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in &images {
            let entry = seen.entry(image.id.clone()).or_insert((now, Timestamp::UNIX_EPOCH));
            if in_use(image, used) {
                entry.1 = now;
            }
        }
        let unused = images.into_iter().filter(|image| !image.pinned && !in_use(image, used));
        let mut unused: Vec<Unused> = unused
            .filter_map(|image| {
                seen.get(&image.id).map(|&(first_seen, last_used)| Unused { last_used, first_seen, image })
            })
            .collect();
        unused.sort_by_key(|unused| (unused.last_used, unused.first_seen));
        Ok(unused)
    }

    /// Removes images until `excess` bytes are freed; returns how many, and the bytes still missing.
    async fn remove(&self, unused: Vec<Unused>, mut excess: u64) -> (usize, u64) {
        let mut removed = 0;
        for Unused { image, .. } in unused {
            if excess == 0 {
                break;
            }
            let spec = v1::ImageSpec { image: image.id.clone(), ..Default::default() };
            match self.cri.remove_image(v1::RemoveImageRequest { image: Some(spec) }).await {
                Ok(_) => {
                    excess = excess.saturating_sub(image.size);
                    removed += 1;
                }
                Err(error) => tracing::warn!(image = image.id, %error, "cannot remove image"),
            }
        }
        (removed, excess)
    }
}

struct Unused {
    last_used: Timestamp,
    first_seen: Timestamp,
    image: v1::Image,
}

fn in_use(image: &v1::Image, used: &BTreeSet<String>) -> bool {
    used.contains(&image.id) || image.repo_tags.iter().chain(&image.repo_digests).any(|name| used.contains(name))
}

/// Capacity and available bytes of the filesystem a path is on.
pub fn disk(path: &str) -> Option<(u64, u64)> {
    let statistics = nix::sys::statvfs::statvfs(if path.is_empty() { "/" } else { path }).ok()?;
    let block = statistics.fragment_size();
    Some((statistics.blocks() * block, statistics.blocks_available() * block))
}

fn to_present(image: v1::Image) -> Present {
    let uid = image.uid.map(|uid| uid.value);
    // CRI leaves both empty for an image that runs as root.
    let uid = uid.or_else(|| image.username.is_empty().then_some(0));
    Present { reference: image.id, user: ImageUser { uid, name: image.username } }
}

fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        milliseconds @ 0..1000 => format!("{milliseconds}ms"),
        milliseconds => format!("{}.{:03}s", milliseconds / 1000, milliseconds % 1000),
    }
}

fn default_policy(reference: &str) -> &'static str {
    if reference.ends_with(":latest") { "Always" } else { "IfNotPresent" }
}

/// The reference with a tag; refuses what is none.
pub fn normalize(image: &str) -> Result<String, String> {
    if !is_reference(image) {
        let why = match image != image.to_lowercase() && is_reference(&image.to_lowercase()) {
            true => "invalid reference format: repository name must be lowercase",
            false => "invalid reference format",
        };
        return Err(format!(
            "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": {why}"
        ));
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    Ok(if last.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") })
}

/// `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`. Taken apart by hand: a regular expression for this takes longer
/// to compile than a pod takes to start.
fn is_reference(image: &str) -> bool {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    let slash = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[slash..].split_once(':') {
        Some((last, tag)) => (&rest[..slash + last.len()], Some(tag)),
        None => (rest, None),
    };
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let tag_fits = |tag: &str| {
        let mut bytes = tag.bytes();
        tag.len() <= 128
            && bytes.next().is_some_and(word)
            && bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
    };
    let digest_fits = |digest: &str| {
        let parts = digest.split_once(':');
        parts.is_some_and(|(kind, hex)| {
            !kind.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    let path = match name.split_once('/') {
        Some((host, path)) if is_host(host) => path,
        _ => name,
    };
    path.split('/').all(is_path_part) && tag.is_none_or(tag_fits) && digest.is_none_or(digest_fits)
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let looks = text == "localhost" || text.contains(['.', ':']) || text != text.to_lowercase();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':');
    looks && !host.is_empty() && host.bytes().all(fits) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// Lower-case words, joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_part(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().is_some_and(|&b| alphanumeric(b)) && bytes.last().is_some_and(|&b| alphanumeric(b));
    let mut separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends && separators.all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-'))
}

/// The registry and path that credentials are matched against.
fn registry_path(reference: &str) -> String {
    let (first, rest) = reference.split_once('/').unwrap_or(("", reference));
    match first.contains(['.', ':']) || first == "localhost" {
        true => format!("{first}/{rest}"),
        false => format!("docker.io/{reference}"),
    }
}

/// Credentials that fit the image, the longest match first.
pub fn credentials(reference: &str, secrets: &[Arc<Secret>]) -> Vec<v1::AuthConfig> {
    let path = registry_path(reference);
    let mut found: Vec<(usize, v1::AuthConfig)> = Vec::new();
    for secret in secrets {
        let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.clone());
        let parsed = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).ok();
        let entries = match data(".dockerconfigjson").and_then(parsed) {
            Some(mut config) => config["auths"].take(),
            None => data(".dockercfg").and_then(parsed).unwrap_or_default(),
        };
        for (pattern, entry) in entries.as_object().into_iter().flatten() {
            if let (true, Some(auth)) = (matches(pattern, &path), auth(pattern, entry)) {
                found.push((pattern.len(), auth));
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn auth(server: &str, entry: &Value) -> Option<v1::AuthConfig> {
    let text = |key: &str| entry[key].as_str().map(str::to_owned).filter(|text| !text.is_empty());
    let decoded = text("auth").and_then(|auth| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok()?;
        let (user, password) =
            String::from_utf8(bytes).ok()?.split_once(':').map(|(u, p)| (u.to_owned(), p.to_owned()))?;
        Some((user, password))
    });
    let (username, password) = match (text("username"), text("password")) {
        (Some(username), Some(password)) => (username, password),
        _ => decoded.or_else(|| text("identitytoken").map(|_| Default::default()))?,
    };
    Some(v1::AuthConfig {
        username,
        password,
        identity_token: text("identitytoken").unwrap_or_default(),
        server_address: server.to_owned(),
        ..Default::default()
    })
}

/// `*.example.com/team` style patterns: globs per host label, then a path prefix.
fn matches(pattern: &str, path: &str) -> bool {
    let pattern = pattern.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let pattern = pattern.trim_end_matches("/v1").trim_end_matches("/v2").replace("index.docker.io", "docker.io");
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((&pattern, ""));
    let (host, path) = path.split_once('/').unwrap_or((path, ""));
    let labels = |host: &str| host.split(['.', ':']).map(str::to_owned).collect::<Vec<_>>();
    let (wanted, given) = (labels(pattern_host), labels(host));
    let fits = |(wanted, given): (&String, &String)| match wanted.split_once('*') {
        Some((before, after)) => given.len() >= wanted.len() - 1 && given.starts_with(before) && given.ends_with(after),
        None => wanted == given,
    };
    wanted.len() == given.len() && wanted.iter().zip(&given).all(fits) && path.starts_with(pattern_path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names() {
        for (image, expected) in [
            ("nginx", Some("nginx:latest")),
            ("nginx:1.27", Some("nginx:1.27")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            (
                "registry.k8s.io/pause@sha256:0123456789abcdef0123456789abcdef",
                Some("registry.k8s.io/pause@sha256:0123456789abcdef0123456789abcdef"),
            ),
            ("UPPER", None),
            ("a b", None),
            ("", None),
            ("nginx:", None),
            ("a__b/c.d/e---f:v_1.0-x", Some("a__b/c.d/e---f:v_1.0-x")),
            ("a..b", None),
            ("-a", None),
            ("a/", None),
            ("/a", None),
            ("[::1]:5000/a", Some("[::1]:5000/a:latest")),
            ("Host/a", Some("Host/a:latest")),
            ("host:99999/a", None),
            ("a@sha256:12", None),
            ("a:-x", None),
        ] {
            assert_eq!(normalize(image).ok().as_deref(), expected, "{image}");
        }
    }

    #[test]
    fn pull_secrets_match_by_registry_and_path() {
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "*.example.com": {"username": "any", "password": "x"},
            "eu.example.com/team": {"username": "team", "password": "y"},
        }});
        let data = base64::engine::general_purpose::STANDARD.encode(config.to_string());
        let secret: Secret = serde_json::from_value(json!({"data": {".dockerconfigjson": data}})).unwrap();
        let secrets = [Arc::new(secret)];
        let users =
            |image: &str| -> Vec<String> { credentials(image, &secrets).into_iter().map(|a| a.username).collect() };
        assert_eq!(users("nginx:latest"), ["hub"]);
        assert_eq!(users("eu.example.com/team/app:1"), ["team", "any"]);
        assert_eq!(users("us.example.com/team/app:1"), ["any"]);
        assert!(users("example.com/app:1").is_empty());
    }
}
