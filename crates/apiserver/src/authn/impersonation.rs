//! `kubectl --as`: acting as somebody else, each part of whose identity must be authorized.

use std::collections::BTreeMap;

use http::HeaderMap;
use machinery::status::{ApiError, Result};

use super::{extra_headers, header_values};
use crate::authz::{Attributes, Authorizer, check};
use crate::identity::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo, service_account_groups};

const EXTRA: &str = "impersonate-extra-";

/// The user the request acts as; `user` itself when it asks for nobody else.
pub fn impersonate(headers: &HeaderMap, user: UserInfo, authorizer: &dyn Authorizer) -> Result<UserInfo> {
    let Some(wanted) = requested(headers)? else { return Ok(user) };
    authorize(&wanted, &user, authorizer)?;
    Ok(complete(wanted))
}

fn requested(headers: &HeaderMap) -> Result<Option<UserInfo>> {
    let one = |name| header_values(headers, name).into_iter().next().unwrap_or_default();
    let mut extra = BTreeMap::<String, Vec<String>>::new();
    for (key, value) in extra_headers(headers, EXTRA) {
        extra.entry(key).or_default().push(value);
    }
    let wanted = UserInfo {
        name: one("impersonate-user"),
        uid: one("impersonate-uid"),
        groups: header_values(headers, "impersonate-group"),
        extra,
    };
    if wanted == UserInfo::default() {
        return Ok(None);
    }
    if wanted.name.is_empty() {
        return Err(ApiError::internal("requested groups, uid or extra without impersonating a user"));
    }
    Ok(Some(wanted))
}

fn authorize(wanted: &UserInfo, user: &UserInfo, authorizer: &dyn Authorizer) -> Result<()> {
    let core = |resource| Attributes::resource(user, "impersonate", "", resource);
    let identity = |resource| Attributes::resource(user, "impersonate", "authentication.k8s.io", resource);
    check(
        authorizer,
        &match wanted.as_service_account() {
            Some((namespace, name)) => core("serviceaccounts").namespace(namespace).name(name),
            None => core("users").name(&wanted.name),
        },
    )?;
    for group in &wanted.groups {
        check(authorizer, &core("groups").name(group))?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            check(authorizer, &identity("userextras").subresource(key).name(value))?;
        }
    }
    if !wanted.uid.is_empty() {
        check(authorizer, &identity("uids").name(&wanted.uid))?;
    }
    Ok(())
}

fn complete(mut user: UserInfo) -> UserInfo {
    if user.groups.is_empty()
        && let Some((namespace, _)) = user.as_service_account()
    {
        user.groups = service_account_groups(namespace);
    }
    if !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
        user.add_group(if user.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED });
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Decision;

    /// Allows what it lists, as `resource[/subresource]:name`.
    struct Allow(&'static [&'static str]);

    impl Authorizer for Allow {
        fn authorize(&self, a: &Attributes<'_>) -> Decision {
            assert_eq!(a.verb, "impersonate");
            let resource =
                if a.subresource.is_empty() { a.resource.into() } else { format!("{}/{}", a.resource, a.subresource) };
            let key = format!("{resource}:{}", a.name);
            if self.0.contains(&key.as_str()) { Decision::Allow("".into()) } else { Decision::NoOpinion("".into()) }
        }
    }

    fn act(headers: &[(&'static str, &'static str)], allowed: &'static [&'static str]) -> Result<UserInfo> {
        let headers = headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
        impersonate(&headers, UserInfo::component("bob"), &Allow(allowed))
    }

    #[test]
    fn every_part_needs_permission() {
        assert_eq!(act(&[], &[]).unwrap().name, "bob");
        let jane = act(&[("Impersonate-User", "jane")], &["users:jane"]).unwrap();
        assert_eq!((jane.name.as_str(), jane.groups), ("jane", vec![AUTHENTICATED.to_owned()]));

        let account = [("Impersonate-User", "system:serviceaccount:ns:sa")];
        assert!(act(&account, &["serviceaccounts:sa"]).unwrap().in_group("system:serviceaccounts:ns"));

        let all = [
            ("Impersonate-User", "jane"),
            ("Impersonate-Group", "a"),
            ("Impersonate-Group", "b"),
            ("Impersonate-Extra-Acme.com%2fScope", "x"),
            ("Impersonate-Uid", "7"),
        ];
        const NEEDED: &[&str] = &["users:jane", "groups:a", "groups:b", "userextras/acme.com/scope:x", "uids:7"];
        let user = act(&all, NEEDED).unwrap();
        assert_eq!(user.groups, ["a", "b", AUTHENTICATED]);
        assert_eq!((user.uid.as_str(), &user.extra["acme.com/scope"][0]), ("7", &"x".to_owned()));
        let error = act(&all, &NEEDED[..4]).unwrap_err();
        assert_eq!(error.status.code, 403);
        assert!(error.to_string().contains(r#"User "bob" cannot impersonate resource "uids""#), "{error}");
    }

    #[test]
    fn group_without_user_is_an_error() {
        assert_eq!(act(&[("Impersonate-Group", "a")], &["groups:a"]).unwrap_err().status.code, 500);
    }
}
