//! `cargo xtask check`: what the compiler does not enforce about the shape of the code.
//!
//! Crate edges (`edges.txt`), module docs, file sizes, and a reason beside every dependency. Each
//! complaint says what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

/// Longer files are two things in one.
const MAX_LINES: usize = 1000;

/// Runs every check and reports all complaints together.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let mut complaints = edges(root)?;
    complaints.extend(sources(root)?);
    complaints.extend(reasons(&fs::read_to_string(root.join("Cargo.toml"))?));
    if !complaints.is_empty() {
        bail!("{} complaint(s):\n{}", complaints.len(), complaints.join("\n"));
    }
    println!("xtask check: all well");
    Ok(())
}

/// The workspace's root directory.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

type Edges = BTreeMap<String, BTreeSet<String>>;

fn allowed(text: &str) -> Edges {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, dependencies)| (name.to_owned(), dependencies.split_whitespace().map(str::to_owned).collect()))
        .collect()
}

fn edges(root: &Path) -> anyhow::Result<Vec<String>> {
    let allowed = allowed(&fs::read_to_string(root.join("crates/xtask/edges.txt"))?);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    Ok(forbidden(&metadata, &allowed))
}

fn forbidden(metadata: &Value, allowed: &Edges) -> Vec<String> {
    let packages = || metadata["packages"].as_array().into_iter().flatten();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let ours: BTreeSet<String> = packages().map(&name).collect();
    let mut complaints = Vec::new();
    for package in packages() {
        let crate_name = name(package);
        let Some(permitted) = allowed.get(&crate_name) else {
            complaints
                .push(format!("crate {crate_name} is not in crates/xtask/edges.txt; add it and ARCHITECTURE.md's map"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = name(dependency);
            let tests_only = dependency["kind"] == "dev";
            let fine = permitted.contains(&target) || tests_only && permitted.contains(&format!("{target}(tests)"));
            if ours.contains(&target) && !fine {
                complaints.push(format!("crate {crate_name} must not use {target} (crates/xtask/edges.txt): go through the Kubernetes API or a trait"));
            }
        }
    }
    complaints
}

fn sources(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut files = Vec::new();
    collect(&root.join("crates"), &mut files)?;
    let mut complaints = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let shown = file.strip_prefix(root).unwrap_or(&file).display();
        if !text.starts_with("//!") {
            complaints.push(format!("{shown}: must open with `//!`: what it is for and what it refuses to know"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            complaints.push(format!("{shown}: {lines} lines; past {MAX_LINES} a file is two things"));
        }
    }
    Ok(complaints)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Each group of external dependencies in the workspace manifest follows a comment.
fn reasons(manifest: &str) -> Vec<String> {
    let mut explained = false;
    let mut inside = false;
    let mut complaints = Vec::new();
    for line in manifest.lines() {
        match line.trim() {
            "" => explained = false,
            header if header.starts_with('[') => inside = header == "[workspace.dependencies]",
            comment if comment.starts_with('#') => explained = true,
            dependency if inside && !explained => {
                let name = dependency.split(' ').next().unwrap_or_default();
                complaints.push(format!("Cargo.toml: dependency {name} has no reason above it"));
            }
            _ => {}
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn this_repository_is_in_shape() {
        run(&root()).unwrap();
    }

    #[test]
    fn edges_not_listed_are_refused() {
        let allowed = allowed("# comment\na: b c(tests)\nb:\nc:\n");
        let metadata = |dependencies: Value| json!({ "packages": [{ "name": "a", "dependencies": dependencies }, { "name": "b", "dependencies": [] }, { "name": "c", "dependencies": [] }] });
        let check = |dependencies| forbidden(&metadata(dependencies), &allowed);
        assert!(check(json!([{ "name": "b" }, { "name": "c", "kind": "dev" }, { "name": "serde" }])).is_empty());
        assert_eq!(check(json!([{ "name": "c" }])).len(), 1);
        let unknown = json!({ "packages": [{ "name": "d", "dependencies": [] }] });
        assert_eq!(forbidden(&unknown, &allowed).len(), 1);
    }

    #[test]
    fn dependencies_need_reasons() {
        let manifest = "[workspace.dependencies]\n# why\na = \"1\"\nb = \"1\"\n\nc = \"1\"\n[profile.dev]\nx = 1\n";
        assert_eq!(reasons(manifest), ["Cargo.toml: dependency c has no reason above it"]);
    }
}
