//! User namespaces of pods with `hostUsers: false`: which of the host's ids each one gets.
//!
//! A pod's range is kept in its directory, under upstream's name and in its form, so that the next kubelet finds it.
//! Which range is free is a pure question ([`Ranges`]); what a runtime does with one is its business.

use crate::config::Config;
use crate::pod;
use cri::v1;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Ranges are multiples of this: what a 16-bit uid can name.
const UNIT: u32 = 65_536;
/// Ids that Linux has; the last one means "none".
const IDS: u64 = 1 << 32;
/// Name of the file with a pod's range.
const FILE: &str = "userns";
/// The host's user whose subordinate ids are for pods.
const USER: &str = "kubelet";

/// Ranges of `size` ids from `first` on, by the uids of the pods that have them.
#[derive(Debug, PartialEq)]
struct Ranges {
    first: u32,
    size: u32,
    count: u32,
    used: BTreeMap<String, u32>,
}

impl Ranges {
    fn new((first, length): (u32, u64), size: u32, max_pods: u32) -> Result<Ranges, String> {
        let fail = |text: String| Err(format!("kubelet user {text}"));
        if size == 0 || !size.is_multiple_of(UNIT) {
            return fail(format!("namespace length {size} is not a multiple of {UNIT}"));
        }
        if !first.is_multiple_of(size) {
            return fail(format!("assigned ID {first} is not a multiple of {size}"));
        }
        if first < size {
            return fail(format!("assigned ID {first} must be greater or equal to {size}"));
        }
        if !length.is_multiple_of(size.into()) {
            return fail(format!("assigned IDs length {length} is not a multiple of {size}"));
        }
        if length / u64::from(size) < max_pods.into() {
            return fail(format!("assigned IDs are not enough to support {max_pods} pods"));
        }
        // The range with the last id of all is one that the kernel refuses.
        let length = length.min(IDS - 1 - u64::from(first));
        Ok(Ranges { first, size, count: (length / u64::from(size)) as u32, used: BTreeMap::new() })
    }

    /// The pod's range, or the first free one from the `start`th on.
    fn allocate(&mut self, uid: &str, start: u32) -> Result<u32, String> {
        if let Some(known) = self.used.get(uid) {
            return Ok(*known);
        }
        let taken: BTreeSet<u32> = self.used.values().copied().collect();
        let candidates = (0..self.count).map(|offset| (u64::from(start) + u64::from(offset)) % u64::from(self.count));
        let mut hosts = candidates.map(|position| self.first + position as u32 * self.size);
        let free = hosts.find(|host| !taken.contains(host));
        let host = free.ok_or("could not find an empty slot to allocate a user namespace")?;
        self.used.insert(uid.to_owned(), host);
        Ok(host)
    }

    /// Takes note of a range that an earlier kubelet gave to a pod.
    fn record(&mut self, uid: &str, host: u32, length: u32) -> Result<(), String> {
        if length != self.size {
            return Err(format!("wrong user namespace length {length}"));
        }
        if !host.is_multiple_of(self.size) {
            return Err(format!("wrong user namespace offset specified {host}"));
        }
        if host < self.first || (host - self.first) / self.size >= self.count {
            return Err(format!("id {host} is out of range"));
        }
        if self.used.values().any(|used| *used == host) {
            return Err(format!("range picked for pod {uid:?} already taken"));
        }
        self.used.insert(uid.to_owned(), host);
        Ok(())
    }
}

/// First id and number of the host's ids that are for pods: those the user `kubelet` is given in subuid(5) and subgid(5),
/// or, where there is no such user or file, all but the first range.
fn host_ids(passwd: &str, subuid: Option<&str>, subgid: Option<&str>, size: u32) -> Result<(u32, u64), String> {
    let default = (size, IDS - u64::from(size));
    let user = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == USER);
    let Some(uid) = user.map(|fields| fields.get(2).copied().unwrap_or_default()) else { return Ok(default) };
    if subuid.is_none() && subgid.is_none() {
        return Ok(default);
    }
    let of_user = |what: &str, text: Option<&str>| {
        let lines = text.unwrap_or_default().lines().filter_map(|line| line.split_once(':'));
        let own: Vec<&str> = lines.filter(|(owner, _)| *owner == USER || *owner == uid).map(|(_, ids)| ids).collect();
        match own.as_slice() {
            [] => Err(format!("error retrieving additional {what} for user {USER:?}: none are configured")),
            _ => Ok(own.join("\n")),
        }
    };
    let (uids, gids) = (of_user("uids", subuid)?, of_user("gids", subgid)?);
    if uids != gids {
        return Err(format!("mismatched subuids and subgids for user {USER:?}"));
    }
    if uids.contains('\n') {
        return Err(format!("error parsing line {uids:?}: it must contain only one line"));
    }
    let numbers = uids.split_once(':').and_then(|(first, length)| Some((first.parse().ok()?, length.parse().ok()?)));
    numbers.ok_or_else(|| format!("invalid line {uids:?}"))
}

/// The file's content.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mappings {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// The range in a pod's file.
fn parse(content: &[u8]) -> Result<Mapping, String> {
    let mappings: Mappings =
        serde_json::from_slice(content).map_err(|error| format!("invalid user namespace mappings file: {error}"))?;
    let fail = |text: &str| Err(format!("invalid user namespace configuration: {text}"));
    match (mappings.uid_mappings.as_slice(), mappings.gid_mappings.as_slice()) {
        ([uids], [gids]) if uids != gids => fail("GID and UID mapping should be identical"),
        ([uids], [_]) if uids.container_id != 0 => fail("UID 0 must be mapped"),
        ([uids], [_]) => Ok(*uids),
        ([_], _) => fail("GID and UID mappings should be identical."),
        _ => fail("no more than one mapping allowed."),
    }
}

/// The ranges of this node's pods.
pub struct UserNamespaces {
    pods: PathBuf,
    ranges: Mutex<Ranges>,
}

impl UserNamespaces {
    /// With what earlier kubelets gave to pods.
    pub fn open(config: &Config) -> Result<UserNamespaces, String> {
        let text = |path: &str| fs::read_to_string(path).ok();
        let passwd = text("/etc/passwd").unwrap_or_default();
        let size = config.user_namespaces_ids_per_pod;
        let ids = host_ids(&passwd, text("/etc/subuid").as_deref(), text("/etc/subgid").as_deref(), size)
            .map_err(|error| format!("kubelet mappings: {error}"))?;
        let mut ranges = Ranges::new(ids, size, config.max_pods)?;
        let pods = config.root_dir.join("pods");
        for uid in fs::read_dir(&pods).into_iter().flatten().flatten().filter_map(|e| e.file_name().into_string().ok())
        {
            let recorded = match fs::read(pods.join(&uid).join(FILE)) {
                Ok(content) => parse(&content).and_then(|found| ranges.record(&uid, found.host_id, found.length)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error.to_string()),
            };
            recorded.map_err(|error| format!("record pod mappings for existing pod {uid:?}: {error}"))?;
        }
        Ok(UserNamespaces { pods, ranges: Mutex::new(ranges) })
    }

    /// The user namespace of a pod that has its own, made at the first call.
    pub fn of(&self, pod: &Pod) -> Result<Option<v1::UserNamespace>, String> {
        if !wanted(pod) {
            return Ok(None);
        }
        let fail = |error: String| format!("create user namespace: {error}");
        let uid = pod::uid(pod);
        let mut ranges = self.ranges.lock();
        let known = ranges.used.contains_key(uid);
        // Anywhere, so that ids that were just given back rest, and nodes on one machine differ.
        let start = rand::random_range(0..ranges.count);
        let host_id = ranges.allocate(uid, start).map_err(fail)?;
        let mapping = Mapping { host_id, container_id: 0, length: ranges.size };
        if !known && let Err(error) = keep(&self.pods.join(uid), mapping) {
            ranges.used.remove(uid);
            return Err(fail(error.to_string()));
        }
        let ids = vec![v1::IdMapping { host_id, container_id: 0, length: mapping.length }];
        Ok(Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }))
    }

    /// Once nothing of the pod is left on disk.
    pub fn release(&self, uid: &str) {
        self.ranges.lock().used.remove(uid);
    }
}

pub fn wanted(pod: &Pod) -> bool {
    pod::spec(pod).host_users == Some(false)
}

/// Writes a pod's file, so that it survives a loss of power together with what the pod does.
fn keep(directory: &Path, mapping: Mapping) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let next = directory.join(".userns");
    let mappings = Mappings { uid_mappings: vec![mapping], gid_mappings: vec![mapping] };
    let mut file = File::create(&next)?;
    file.write_all(&serde_json::to_vec(&mappings)?)?;
    file.sync_all()?;
    fs::rename(&next, directory.join(FILE))?;
    File::open(directory)?.sync_all()
}

/// Refuses pods with user namespaces where the runtime, as far as it has told of its handlers, has none.
pub fn supported(handlers: Option<&[v1::RuntimeHandler]>, handler: &str) -> Result<(), String> {
    let refusal = match handler {
        "" => "can't set `spec.hostUsers: false`, runtime does not support user namespaces".to_owned(),
        _ => format!(
            "can't set `spec.hostUsers: false`, RuntimeClass handler {handler:?} does not support user namespaces"
        ),
    };
    let Some(handlers) = handlers else { return Err(format!("{refusal}: runtime handlers are not set")) };
    let Some(known) = handlers.iter().find(|known| known.name == handler) else {
        return Err(format!("{refusal}: the handler {handler:?} is not known"));
    };
    match known.features.is_some_and(|features| features.user_namespaces) {
        true => Ok(()),
        false => Err(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: (u32, u64) = (UNIT, IDS - UNIT as u64);

    #[test]
    fn the_hosts_ids_come_from_the_user_kubelet() {
        let passwd = "root:x:0:0::/:/bin/sh\nkubelet:x:990:990::/:/bin/false\n";
        let good = Some("me:1:2\nkubelet:131072:13107200\n");
        type Expected = Result<(u32, u64), &'static str>;
        let cases: [(&str, Option<&str>, Option<&str>, Expected); 9] = [
            ("root:x:0:0::/:/bin/sh\n", good, good, Ok(DEFAULT)),
            (passwd, None, None, Ok(DEFAULT)),
            (passwd, good, good, Ok((131_072, 13_107_200))),
            (passwd, Some("990:131072:13107200"), good, Ok((131_072, 13_107_200))),
            (passwd, good, None, Err("error retrieving additional gids for user \"kubelet\"")),
            (passwd, Some("me:1:2\n"), good, Err("error retrieving additional uids for user \"kubelet\"")),
            (passwd, good, Some("kubelet:65536:65536"), Err("mismatched subuids and subgids for user \"kubelet\"")),
            (
                passwd,
                Some("kubelet:1:2\nkubelet:3:4"),
                Some("kubelet:1:2\nkubelet:3:4"),
                Err("error parsing line \"1:2\\n3:4\": it must contain only one line"),
            ),
            (passwd, Some("kubelet:a:2"), Some("kubelet:a:2"), Err("invalid line \"a:2\"")),
        ];
        for (passwd, subuid, subgid, expected) in cases {
            match (host_ids(passwd, subuid, subgid, UNIT), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(text)) => assert!(error.starts_with(text), "{error}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn ranges_are_whole_and_enough() {
        type Expected = Result<u32, &'static str>;
        let cases: [((u32, u64), u32, u32, Expected); 9] = [
            // 65535 ranges, of which the kernel takes all but the last.
            (DEFAULT, UNIT, 110, Ok(65_534)),
            ((2 * UNIT, IDS - 2 * u64::from(UNIT)), 2 * UNIT, 110, Ok(32_766)),
            ((UNIT, 110 * u64::from(UNIT)), UNIT, 110, Ok(110)),
            (DEFAULT, 0, 1, Err("kubelet user namespace length 0 is not a multiple of 65536")),
            (DEFAULT, 70_000, 1, Err("kubelet user namespace length 70000 is not a multiple of 65536")),
            ((100_000, 65_536), UNIT, 1, Err("kubelet user assigned ID 100000 is not a multiple of 65536")),
            ((0, 65_536), UNIT, 1, Err("kubelet user assigned ID 0 must be greater or equal to 65536")),
            ((UNIT, 70_000), UNIT, 1, Err("kubelet user assigned IDs length 70000 is not a multiple of 65536")),
            ((UNIT, 65_536), UNIT, 2, Err("kubelet user assigned IDs are not enough to support 2 pods")),
        ];
        for (ids, size, max_pods, expected) in cases {
            let found = Ranges::new(ids, size, max_pods).map(|ranges| ranges.count);
            assert_eq!(found, expected.map_err(str::to_owned), "{ids:?} {size} {max_pods}");
        }
    }

    #[test]
    fn every_pod_has_a_range_of_its_own() {
        let mut ranges = Ranges::new((2 * UNIT, 3 * u64::from(UNIT)), UNIT, 3).unwrap();
        assert_eq!(ranges.allocate("a", 1), Ok(3 * UNIT));
        assert_eq!(ranges.allocate("b", 1), Ok(4 * UNIT), "the next one");
        assert_eq!(ranges.allocate("a", 0), Ok(3 * UNIT), "the one it has");
        assert_eq!(ranges.allocate("c", 7), Ok(2 * UNIT), "around the end");
        let full = ranges.allocate("d", 0);
        assert_eq!(full.unwrap_err(), "could not find an empty slot to allocate a user namespace");
        ranges.used.remove("b");
        assert_eq!(ranges.allocate("d", 0), Ok(4 * UNIT));
        ranges.used.remove("c");
        for (host, length, expected) in [
            (2 * UNIT, 2 * UNIT, Err("wrong user namespace length 131072")),
            (2 * UNIT + 1, UNIT, Err("wrong user namespace offset specified 131073")),
            (UNIT, UNIT, Err("id 65536 is out of range")),
            (5 * UNIT, UNIT, Err("id 327680 is out of range")),
            (3 * UNIT, UNIT, Err("range picked for pod \"e\" already taken")),
            (2 * UNIT, UNIT, Ok(())),
        ] {
            assert_eq!(ranges.record("e", host, length), expected.map_err(str::to_owned), "{host}");
        }
        assert_eq!(ranges.allocate("e", 1), Ok(2 * UNIT));
    }

    #[test]
    fn a_pods_file_says_one_range() {
        let one = r#"{"hostId":131072,"containerId":0,"length":65536}"#;
        let file = |uids: &str, gids: &str| format!(r#"{{"uidMappings":[{uids}],"gidMappings":[{gids}]}}"#);
        let mapping = Mapping { host_id: 131_072, container_id: 0, length: 65_536 };
        let directory = tempfile::tempdir().unwrap();
        keep(directory.path(), mapping).unwrap();
        assert_eq!(fs::read_to_string(directory.path().join(FILE)).unwrap(), file(one, one));
        let shifted = one.replace("\"containerId\":0", "\"containerId\":1");
        for (content, expected) in [
            (file(one, one), Ok(mapping)),
            ("x".to_owned(), Err("invalid user namespace mappings file: ")),
            (file(&format!("{one},{one}"), one), Err("no more than one mapping allowed.")),
            (file(one, ""), Err("GID and UID mappings should be identical.")),
            (file(one, &shifted), Err("GID and UID mapping should be identical")),
            (file(&shifted, &shifted), Err("UID 0 must be mapped")),
        ] {
            match (parse(content.as_bytes()), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(text)) => assert!(error.contains(text), "{error}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn ranges_outlive_the_kubelet_and_end_with_the_pod() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new("node", [127, 0, 0, 1].into(), "");
        config.root_dir = directory.path().into();
        let pod = |host_users: Option<bool>| -> Pod {
            let spec = serde_json::json!({"containers": [], "hostUsers": host_users});
            serde_json::from_value(serde_json::json!({"metadata": {"uid": "a"}, "spec": spec})).unwrap()
        };
        let users = UserNamespaces::open(&config).unwrap();
        assert_eq!(users.of(&pod(None)), Ok(None));
        assert_eq!(users.of(&pod(Some(true))), Ok(None));
        let first = users.of(&pod(Some(false))).unwrap();
        let next = UserNamespaces::open(&config).unwrap();
        let known = || next.ranges.lock().used.len();
        assert_eq!(known(), 1);
        assert_eq!(next.of(&pod(Some(false))), Ok(first));
        next.release("a");
        assert_eq!(known(), 0);
        fs::write(config.pod_dir("a").join(FILE), "{}").unwrap();
        let error = UserNamespaces::open(&config).map(drop).unwrap_err();
        assert!(error.starts_with("record pod mappings for existing pod \"a\": invalid user namespace"), "{error}");
    }

    #[test]
    fn runtimes_say_what_they_support() {
        let handler = |name: &str, user_namespaces| v1::RuntimeHandler {
            name: name.to_owned(),
            features: Some(v1::RuntimeHandlerFeatures { user_namespaces, ..Default::default() }),
        };
        let handlers = [handler("", true), handler("old", false)];
        let plain = "can't set `spec.hostUsers: false`, runtime does not support user namespaces";
        let class = |name: &str| {
            format!("can't set `spec.hostUsers: false`, RuntimeClass handler {name:?} does not support user namespaces")
        };
        for (handlers, name, expected) in [
            (Some(&handlers[..]), "", Ok(())),
            (Some(&handlers[..]), "old", Err(class("old"))),
            (Some(&handlers[..]), "new", Err(class("new") + ": the handler \"new\" is not known")),
            (Some(&[][..]), "", Err(format!("{plain}: the handler \"\" is not known"))),
            (Some(&[handler("", false)][..]), "", Err(plain.to_owned())),
            (None, "", Err(format!("{plain}: runtime handlers are not set"))),
        ] {
            assert_eq!(supported(handlers, name), expected);
        }
    }
}
