//! Volumes whose content comes from the API: configMap, secret, downwardAPI and projected.
//!
//! The first three are projections with one source, so all four are the same code.

use super::atomic::{self, File, Payload};
use super::ownership::Owner;
use super::{Context, Plugin};
use crate::{fields, pod, security};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath, SecretProjection, Volume,
    VolumeProjection,
};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A kind of volume, by how it is read as a projection.
pub struct Source {
    name: &'static str,
    read: fn(&Volume) -> Option<Projection>,
}

/// Default mode and sources.
type Projection = (Option<i32>, Vec<VolumeProjection>);

pub static CONFIG_MAP: Source = Source {
    name: "kubernetes.io~configmap",
    read: |volume| {
        let source = volume.config_map.clone()?;
        let one = ConfigMapProjection { items: source.items, name: source.name, optional: source.optional };
        Some((source.default_mode, vec![VolumeProjection { config_map: Some(one), ..Default::default() }]))
    },
};

pub static SECRET: Source = Source {
    name: "kubernetes.io~secret",
    read: |volume| {
        let source = volume.secret.clone()?;
        let name = source.secret_name.unwrap_or_default();
        let one = SecretProjection { items: source.items, name, optional: source.optional };
        Some((source.default_mode, vec![VolumeProjection { secret: Some(one), ..Default::default() }]))
    },
};

pub static DOWNWARD_API: Source = Source {
    name: "kubernetes.io~downward-api",
    read: |volume| {
        let source = volume.downward_api.clone()?;
        let one = DownwardAPIProjection { items: source.items };
        Some((source.default_mode, vec![VolumeProjection { downward_api: Some(one), ..Default::default() }]))
    },
};

pub static PROJECTED: Source = Source {
    name: "kubernetes.io~projected",
    read: |volume| {
        let source = volume.projected.clone()?;
        Some((source.default_mode, source.sources.unwrap_or_default()))
    },
};

#[async_trait]
impl Plugin for Source {
    fn name(&self) -> &'static str {
        self.name
    }

    fn handles(&self, volume: &Volume) -> bool {
        (self.read)(volume).is_some()
    }

    fn read_only(&self, _: &Volume) -> bool {
        true
    }

    async fn set_up(&self, context: &Context<'_>, volume: &Volume, directory: &Path) -> Result<(), String> {
        open_to_all(directory).map_err(|error| format!("prepare {}: {error}", directory.display()))?;
        let (mode, sources) = (self.read)(volume).unwrap_or_default();
        let mode = mode.unwrap_or(0o644) as u32;
        let mut payload = Payload::new();
        for source in &sources {
            collect(context, source, mode, &mut payload).await?;
        }
        atomic::write(directory, &payload, Owner::of(context, true)).map(drop)
    }
}

/// As upstream, whose volumes of this sort lie in an emptyDir; containers get it read-only anyway.
fn open_to_all(directory: &Path) -> io::Result<()> {
    let mode = fs::metadata(directory)?.permissions().mode();
    if mode & 0o777 == 0o777 { Ok(()) } else { fs::set_permissions(directory, fs::Permissions::from_mode(0o777)) }
}

async fn collect(
    context: &Context<'_>,
    source: &VolumeProjection,
    mode: u32,
    payload: &mut Payload,
) -> Result<(), String> {
    if let Some(map) = &source.config_map {
        let optional = map.optional == Some(true);
        let data = match context.references.config_map(&map.name) {
            Ok(found) => {
                let text = found.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
                let binary = found.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
                text.chain(binary).collect()
            }
            Err(_) if optional => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        select(&data, &map.items, optional, mode, "configmap references non-existent config key", payload)?;
    }
    if let Some(secret) = &source.secret {
        let optional = secret.optional == Some(true);
        let data = match context.references.secret(&secret.name) {
            Ok(found) => found.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect(),
            Err(_) if optional => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        select(&data, &secret.items, optional, mode, "references non-existent secret key", payload)?;
    }
    if let Some(downward) = &source.downward_api {
        for item in downward.items.iter().flatten() {
            let file =
                File { data: downward_value(context, item)?.into_bytes(), mode: own_mode(item.mode, mode), uid: None };
            payload.insert(item.path.clone(), file);
        }
    }
    if let Some(token) = &source.service_account_token {
        let data = context.tokens.get(context.pod, token).await?.into_bytes();
        let group = Owner::of(context, true).group;
        let uid = common_user(context);
        // A token is for its owner alone as soon as there is one.
        let mode = if uid.is_some() || group.is_some() { 0o600 } else { mode };
        payload.insert(token.path.clone(), File { data, mode, uid });
    }
    if source.cluster_trust_bundle.is_some() {
        return Err("clusterTrustBundle projections are not supported by this node".to_owned());
    }
    if source.pod_certificate.is_some() {
        return Err("podCertificate projections are not supported by this node".to_owned());
    }
    Ok(())
}

fn own_mode(mode: Option<i32>, default: u32) -> u32 {
    mode.map_or(default, |mode| mode as u32)
}

/// All keys, or the listed ones under the listed paths.
fn select(
    data: &BTreeMap<String, Vec<u8>>,
    items: &Option<Vec<KeyToPath>>,
    optional: bool,
    mode: u32,
    complaint: &str,
    payload: &mut Payload,
) -> Result<(), String> {
    let Some(items) = items.as_ref().filter(|items| !items.is_empty()) else {
        let all = data.iter().map(|(key, value)| (key.clone(), File { data: value.clone(), mode, uid: None }));
        payload.extend(all);
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let file = File { data: value.clone(), mode: own_mode(item.mode, mode), uid: None };
                payload.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err(format!("{complaint}: {}", item.key)),
        }
    }
    Ok(())
}

fn downward_value(context: &Context<'_>, item: &DownwardAPIVolumeFile) -> Result<String, String> {
    if let Some(field) = &item.field_ref {
        return fields::pod_field(context.pod, &field.field_path, context.facts);
    }
    let Some(field) = &item.resource_field_ref else { return Ok(String::new()) };
    let name = field.container_name.as_deref().unwrap_or_default();
    let member = pod::member(context.pod, name).ok_or_else(|| format!("container {name} not found"))?;
    fields::resource(context.pod, &member.container, field, context.facts)
}

/// The user that every container runs as, if they agree.
fn common_user(context: &Context<'_>) -> Option<u32> {
    let members = pod::members(context.pod);
    let mut users = members.iter().map(|member| security::run_as_user(context.pod, &member.container));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first as u32)
}
