//! Image names as people write them, and in full.

/// `nginx` becomes `docker.io/library/nginx:latest`. A digest takes precedence over a tag, as CRI
/// runtimes store it. `Err` for what is no image name.
pub(crate) fn normalize(name: &str) -> Result<String, String> {
    let parsed: oci_client::Reference =
        name.parse().map_err(|error| format!("couldn't parse image name {name:?}: {error}"))?;
    let repository = format!("{}/{}", parsed.registry(), parsed.repository());
    Ok(match (parsed.digest(), parsed.tag()) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, tag) => format!("{repository}:{}", tag.unwrap_or("latest")),
    })
}

/// The part before tag and digest.
pub(super) fn repository(full: &str) -> &str {
    let without_digest = full.split_once('@').map_or(full, |(name, _)| name);
    match without_digest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => without_digest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("nginx", "docker.io/library/nginx:latest".to_string()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".into()),
            ("me/app", "docker.io/me/app:latest".into()),
            ("127.0.0.1:5000/app:v1", "127.0.0.1:5000/app:v1".into()),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10".into()),
            (&format!("quay.io/a/b:v1@{digest}"), format!("quay.io/a/b@{digest}")),
        ];
        for (name, expected) in cases {
            assert_eq!(normalize(name).unwrap(), expected);
        }
        assert!(normalize("library/UPPER").is_err());
        assert_eq!(repository("127.0.0.1:5000/app:v1"), "127.0.0.1:5000/app");
        assert_eq!(repository("127.0.0.1:5000/app"), "127.0.0.1:5000/app");
    }
}
