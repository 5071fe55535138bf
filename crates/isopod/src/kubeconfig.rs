//! Kubeconfig files: written with mode 0600, merged into an existing one only on request.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Writes atomically with mode 0600.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let describe = || format!("write kubeconfig {}", path.display());
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).with_context(describe)?;
    }
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(describe)?;
    file.write_all(text.as_bytes()).with_context(describe)?;
    fs::rename(&temporary, path).with_context(describe)
}

/// The file that kubectl would change: the first of $KUBECONFIG, or ~/.kube/config.
pub fn default_path() -> anyhow::Result<PathBuf> {
    if let Some(first) =
        std::env::var("KUBECONFIG").ok().and_then(|v| v.split(':').find(|p| !p.is_empty()).map(PathBuf::from))
    {
        return Ok(first);
    }
    let home = std::env::var_os("HOME").context("neither KUBECONFIG nor HOME is set")?;
    Ok(PathBuf::from(home).join(".kube/config"))
}

/// Puts the clusters, users and contexts of `ours` into the file at `path` and makes ours current.
pub fn merge(path: &Path, ours: &str) -> anyhow::Result<()> {
    let describe = || format!("merge into kubeconfig {}", path.display());
    let existing = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(describe),
    };
    write(path, &merged(&existing, ours).with_context(describe)?)
}

fn merged(existing: &str, ours: &str) -> anyhow::Result<String> {
    let ours: Value = serde_saphyr::from_str(ours)?;
    let mut result: Value = match existing.trim() {
        "" => json!({ "apiVersion": "v1", "kind": "Config" }),
        text => serde_saphyr::from_str(text).context("is not valid YAML")?,
    };
    let Some(fields) = result.as_object_mut() else { bail!("is not a kubeconfig: not a map") };
    for list in ["clusters", "users", "contexts"] {
        let entries = fields.entry(list).or_insert_with(|| json!([]));
        if entries.is_null() {
            *entries = json!([]);
        }
        let Some(entries) = entries.as_array_mut() else { bail!("is not a kubeconfig: {list} is not a list") };
        for entry in ours[list].as_array().into_iter().flatten() {
            entries.retain(|old| old["name"] != entry["name"]);
            entries.push(entry.clone());
        }
    }
    fields.insert("current-context".into(), ours["current-context"].clone());
    Ok(serde_saphyr::to_string(&result)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str =
        "clusters: [{name: isopod, cluster: {server: new}}]\nusers: []\ncontexts: []\ncurrent-context: isopod\n";

    #[test]
    fn merging_keeps_the_rest() {
        let existing = "apiVersion: v1\nclusters:\n- name: other\n  cluster: {server: theirs}\n- name: isopod\n  cluster: {server: old}\nusers:\ncurrent-context: other\n";
        let result: Value = serde_saphyr::from_str(&merged(existing, OURS).unwrap()).unwrap();
        assert_eq!(result["clusters"][0]["cluster"]["server"], "theirs");
        assert_eq!(result["clusters"][1]["cluster"]["server"], "new");
        assert_eq!(result["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(result["current-context"], "isopod");
    }

    #[test]
    fn other_files_are_refused() {
        assert!(merged("- a", OURS).is_err());
        assert!(merged("clusters: 3", OURS).is_err());
    }
}
