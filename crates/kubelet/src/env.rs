//! A container's environment: `$(VAR)` expansion, every source of variables, and service links.
//!
//! Pure: configuration objects and services are handed in, missing ones as `None`.

use crate::fields::{self, Facts};
use crate::pod;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret, Service};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// The ConfigMaps and Secrets a pod names, as the API has them; `None` where it has none.
#[derive(Clone, Default)]
pub struct References {
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
}

impl References {
    pub fn config_map(&self, name: &str) -> Result<&Arc<ConfigMap>, String> {
        let found = self.config_maps.get(name).and_then(Option::as_ref);
        found.ok_or_else(|| format!("configmap {name:?} not found"))
    }

    pub fn secret(&self, name: &str) -> Result<&Arc<Secret>, String> {
        let found = self.secrets.get(name).and_then(Option::as_ref);
        found.ok_or_else(|| format!("secret {name:?} not found"))
    }
}

/// Everything an environment is made of.
pub struct Input<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub references: &'a References,
    /// The services whose links the pod gets.
    pub services: &'a [Arc<Service>],
    pub facts: &'a Facts,
    /// Where a volume of the pod lives on the host, for fileKeyRef.
    pub volume: &'a dyn Fn(&str) -> Option<std::path::PathBuf>,
}

#[derive(Debug, Default, PartialEq)]
pub struct Environment {
    pub variables: Vec<(String, String)>,
    /// Keys of an envFrom source that are no variable names: (source, keys).
    pub skipped: Vec<(String, Vec<String>)>,
}

/// The variables in order: envFrom, then env, then service links nobody overrode.
pub fn build(input: &Input<'_>) -> Result<Environment, String> {
    let links: BTreeMap<String, String> = service_links(input.services).into_iter().collect();
    let mut environment = Environment::default();
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    let mut set = |values: &mut BTreeMap<String, String>, name: &str, value: String| {
        if values.insert(name.to_owned(), value).is_none() {
            order.push(name.to_owned());
        }
    };
    for (name, value) in from_sources(input, &mut environment.skipped)? {
        set(&mut values, &name, value);
    }
    for variable in input.container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(_) => match from_reference(input, variable)? {
                Some(value) => value,
                None => continue,
            },
            None => {
                let template = variable.value.as_deref().unwrap_or_default();
                expand(template, |name| values.get(name).or_else(|| links.get(name)).cloned())
            }
        };
        set(&mut values, &variable.name, value);
    }
    for (name, value) in links {
        if !values.contains_key(&name) {
            set(&mut values, &name, value);
        }
    }
    environment.variables =
        order.into_iter().map(|name| (values.remove(&name).unwrap_or_default(), name)).map(|(v, n)| (n, v)).collect();
    Ok(environment)
}

fn from_sources(input: &Input<'_>, skipped: &mut Vec<(String, Vec<String>)>) -> Result<Vec<(String, String)>, String> {
    let mut variables = Vec::new();
    for source in input.container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let mut invalid = Vec::new();
        let mut add = |key: &str, value: String| match valid_name(&format!("{prefix}{key}")) {
            true => variables.push((format!("{prefix}{key}"), value)),
            false => invalid.push(format!("{prefix}{key}")),
        };
        let namespace = pod::namespace(input.pod);
        let described = if let Some(reference) = &source.config_map_ref {
            match input.references.config_map(&reference.name) {
                Ok(map) => map.data.iter().flatten().for_each(|(key, value)| add(key, value.clone())),
                Err(_) if reference.optional == Some(true) => {}
                Err(error) => return Err(error),
            }
            format!("configMap {namespace}/{}", reference.name)
        } else if let Some(reference) = &source.secret_ref {
            match input.references.secret(&reference.name) {
                Ok(secret) => {
                    let data = secret.data.iter().flatten();
                    data.for_each(|(key, value)| add(key, String::from_utf8_lossy(&value.0).into_owned()));
                }
                Err(_) if reference.optional == Some(true) => {}
                Err(error) => return Err(error),
            }
            format!("secret {namespace}/{}", reference.name)
        } else {
            continue;
        };
        if !invalid.is_empty() {
            skipped.push((described, invalid));
        }
    }
    Ok(variables)
}

/// Printable ASCII without `=`, as upstream's relaxed rule.
fn valid_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
}

fn from_reference(input: &Input<'_>, variable: &EnvVar) -> Result<Option<String>, String> {
    let Some(source) = &variable.value_from else { return Ok(None) };
    let namespace = pod::namespace(input.pod);
    let absent = |optional: Option<bool>, error: String| if optional == Some(true) { Ok(None) } else { Err(error) };
    if let Some(field) = &source.field_ref {
        return fields::pod_field(input.pod, &field.field_path, input.facts).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        return fields::resource(input.pod, input.container, field, input.facts).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let map = match input.references.config_map(&key.name) {
            Ok(map) => map,
            Err(error) => return absent(key.optional, error),
        };
        return match map.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None => {
                absent(key.optional, format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name))
            }
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let secret = match input.references.secret(&key.name) {
            Ok(secret) => secret,
            Err(error) => return absent(key.optional, error),
        };
        return match secret.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None => absent(key.optional, format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name)),
        };
    }
    if let Some(key) = &source.file_key_ref {
        let path = (input.volume)(&key.volume_name)
            .ok_or_else(|| format!("cannot find the volume {:?} referenced by FileKeyRef", key.volume_name))?;
        return match file_key(&path, &key.path, &key.key)? {
            Some(value) => Ok(Some(value)),
            None => {
                absent(key.optional, format!("environment variable key {:?} not found in file {:?}", key.key, key.path))
            }
        };
    }
    Ok(None)
}

/// Looks a `KEY=value` line up in an environment file, which a container of the pod may have written.
fn file_key(volume: &Path, path: &str, key: &str) -> Result<Option<String>, String> {
    let text = match crate::volume::read(volume, Path::new(path)) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("read environment file {path:?}: {error}")),
    };
    let mut lines = text.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
    Ok(lines.find_map(|line| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim();
        let quoted = ['\'', '"'].into_iter().find_map(|q| value.strip_prefix(q)?.strip_suffix(q));
        (name.trim() == key).then(|| quoted.unwrap_or(value).to_owned())
    }))
}

/// Replaces `$(NAME)` where `lookup` knows the name; `$$` stands for `$`; anything else stays.
pub fn expand(template: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut output = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        output.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            output.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match lookup(name) {
                Some(value) => output.push_str(&value),
                None => output.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            output.push('$');
        }
    }
    output + rest
}

/// Which services link into a pod: those of its namespace, and the API server's always.
pub fn linked_services(all: &[Arc<Service>], namespace: &str, links: bool) -> Vec<Arc<Service>> {
    let is_api = |service: &Service| {
        service.metadata.namespace.as_deref() == Some("default")
            && service.metadata.name.as_deref() == Some("kubernetes")
    };
    let local = |service: &Service| links && service.metadata.namespace.as_deref() == Some(namespace);
    let names: BTreeSet<&str> =
        all.iter().filter(|s| local(s)).filter_map(|service| service.metadata.name.as_deref()).collect();
    // A service named like the API server's in the pod's own namespace wins over it.
    let chosen = all.iter().filter(|service| local(service) || is_api(service) && !names.contains("kubernetes"));
    chosen.filter(|service| cluster_ip(service).is_some()).cloned().collect()
}

fn cluster_ip(service: &Service) -> Option<&str> {
    service.spec.as_ref()?.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")
}

/// Docker-style link variables.
fn service_links(services: &[Arc<Service>]) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for service in services {
        let (Some(ip), Some(name)) = (cluster_ip(service), service.metadata.name.as_deref()) else { continue };
        let prefix = variable_name(name);
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        variables.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
        variables.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for port in ports {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                variables.push((format!("{prefix}_SERVICE_PORT_{}", variable_name(name)), port.port.to_string()));
            }
        }
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                variables.push((format!("{prefix}_PORT"), url.clone()));
            }
            let link = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            variables.push((format!("{link}_PROTO"), protocol.to_lowercase()));
            variables.push((format!("{link}_PORT"), port.port.to_string()));
            variables.push((format!("{link}_ADDR"), ip.to_owned()));
            variables.push((link, url));
        }
    }
    variables
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "x".to_owned());
        for (template, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "x"),
            ("-$(A)-$(A)", "-x-x"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$x"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("tail$", "tail$"),
            ("$($(A))", "$($(A))"),
        ] {
            assert_eq!(expand(template, lookup), expected, "{template}");
        }
    }

    #[test]
    fn sources_layer_and_links_come_last() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c",
                "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "gone", "optional": true}}],
                "env": [
                    {"name": "ONE", "value": "1"},
                    {"name": "TWO", "value": "$(ONE)-$(P_k)-$(DB_SERVICE_HOST)-$(LATER)"},
                    {"name": "LATER", "value": "x"},
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                    {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no", "optional": true}}},
                    {"name": "DB_PORT", "value": "mine"},
                ]}]}
        }))
        .unwrap();
        let map: ConfigMap = serde_json::from_value(json!({"data": {"k": "v", "bad=key": "w"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"k": "c2VjcmV0"}})).unwrap();
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "ns"},
            "spec": {"clusterIP": "10.43.0.9", "ports": [{"name": "sql-x", "port": 5432}]}}))
        .unwrap();
        let references = References {
            config_maps: BTreeMap::from([("cm".to_owned(), Some(Arc::new(map)))]),
            secrets: BTreeMap::from([("s".to_owned(), Some(Arc::new(secret))), ("gone".to_owned(), None)]),
        };
        let services = linked_services(&[Arc::new(service)], "ns", true);
        let facts = Facts::default();
        let container = &pod::spec(&pod).containers[0];
        let input = Input {
            pod: &pod,
            container,
            references: &references,
            services: &services,
            facts: &facts,
            volume: &|_| None,
        };
        let environment = build(&input).unwrap();
        let get =
            |name: &str| environment.variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(get("P_k"), Some("v"));
        assert_eq!(get("TWO"), Some("1-v-10.43.0.9-$(LATER)"));
        assert_eq!((get("NAME"), get("KEY"), get("NONE")), (Some("p"), Some("secret"), None));
        assert_eq!((get("DB_PORT"), get("DB_SERVICE_PORT_SQL_X")), (Some("mine"), Some("5432")));
        assert_eq!(get("DB_PORT_5432_TCP"), Some("tcp://10.43.0.9:5432"));
        assert_eq!(environment.skipped, [("configMap ns/cm".to_owned(), vec!["P_bad=key".to_owned()])]);

        let missing = References::default();
        let error = build(&Input { references: &missing, ..input }).unwrap_err();
        assert_eq!(error, "configmap \"cm\" not found");
    }
}
