//! What a request asks for, read from its method, path and query: the terms that authorization,
//! metrics and handlers share. Whether the resource exists is not known here.

use http::Method;
use machinery::status::{ApiError, Result};

/// Upstream's RequestInfo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub resource_request: bool,
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource, for proxies; without a leading slash.
    pub rest: String,
    pub path: String,
}

impl RequestInfo {
    pub fn parse(method: &Method, path: &str, query: &Query) -> RequestInfo {
        let mut info =
            RequestInfo { verb: method.as_str().to_lowercase(), path: path.into(), ..RequestInfo::default() };
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts[..] {
            ["api", version, _, ..] => ("", version, parts.split_off(2)),
            ["apis", group, version, _, ..] => (group, version, parts.split_off(3)),
            _ => return info,
        };
        (info.resource_request, info.group, info.version) = (true, group.into(), version.into());
        info.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            // A proxied method; only a role that allows everything allows it.
            _ => "",
        }
        .into();
        info.place(&rest);
        info.settle(query);
        info
    }

    /// Takes namespace, resource, name and subresource from the path behind the version.
    fn place(&mut self, mut parts: &[&str]) {
        if let ["watch", rest @ ..] = parts
            && !rest.is_empty()
        {
            self.verb = "watch".into();
            parts = rest;
        }
        if let ["namespaces", namespace, rest @ ..] = parts {
            self.namespace = (*namespace).into();
            // A namespace's own subresources look like resources inside it.
            if !rest.is_empty() && rest[0] != "status" && rest[0] != "finalize" {
                parts = rest;
            }
        }
        let mut parts = parts.iter().map(|part| (*part).to_owned());
        self.resource = parts.next().unwrap_or_default();
        self.name = parts.next().map(|name| decode(&name)).unwrap_or_default();
        self.subresource = parts.next().unwrap_or_default();
        self.rest = parts.collect::<Vec<_>>().join("/");
    }

    fn settle(&mut self, query: &Query) {
        if !self.name.is_empty() {
            return;
        }
        match self.verb.as_str() {
            "get" if query.watch() => self.verb = "watch".into(),
            "get" => self.verb = "list".into(),
            "delete" => self.verb = "deletecollection".into(),
            _ => {}
        }
        if ["list", "watch", "deletecollection"].contains(&&*self.verb) {
            // A list of one by name is authorized as access to that name.
            let selector = machinery::fields::FieldSelector::parse(query.get("fieldSelector")).ok();
            if let Some(name) = selector.as_ref().and_then(|selector| selector.exact("metadata.name")) {
                self.name = name.to_owned();
            }
        }
    }

    /// May stay open as long as the client likes, so it counts against no limit of time or number.
    pub fn long_running(&self) -> bool {
        self.verb == "watch"
            || (self.resource_request
                && ["attach", "exec", "log", "portforward", "proxy"].contains(&&*self.subresource))
    }

    pub fn mutating(&self) -> bool {
        !["", "get", "list", "watch", "head", "options"].contains(&&*self.verb)
    }

    /// `namespace` as a key's first part.
    pub fn key(&self) -> String {
        key(&self.namespace, &self.name)
    }
}

/// The key of an object below its resource's prefix.
pub fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// The query string, decoded. Parameters are few, so they are searched, not hashed.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Query {
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&key.replace('+', " ")), decode(&value.replace('+', " ")))
        };
        Query(query.split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// Empty when absent.
    pub fn get(&self, key: &str) -> &str {
        self.find(key).unwrap_or_default()
    }

    pub fn find(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| &**value)
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| &**value)
    }

    /// Go's conversion of a boolean query parameter: anything but "0" and "false" is true.
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.find(key).map(|value| !["0", "false", "False", "FALSE"].contains(&value))
    }

    pub fn watch(&self) -> bool {
        self.bool("watch").unwrap_or(false)
    }

    pub fn int(&self, key: &str) -> Result<Option<i64>> {
        let parse = |value: &str| {
            value
                .parse()
                .map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax")))
        };
        self.find(key).filter(|value| !value.is_empty()).map(parse).transpose()
    }

    /// A resourceVersion parameter; absent and empty are the same.
    pub fn revision(&self, key: &str) -> Result<Option<i64>> {
        let parse = |value: &str| {
            value.parse::<i64>().ok().filter(|revision| *revision >= 0).ok_or_else(|| {
                ApiError::bad_request(format!(
                    "invalid resource version: {key}: Invalid value: {value:?}: strconv.ParseUint: parsing {value:?}: invalid syntax"
                ))
            })
        };
        self.find(key).filter(|value| !value.is_empty()).map(parse).transpose()
    }
}

/// Undoes percent-encoding; what is not valid stays as it is.
pub fn decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten().and_then(|pair| hex::decode(pair).ok());
        bytes.push(escaped.as_ref().map_or(*first, |byte| byte[0]));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_request_infos() {
        let cases = [
            ("GET", "/api/v1/pods", "list//v1//pods///"),
            ("GET", "/api/v1/pods?watch=true", "watch//v1//pods///"),
            ("GET", "/api/v1/pods?watch=0", "list//v1//pods///"),
            ("GET", "/api/v1/watch/namespaces/a/pods", "watch//v1/a/pods///"),
            ("GET", "/api/v1/namespaces/a/pods/b", "get//v1/a/pods/b//"),
            ("GET", "/api/v1/namespaces/a/pods/b/log", "get//v1/a/pods/b/log/"),
            ("POST", "/api/v1/namespaces/a/services/b:80/proxy/x/y", "create//v1/a/services/b:80/proxy/x/y"),
            ("OPTIONS", "/api/v1/namespaces/a/pods/b/proxy/", "//v1/a/pods/b/proxy/"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update//v1/a/namespaces/a/finalize/"),
            ("GET", "/api/v1/namespaces/a", "get//v1/a/namespaces/a//"),
            ("GET", "/api/v1/namespaces", "list//v1//namespaces///"),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection/apps/v1/a/deployments///"),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b/scale", "patch/apps/v1/a/deployments/b/scale/"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Db", "list//v1//pods/b//"),
            ("GET", "/apis/apps/v1", "get///////"),
            ("POST", "/healthz", "post///////"),
        ];
        for (method, uri, want) in cases {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let info = RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query));
            let got = [
                info.verb,
                info.group,
                info.version,
                info.namespace,
                info.resource,
                info.name,
                info.subresource,
                info.rest,
            ];
            assert_eq!(got.join("/"), want, "{method} {uri}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&x=1+2&watch=False&limit=&n=x");
        assert_eq!((query.get("labelSelector"), query.get("x")), ("a=b,c", "1 2"));
        assert!(!query.watch());
        assert_eq!(query.int("limit").unwrap(), None);
        assert!(query.int("n").is_err());
    }
}
