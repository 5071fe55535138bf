//! CRI's user namespaces in the runtime's words. Pure.

use anyhow::{Result, bail};
use cri::v1::{IdMapping, Mount, NamespaceMode, NamespaceOption};

use crate::container::users::{Ids, Users};

/// The user namespace a sandbox or container asks for; `None` is the host's.
pub(super) fn users(options: &NamespaceOption) -> Result<Option<Users>> {
    let Some(user) = &options.userns_options else { return Ok(None) };
    match user.mode() {
        NamespaceMode::Node => Ok(None),
        NamespaceMode::Pod => Ok(Some(Users { uids: ids("uid", &user.uids)?, gids: ids("gid", &user.gids)? })),
        mode => bail!("unsupported user namespace mode: {:?}", mode.as_str_name()),
    }
}

fn ids(what: &str, mappings: &[IdMapping]) -> Result<Ids> {
    match mappings {
        [IdMapping { host_id, container_id: 0, length: length @ 1.. }] => Ok(Ids { host: *host_id, length: *length }),
        _ => bail!("user namespaces need one {what} mapping, of ids from 0 on, not {mappings:?}"),
    }
}

/// Whether the owners of a mount's files are to be mapped; only the pod's own user namespace can map them.
pub(super) fn maps(mount: &Mount, users: Option<Users>) -> Result<bool> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    let asked = Users { uids: ids("uid", &mount.uid_mappings)?, gids: ids("gid", &mount.gid_mappings)? };
    match users == Some(asked) {
        true => Ok(true),
        false => bail!("idmap mounts must use the pod's user namespace: {} does not", mount.container_path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::UserNamespace;

    #[test]
    fn one_range_from_zero() {
        let mapping = |host_id, container_id, length| IdMapping { host_id, container_id, length };
        let good = mapping(65_536, 0, 65_536);
        type Expected = Result<Option<u32>, &'static str>;
        let cases: [(NamespaceMode, Vec<IdMapping>, Expected); 7] = [
            (NamespaceMode::Node, vec![], Ok(None)),
            (NamespaceMode::Pod, vec![good], Ok(Some(65_536))),
            (NamespaceMode::Pod, vec![], Err("need one uid mapping")),
            (NamespaceMode::Pod, vec![good, good], Err("need one uid mapping")),
            (NamespaceMode::Pod, vec![mapping(65_536, 1, 65_536)], Err("need one uid mapping")),
            (NamespaceMode::Pod, vec![mapping(65_536, 0, 0)], Err("need one uid mapping")),
            (NamespaceMode::Container, vec![good], Err("unsupported user namespace mode: \"CONTAINER\"")),
        ];
        for (mode, uids, expected) in cases {
            let asked = UserNamespace { mode: mode.into(), gids: uids.clone(), uids };
            let options = NamespaceOption { userns_options: Some(asked.clone()), ..NamespaceOption::default() };
            match (users(&options), expected) {
                (Ok(found), Ok(host)) => assert_eq!(found.map(|users| users.uids.host), host, "{asked:?}"),
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
                (found, _) => panic!("{asked:?}: {found:?}"),
            }
        }
        assert_eq!(users(&NamespaceOption::default()).unwrap(), None);
        let mount = |mappings: Vec<IdMapping>| Mount {
            container_path: "/v".into(),
            gid_mappings: mappings.clone(),
            uid_mappings: mappings,
            ..Mount::default()
        };
        let own = Users { uids: Ids { host: 65_536, length: 65_536 }, gids: Ids { host: 65_536, length: 65_536 } };
        assert!(!maps(&mount(vec![]), Some(own)).unwrap());
        assert!(maps(&mount(vec![good]), Some(own)).unwrap());
        for (mappings, users) in [(vec![good], None), (vec![mapping(0, 0, 65_536)], Some(own))] {
            assert!(maps(&mount(mappings), users).unwrap_err().to_string().contains("pod's user namespace: /v"));
        }
    }
}
