//! Runs tables of shell lines that call kubectl, and compares what they print and how they end.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::{Cluster, eventually};

/// What a line should do.
pub struct Step {
    /// Assignments for the line.
    environment: &'static str,
    line: &'static str,
    code: i32,
    /// All that it prints, stderr too; `*` stands for any text.
    output: &'static str,
    /// Whether it may take several tries until something has come about.
    patient: bool,
}

/// A line that succeeds.
pub const fn ok(line: &'static str, output: &'static str) -> Step {
    Step { environment: "", line, code: 0, output, patient: false }
}

/// A line that fails with 1.
pub const fn fails(line: &'static str, output: &'static str) -> Step {
    Step { environment: "", line, code: 1, output, patient: false }
}

/// A line that comes to succeed, and may be repeated until then.
pub const fn soon(line: &'static str, output: &'static str) -> Step {
    Step { environment: "", line, code: 0, output, patient: true }
}

impl Step {
    pub const fn with_code(code: i32, line: &'static str, output: &'static str) -> Step {
        Step { code, ..ok(line, output) }
    }

    pub const fn with_environment(environment: &'static str, line: &'static str, output: &'static str) -> Step {
        Step { environment, ..ok(line, output) }
    }
}

/// A directory with a manifest per file, one kubectl on the PATH and a namespace of its own.
pub struct Shell<'a> {
    cluster: &'a Cluster,
    pub directory: PathBuf,
}

impl<'a> Shell<'a> {
    pub fn new(cluster: &'a Cluster, name: &str, kubectl: &Path) -> Shell<'a> {
        let directory = cluster.directory.path().join(name);
        std::fs::create_dir_all(directory.join("bin")).expect("create the directory");
        std::os::unix::fs::symlink(kubectl, directory.join("bin/kubectl")).expect("link kubectl");
        std::fs::copy(&cluster.kubeconfig, directory.join("kubeconfig")).expect("copy the kubeconfig");
        let shell = Shell { cluster, directory };
        let set_up = [
            format!("kubectl config set-context --current --namespace={name} && kubectl create namespace {name}"),
            // Without it no pod is admitted.
            "kubectl wait --for=create serviceaccount/default".into(),
        ];
        for line in set_up {
            let (code, output) = shell.execute(&line);
            assert_eq!(code, 0, "{line}: {output}");
        }
        shell
    }

    pub fn write(&self, file: &str, content: &str) {
        std::fs::write(self.directory.join(file), content).expect("write a file");
    }

    /// Exit code and output of a line.
    fn execute(&self, line: &str) -> (i32, String) {
        let path = format!("{}:{}", self.directory.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let output = Command::new("sh")
            .args(["-c", &format!("exec 2>&1\n{line}")])
            .current_dir(&self.directory)
            .env("PATH", path)
            .env("KUBECONFIG", self.directory.join("kubeconfig"))
            .env("HOME", &self.directory)
            .env("IMAGE", crate::common::BUSYBOX)
            .env("CLUSTER", &self.cluster.name)
            .stdin(Stdio::null())
            .output()
            .expect("run sh");
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs the steps one after another; tells all that went wrong, since later steps seldom need earlier ones.
    pub fn run(&self, steps: &[Step]) {
        let wrong: Vec<String> = steps.iter().filter_map(|step| self.check(step)).collect();
        assert!(wrong.is_empty(), "{} of {} lines:\n\n{}", wrong.len(), steps.len(), wrong.join("\n\n"));
    }

    fn check(&self, step: &Step) -> Option<String> {
        let attempt = || {
            let (code, output) = self.execute(&format!("{}\n{}", step.environment, step.line));
            if code == step.code && matches(step.output, &output) { Ok(()) } else { Err((code, output)) }
        };
        let complain = |(code, output): (i32, String)| {
            format!(
                "$ {}\nended with {code} and printed\n{output}\nexpected was {} and\n{}",
                step.line, step.code, step.output
            )
        };
        if step.patient {
            eventually(step.line, || attempt().map_err(complain));
            return None;
        }
        attempt().err().map(complain)
    }
}

/// Whether `text` is what `pattern` says, where `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[test]
fn patterns() {
    for (pattern, text, expected) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "", true),
        ("*b*", "abc", true),
        ("a*c", "abc", true),
        ("a*c", "abcd", false),
        ("a*b*a", "aba", true),
        ("a*a", "a", false),
    ] {
        assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
    }
}
