//! Users and groups as the container's own /etc/passwd and /etc/group know them.

use super::spec::{Identity, User};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Looks the user up in the files of the current root.
pub(crate) fn resolve(user: &User) -> Result<Identity, String> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    resolve_in(user, &read(PASSWD), &read(GROUP))
}

/// A uid needs no entry; a name does.
pub(crate) fn resolve_in(user: &User, passwd: &str, group: &str) -> Result<Identity, String> {
    let (name, group_name) = match user.name.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user.name.as_str(), None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let entry = entries(passwd).find(|fields| fields[0] == name).or_else(|| {
        name.parse::<u32>().ok().and_then(|uid| entries(passwd).find(|fields| number(fields, 2) == Some(uid)))
    });
    let uid = match (&entry, name.parse()) {
        (Some(fields), _) => number(fields, 2).ok_or(format!("user {name:?} has no numeric uid"))?,
        (None, Ok(uid)) => uid,
        (None, Err(_)) => return Err(format!("unable to find user {name}: no matching entries in passwd file")),
    };
    let gid = match (user.gid, group_name) {
        (Some(gid), _) => gid,
        (None, Some(group_name)) => find_group(group_name, group)?,
        (None, None) => entry.as_ref().and_then(|fields| number(fields, 3)).unwrap_or(0),
    };
    let mut groups = vec![gid];
    if !user.strict {
        let login = entry.as_ref().map_or(name, |fields| fields[0]);
        groups.extend(memberships(login, group));
    }
    groups.extend(&user.supplemental);
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    let home = entry.and_then(|fields| fields.get(5).filter(|home| !home.is_empty()).map(ToString::to_string));
    Ok(Identity { uid, gid, groups, home: home.unwrap_or_else(|| "/".into()) })
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|f| f.len() >= 3)
}

fn number(fields: &[&str], position: usize) -> Option<u32> {
    fields.get(position)?.parse().ok()
}

fn find_group(name: &str, group: &str) -> Result<u32, String> {
    let found = entries(group).find(|fields| fields[0] == name).and_then(|fields| number(&fields, 2));
    found.or(name.parse().ok()).ok_or(format!("unable to find group {name}: no matching entries in group file"))
}

fn memberships<'a>(login: &'a str, group: &'a str) -> impl Iterator<Item = u32> + 'a {
    entries(group)
        .filter(move |fields| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == login)))
        .filter_map(|fields| number(&fields, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nweb:x:1000:1001:Web:/home/web:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:1001:\nlogs:x:4:syslog,web\naudio:x:29:web\n";

    #[test]
    fn users_resolve_as_images_mean_them() {
        let user = |name: &str| User { name: name.into(), ..User::default() };
        let strict = User { strict: true, supplemental: vec![7, 1001], ..user("web") };
        let cases: Vec<(User, u32, u32, Vec<u32>, &str)> = vec![
            (user(""), 0, 0, vec![0], "/root"),
            (user("web"), 1000, 1001, vec![1001, 4, 29], "/home/web"),
            (user("1000"), 1000, 1001, vec![1001, 4, 29], "/home/web"),
            (user("4242"), 4242, 0, vec![0], "/"),
            (user("web:audio"), 1000, 29, vec![29, 4], "/home/web"),
            (user("12:34"), 12, 34, vec![34], "/"),
            (User { gid: Some(5), supplemental: vec![6], ..user("web") }, 1000, 5, vec![5, 4, 29, 6], "/home/web"),
            (strict, 1000, 1001, vec![1001, 7], "/home/web"),
        ];
        for (user, uid, gid, groups, home) in cases {
            let expected = Identity { uid, gid, groups, home: home.into() };
            assert_eq!(resolve_in(&user, PASSWD, GROUP).unwrap(), expected, "{user:?}");
        }
        assert!(resolve_in(&user("nobody"), PASSWD, GROUP).unwrap_err().contains("unable to find user nobody"));
    }
}
