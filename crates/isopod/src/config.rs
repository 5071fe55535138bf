//! The config file: YAML whose keys are flags' names.
//!
//! It is applied by way of the environment, which every flag falls back to already; so there is one
//! list of settings, and one order of precedence.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

/// Puts the file's settings into environment variables that are not set yet. A missing file is an
/// error only if it was asked for.
pub fn apply(path: &Path, explicit: bool, command: &clap::Command) -> anyhow::Result<()> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !explicit => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read config file {}", path.display())),
    };
    for (variable, value) in settings(&text, command).with_context(|| format!("config file {}", path.display()))? {
        if std::env::var_os(&variable).is_none() {
            // SAFETY: called from main before any thread is started.
            unsafe { std::env::set_var(variable, value) };
        }
    }
    Ok(())
}

/// Pairs of environment variable and value.
fn settings(text: &str, command: &clap::Command) -> anyhow::Result<Vec<(String, String)>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let document: Value = serde_saphyr::from_str(text).context("is not valid YAML")?;
    let Value::Object(entries) = document else { bail!("must be a map of flag names to values") };
    entries.into_iter().map(|(key, value)| setting(&key, value, command)).collect()
}

fn setting(key: &str, value: Value, command: &clap::Command) -> anyhow::Result<(String, String)> {
    let flag = command.get_arguments().find(|a| a.get_long() == Some(key) && key != "config");
    let Some(variable) = flag.and_then(|f| f.get_env()) else {
        let known: Vec<_> =
            command.get_arguments().filter(|a| a.get_env().is_some()).filter_map(|a| a.get_long()).collect();
        bail!("unknown key {key:?}; known keys: {}", known.join(", "));
    };
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        other => bail!("{key}: {other} is not a plain value"),
    };
    let text = match &value {
        Value::Array(items) => items.iter().map(scalar).collect::<anyhow::Result<Vec<_>>>()?.join(","),
        value => scalar(value)?,
    };
    Ok((variable.to_string_lossy().into_owned(), text))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
        let command = crate::cli::Arguments::command();
        settings(text, command.find_subcommand("server").unwrap()).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn keys_are_flags() {
        let settings = parse("secure-port: 7443\ntls-san: [a, b]\n").unwrap();
        assert_eq!(settings, [("ISOPOD_SECURE_PORT".into(), "7443".into()), ("ISOPOD_TLS_SAN".into(), "a,b".into())]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("secure_port: 1", "unknown key \"secure_port\"; known keys:"),
            ("- a", "must be a map"),
            ("node-ip: {a: b}", "node-ip: {\"a\":\"b\"} is not a plain value"),
            ("a: b: c", "is not valid YAML"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
        assert_eq!(parse("").unwrap(), []);
    }
}
