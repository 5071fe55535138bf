//! The meaning of a list or watch request: which revision it wants, and what its continue token says.
//!
//! Pure, so that the many combinations of resourceVersion, resourceVersionMatch, limit, continue and
//! sendInitialEvents are one table in a test.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use machinery::{
    field::{ErrorList, FieldError},
    status::{ApiError, Result},
};
use serde::{Deserialize, Serialize};

use crate::request::Query;

/// The revision a list shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// As of now.
    Consistent,
    /// Whatever the cache holds.
    Any,
    /// At least this new.
    NotOlder(i64),
    Exact(i64),
    /// A later page of a list of this revision, from `start` on.
    Page {
        revision: i64,
        start: String,
    },
    /// A later page of a list whose revision is lost: from `start` on, as of now.
    Rest {
        start: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListRequest {
    pub at: At,
    /// Items per page; 0 means all.
    pub limit: usize,
}

impl ListRequest {
    pub fn parse(query: &Query) -> Result<ListRequest> {
        check(validate_list(query))?;
        let revision = query.revision("resourceVersion")?;
        let limit = query.int("limit")?.unwrap_or(0).max(0) as usize;
        let at = match (query.get("continue"), revision, query.get("resourceVersionMatch")) {
            ("", None, _) => At::Consistent,
            ("", Some(0), _) => At::Any,
            ("", Some(revision), "Exact") => At::Exact(revision),
            // A page of a given revision has always meant that very revision.
            ("", Some(revision), "") if limit > 0 => At::Exact(revision),
            ("", Some(revision), _) => At::NotOlder(revision),
            (_, Some(revision), _) if revision > 0 => {
                return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
            }
            (token, ..) => page(token)?,
        };
        Ok(ListRequest { at, limit })
    }
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchRequest {
    /// Tell the present first.
    pub initial: bool,
    /// Only with `initial`: say when the present has been told.
    pub initial_end: bool,
    /// Without `initial`: the revision after which to begin. With it: how new the present must be;
    /// `None` is as of now.
    pub revision: Option<i64>,
    pub bookmarks: bool,
}

impl WatchRequest {
    pub fn parse(query: &Query) -> Result<WatchRequest> {
        check(validate_watch(query))?;
        let revision = query.revision("resourceVersion")?;
        let bookmarks = query.bool("allowWatchBookmarks").unwrap_or(false);
        let send = query.bool("sendInitialEvents");
        // Unset, a watch from nowhere in particular has always begun with the present.
        let initial = send.unwrap_or(matches!(revision, None | Some(0)));
        let unset = send == Some(false) && matches!(revision, None | Some(0));
        Ok(WatchRequest {
            initial,
            initial_end: send == Some(true) && bookmarks,
            revision: if unset { None } else { revision },
            bookmarks,
        })
    }
}

fn check(errors: ErrorList) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", errors))
}

const MATCH: &str = "resourceVersionMatch";

fn validate_list(query: &Query) -> ErrorList {
    let mut errors = ErrorList::new();
    let (wanted, version) = (query.get(MATCH), query.get("resourceVersion"));
    if !wanted.is_empty() {
        if version.is_empty() {
            errors.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !query.get("continue").is_empty() {
            errors.push(FieldError::forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided"));
        }
        if wanted != "Exact" && wanted != "NotOlderThan" {
            errors.push(FieldError::not_supported(MATCH, wanted, &["Exact", "NotOlderThan", ""]));
        }
        if wanted == "Exact" && version == "0" {
            errors.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    if query.find("sendInitialEvents").is_some() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    errors
}

fn validate_watch(query: &Query) -> ErrorList {
    let mut errors = ErrorList::new();
    let (wanted, send) = (query.get(MATCH), query.find("sendInitialEvents").is_some());
    if send && wanted != "NotOlderThan" {
        errors.push(FieldError::forbidden(
            MATCH,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    if !wanted.is_empty() {
        if !send {
            errors.push(FieldError::forbidden(
                MATCH,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if wanted != "NotOlderThan" {
            errors.push(FieldError::not_supported(MATCH, wanted, &["NotOlderThan"]));
        }
        if !query.get("continue").is_empty() {
            errors.push(FieldError::forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided"));
        }
    }
    errors
}

/// What a continue token carries, in upstream's format.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";
/// The revision in a token that has none: continue from what is there now.
const INCONSISTENT: i64 = -1;

/// The token for the page that begins after the key `last`; without a revision it continues from now.
pub fn token(last: &str, revision: Option<i64>) -> String {
    let token = Token { v: TOKEN_VERSION.into(), rv: revision.unwrap_or(INCONSISTENT), start: format!("{last}\0") };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

fn page(token: &str) -> Result<At> {
    let invalid =
        |why: String| ApiError::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|error| invalid(error.to_string()))?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    if token.v != TOKEN_VERSION {
        return Err(invalid(format!("server does not recognize this encoded version {}", token.v)));
    }
    if token.rv == 0 {
        return Err(invalid(format!("incorrect encoded start resourceVersion (version {TOKEN_VERSION})")));
    }
    if token.start.is_empty() {
        return Err(invalid(format!("encoded start key empty (version {TOKEN_VERSION})")));
    }
    // No way to climb out of the resource.
    if token.start.starts_with('/') || token.start.split('/').any(|part| ["", ".", ".."].contains(&part)) {
        return Err(invalid(token.start));
    }
    match token.rv {
        revision if revision > 0 => Ok(At::Page { revision, start: token.start }),
        _ => Ok(At::Rest { start: token.start }),
    }
}

/// Upstream's words when the revision of a continued list is gone.
pub const PAGE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. \
    You can start a new list without the continue parameter, or use the continue token in this response to retrieve \
    the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that \
    were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_say_which_revision_they_want() {
        let later = format!("limit=2&continue={}", token("ns/a", Some(7)));
        let rest = format!("continue={}", token("ns/a", None));
        let both = format!("resourceVersion=5&continue={}", token("ns/a", Some(7)));
        let cases = [
            ("", Some((At::Consistent, 0))),
            ("limit=3", Some((At::Consistent, 3))),
            ("resourceVersion=0", Some((At::Any, 0))),
            ("resourceVersion=0&limit=5", Some((At::Any, 5))),
            ("resourceVersion=5", Some((At::NotOlder(5), 0))),
            ("resourceVersion=5&limit=2", Some((At::Exact(5), 2))),
            ("resourceVersion=5&limit=2&resourceVersionMatch=NotOlderThan", Some((At::NotOlder(5), 2))),
            ("resourceVersion=5&resourceVersionMatch=Exact", Some((At::Exact(5), 0))),
            (&later, Some((At::Page { revision: 7, start: "ns/a\0".into() }, 2))),
            (&rest, Some((At::Rest { start: "ns/a\0".into() }, 0))),
            (&both, None),
            ("resourceVersion=0&resourceVersionMatch=Exact", None),
            ("resourceVersionMatch=Exact", None),
            ("resourceVersion=5&resourceVersionMatch=Newest", None),
            ("sendInitialEvents=true", None),
            ("resourceVersion=x", None),
            ("continue=x", None),
        ];
        for (query, want) in cases {
            let got = ListRequest::parse(&Query::parse(query)).ok().map(|request| (request.at, request.limit));
            assert_eq!(got, want, "{query}");
        }
    }

    #[test]
    fn watches_say_where_they_begin() {
        let request = |initial, initial_end, revision, bookmarks| {
            Some(WatchRequest { initial, initial_end, revision, bookmarks })
        };
        let cases = [
            ("", request(true, false, None, false)),
            ("resourceVersion=0", request(true, false, Some(0), false)),
            ("resourceVersion=5&allowWatchBookmarks=1", request(false, false, Some(5), true)),
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
                request(true, true, None, true),
            ),
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=5",
                request(true, false, Some(5), false),
            ),
            ("sendInitialEvents=false&resourceVersionMatch=NotOlderThan", request(false, false, None, false)),
            ("sendInitialEvents=true", None),
            ("resourceVersionMatch=NotOlderThan&resourceVersion=5", None),
        ];
        for (query, want) in cases {
            assert_eq!(WatchRequest::parse(&Query::parse(query)).ok(), want, "{query}");
        }
    }
}
